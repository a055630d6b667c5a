"""Commands that show and decide what authorities vote on: what reaches the node, what people and programs see."""

import json
from pathlib import Path

import msgspec
import pytest

from node.keystore.development import development_keys
from node.keystore.keys import KeyPurpose, address_of
from node.runtime.motion_bodies import (
    AuthoritiesBody,
    AuthorityBody,
    IssuanceBody,
    ParametersBody,
    RedemptionBody,
    SubjectBody,
    VersionBody,
)
from tests.api.fake_node import AUTHORITY, OTHER, FakeNode
from tests.cli.conftest import Mercat


def record(folder: Path) -> tuple[Path, AuthorityBody]:
    """The public record of somebody who made an authority key."""
    keys = development_keys("new", True)
    assert keys.authority is not None
    newcomer = AuthorityBody(
        "new",
        address_of(KeyPurpose.AUTHORITY, keys.authority),
        address_of(KeyPurpose.ACCOUNT, keys.account),
        address_of(KeyPurpose.NODE, keys.node),
    )
    path = folder / "record.json"
    path.write_bytes(msgspec.json.encode(newcomer))
    return path, newcomer


@pytest.mark.parametrize(
    ("arguments", "subject"),
    [
        (("params", "propose", "fee_min=200", "motion_ms=5"), ParametersBody({"fee_min": 200, "motion_ms": 5})),
        (("params", "propose", "--version", "2", "900"), VersionBody(2, 900)),
        (("issuance", "propose", OTHER, "1.5", "--reason", "x"), IssuanceBody(OTHER, 1_500_000, "x")),
        (("issuance", "redeem", "2"), RedemptionBody(2_000_000, "")),
        (("authority", "propose", "--remove", "first"), AuthoritiesBody((AUTHORITY,), ())),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else type(value).__name__,
)
def test_what_is_proposed_reaches_the_node_as_typed(
    mercat: Mercat, fake: FakeNode, arguments: tuple[str, ...], subject: SubjectBody
) -> None:
    ended = mercat(*arguments, "-y", "-q")
    assert (ended.code, ended.out) == (0, "3\n")
    assert fake.calls == [("open_motion", subject)]


def test_a_member_is_replaced_by_whose_record_was_sent(mercat: Mercat, fake: FakeNode, tmp_path: Path) -> None:
    path, newcomer = record(tmp_path)
    assert mercat("authority", "propose", "--replace", "mcauth1b", str(path), "-y").code == 0
    assert mercat("authority", "propose", "--add", str(path), "-y").code == 0
    assert fake.calls == [
        ("open_motion", AuthoritiesBody(("mcauth1b",), (newcomer,))),
        ("open_motion", AuthoritiesBody((), (newcomer,))),
    ]


@pytest.mark.parametrize("group", ["motion", "authority", "params", "issuance"])
def test_every_group_votes_by_the_motions_number(mercat: Mercat, fake: FakeNode, group: str) -> None:
    assert mercat(group, "vote", "2", "-y").code == 0
    assert mercat(group, "vote", "3", "--reject", "-y").code == 0
    assert fake.calls == [("vote", 2, True), ("vote", 3, False)]


@pytest.mark.parametrize(
    "arguments",
    [
        ("params", "propose", "-y"),
        ("params", "propose", "fee_min=1", "--version", "2", "900", "-y"),
        ("params", "propose", "fee_min=one", "-y"),
        ("params", "propose", "fee_min=1", "fee_min=2", "-y"),
        ("authority", "propose", "-y"),
        ("authority", "propose", "--remove", "mcauth1", "-y"),
        ("authority", "propose", "--remove", "nobody", "-y"),
        ("motion", "vote", "0", "-y"),
        ("motion", "vote", "1"),
    ],
    ids=" ".join,
)
def test_what_is_unclear_or_unconfirmed_is_not_sent(mercat: Mercat, fake: FakeNode, arguments: tuple[str, ...]) -> None:
    assert mercat(*arguments).code == 2
    assert fake.calls == []


def test_listings_are_plain_and_json_has_everything(mercat: Mercat, fake: FakeNode) -> None:
    assert "first" in mercat("authority", "list").out
    shown = mercat("params", "show").out
    assert "1, from height 900 on 2" in shown
    assert "fee_min" in shown
    motion = mercat("motion", "show", "3").out
    assert "fee_min = 200\N{REPLACEMENT CHARACTER}[31m" in motion
    assert "expires in 810 s of ledger time" in motion
    assert "has not voted" in motion
    assert mercat("motion", "list", "-q").out == "3\n"
    assert json.loads(mercat("motion", "list", "--json").out)[0]["votes"][1]["approve"] is None
    assert json.loads(mercat("authority", "list", "--json").out)["quorum"] == 3
    missing = mercat("motion", "show", "9")
    assert missing.code == 1
    assert "no motion 9" in missing.err
