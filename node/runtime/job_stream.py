"""One job of this node's user, from request to its last event.

Law: closing the stream before its end cancels the job and its further charges. What can be told at once (no such model,
no offer that would do, no money) is told before anything is signed.
"""

import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from node.clock import read_clock
from node.runtime.control import ControlError, QuoteRow, QuoteView, RunEvent, RunRequest
from node.runtime.event_stream import StreamLost
from node.runtime.ledger_views import account_argument, account_text
from protocol.engine.inputs import CancelJob, StartJob
from protocol.market.agreement import JobRequest
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
from protocol.market.matching import Quote, Want, quote
from protocol.messages.market import FaultKind, FinishReason, JobPayload, ModelOffer
from protocol.primitives.addresses import AddressInvalid, AddressKind, format_address, parse_address
from protocol.primitives.codec import Message, encode
from protocol.primitives.limits import CHUNK_UNITS_MAX, JOB_INPUT_BYTES_MAX
from protocol.primitives.units import (
    AMOUNT_MAX,
    AccountId,
    Amount,
    DurationMs,
    Hash,
    ModelId,
    Salt,
    WorkUnits,
    format_credits,
)

if TYPE_CHECKING:
    from node.runtime.node import Node

_TEMPLATE_UNITS = 64
"""Input tokens that a chat template may add; a token is at least one byte of the input otherwise."""

_EXIT_CODES = {FaultKind.USER: 3, FaultKind.PROVIDER: 3, FaultKind.CAPACITY: 5, FaultKind.NETWORK: 5}

_ENDS = (JobFinished, JobFailed, JobCancelled)


class JobStream:
    """Runs one ``RunRequest``."""

    def __init__(self, node: "Node", request: RunRequest) -> None:
        self._node = node
        self._asked = request
        self.request = Hash(os.urandom(32))
        if not 0 <= request.price_max <= AMOUNT_MAX or not 0 <= request.seed < 2**63:
            raise ControlError("bad_request", "price or seed out of range", 2)
        if (
            request.wait_ms < 0
            or request.output_units_max < 1
            or request.timeout_ms < 1
            or not 0 <= request.temperature_milli <= 10_000
        ):
            raise ControlError("bad_request", "temperature out of range", 2)
        if len(request.body) > JOB_INPUT_BYTES_MAX - 4096:
            raise ControlError("input_too_large", f"the input has {len(request.body)} bytes; the limit is 1 MiB", 2)

    def quote(self) -> QuoteView:
        """Prices and refusals from the local order book."""
        served = self._served()
        found = self._quote(served)
        rows = [QuoteRow(account_text(match.live.account), True, match.price_at_limits, None) for match in found.ranked]
        rows += [QuoteRow(account_text(refused.live.account), False, 0, refused.reason) for refused in found.refused]
        return QuoteView(served.name, tuple(rows))

    async def events(self) -> AsyncIterator[tuple[RunEvent, ...]]:
        """All events of the job, those that are ready together in one, the last one its end."""
        job = self._job_request()
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

    # From what the user asked to what the market takes

    def _served(self) -> ModelOffer:
        """The asked model as somebody offers it, by name, address or hash."""
        now = read_clock().wall_ms
        wanted = self._asked.model
        named: list[ModelOffer] = []
        for live in self._node.engine.book.offers():
            if live.offer.expires_at > now:
                named += [served for served in live.offer.models if _means(wanted, served)]
        models = {served.model for served in named}
        if not models:
            raise ControlError("model_not_found", f"nobody offers a model {wanted!r} now; see `mercat models`", 5)
        if len(models) > 1:
            listed = ", ".join(sorted(model.hex()[:16] for model in models))
            raise ControlError("model_ambiguous", f"{wanted!r} names several models; use one of {listed}", 2)
        return standing_for_all(named)

    def _limits(self, served: ModelOffer) -> tuple[WorkUnits, WorkUnits]:
        """Input and output units at most. A chat token is at least one byte, so bytes bound tokens."""
        if served.runtime == "onnx":
            return WorkUnits(1), WorkUnits(1)
        if served.runtime == "wasm":
            return WorkUnits(1), WorkUnits(min(self._asked.output_units_max, served.output_units_max))
        input_units = len(self._asked.body) + (_TEMPLATE_UNITS if served.runtime == "gguf" else 0)
        output_units = self._asked.output_units_max if served.runtime == "gguf" else max(1, len(self._asked.body))
        if served.runtime == "gguf":
            input_units = min(input_units, served.input_units_max)
        return WorkUnits(max(1, input_units)), WorkUnits(output_units)

    def _provider(self) -> AccountId | None:
        return account_argument(self._asked.provider) if self._asked.provider else None

    def _ceiling(self) -> Amount:
        return Amount(self._asked.price_max or self._node.config.buyer.price_max)

    def _quote(self, served: ModelOffer) -> Quote:
        input_units, output_units = self._limits(served)
        want = Want(
            buyer=self._node.keys.account_id,
            model=ModelId(served.model),
            input_units_max=input_units,
            output_units_max=output_units,
            input_units_expected=input_units,
            output_units_expected=output_units,
            price_ceiling=self._ceiling(),
            unique=self.request,
            region=self._asked.region,
            isolation=self._asked.isolation,
            provider=self._provider(),
        )
        return quote(self._node.engine.book, want, read_clock(), whole_book=False)

    def _job_request(self) -> JobRequest:
        served = self._served()
        found = self._quote(served)
        if not found.ranked and not self._asked.wait_ms:
            reasons = "; ".join(
                f"{account_text(refused.live.account)[:14]}…: {refused.reason}" for refused in found.refused
            )
            raise ControlError("no_provider", f"nobody takes this job: {reasons}", 5)
        if found.ranked:
            self._check_funds(found)
        input_units, output_units = self._limits(served)
        buyer = self._node.config.buyer
        payload = JobPayload(self._asked.format, self._asked.body, self._asked.stop)
        return JobRequest(
            request=self.request,
            model=ModelId(served.model),
            payload=encode(payload),
            salt=Salt(os.urandom(32)),
            unique=Hash(os.urandom(32)),
            input_units_max=input_units,
            output_units_max=output_units,
            price_ceiling=self._ceiling(),
            chunk_units=self._chunk_units(served),
            region=self._asked.region,
            isolation=self._asked.isolation,
            provider=self._provider(),
            seed=self._asked.seed,
            temperature_milli=self._asked.temperature_milli,
            choose_ms=DurationMs(min(self._asked.wait_ms, self._asked.timeout_ms)),
            accept_ms=DurationMs(buyer.accept_ms),
            first_output_ms=DurationMs(buyer.first_output_ms),
            stall_ms=DurationMs(buyer.stall_ms),
            total_ms=DurationMs(min(buyer.total_ms, self._asked.timeout_ms)),
        )

    def _chunk_units(self, served: ModelOffer) -> int:
        match served.runtime:
            case "gguf":
                return self._node.config.buyer.chunk_units
            case "onnx":
                return 1
            case _:
                return CHUNK_UNITS_MAX

    def _check_funds(self, found: Quote) -> None:
        """An empty wallet is told at once; whether a channel's rest suffices, the market finds out."""
        state, own = self._node.engine.replica.state, self._node.keys.account_id
        cheapest = min(match.price_at_limits for match in found.ranked)
        held = sum(channel.held for _, channel in state.channels_of(own) if channel.payer == own)
        balance = state.account(own).balance
        if balance + held < cheapest:
            raise ControlError(
                "no_funds",
                f"the job may cost {format_credits(cheapest)} credits; this account has {format_credits(balance)}"
                f" and {format_credits(held)} in channels",
                4,
            )


def standing_for_all(offered: Sequence[ModelOffer]) -> ModelOffer:
    """One model's offers as one: the runtime that most of them name, and the widest limits of those.

    A model's manifest fixes its runtime, so whoever names another one lies; a job that was cut to fit a single offer,
    however strange, would fail at all other providers.
    """
    counts = Counter(served.runtime for served in offered)
    runtime = max(sorted(counts), key=counts.__getitem__)
    honest = [served for served in offered if served.runtime == runtime]
    widest = max(honest, key=lambda served: served.output_units_max)
    return replace(widest, input_units_max=max(served.input_units_max for served in honest))


def _means(wanted: str, served: ModelOffer) -> bool:
    if wanted == served.name or (len(wanted) >= 8 and served.model.hex().startswith(wanted.lower())):
        return True
    if not wanted.startswith(AddressKind.MODEL.value + "1"):
        return False
    try:
        return parse_address(AddressKind.MODEL, wanted) == served.model
    except AddressInvalid as error:
        raise ControlError("bad_address", str(error), 2) from None


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
            "output_units": receipt.output_units,
            "chunks": receipt.chunks,
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
