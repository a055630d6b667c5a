"""A switch in user space: carries packets between namespaces over wires that lose, delay and part.

Law: each direction of each pair of nodes is a wire of its own, so a network may be deaf one way. Loss and delay are
drawn from one seeded dice; when packets come is the machine's. A packet that is under way when its wire is cut still
arrives, as on a real line.
"""

import contextlib
import heapq
import itertools
import os
import random
import selectors
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

from tests.network.namespaces import Namespace

PACKET_BYTES_MAX = 65_535
UNDER_WAY_MAX = 100_000
"""Delayed packets; beyond it the line drops, as every line does."""
_SOURCE, _DESTINATION = slice(12, 16), slice(16, 20)
"""Of an IPv4 header, RFC 791."""


@dataclass(frozen=True, slots=True)
class Wire:
    """What one direction between two nodes does to a packet."""

    cut: bool = False
    loss: float = 0.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    """The delay is drawn evenly from ``delay_ms ± jitter_ms``; packets overtake each other."""


@dataclass(slots=True)
class Carried:
    """How many packets met which fate."""

    delivered: int = 0
    cut: int = 0
    lost: int = 0
    overflowed: int = 0


class Switch:
    """Carries packets in a thread of its own from enter to exit."""

    def __init__(self, ports: Sequence[Namespace], seed: int) -> None:
        self.carried = Carried()
        self._dice = random.Random(seed)
        self._names = [bytes(map(int, port.address.split("."))) for port in ports]
        self._descriptors = {name: port.packets for name, port in zip(self._names, ports, strict=True)}
        self._wires: dict[tuple[bytes, bytes], Wire] = {}
        self._lock = threading.Lock()
        self._under_way: list[tuple[float, int, int, bytes]] = []
        self._order = itertools.count()
        self._waker, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="switch")

    def __enter__(self) -> "Switch":
        for descriptor in self._descriptors.values():
            os.set_blocking(descriptor, False)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._wake)
        self._thread.join()
        os.close(self._waker)

    # The shape of the network

    def every(self, wire: Wire) -> None:
        """All wires become like this one."""
        pairs = itertools.permutations(range(len(self._names)), 2)
        self.set(pairs, wire)

    def heal(self) -> None:
        """All wires carry everything at once."""
        self.every(Wire())

    def set(self, pairs: Iterable[tuple[int, int]], wire: Wire) -> None:
        """The wires from one node to another, named by their places."""
        with self._lock:
            for source, destination in pairs:
                self._wires[self._names[source], self._names[destination]] = wire

    def part(self, *sides: Sequence[int]) -> None:
        """Nodes on different sides don't hear each other; those on one side do."""
        side_of = {place: number for number, side in enumerate(sides) for place in side}
        for source, destination in itertools.permutations(range(len(self._names)), 2):
            self._change((source, destination), cut=side_of[source] != side_of[destination])

    def deafen(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Nothing goes from the first to the second; the other way still carries."""
        for pair in pairs:
            self._change(pair, cut=True)

    def _change(self, pair: tuple[int, int], *, cut: bool) -> None:
        key = (self._names[pair[0]], self._names[pair[1]])
        with self._lock:
            self._wires[key] = replace(self._wires.get(key, Wire()), cut=cut)

    # The thread

    def _carry(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._waker, selectors.EVENT_READ)
            for descriptor in self._descriptors.values():
                selector.register(descriptor, selectors.EVENT_READ)
            while True:
                left = self._under_way[0][0] - time.monotonic() if self._under_way else None
                for key, _ in selector.select(None if left is None else max(0.0, left)):
                    if key.fd == self._waker:
                        return
                    self._read(key.fd)
                self._deliver_due()

    def _read(self, descriptor: int) -> None:
        for _ in range(64):
            try:
                packet = os.read(descriptor, PACKET_BYTES_MAX)
            except BlockingIOError:
                return
            if packet[:1] and packet[0] >> 4 == 4:
                self._take(packet)

    def _take(self, packet: bytes) -> None:
        source, destination = packet[_SOURCE], packet[_DESTINATION]
        port = self._descriptors.get(destination)
        if port is None:
            return
        with self._lock:
            wire = self._wires.get((source, destination), Wire())
        if wire.cut:
            self.carried.cut += 1
        elif wire.loss and self._dice.random() < wire.loss:
            self.carried.lost += 1
        elif wire.delay_ms == 0 and wire.jitter_ms == 0:
            self._deliver(port, packet)
        elif len(self._under_way) >= UNDER_WAY_MAX:
            self.carried.overflowed += 1
        else:
            delay_s = max(0.0, wire.delay_ms + self._dice.uniform(-wire.jitter_ms, wire.jitter_ms)) / 1000
            heapq.heappush(self._under_way, (time.monotonic() + delay_s, next(self._order), port, packet))

    def _deliver_due(self) -> None:
        now = time.monotonic()
        while self._under_way and self._under_way[0][0] <= now:
            _, _, port, packet = heapq.heappop(self._under_way)
            self._deliver(port, packet)

    def _deliver(self, port: int, packet: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(port, packet)
            self.carried.delivered += 1
