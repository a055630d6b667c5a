"""The buyer's way from the agreement to the receipt: judge what comes, pay for it, settle.

Law: a chunk is paid once it is verified, for exactly what all chunks so far cost by the agreement's prices; the voucher
is durable before it leaves. The last chunk is paid by the voucher that commits to the receipt; if no good receipt
comes, it is paid all the same, the job has ended as delivered, and a receipt that comes later is acknowledged then.
"""

from protocol.market.awaited_receipts import AwaitedReceipts
from protocol.market.buyer_core import BuyerCore, Whole, timer_key
from protocol.market.buyer_job import (
    RECONCILIATIONS_MAX,
    RECONCILIATIONS_PER_LANE_MAX,
    Attempt,
    BuyerJob,
    BuyerState,
    Expiry,
    clip,
)
from protocol.market.buyer_opening import Opening
from protocol.market.continuation import Continuity
from protocol.market.events import JobAgreed, JobPrefilled, JobText
from protocol.market.records import AwaitedReceipt, awaited_key
from protocol.market.requests import MarketEffect
from protocol.market.terms import BOOKS_DIFFER, PASSING, too_short_lately
from protocol.messages.effects import Notify, Now, Put, SetTimer, Table
from protocol.messages.envelope import Envelope, open_as
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Acceptance, Chunk, Failure, FaultKind, FinishReason, Receipt, Refusal, Voucher
from protocol.primitives.codec import encode
from protocol.primitives.errors import MalformedMessage
from protocol.primitives.units import AccountId, MonotonicMs, WorkUnits
from protocol.settlement.chunks import ChunkInvalid, check_chunk
from protocol.settlement.receipts import ReceiptInvalid, check_receipt, output_commitment

RECEIPT_MISSING = "delivered and paid, the receipt is missing"
"""Start of the reason of a job that has its result but no receipt."""


class Delivery:
    """Steps from OFFERED to DONE."""

    def __init__(self, core: BuyerCore, opening: Opening, awaited: AwaitedReceipts) -> None:
        self._core = core
        self._opening = opening
        self._awaited = awaited

    def accepted(
        self, job: BuyerJob, attempt: Attempt, acceptance: Acceptance, envelope_bytes: bytes, now: Now
    ) -> list[MarketEffect]:
        """The provider takes the job."""
        assert job.state is BuyerState.OFFERED
        core, agreement = self._core, attempt.agreement
        attempt.acceptance = acceptance
        attempt.acceptance_bytes = envelope_bytes
        job.room_until = None
        core.unconfirmed.get(attempt.node, {}).pop((agreement.channel, agreement.lane), None)
        agreed = JobAgreed(
            request=job.request.request,
            job=attempt.job,
            provider=agreement.provider,
            model=agreement.model,
            price_ceiling=agreement.price_ceiling,
            channel=agreement.channel,
            lane=agreement.lane,
            attempt=job.attempts,
        )
        return [*core.enter(job, BuyerState.PREFILLING, "accepted by the provider", now), Notify(agreed)]

    def chunk(
        self, job: BuyerJob, attempt: Attempt, chunk: Chunk, envelope: Envelope, envelope_bytes: bytes, now: Now
    ) -> list[MarketEffect]:
        """A chunk came: verify it against the chain and the agreement, pay it unless it is the last."""
        if chunk.index < attempt.progress.chunks:
            return []  # sent again after a lost link
        try:
            progress = check_chunk(attempt.job, attempt.agreement, attempt.progress, chunk, envelope.payload)
        except ChunkInvalid as error:
            attempt.ending_bytes = envelope_bytes
            return self.attempt_failed(job, FaultKind.PROVIDER, str(error), now, tell=True)
        held = len(job.asked.output) + attempt.output_bytes
        if held + len(chunk.payload) > self._core.policy.output_bytes_max:
            reason = f"output is larger than {self._core.policy.output_bytes_max} bytes"
            return self.attempt_failed(job, FaultKind.PROVIDER, reason, now, tell=True)
        attempt.progress = progress
        attempt.chunk_bytes = envelope_bytes
        told: list[MarketEffect] = []
        if chunk.index == 0:
            told.append(Notify(JobPrefilled(job.request.request, attempt.job, chunk.input_units)))
        if not progress.delivered:
            paid = self._pay(job, attempt)
            return [*paid, *self._core.enter(job, BuyerState.STREAMING, "input processed and paid", now), *told]
        attempt.output.append(chunk.payload)
        attempt.output_bytes += len(chunk.payload)
        told += self._show(job, attempt, chunk)
        if chunk.finish is FinishReason.NONE:
            paid = self._pay(job, attempt)
            job.note_chunk(now.wall_ms, chunk.index)
            return [*paid, self._core.postpone(job, now), *told]
        return [*told, *self._core.enter(job, BuyerState.SETTLING, "last chunk delivered", now)]

    def _show(self, job: BuyerJob, attempt: Attempt, chunk: Chunk) -> list[MarketEffect]:
        """Tell of a chunk of output, counted over all attempts; of what is of use only as a whole, when it is whole."""
        index, units = job.asked.pieces + max(1, chunk.index), WorkUnits(job.asked.units + chunk.output_units)
        text = JobText(job.request.request, attempt.job, index, chunk.payload, units, chunk.finish)
        if attempt.continuity is not Continuity.STARTS_AGAIN:
            return [Notify(text)]
        if chunk.index <= 1:
            job.unshown = []  # an earlier provider's, never made whole
        job.unshown.append(text)
        if chunk.finish is FinishReason.NONE:
            return []
        shown, job.unshown = job.unshown, []
        return [*map(Notify, shown)]

    def receipt(
        self, job: BuyerJob, attempt: Attempt, receipt: Receipt, envelope: Envelope, envelope_bytes: bytes, now: Now
    ) -> list[MarketEffect]:
        """The receipt came: pay the last chunk and commit to the receipt with one voucher."""
        core, agreement = self._core, attempt.agreement
        output = b"".join(attempt.output)
        commitment = output_commitment(job.request.salt, output)
        assert attempt.acceptance is not None
        signer, accepted_at = AccountId(envelope.sender), attempt.acceptance.accepted_at
        try:
            check_receipt(receipt, signer, attempt.job, agreement, accepted_at, attempt.progress, commitment)
        except ReceiptInvalid as error:
            return self.attempt_failed(job, FaultKind.PROVIDER, str(error), now, tell=True, receipt_may_come=False)
        whole = Whole(
            job=attempt.job,
            request=job.request.request,
            agreement=agreement,
            progress=attempt.progress,
            bid_bytes=job.bid_bytes,
            agreement_bytes=attempt.agreement_bytes,
            acceptance_bytes=attempt.acceptance_bytes,
            salt=job.request.salt,
            input=job.asked.request.payload,
            output=output,
        )
        rows, voucher = core.acknowledge(whole, envelope_bytes)
        attempt.paid = attempt.progress.due
        # The end of the attempt puts the lane's row, which holds the voucher: before the voucher goes.
        return [
            *rows,
            *core.finish_done(job, receipt, now),
            core.send_voucher(voucher, attempt.node),
        ]

    def refused(self, job: BuyerJob, attempt: Attempt, refusal: Refusal, now: Now) -> list[MarketEffect]:
        """The provider does not take the job."""
        lane = (attempt.agreement.channel, attempt.agreement.lane)
        if (
            refusal.reason.startswith(BOOKS_DIFFER)
            and job.reconciled.count(lane) < RECONCILIATIONS_PER_LANE_MAX
            and len(job.reconciled) < RECONCILIATIONS_MAX
        ):
            if self._disputed(attempt, refusal) and (
                self._opening.another(job, now) or not self._core.backoff.forgive(attempt.agreement.provider, now)
            ):
                # The claim stands: whoever would owe nothing by its own word alone could go on like this for ever.
                return self.attempt_failed(job, FaultKind.PROVIDER, "provider disputes what it owes", now, tell=False)
            return self._reconcile(job, attempt, refusal, now)
        fault, reason = refusal.fault, refusal.reason or "refused"
        promised = job.auction is not None and job.auction.promised(attempt.agreement.offer, reason)
        if fault is FaultKind.CAPACITY and promised and not too_short_lately(attempt.agreement, reason):
            fault, reason = FaultKind.PROVIDER, f"provider does not keep its quote: {reason}"
        return self.attempt_failed(job, fault, reason, now, tell=False)

    def failed(self, job: BuyerJob, failure: Failure, now: Now) -> list[MarketEffect]:
        """The provider can't go on."""
        reason = failure.reason or "provider failed"
        known = failure.chunks > 0  # a provider that knows the job may just have waited too long for the voucher
        return self.attempt_failed(job, failure.fault, reason, now, tell=False, receipt_may_come=known)

    def expired(self, job: BuyerJob, expiry: Expiry, now: Now) -> list[MarketEffect]:
        """The provider let a deadline pass."""
        attempt = job.attempt
        lost = attempt is not None and attempt.node not in self._core.linked and expiry.fault is not FaultKind.USER
        fault = FaultKind.NETWORK if lost else expiry.fault
        reason = f"{expiry.reason} (its link was lost)" if lost else expiry.reason
        return self.attempt_failed(job, fault, reason, now, tell=True)

    def link_stays_lost(self, job: BuyerJob, now: Now) -> list[MarketEffect]:
        """The link did not come back at once: whoever else would do takes over, else it is waited for longer."""
        policy, since = self._core.policy, job.lost_since
        if now.monotonic_ms < since + policy.reconnect_ms and not self._opening.another(job, now):
            job.lost_until = MonotonicMs(since + policy.reconnect_ms)
            return [SetTimer(timer_key(job), job.due_at())]
        return self.attempt_failed(job, FaultKind.NETWORK, "the link to the provider was lost", now, tell=True)

    def attempt_failed(
        self, job: BuyerJob, fault: FaultKind, reason: str, now: Now, *, tell: bool, receipt_may_come: bool = True
    ) -> list[MarketEffect]:
        """An attempt ends by the provider's doing: pay what was delivered, then ask the next one to go on, or fail.

        Whoever took the price of the input and delivered nothing owes it. A user's fault is not tried elsewhere. Of
        what was delivered whole only the receipt is missing: the job has its result.
        """
        core, attempt = self._core, job.attempt
        assert attempt is not None
        assert job.match is not None
        effects: list[MarketEffect] = []
        if attempt.delivered and attempt.progress.due > attempt.paid:
            effects += self._pay(job, attempt)
        whole = job.state is BuyerState.SETTLING
        if tell and not whole:
            effects += core.tell_cancelled(job, reason)
        provider = job.match.live.account
        match fault:
            case FaultKind.PROVIDER | FaultKind.NETWORK:
                core.backoff.failed(provider, now)
            case FaultKind.CAPACITY:
                core.backoff.full(provider, now)
                if job.state is BuyerState.OFFERED:
                    job.refusals += 1
                    if reason in PASSING:
                        job.full[provider] = job.match.live.id
            case FaultKind.USER:
                pass
        job.excluded = (*job.excluded, provider)
        if whole:
            return [*effects, *self._delivered(job, attempt, fault, reason, now, receipt_may_come)]
        exhausted = job.exhausted(core.policy) or now.monotonic_ms >= job.total_until
        asked = None if fault is FaultKind.USER or exhausted else self._opening.behind(job)
        if asked is None:
            return [*effects, *core.finish_failed(job, fault, reason, now)]
        job.asked = asked
        job.first_error = job.first_error or (fault, clip(reason))
        job.note(now.wall_ms, "attempt failed", reason)
        effects.append(core.attempt_event(job, fault, reason))
        effects += core.end_attempt(job, fault, reason, owed_back=attempt.paid > 0 and not attempt.delivered)
        return [*effects, *self._opening.choose(job, now)]

    def _delivered(
        self, job: BuyerJob, attempt: Attempt, fault: FaultKind, reason: str, now: Now, receipt_may_come: bool
    ) -> list[MarketEffect]:
        told = f"{RECEIPT_MISSING}: {reason}"
        record, effects = self._core.finish_delivered(job, fault, told, now, awaited=receipt_may_come)
        row = AwaitedReceipt(
            record=record,
            bid=job.bid_bytes,
            agreement=attempt.agreement_bytes,
            acceptance=attempt.acceptance_bytes,
            last_chunk=attempt.chunk_bytes,
            salt=job.request.salt,
            input=job.asked.request.payload,
            output=b"".join(attempt.output),
        )
        kept = Put(Table.JOB_STATEMENT, awaited_key(record.job), encode(row))
        return [kept, *effects, *(self._awaited.begin(row, now) if receipt_may_come else [])]

    def _pay(self, job: BuyerJob, attempt: Attempt) -> list[MarketEffect]:
        agreement = attempt.agreement
        lane_put, voucher, _ = self._core.books.pay(agreement.channel, agreement.lane, attempt.progress, None)
        attempt.paid = attempt.progress.due
        return [lane_put, self._core.send_voucher(voucher, attempt.node)]

    def _disputed(self, attempt: Attempt, refusal: Refusal) -> bool:
        """The provider has our last voucher and says that it owes less than we do."""
        agreement = attempt.agreement
        lane = self._core.books.lane(agreement.channel, agreement.lane)
        theirs = self._own_voucher(refusal, attempt)
        if lane is None or theirs is None or theirs.sequence != lane.position.sequence:
            return False
        return refusal.debt < lane.position.cumulative - agreement.cumulative_start

    def _reconcile(self, job: BuyerJob, attempt: Attempt, refusal: Refusal, now: Now) -> list[MarketEffect]:
        """Our books and the provider's differ: bring them together, then offer again on the same lane."""
        core, agreement = self._core, attempt.agreement
        job.reconciled = (*job.reconciled, (agreement.channel, agreement.lane))
        theirs = self._own_voucher(refusal, attempt)
        job.note(now.wall_ms, "books differ", refusal.reason)
        effects = core.end_attempt(job, refusal.fault, refusal.reason, owed_back=False)
        adopted = core.books.adopt(agreement.channel, agreement.lane, theirs, refusal.debt)
        if adopted is not None:
            effects.append(adopted)
        lane = core.books.lane(agreement.channel, agreement.lane)
        last = core.books.last_voucher(lane) if lane is not None else None
        if last is not None and (theirs is None or theirs.sequence < last.sequence):
            effects.append(core.send_voucher(last, attempt.node))
        return [*effects, *self._opening.advance(job, now)]

    def _own_voucher(self, refusal: Refusal, attempt: Attempt) -> Voucher | None:
        if refusal.last_voucher is None:
            return None
        try:
            envelope, voucher = open_as(refusal.last_voucher, MessageKind.VOUCHER)
        except MalformedMessage:
            return None
        assert isinstance(voucher, Voucher)
        agreement = attempt.agreement
        ours = (self._core.own, agreement.provider, agreement.channel, agreement.lane)
        said = (AccountId(envelope.sender), voucher.payee, voucher.channel, voucher.lane)
        return voucher if said == ours else None
