"""The register of models: first come stays the publisher, and an entry is a row like any other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.ledger.blocks import execute_block
from protocol.ledger.checkpoints import CHECKPOINT_INTERVAL
from protocol.ledger.errors import FeeTooLow, ManifestMismatch, ModelRegistered, StateInvalid, TransactionInvalid
from protocol.ledger.mempool import Mempool
from protocol.ledger.registry import REGISTER_FEES
from protocol.ledger.rows import Registration, registration_row
from protocol.ledger.state import LedgerState
from protocol.messages.envelope import open_as
from protocol.messages.kinds import MessageKind
from protocol.messages.transactions import MANIFEST_CARRIED_BYTES_MAX, ModelRegister, Output, Transaction, Transfer
from protocol.primitives.codec import decode, encode
from protocol.primitives.errors import MalformedMessage
from protocol.primitives.hashing import content_hash
from protocol.primitives.units import Amount, Height, ModelId, Nonce, TimestampMs
from tests.ledger.world import FEE, NAMES, Ledger, account_of, make_genesis

MANIFEST = b'{"name":"tiny"}'
MODEL = ModelId(content_hash(MANIFEST))
PRICE = FEE * REGISTER_FEES
LARGE = MANIFEST_CARRIED_BYTES_MAX + 1


def entry(manifest: bytes = MANIFEST) -> ModelRegister:
    return ModelRegister(ModelId(content_hash(manifest)), len(manifest), manifest)


def test_a_registered_model_names_its_publisher_and_its_block_for_the_price_of_ten_fees() -> None:
    ledger = Ledger()
    ledger.act("alice", entry(), PRICE)
    assert ledger.state.registration(MODEL) == Registration(account_of("alice"), Height(1), len(MANIFEST))
    assert ledger.balance("alice") == 1_000_000 - PRICE
    assert ledger.state.fee_pool == PRICE
    assert ledger.state.registration(ModelId(bytes(32))) is None


def test_a_registration_for_the_fee_of_a_transfer_is_refused() -> None:
    with pytest.raises(FeeTooLow):
        Ledger().act("alice", entry(), PRICE - 1)


@pytest.mark.parametrize("name", ["alice", "bob"])
def test_a_model_is_registered_once_and_nobody_takes_it_over(name: str) -> None:
    ledger = Ledger()
    ledger.act("alice", entry(), PRICE)
    before = ledger.state.tip_hash
    with pytest.raises(ModelRegistered) as refused:
        ledger.act(name, entry(), PRICE)
    assert refused.value.facts == {"publisher": account_of("alice").hex(), "height": 1}
    assert ledger.state.tip_hash == before
    assert ledger.state.registration(MODEL) == Registration(account_of("alice"), Height(1), len(MANIFEST))


def test_the_first_of_two_in_one_block_is_the_publisher() -> None:
    ledger = Ledger()
    candidates = [ledger.transaction(name, entry(), fee=PRICE) for name in ("bob", "alice")]
    built = ledger.build(candidates, TimestampMs(ledger.state.tip.timestamp_ms + 20))
    assert [type(error) for _, error in built.refused] == [ModelRegistered]
    ledger.state.apply(execute_block(ledger.state, built.block))
    registered = ledger.state.registration(MODEL)
    assert registered is not None
    assert registered.publisher == account_of("bob")


MISMATCHES = {
    "another manifest": ModelRegister(MODEL, len(MANIFEST), MANIFEST[:-1] + b" "),
    "another size": ModelRegister(MODEL, len(MANIFEST) + 1, MANIFEST),
    "a small manifest left out": ModelRegister(MODEL, MANIFEST_CARRIED_BYTES_MAX, b""),
}


@pytest.mark.parametrize("action", MISMATCHES.values(), ids=MISMATCHES.keys())
def test_what_comes_with_a_registration_is_the_manifest_that_it_names(action: ModelRegister) -> None:
    ledger = Ledger()
    with pytest.raises(ManifestMismatch):
        ledger.act("alice", action, PRICE)
    assert ledger.state.registration(MODEL) is None


def test_a_manifest_too_large_to_carry_is_registered_by_hash_and_size() -> None:
    ledger = Ledger()
    model = ModelId(content_hash(bytes(LARGE)))
    ledger.act("alice", ModelRegister(model, LARGE, b""), PRICE)
    registered = ledger.state.registration(model)
    assert registered is not None
    assert registered.manifest_size == LARGE
    too_long = encode(Transaction(Nonce(0), Amount(PRICE), Height(9), ModelRegister(model, LARGE, bytes(LARGE))))
    with pytest.raises(MalformedMessage):
        decode(too_long, Transaction)


def test_a_registration_that_came_second_leaves_the_mempool() -> None:
    ledger = Ledger()
    mempool = Mempool(ledger.genesis)
    mempool.block_applied(ledger.state, ())
    waiting = ledger.transaction("bob", entry(), fee=PRICE)
    envelope, body = open_as(waiting.envelope_bytes, MessageKind.TRANSACTION)
    assert isinstance(body, Transaction)
    mempool.add(waiting.envelope_bytes, envelope, body, ledger.state)
    ledger.act("alice", entry(), PRICE)
    dropped = mempool.block_applied(ledger.state, ())
    assert [(identity, error.code) for identity, error in dropped] == [(waiting.transaction_id, "model_registered")]
    assert len(mempool) == 0


def test_a_registration_is_proven_from_the_tree_of_a_checkpoint() -> None:
    ledger = Ledger()
    ledger.act("alice", entry(), PRICE)
    while ledger.state.height < CHECKPOINT_INTERVAL:
        ledger.include(after_ms=ledger.state.parameters.heartbeat_ms)
    key, value = registration_row(MODEL, ledger.state.registration(MODEL))
    assert ledger.state.row(key) == value
    proven = ledger.state.proven_row(key)
    assert proven is not None
    assert proven.value == value


def test_a_state_whose_entry_has_another_publisher_is_refused() -> None:
    ledger = Ledger()
    ledger.act("alice", entry(), PRICE)
    rows = dict(ledger.state.rows())
    key, _ = registration_row(MODEL, None)
    forged = Registration(account_of("bob"), Height(1), len(MANIFEST))
    with pytest.raises(StateInvalid):
        LedgerState.from_rows(ledger.genesis, {**rows, key: encode(forged)}.items(), ledger.state.tip)
    del rows[key]
    with pytest.raises(StateInvalid):
        LedgerState.from_rows(ledger.genesis, rows.items(), ledger.state.tip)


STEP = st.tuples(st.sampled_from(NAMES), st.integers(0, 5), st.integers(0, 3), st.integers(PRICE - 1, PRICE + 9))


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=20))
def test_any_sequence_of_registrations_conserves_the_supply_keeps_the_first_and_its_rows_rebuild_the_state(
    steps: list[tuple[str, int, int, int]],
) -> None:
    ledger = Ledger(make_genesis(balance=1_500))
    stored, first = dict(ledger.state.rows()), dict[ModelId, str]()
    for name, number, size, fee in steps:
        model = entry(bytes([number]) * (size + 1))
        wish = model if number < 5 else Transfer((Output(account_of("nobody"), Amount(fee)),))
        try:
            execution = ledger.act(name, wish, fee)
        except TransactionInvalid:
            continue
        if isinstance(wish, ModelRegister):
            assert first.setdefault(wish.model, name) == name
        for key, value in execution.rows:
            assert value is not None
            stored[key] = value
        supply = ledger.state.supply()
        assert supply.total == supply.issued
    for identity, name in first.items():
        registered = ledger.state.registration(identity)
        assert registered is not None
        assert registered.publisher == account_of(name)
    assert stored == dict(ledger.state.rows())
    rebuilt = LedgerState.from_rows(ledger.genesis, stored.items(), ledger.state.tip)
    assert rebuilt.lattice == ledger.state.lattice
    assert [rebuilt.registration(identity) for identity in first] == [
        ledger.state.registration(identity) for identity in first
    ]
