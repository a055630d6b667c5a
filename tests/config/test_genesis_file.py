"""The genesis file: one genesis, two spellings."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from node.config.genesis_file import GenesisInvalid, genesis_from_json, genesis_to_json, load_genesis, make_genesis
from node.keystore.development import development_keys
from protocol.ledger.channels import redeem_fee
from protocol.messages.genesis import Allocation, AuthorityRecord, Genesis, Parameters, genesis_hash
from protocol.messages.governance import PARAMETER_BOUNDS, Bounds, ParametersInvalid, check_parameters
from protocol.primitives.units import AMOUNT_MAX, CREDIT, Amount, AuthorityId, TimestampMs

HOUR_MS = 3_600_000
PARAMETERS = msgspec.convert(
    (15_000, 500, 10_000, 500, HOUR_MS, 24 * HOUR_MS, 1, 1, 1, 1, 10, 1_000, HOUR_MS, HOUR_MS, 0, 1, 1, 24 * HOUR_MS),
    Parameters,
)


def authority(name: str) -> AuthorityRecord:
    keys = development_keys(name, True)
    assert keys.authority_id is not None
    return AuthorityRecord(AuthorityId(keys.authority_id), keys.account_id, keys.node_id, name)


def allocation(name: str, balance: int = 5) -> Allocation:
    return Allocation(development_keys(name, False).account_id, Amount(balance), Amount(0))


def genesis(
    authorities: tuple[AuthorityRecord, ...] | None = None, allocations: tuple[Allocation, ...] = ()
) -> Genesis:
    return make_genesis(
        network="test",
        development=False,
        created_at=TimestampMs(1),
        parameters=PARAMETERS,
        authorities=authorities or (authority("a"), authority("b")),
        allocations=allocations or (allocation("a"), allocation("c")),
    )


def test_file_gives_the_same_genesis_and_hash_back() -> None:
    made = genesis()
    again = genesis_from_json(genesis_to_json(made), "x")
    assert again == made
    assert genesis_hash(again) == genesis_hash(made)


def test_order_of_contributions_changes_nothing() -> None:
    other = genesis((authority("b"), authority("a")), (allocation("c"), allocation("a")))
    assert genesis_hash(other) == genesis_hash(genesis())


@pytest.mark.parametrize(
    ("authorities", "allocations", "reason"),
    [
        ((authority("a"), authority("a")), (), "authority is named twice"),
        ((), (allocation("a"), allocation("a")), "allocation is named twice"),
        ((), (allocation("a", AMOUNT_MAX), allocation("b", 1)), "largest amount"),
    ],
)
def test_genesis_that_contradicts_itself_is_refused(
    authorities: tuple[AuthorityRecord, ...], allocations: tuple[Allocation, ...], reason: str
) -> None:
    with pytest.raises(GenesisInvalid, match=reason):
        genesis(authorities, allocations)


def _changed(**changes: Any) -> bytes:
    tree = msgspec.json.decode(genesis_to_json(genesis()))
    for key, value in changes.items():
        tree[key] = value
    return msgspec.json.encode(tree)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        _changed(format="other/1"),
        _changed(extra=1),
        _changed(network=""),
        _changed(created_at=-1),
        _changed(authorities=[]),
        _changed(allocations=[{"account": "mc1qqq", "balance": 1, "bond": 0}]),
        _changed(allocations=[{"account": "mc1qqq", "balance": -1, "bond": 0}]),
        _changed(parameters={}),
    ],
)
def test_file_that_is_no_genesis_is_refused_by_name(content: bytes) -> None:
    with pytest.raises(GenesisInvalid, match=r"here\.json"):
        genesis_from_json(content, "here.json")


def test_node_address_in_an_accounts_place_is_refused() -> None:
    tree = msgspec.json.decode(genesis_to_json(genesis()))
    tree["allocations"][0]["account"] = tree["authorities"][0]["node"]
    with pytest.raises(GenesisInvalid, match="mc1"):
        genesis_from_json(msgspec.json.encode(tree), "x")


def test_share_above_everything_is_refused() -> None:
    tree = msgspec.json.decode(genesis_to_json(genesis()))
    tree["parameters"]["redeem_fee_share_ppm"] = 1_000_001
    with pytest.raises(GenesisInvalid):
        genesis_from_json(msgspec.json.encode(tree), "x")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GenesisInvalid, match=r"none\.json"):
        load_genesis(tmp_path / "none.json")


@pytest.mark.parametrize(("name", "bounds"), PARAMETER_BOUNDS.items(), ids=list(PARAMETER_BOUNDS))
def test_a_parameter_out_of_its_bounds_is_refused_by_name(name: str, bounds: Bounds) -> None:
    """Windows that cost somebody a claim when they are short may be short in development networks alone."""
    good = msgspec.structs.replace(PARAMETERS, unbonding_ms=PARAMETER_BOUNDS["unbonding_ms"].most)
    check_parameters(good, development=False)
    for development, least in ((False, bounds.least), (True, bounds.least_development)):
        for value in (least - 1, bounds.most + 1):
            with pytest.raises(ParametersInvalid, match=name):
                check_parameters(msgspec.structs.replace(good, **{name: value}), development)


def test_every_parameter_has_bounds() -> None:
    assert tuple(PARAMETER_BOUNDS) == Parameters.__struct_fields__


def test_no_vote_can_eat_what_somebody_holds_in_vouchers_by_fees() -> None:
    dearest = msgspec.structs.replace(
        PARAMETERS,
        **{name: PARAMETER_BOUNDS[name].most for name in ("fee_min", "redeem_fee_min", "redeem_fee_share_ppm")},
    )
    check_parameters(dearest, development=False)
    for credits_held in (1, 5, 100, 10_000):
        held = Amount(credits_held * CREDIT)
        assert dearest.fee_min + redeem_fee(dearest, held) <= held // 10 + 2 * CREDIT


def test_parameters_that_do_not_fit_each_other_are_refused() -> None:
    for change in ({"delta_ms": 10_001}, {"evidence_ms": 24 * HOUR_MS + 1}):
        with pytest.raises(ParametersInvalid, match="exceeds"):
            check_parameters(msgspec.structs.replace(PARAMETERS, **change), development=False)


def test_two_authorities_with_one_account_are_refused() -> None:
    shared = msgspec.structs.replace(authority("b"), account=authority("a").account)
    with pytest.raises(GenesisInvalid, match="account of an authority is named twice"):
        genesis((authority("a"), shared))
