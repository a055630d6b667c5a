"""One job of this node's user, from request to its last event.

Law: closing the stream before its end cancels the job and its further charges.
"""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from node.runtime.control import QUOTE_ROWS, ControlError, QuoteView, RunEvent, RunRequest
from node.runtime.event_stream import StreamLost
from node.runtime.quotes import quote_view
from node.runtime.run_events import ENDS, shown
from node.runtime.wishes import Wish
from protocol.engine.inputs import CancelJob, StartJob
from protocol.market.buyer_job import RequestInvalid
from protocol.market.replication import TooFewProviders

if TYPE_CHECKING:
    from node.runtime.node import Node


class JobStream:
    """Runs one ``RunRequest``."""

    def __init__(self, node: "Node", request: RunRequest) -> None:
        self._node = node
        self._asked = request
        self._wish = Wish(node, request)
        self.request = self._wish.request

    def quote(self, rows_max: int = QUOTE_ROWS) -> QuoteView:
        """Prices and refusals from the local order book."""
        return quote_view(self._wish, rows_max)

    async def events(self) -> AsyncIterator[tuple[RunEvent, ...]]:
        """All events of the job, those that are ready together in one, the last one its end."""
        job = self._wish.job()
        announcements = self._node.announcements
        stream = announcements.open(self.request, brief=self._asked.brief)
        ended = False
        try:
            try:
                self._node.loop.feed(StartJob(job))
            except TooFewProviders as error:
                raise ControlError("no_provider", str(error), 5) from None
            except RequestInvalid as error:
                raise ControlError("bad_request", str(error), 2) from None
            # The first state follows within the same turn of the loop: one line more in the first piece of the answer.
            known: tuple[RunEvent, ...] = ()
            if not self._asked.brief:
                known = (RunEvent("request", {"request": self.request.hex(), "model": self._asked.model}),)
            while not ended:
                ready = await stream.take()
                if isinstance(ready[-1], StreamLost):
                    raise ControlError("too_slow", "the job's events were not read in time; the job is cancelled", 1)
                ended = any(isinstance(event, ENDS) for event in ready)
                told = (*known, *(each for event in ready for each in shown(event)))
                known = ()
                if told:
                    yield told
        finally:
            announcements.close(self.request)
            if not ended:
                self._node.loop.feed(CancelJob(self.request, "cancelled by the user"))
