"""What the engine tells this node's own people: streams by request, and log events.

Law: prompts and outputs go to the stream of whoever asked for them and nowhere else.
"""

import logging

import msgspec

from node.clock import read_clock
from node.runtime.event_stream import EventStream
from node.telemetry import EventLogger, event_logger
from protocol.engine.events import OfferPublished, PeerMisbehaved
from protocol.engine.telling import TimelineTold
from protocol.market.events import (
    JobAgreed,
    JobPrefilled,
    JobProgressed,
    JobText,
    QuoteRevealed,
    QuoteSealed,
    ReplicaAgreed,
    ReplicasCompared,
    ReplicaText,
    SaleAccepted,
    SaleRefused,
)
from protocol.messages.effects import BlockDecided
from protocol.primitives.codec import Message
from protocol.primitives.units import Hash

_QUIET: frozenset[type[Message]] = frozenset(
    (
        BlockDecided,
        JobAgreed,
        JobPrefilled,
        JobProgressed,
        JobText,
        OfferPublished,
        QuoteRevealed,
        QuoteSealed,
        ReplicaAgreed,
        ReplicasCompared,
        ReplicaText,
        SaleAccepted,
        TimelineTold,
    )
)
"""Not logged at info: a job's end says all of it, and one line for each block or renewal helps nobody."""

_NEVER_LOGGED = ("payload", "outcomes")
"""What somebody's job said, at no level; and what is told as events of its own."""

_PEERS_MAKE = (PeerMisbehaved, SaleRefused)
_PEERS_LINES_PER_SECOND = 10
"""A stranger can cause one of these with each message: unbounded, their lines would fill the disk."""


class Announcements:
    """Hands ``Notify`` events to those who wait for them."""

    def __init__(self) -> None:
        self._streams: dict[Hash, EventStream] = {}
        self._log: EventLogger = event_logger("engine").bind()
        self._tells_all = self._log.is_enabled_for(logging.DEBUG)
        self._second = 0
        self._lines = 0

    def open(self, request: Hash, *, brief: bool = False) -> EventStream:
        """A stream of all events of one request, or of what it delivers and how it ends."""
        stream = self._streams[request] = EventStream(request, brief=brief)
        return stream

    def close(self, request: Hash) -> None:
        """Nobody listens any more."""
        stream = self._streams.pop(request, None)
        if stream is not None:
            stream.close()

    def tell(self, event: Message) -> None:
        """Deliver and log one event."""
        request = getattr(event, "request", None)
        if isinstance(request, bytes):
            stream = self._streams.get(Hash(request))
            if stream is not None:
                stream.add(event)
        quiet = type(event) in _QUIET
        if quiet and not self._tells_all:
            return
        if isinstance(event, _PEERS_MAKE) and not self._has_room():
            return
        name = type(event).__name__
        fields = {
            key: value
            for key, value in msgspec.structs.asdict(event).items()
            if not isinstance(value, Message) and key not in _NEVER_LOGGED
        }
        if quiet:
            self._log.debug(name, **fields)
        else:
            self._log.info(name, **fields)

    def _has_room(self) -> bool:
        """Whether one more line that a peer caused may be logged in this second; the first one left out is told."""
        second = read_clock().monotonic_ms // 1000
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines == _PEERS_LINES_PER_SECOND + 1:
            self._log.warning("more_left_out", lines_per_second=_PEERS_LINES_PER_SECOND)
        return self._lines <= _PEERS_LINES_PER_SECOND
