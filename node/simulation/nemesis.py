"""Faults on purpose, chosen by the seed's dice until the network is healed."""

from enum import Enum
from typing import TYPE_CHECKING

from node.simulation.network import FAIR, STORM

if TYPE_CHECKING:
    from node.simulation.world import World

INTERVAL_MS = (300, 2500)
"""From one fault to the next."""


class Fault(Enum):
    """What the nemesis may do."""

    CRASH = "crash"
    CRASH_AT_COMMIT = "crash at a commit"
    CRASH_ALL = "crash all"
    LOSE_DISK = "lose a disk"
    PAUSE = "pause"
    SPLIT = "split"
    STORM = "storm"
    CALM = "calm"
    RESTART = "restart"


DEFAULT_FAULTS = (
    Fault.CRASH,
    Fault.CRASH_AT_COMMIT,
    Fault.CRASH_AT_COMMIT,
    Fault.CRASH_ALL,
    Fault.PAUSE,
    Fault.SPLIT,
    Fault.STORM,
    Fault.CALM,
    Fault.RESTART,
    Fault.RESTART,
)


class Nemesis:
    """Strikes at random intervals until ``heal``."""

    def __init__(self, world: "World", faults: tuple[Fault, ...]) -> None:
        self._world = world
        self._faults = faults
        self._dice = world.dice
        self._active = True
        self.strikes: dict[Fault, int] = {}

    def begin(self) -> None:
        """Plan the first fault."""
        if self._faults:
            self._world.timeline.after(self._dice.randint(*INTERVAL_MS), self._strike)

    def _strike(self) -> None:
        if not self._active:
            return
        fault = self._dice.choice(self._faults)
        self.strikes[fault] = self.strikes.get(fault, 0) + 1
        self._world.trace(f"nemesis: {fault.value}", b"")
        self._carry_out(fault)
        self._world.relink()
        self.begin()

    def _carry_out(self, fault: Fault) -> None:
        world, dice = self._world, self._dice
        node = dice.choice(world.nodes)
        match fault:
            case Fault.CRASH:
                world.crash(node)
                self._restart_later(node)
            case Fault.CRASH_AT_COMMIT:
                node.crash_after, node.crash_behind = dice.randint(0, 6), dice.random() < 0.5
                self._restart_later(node)
            case Fault.CRASH_ALL:
                for each in world.nodes:
                    world.crash(each)
                    self._restart_later(each)
            case Fault.LOSE_DISK:
                world.lose_disk()
            case Fault.PAUSE:
                node.paused_until = world.timeline.now_ms + dice.randint(100, 4000)
            case Fault.SPLIT:
                world.network.parts = {each.id: dice.randint(0, 1) for each in world.nodes}
                world.timeline.after(dice.randint(500, 5000), world.join)
            case Fault.STORM:
                world.network.weather = STORM
            case Fault.CALM:
                world.network.weather = FAIR
            case Fault.RESTART:
                world.restart_all()

    def _restart_later(self, node: object) -> None:
        self._world.timeline.after(self._dice.randint(50, 5000), self._world.restart_all)

    def heal(self) -> None:
        """No more faults: all nodes up, one network, fair weather."""
        self._active = False
        self._world.network.weather = FAIR
        for node in self._world.nodes:
            node.crash_after = None
            node.paused_until = 0
        self._world.join()
        self._world.restart_all()
