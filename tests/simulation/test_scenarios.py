"""Single stories: one node is down, loses its disk, follows; nothing happens; the ledgers differ."""

from dataclasses import replace

import pytest

from node.simulation.checkers import Violation
from node.simulation.counterfeit import MAGIC, generous_ledger
from node.simulation.member import SimulatedNode
from node.simulation.profiles import PROFILES
from node.simulation.world import Options, World
from protocol.engine.replica import Replica
from protocol.engine.restored import OBSERVER_KEY
from protocol.engine.standing import OBSERVER_DISTANCE, SignaturesLost
from protocol.ledger.errors import BlockInvalid
from protocol.messages.effects import GuardClass, Table
from protocol.messages.transactions import Output, Transfer
from protocol.primitives.limits import BLOCKS_PER_RESPONSE_MAX
from protocol.primitives.units import AuthorityId, Hash

FAIR = Options(profile=PROFILES["none"], whole_engine=False, followers=1, heartbeat_ms=1_000)
IDLE = replace(FAIR, heartbeat_ms=10_000_000)


def _world(options: Options, run_ms: int, seed: int = 1) -> World:
    world = World(seed, options)
    world.begin()
    world.timeline.run_until(run_ms)
    return world


def _replica(node: SimulatedNode) -> Replica:
    return node.replica


def _tips(world: World) -> list[int]:
    return [int(node.participant.state.height) for node in world.nodes if node.participant is not None]


def _run(world: World, more_ms: int) -> None:
    world.timeline.run_until(world.timeline.now_ms + more_ms)


def _transfer(world: World) -> None:
    client = world.clients[0]
    assert world.nodes[1].submit(client.next_transfer([each.account for each in world.clients]))


def test_without_work_and_heartbeat_a_minute_passes_in_silence() -> None:
    world = _world(IDLE, 5_000)
    before = world.network.frames_sent
    _run(world, 60_000)
    assert world.network.frames_sent == before
    assert _tips(world) == [0] * 5


def test_an_idle_ledger_sends_only_what_its_heartbeats_need() -> None:
    world = _world(replace(FAIR, heartbeat_ms=15_000), 5_000)
    before = world.network.frames_sent
    _run(world, 60_000)
    assert world.checkers.commits == 4 * 5
    assert world.network.frames_sent - before < 4 * 80


def test_a_transfer_is_decided_on_every_node_within_a_few_message_delays() -> None:
    world = _world(IDLE, 5_000)
    _transfer(world)
    _run(world, 150)
    assert _tips(world) == [1] * 5


def test_a_follower_commits_what_the_authorities_decide_and_takes_transfers_for_them() -> None:
    world = _world(IDLE, 5_000)
    client = world.clients[0]
    assert world.nodes[4].submit(client.next_transfer([each.account for each in world.clients]))
    _run(world, 200)
    assert _tips(world) == [1] * 5


@pytest.mark.parametrize("down", [0, 4], ids=["authority", "follower"])
def test_a_node_that_was_down_catches_up_by_many_blocks(down: int) -> None:
    world = _world(FAIR, 2_000)
    world.crash(world.nodes[down])
    _run(world, 60_000)
    world.restart_all()
    _run(world, 3_000)
    tips = _tips(world)
    assert tips[down] > 2 * BLOCKS_PER_RESPONSE_MAX
    assert max(tips) - min(tips) <= 1


def test_three_of_four_go_on_and_two_of_four_wait() -> None:
    world = _world(FAIR, 2_000)
    world.crash(world.nodes[0])
    _run(world, 30_000)
    three = max(_tips(world))
    assert three > 10
    world.crash(world.nodes[1])
    _run(world, 30_000)
    assert max(_tips(world)) <= three + 1
    world.restart_all()
    _run(world, 15_000)
    assert min(_tips(world)) > three + 5


def test_after_all_crash_at_once_the_ledger_goes_on_from_the_disks() -> None:
    world = _world(FAIR, 10_000)
    before = max(_tips(world))
    for node in world.nodes:
        world.crash(node)
    _run(world, 1_000)
    world.restart_all()
    _run(world, 20_000)
    assert min(_tips(world)) > before + 5


def test_at_genesis_nobody_is_an_observer() -> None:
    world = _world(FAIR, 500)
    assert [_replica(node).first_signing_height for node in world.nodes[:4]] == [1, 1, 1, 1]
    assert not any(_replica(node).observing for node in world.nodes)


def test_an_authority_whose_disk_is_lost_signs_only_three_heights_above_the_highest_tip() -> None:
    world = _world(replace(FAIR, followers=0), 10_000)
    lost = world.nodes[0]
    assert world.lose_signatures(lost)
    tip = max(_tips(world))
    lost.disk = world.new_disk()
    assert lost.keys.authority is not None
    key = AuthorityId(lost.keys.authority.public)
    signed: list[int] = []
    watch = world.checkers.on_sign

    def on_sign(*arguments: object) -> None:
        if arguments[0] == key:
            signed.append(arguments[1].height)  # type: ignore[attr-defined]
        watch(*arguments)  # type: ignore[arg-type]

    world.checkers.on_sign = on_sign  # type: ignore[assignment]
    lost.start(Hash(b"n" * 32))
    world.relink()
    _run(world, 500)
    assert _replica(lost).observing
    assert lost.disk.tables[Table.STANDING] == {OBSERVER_KEY: b"\x01"}
    assert any(isinstance(event, SignaturesLost) for name, event in world.around.events if name == lost.name)
    _run(world, 20_000)
    assert not _replica(lost).observing
    assert OBSERVER_KEY not in lost.disk.tables[Table.STANDING]
    assert min(signed) >= tip + OBSERVER_DISTANCE
    assert min(_tips(world)) > tip + OBSERVER_DISTANCE


def test_an_observer_that_restarts_is_still_an_observer() -> None:
    world = _world(replace(IDLE, followers=0), 1_000)
    _transfer(world)
    _run(world, 1_000)
    lost = world.nodes[0]
    assert world.lose_signatures(lost)
    lost.disk = world.new_disk()
    for life in range(2):
        world.crash(lost)
        lost.start(Hash(bytes((life,)) * 32))
        world.relink()
        _run(world, 3_000)
        assert _replica(lost).observing


def test_an_old_backup_makes_an_observer_and_an_honest_restart_does_not() -> None:
    world = _world(replace(FAIR, followers=0), 10_000)
    node = world.nodes[0]
    world.crash(node)
    node.start(Hash(b"a" * 32))
    world.relink()
    _run(world, 500)
    assert not _replica(node).observing
    assert world.lose_signatures(node)
    old = world.new_disk()
    old.take_ledger(node.disk)
    node.disk = old
    node.start(Hash(b"b" * 32))
    world.relink()
    _run(world, 500)
    assert _replica(node).observing


def test_nothing_is_signed_before_enough_authorities_have_answered() -> None:
    world = World(1, IDLE)
    for node in world.nodes[:2]:
        node.start(Hash(bytes(32)))
    world.relink()
    _run(world, 5_000)
    assert [_replica(node).first_signing_height for node in world.nodes[:2]] == [None, None]
    world.nodes[2].start(Hash(bytes(32)))
    world.relink()
    _run(world, 2_000)
    assert [_replica(node).first_signing_height for node in world.nodes[:3]] == [1, 1, 1]


def test_a_certified_block_that_fails_here_stops_the_node_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _world(FAIR, 5_000)
    follower = _replica(world.nodes[4])

    def differs(block_hash: object, state: object) -> object:
        raise BlockInvalid("state root", "this ledger differs")

    original = follower._commit

    def next_bodies(*arguments: object) -> None:
        original(*arguments)  # type: ignore[arg-type]
        monkeypatch.setattr(follower._bodies, "execute", differs)

    monkeypatch.setattr(follower, "_commit", next_bodies)
    monkeypatch.setattr(follower._bodies, "execute", differs)
    with pytest.raises(Violation, match=r"follower-0 halted: .* is decided but fails here"):
        _run(world, 10_000)


def test_a_leader_whose_own_block_makes_money_stops_and_blames_nobody() -> None:
    with generous_ledger():
        world = _world(IDLE, 5_000)
        payer, payee = world.clients[:2]
        assert world.nodes[1].submit(payer.next(Transfer((Output(payee.account, MAGIC),))))
        with pytest.raises(Violation, match=r"authority-\d halted: .* built here .* fails: supply: the block makes"):
            _run(world, 10_000)


def test_the_guard_is_asked_for_three_classes_and_keeps_nothing_of_closed_heights() -> None:
    world = _world(FAIR, 20_000)
    for node in world.nodes[:4]:
        guard = node.disk.guard
        assert guard.watermark() == node.disk.tip
        assert all(position.height > guard.watermark() for position, _ in guard.held())
        assert all(position.guard_class in GuardClass for position, _ in guard.held())
