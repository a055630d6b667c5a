"""One job of this node's user, from request to its last event.

Law: closing the stream before its end cancels the job and its further charges.
"""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from node.runtime.control import QUOTE_ROWS, ControlError, QuoteView, RunEvent, RunRequest
from node.runtime.event_stream import StreamLost
from node.runtime.ledger_views import account_text
from node.runtime.quotes import quote_view
from node.runtime.wishes import Wish
from protocol.engine.inputs import CancelJob, StartJob
from protocol.market.buyer_job import RequestInvalid
from protocol.market.events import (
    AttemptFailed,
    JobAgreed,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobPrefilled,
    JobProgressed,
    JobText,
)
from protocol.messages.market import FaultKind, FinishReason
from protocol.primitives.addresses import AddressKind, format_address
from protocol.primitives.codec import Message

if TYPE_CHECKING:
    from node.runtime.node import Node

_EXIT_CODES = {FaultKind.USER: 3, FaultKind.PROVIDER: 3, FaultKind.CAPACITY: 5, FaultKind.NETWORK: 5}

_ENDS = (JobFinished, JobFailed, JobCancelled)


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
        stream = announcements.open(self.request)
        ended = False
        try:
            try:
                self._node.loop.feed(StartJob(job))
            except RequestInvalid as error:
                raise ControlError("bad_request", str(error), 2) from None
            # The first state follows within the same turn of the loop: one line more in the first piece of the answer.
            known: tuple[RunEvent, ...] = (
                RunEvent("request", {"request": self.request.hex(), "model": self._asked.model}),
            )
            while not ended:
                ready = await stream.take()
                if isinstance(ready[-1], StreamLost):
                    raise ControlError("too_slow", "the job's events were not read in time; the job is cancelled", 1)
                ended = any(isinstance(event, _ENDS) for event in ready)
                shown = (*known, *filter(None, map(_shown, ready)))
                known = ()
                if shown:
                    yield shown
        finally:
            announcements.close(self.request)
            if not ended:
                self._node.loop.feed(CancelJob(self.request, "cancelled by the user"))


def _shown(event: Message) -> RunEvent | None:
    match event:
        case JobProgressed():
            return RunEvent("progress", {"state": event.state, "cause": event.cause})
        case JobAgreed():
            return RunEvent(
                "agreed",
                {
                    "job": event.job.hex(),
                    "provider": account_text(event.provider),
                    "price_ceiling": event.price_ceiling,
                    "channel": event.channel.hex(),
                },
            )
        case JobPrefilled():
            return RunEvent("input", {"input_units": event.input_units})
        case JobText():
            return RunEvent("output", {"output_units": event.output_units}, event.payload)
        case AttemptFailed():
            facts = {
                "provider": account_text(event.provider),
                "fault": event.fault.name.lower(),
                "reason": event.reason,
            }
            return RunEvent("retry", {**facts})
        case JobFinished():
            return _finished(event)
        case JobFailed():
            return _failed(event)
        case JobCancelled():
            return RunEvent("cancelled", {"job": event.job.hex(), "reason": event.reason, "paid": event.paid})
        case _:
            return None


def _finished(event: JobFinished) -> RunEvent:
    receipt = event.receipt
    return RunEvent(
        "finished",
        {
            "job": event.job.hex(),
            "provider": account_text(receipt.provider),
            "model": format_address(AddressKind.MODEL, receipt.model),
            "input_units": receipt.input_units,
            "output_units": event.output_units,
            "chunks": event.chunks,
            "finish": FinishReason(receipt.finish).name.lower(),
            "amount": receipt.amount,
            "paid": event.paid,
        },
    )


def _failed(event: JobFailed) -> RunEvent:
    fault = FaultKind(event.fault)
    # Once something was agreed or delivered it is a failed job, whoever failed.
    delivered = event.output_units > 0 or event.paid > 0
    return RunEvent(
        "failed",
        {
            "job": event.job.hex(),
            "fault": fault.name.lower(),
            "reason": event.reason,
            "first_reason": event.first_reason,
            "paid": event.paid,
            "output_units": event.output_units,
            "code": f"{fault.name.lower()}_fault",
            "exit_code": 3 if delivered else _EXIT_CODES[fault],
        },
    )
