"""The seeded network: delays, drops, doubles and reorders frames, and falls into parts.

Law: harsher than TCP. Frames are the real bytes; a receiver decodes what a sender encoded.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from node.simulation.timeline import Timeline
from protocol.primitives.units import NodeId

Deliver = Callable[[NodeId, NodeId, bytes], None]


@dataclass
class Weather:
    """How the network behaves now. Shares are between 0 and 1, delays in ms."""

    delay_min_ms: int = 1
    delay_max_ms: int = 20
    drop_share: float = 0.0
    double_share: float = 0.0
    straggle_share: float = 0.0
    """This share of frames comes up to a second late, so behind later ones."""


MEMORY_MS = 60_000
"""Whom a node holds a lost frame against, it does so for no longer."""


class SimulatedNetwork:
    """Every pair of nodes may be linked; a partition silences the pairs across it."""

    def __init__(self, timeline: Timeline, dice: random.Random, deliver: Deliver) -> None:
        self._timeline = timeline
        self._dice = dice
        self._deliver = deliver
        self.weather = Weather()
        self.parts: dict[NodeId, int] = {}
        """Part of each node while the network is split; nodes in different parts hear nothing of each other."""
        self.one_way: dict[tuple[NodeId, NodeId], None] = {}
        """(sender, receiver): what the first says does not reach the second, while the way back is open."""
        self._cut_until: dict[tuple[NodeId, NodeId], int] = {}
        """(smaller id, larger id) of two nodes whose link one of them has ended → when there may be a new one."""
        self._spoilt: dict[tuple[NodeId, NodeId], int] = {}
        """(sender, receiver) → when a frame between them was last lost or doubled, as no TCP link would."""
        self.frames_sent = 0

    def kept_faith(self, one: NodeId, other: NodeId) -> bool:
        """True if for a while each of the two has heard all that the other said, once: as over a real link."""
        since = self._timeline.now_ms - MEMORY_MS
        return all(self._spoilt.get(pair, -MEMORY_MS) <= since for pair in ((one, other), (other, one)))

    def cut(self, one: NodeId, other: NodeId, for_ms: int) -> None:
        """One of the two wants nothing to do with the other for so long."""
        self._cut_until[min((one, other), (other, one))] = self._timeline.now_ms + for_ms

    def heal(self) -> None:
        """One network, fair weather."""
        self.weather = Weather()
        self.parts = {}
        self.one_way = {}
        self._cut_until = {}

    def connected(self, one: NodeId, other: NodeId) -> bool:
        """True if the two stand in one part and have not parted: a link between them may stand."""
        if self.parts.get(one, 0) != self.parts.get(other, 0):
            return False
        return self._cut_until.get(min((one, other), (other, one)), 0) <= self._timeline.now_ms

    def send(self, sender: NodeId, receiver: NodeId, frame: bytes) -> None:
        """Hand a frame to the weather."""
        self.frames_sent += 1
        weather, dice = self.weather, self._dice
        copies = 1
        if weather.drop_share and dice.random() < weather.drop_share:
            copies = 0
        if weather.double_share and dice.random() < weather.double_share:
            copies += 1
        if copies != 1:
            self._spoilt[(sender, receiver)] = self._timeline.now_ms
        for _ in range(copies):
            delay = dice.randint(weather.delay_min_ms, weather.delay_max_ms)
            if weather.straggle_share and dice.random() < weather.straggle_share:
                delay += dice.randint(0, 1000)
            self._timeline.after(delay, lambda: self._arrive(sender, receiver, frame))

    def _arrive(self, sender: NodeId, receiver: NodeId, frame: bytes) -> None:
        if self.connected(sender, receiver) and (sender, receiver) not in self.one_way:
            self._deliver(sender, receiver, frame)
        else:
            self._spoilt[(sender, receiver)] = self._timeline.now_ms
