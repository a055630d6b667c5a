"""What the engine tells this node's own people: streams by request, and log events.

Law: a stream is bounded; a program that doesn't read loses its stream, never the node its pace. Prompts and outputs go
to the stream of whoever asked for them and nowhere else.
"""

import asyncio
import logging

import msgspec

from node.telemetry import EventLogger, event_logger
from protocol.engine.events import OfferPublished
from protocol.market.events import JobAgreed, JobPrefilled, JobProgressed, JobText
from protocol.messages.effects import BlockDecided
from protocol.primitives.codec import Message
from protocol.primitives.units import Hash

_STREAM_EVENTS_MAX = 65_536
"""More than a job of the largest output in chunks of one unit; a reader this far behind is gone."""

_QUIET = (BlockDecided, JobAgreed, JobPrefilled, JobProgressed, JobText, OfferPublished)
"""Not logged at info: a job's end says all of it, and one line for each block or renewal helps nobody."""


class Announcements:
    """Hands ``Notify`` events to those who wait for them."""

    def __init__(self) -> None:
        self._streams: dict[Hash, asyncio.Queue[Message]] = {}
        self._log: EventLogger = event_logger("engine")

    def open(self, request: Hash) -> "asyncio.Queue[Message]":
        """A stream of all events of one request."""
        stream: asyncio.Queue[Message] = asyncio.Queue(_STREAM_EVENTS_MAX)
        self._streams[request] = stream
        return stream

    def close(self, request: Hash) -> None:
        """Nobody listens any more."""
        self._streams.pop(request, None)

    def tell(self, event: Message) -> None:
        """Deliver and log one event."""
        request = getattr(event, "request", None)
        if isinstance(request, bytes):
            stream = self._streams.get(Hash(request))
            if stream is not None:
                try:
                    stream.put_nowait(event)
                except asyncio.QueueFull:
                    self.close(Hash(request))
        quiet = isinstance(event, _QUIET)
        if quiet and not self._log.is_enabled_for(logging.DEBUG):
            return
        name = type(event).__name__
        fields = {key: value for key, value in msgspec.structs.asdict(event).items() if not isinstance(value, Message)}
        if quiet:
            self._log.debug(name, **fields)
        else:
            self._log.info(name, **fields)
