"""Twins, equivocating leaders and two-faced voters end suspended in every honest ledger; the others never do."""

from collections.abc import Callable

import pytest

from node.simulation.adversaries import EquivocatingLeader, TwoFacedVoter
from node.simulation.profiles import PROFILES
from node.simulation.world import Options, World
from protocol.primitives.units import AuthorityId

CALM = PROFILES["none"]


def _twins() -> World:
    world = World(3, Options(profile=CALM))
    world._add_twin(world.nodes[0])
    return world


@pytest.mark.parametrize(
    "make",
    [
        lambda: World(1, Options(profile=CALM, liar=EquivocatingLeader)),
        lambda: World(2, Options(profile=CALM, liar=TwoFacedVoter)),
        _twins,
    ],
    ids=["equivocating leader", "two-faced voter", "twins"],
)
def test_who_signs_twice_is_suspended_and_nobody_else(make: Callable[[], World]) -> None:
    world = make()
    key = world.nodes[0].keys.authority
    assert key is not None
    honest = [node for node in world.nodes if node.honest]
    world.begin()
    world.plan_work()

    def caught() -> bool:
        return all(node.replica.authorities.suspended for node in honest)

    assert world.timeline.run_until(120_000, caught)
    assert {node.replica.authorities.suspended for node in honest} == {(AuthorityId(key.public),)}
    tip = max(int(node.replica.tip) for node in honest)
    world.timeline.run_until(world.timeline.now_ms + 20_000)
    assert min(int(node.replica.tip) for node in honest) > tip + 3
