"""What the engine tells about one request, on its way to whoever asked.

Law: bounded; a reader that falls too far behind loses the stream, never the node its pace. What a person waits for is
handed over at once, news on the way there a moment later and together: each hand-over is a write to a socket.
"""

import asyncio

from protocol.market.events import JobAgreed, JobPrefilled, JobProgressed
from protocol.primitives.codec import Message
from protocol.primitives.units import Hash, HashField

EVENTS_MAX = 65_536
"""More than a job of the largest output in chunks of one unit; a reader this far behind is gone."""

_ON_THE_WAY = frozenset((JobProgressed, JobAgreed, JobPrefilled))
_ON_THE_WAY_S = 0.01
"""Nobody sees a state change a hundredth of a second late; a job that takes less tells all of it in one piece."""


class StreamLost(Message, frozen=True):
    """Last event of a stream whose reader fell too far behind."""

    request: HashField


class EventStream:
    """Events of one request, taken in pieces by one reader."""

    def __init__(self, request: Hash, events_max: int = EVENTS_MAX, *, brief: bool = False) -> None:
        """``brief``: what happens on the way is left out."""
        self._request = request
        self._brief = brief
        self._events_max = events_max
        self._waiting: list[Message] = []
        self._ready = asyncio.Event()
        self._due: asyncio.TimerHandle | None = None
        self.lost = False
        """True once the reader has fallen too far behind: nothing is added any more."""

    def add(self, event: Message) -> None:
        """Append one event; a stream that is full ends with ``StreamLost`` instead."""
        if self.lost or (self._brief and type(event) in _ON_THE_WAY):
            return
        if len(self._waiting) >= self._events_max:
            self.lost = True
            event = StreamLost(self._request)
        self._waiting.append(event)
        if type(event) not in _ON_THE_WAY:
            self._ready.set()
        elif self._due is None and not self._ready.is_set():
            self._due = asyncio.get_running_loop().call_later(_ON_THE_WAY_S, self._ready.set)

    async def take(self) -> list[Message]:
        """All events since the last call, at least one. One reader at a time."""
        await self._ready.wait()
        self._ready.clear()
        if self._due is not None:
            self._due.cancel()
            self._due = None
        taken, self._waiting = self._waiting, []
        return taken

    def close(self) -> None:
        """The reader is gone."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
