"""An authority that comes back with a disk of long ago: it must not sign again what it signed since."""

from dataclasses import replace

import pytest

from node.simulation.profiles import PROFILES
from node.simulation.world import Options, World
from protocol.engine.replica import Replica
from protocol.primitives.units import Hash

STEADY = Options(profile=PROFILES["none"], whole_engine=False, followers=0, heartbeat_ms=1_000)


def _run(world: World, more_ms: int) -> None:
    world.timeline.run_until(world.timeline.now_ms + more_ms)


@pytest.mark.parametrize("position", range(4))
def test_with_a_backup_and_no_blocks_from_others_nothing_is_signed_at_heights_that_are_decided(
    position: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have gone on by so many heights that none of them still holds a signature of that time. Whoever
    controls the network keeps their blocks away: the old height opens again, with a leader's new block in it."""
    world = World(1, STEADY)
    world.begin()
    _run(world, 2_500 + 1_000 * position)
    node = world.nodes[0]
    backup = node.disk.copy()
    _run(world, 6_000)
    assert world.lose_signatures(node)
    _run(world, 20_000)
    node.disk = backup
    monkeypatch.setattr(Replica, "_on_blocks", lambda *arguments: None)
    node.start(Hash(b"b" * 32))
    world.relink()
    _run(world, 200)
    client = world.clients[0]
    node.submit(client.next_transfer([each.account for each in world.clients]))
    _run(world, 5_000)
    assert node.participant is not None
    assert node.participant.state.height == backup.tip


def test_a_backup_that_may_catch_up_ends_in_an_authority_that_signs_again() -> None:
    world = World(1, replace(STEADY, heartbeat_ms=500))
    world.begin()
    _run(world, 2_500)
    node = world.nodes[0]
    backup = node.disk.copy()
    _run(world, 6_000)
    assert world.lose_signatures(node)
    _run(world, 20_000)
    node.disk = backup
    node.start(Hash(b"b" * 32))
    world.relink()
    before = world.checkers.signatures
    _run(world, 10_000)
    tips = [each.participant.state.height for each in world.nodes if each.participant is not None]
    assert max(tips) - min(tips) <= 1
    assert world.checkers.signatures > before
    assert not node.replica.observing


def test_what_an_authority_remembers_of_its_own_signatures_does_not_grow_with_its_life() -> None:
    world = World(1, replace(STEADY, heartbeat_ms=200))
    world.begin()
    _run(world, 20_000)
    replica = world.nodes[0].replica
    assert replica.state.height > 50
    assert replica.inquiry is not None
    assert len(replica.inquiry._known) < 10


def test_a_single_authority_signs_without_anybody_s_answer() -> None:
    world = World(1, replace(STEADY, authorities=1))
    world.begin()
    _run(world, 3_000)
    assert world.checkers.commits >= 2
