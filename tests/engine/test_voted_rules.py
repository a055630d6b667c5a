"""What votes change while real engines run: numbers take effect at once, unknown versions stop a node in time."""

import pytest

from protocol.ledger import charter
from protocol.messages.governance import MotionNumber, ParameterChange, ParameterValue, Subject, VersionChange
from protocol.messages.transactions import MotionOpen, MotionVote
from protocol.primitives.units import Height
from tests.engine.village import Village
from tests.ledger.world import make_genesis

AUTHORITIES = ("auth0", "auth1", "auth2", "auth3")


def make_village(heartbeat_ms: int) -> Village:
    accounts = tuple(f"{name}-account" for name in AUTHORITIES)
    village = Village(make_genesis(names=accounts, heartbeat_ms=heartbeat_ms), AUTHORITIES, ("reader",))
    village.begin()
    village.run(1_000)
    return village


def pass_motion(village: Village, subject: Subject) -> None:
    """Opened by the first authority and approved by two more; whatever it does may still wait for a block."""
    village["auth0"].want(MotionOpen(village["auth0"].key, subject))
    village.run(300)
    for name in AUTHORITIES[1:3]:
        key = village[name].key
        assert key is not None
        village[name].want(MotionVote(MotionNumber(1), key, True))
        village.run(300)


def test_what_has_passed_takes_effect_without_waiting_for_a_heartbeat() -> None:
    village = make_village(heartbeat_ms=3_600_000)
    pass_motion(village, ParameterChange((ParameterValue("fee_min", 33),)))
    assert {villager.replica.state.parameters.fee_min for villager in village.villagers.values()} == {33}
    tips = village.tips()
    village.run(10_000)
    assert village.tips() == tips, "once it has taken effect the ledger is silent again"


def test_nodes_that_do_not_know_a_voted_version_halt_before_its_first_block_and_say_so() -> None:
    village = make_village(heartbeat_ms=1_000)
    pass_motion(village, VersionChange(2, Height(9)))
    village.run(30_000)
    assert village.tips(*AUTHORITIES) == [8] * 4
    for name in AUTHORITIES:
        assert "block 9 follows protocol version 2" in village[name].halted
        assert "install a newer one" in village[name].halted
    again = village["auth0"]
    again.halted = ""
    again.start()  # the same software once more
    assert "version 2" in again.halted


def test_nodes_that_know_the_voted_version_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charter, "SUPPORTED_VERSIONS", (1, 2))
    village = make_village(heartbeat_ms=1_000)
    pass_motion(village, VersionChange(2, Height(9)))
    village.run(10_000)
    assert min(village.tips()) > 9
    assert {villager.replica.state.tip.version for villager in village.villagers.values()} == {2}
    assert not any(villager.halted for villager in village.villagers.values())
