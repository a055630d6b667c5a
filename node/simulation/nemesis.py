"""Chooses faults by the seed's dice until the network is healed."""

from typing import TYPE_CHECKING

from node.simulation.faults import Fault

if TYPE_CHECKING:
    from node.simulation.world import World

INTERVAL_MS = (300, 2500)
"""From one fault to the next."""


class Nemesis:
    """Strikes at random intervals until ``stop``."""

    def __init__(self, world: "World", faults: tuple[Fault, ...], strikes_max: int | None) -> None:
        self._world = world
        self._faults = faults
        self._left = strikes_max
        self._active = True
        self.strikes = 0

    def begin(self) -> None:
        """Plan the next fault."""
        if self._faults:
            self._world.timeline.after(self._world.dice.randint(*INTERVAL_MS), self._strike)

    def stop(self) -> None:
        """No more faults."""
        self._active = False

    def _strike(self) -> None:
        if not self._active or self.strikes == self._left:
            return
        self.strikes += 1
        fault = self._world.dice.choice(self._faults)
        self._world.trace(f"nemesis: {fault.name}", b"")
        if fault.strike(self._world):
            self._world.around.struck(fault.name)
        self._world.relink()
        self.begin()
