"""Which piece of a model is asked of which source next.

Law: a missing piece waits, is in flight from a source, or is done. A source that falls out gives back what it held. A
source with nothing left to ask for takes over what another has had in flight for longest, so one slow source delays
nobody by more than the pieces that it has begun; whoever is first wins, what comes second is dropped.
"""

import threading
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

HOLDERS_MAX = 2
"""A piece is in flight from at most so many sources: what a takeover may waste is bounded."""


class Piece(NamedTuple):
    """A piece by the number of its file and its own number in it."""

    file: int
    number: int


class PullPlan:
    """The pieces of one pull, shared by the threads of all its sources."""

    def __init__(self, missing: Iterable[Piece]) -> None:
        self._waiting = deque(missing)
        self._in_flight: dict[Piece, list[object]] = {}
        """Sources that were asked, in the order in which pieces were first asked for."""
        self._left = len(self._waiting)
        self._bytes_done = 0
        self._lock = threading.Lock()
        self.changed = threading.Event()
        """Set when pieces came back or the last one came."""

    @property
    def left(self) -> int:
        """How many pieces are not done."""
        return self._left

    @property
    def bytes_done(self) -> int:
        """Bytes of the pieces that are done."""
        return self._bytes_done

    def take(self, source: object, *, idle: bool) -> Piece | None:
        """The next piece for a source; an ``idle`` one, which has nothing in flight, may take over another's."""
        with self._lock:
            if self._waiting:
                piece = self._waiting.popleft()
                self._in_flight[piece] = [source]
                return piece
            if not idle:
                return None
            for piece, holders in self._in_flight.items():
                if source not in holders and len(holders) < HOLDERS_MAX:
                    holders.append(source)
                    return piece
            if self._left:
                self.changed.clear()
            return None

    def is_wanted(self, piece: Piece) -> bool:
        """False once somebody has delivered it."""
        with self._lock:
            return piece in self._in_flight

    def done(self, piece: Piece, size: int) -> bool:
        """A piece of so many bytes is in place; false if it was already."""
        with self._lock:
            if self._in_flight.pop(piece, None) is None:
                return False
            self._left -= 1
            self._bytes_done += size
            if not self._left:
                self.changed.set()
            return True

    def give_back(self, source: object, pieces: Iterable[Piece]) -> None:
        """A connection of a source falls out: what it alone had in flight waits again, in its old order."""
        with self._lock:
            returned = []
            for piece in pieces:
                holders = self._in_flight.get(piece, [])
                if source in holders:
                    holders.remove(source)
                    if not holders:
                        returned.append(piece)
                        del self._in_flight[piece]
            self._waiting.extendleft(reversed(returned))
            self.changed.set()
