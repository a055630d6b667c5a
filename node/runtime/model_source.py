"""One source of a pull: a node that is asked for pieces, and what came of it.

Law: what comes is believed when its hash is right and not before. A source that sends one wrong byte is asked for
nothing more; one that breaks, stalls or has no room is tried again, later each time, and given up after so many tries.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from node.clock import read_clock
from node.runtime.model_plan import Piece, PullPlan
from node.transport.piece_client import PieceAsker
from node.transport.throttle import Throttle
from protocol.primitives.addresses import AddressKind, format_address
from protocol.primitives.errors import MercatError
from protocol.primitives.units import ModelId, NodeId

AHEAD_MIN, AHEAD_MAX = 2, 16
"""Pieces asked of one connection ahead of the answers."""
AHEAD_MS = 1_000
"""About what a source delivers in so long is asked ahead, so that no round trip leaves the line empty."""


class SourceAddress(msgspec.Struct, frozen=True):
    """Where a model may be had. Without ``node`` whoever answers there is asked."""

    node: NodeId | None
    endpoints: tuple[str, ...]

    @property
    def key(self) -> NodeId | str:
        """What tells it from others."""
        return self.node or self.endpoints[0]


class CorruptSource(MercatError):
    """The source sent something else than what the model's id fixes."""


class Target(Protocol):
    """Where pieces go; see ``PartialModel``. Called in threads."""

    def size_of(self, number: int, piece: int) -> int:
        """Bytes of a piece."""
        ...

    def is_right(self, number: int, piece: int, content: memoryview) -> bool:
        """Whether these bytes are the piece."""
        ...

    def write(self, number: int, piece: int, content: memoryview) -> None:
        """Put a piece that is right in its place."""
        ...


class PullSource:
    """One source and its conduct. Numbers are written by its threads and read by the loop."""

    def __init__(self, address: SourceAddress) -> None:
        self.address = address
        self.node: NodeId | None = address.node
        self.state = "waiting"
        self.bytes_received = 0
        self.pieces = 0
        self.answered = False
        """It has proved its key once."""
        self.given_up = False
        """It failed too often to be asked for more pieces."""
        self.dropped = False
        """It is never asked again."""
        self.corrupt = False

    @property
    def name(self) -> str:
        """For people."""
        if self.node is None:
            return self.address.endpoints[0]
        return format_address(AddressKind.NODE, self.node)

    def drop(self, state: str, *, corrupt: bool = False) -> None:
        """Ask it for nothing more, and say why."""
        self.state, self.dropped, self.corrupt = state, True, self.corrupt or corrupt


class PieceWork:
    """What all sources of a pull work on together."""

    def __init__(
        self, model: ModelId, plan: PullPlan, target: Target, throttle: Throttle, name_of: Callable[[Piece], str]
    ) -> None:
        self.model = model
        self.plan = plan
        self.target = target
        self.throttle = throttle
        self.name_of = name_of
        self.stop = threading.Event()

    def run(self, source: PullSource, asker: PieceAsker, buffer: memoryview) -> None:
        """Ask one connection of a source for pieces until none is left for it. In a thread.

        Raises ``CorruptSource``, ``StoreFull`` and what the asker raises.
        """
        asked, ahead = deque[Piece](), AHEAD_MIN
        try:
            while self.plan.left and not self.stop.is_set() and not source.dropped:
                self._ask_ahead(source, asker, asked, ahead)
                if not asked:
                    self.plan.changed.wait(0.2)
                    continue
                began = read_clock().monotonic_ms
                self._receive(source, asker, asked[0], buffer)
                asked.popleft()
                took_ms = max(1, read_clock().monotonic_ms - began)
                ahead = max(AHEAD_MIN, min(AHEAD_MAX, AHEAD_MS // took_ms))
        finally:
            self.plan.give_back(source, asked)

    def _ask_ahead(self, source: PullSource, asker: PieceAsker, asked: deque[Piece], ahead: int) -> None:
        while len(asked) < ahead and (piece := self.plan.take(source, idle=not asked)) is not None:
            asked.append(piece)
            self.throttle.take(self.target.size_of(*piece), self.stop)
            asker.ask(self.model, *piece)

    def _receive(self, source: PullSource, asker: PieceAsker, piece: Piece, buffer: memoryview) -> None:
        view = buffer[: self.target.size_of(*piece)]
        asker.receive(view)
        source.bytes_received += len(view)
        if not self.plan.is_wanted(piece):
            return
        if not self.target.is_right(*piece, view):
            raise CorruptSource(f"sent a corrupt piece: {self.name_of(piece)}")
        self.target.write(*piece, view)
        if self.plan.done(piece, len(view)):
            source.pieces += 1
