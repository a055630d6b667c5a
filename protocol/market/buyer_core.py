"""What all steps of the buyer share: its jobs, its books, its links, and how a job changes state.

Law: a lane is given back in the same step in which its attempt ends, and a request that has ended is in no table any
more: whatever still comes for it is late.
"""

from msgspec import Struct
from msgspec.structs import replace

from protocol.market.backoff import Backoff
from protocol.market.buyer_books import BuyerBooks
from protocol.market.buyer_job import HEARD, TRANSITIONS, Attempt, BuyerJob, BuyerState, clip
from protocol.market.events import AttemptFailed, JobCancelled, JobDelivered, JobFailed, JobFinished, JobProgressed
from protocol.market.ledger_view import LedgerView
from protocol.market.order_book import OrderBook
from protocol.market.policies import BuyerPolicy
from protocol.market.records import (
    JobRecord,
    JobStatements,
    ReceiptRecord,
    Side,
    receipt_rows,
    waiting_key,
)
from protocol.market.requests import MarketEffect
from protocol.messages.effects import CancelTimer, Delete, Notify, Now, Put, SetTimer, SignAndSend, Table, TimerKey
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Agreement, Cancellation, FaultKind, Receipt, Voucher
from protocol.primitives.codec import encode
from protocol.primitives.units import (
    AccountId,
    Amount,
    ChannelId,
    Hash,
    Lane,
    MessageId,
    MonotonicMs,
    NodeId,
    Salt,
    SequenceNumber,
)
from protocol.settlement.accumulator import receipt_leaf
from protocol.settlement.chunks import Progress

ROOM = "buyer"

CANCELLATIONS_WAITING_MAX = 256
UNTOLD_NODES_MAX = 256
"""Jobs that an unlinked node could not be told of, and such nodes; with a link both sides compare all that is open."""


class Funding(Struct, frozen=True):
    """A channel transaction under way for one provider; ``deposits`` is what its channels held at that time."""

    deposits: Amount


class Whole(Struct, frozen=True):
    """A job that was delivered whole, as the record of its receipt keeps it; bids and statements as envelopes."""

    job: MessageId
    request: Hash
    agreement: Agreement
    progress: Progress
    bid_bytes: bytes
    agreement_bytes: bytes
    acceptance_bytes: bytes
    salt: Salt
    input: bytes
    output: bytes


LaneName = tuple[ChannelId, Lane]


class BuyerCore:
    """The buyer's state."""

    def __init__(
        self,
        own: AccountId,
        own_node: NodeId,
        ledger: LedgerView,
        order_book: OrderBook,
        policy: BuyerPolicy,
    ) -> None:
        self.own = own
        self.own_node = own_node
        self.ledger = ledger
        self.order_book = order_book
        self.policy = policy
        self.books = BuyerBooks()
        self.requests: dict[Hash, BuyerJob] = {}
        self.by_job: dict[MessageId, BuyerJob] = {}
        self.by_bid: dict[MessageId, BuyerJob] = {}
        self.linked: dict[NodeId, None] = {}
        self.funding: dict[AccountId, Funding] = {}
        self.leaving: dict[ChannelId, MonotonicMs] = {}
        """Channels whose close is under way, until when that is believed: no job begins on them."""
        self.backoff = Backoff(policy)
        self.unsealed: dict[LaneName, ReceiptRecord] = {}
        """Receipts whose final voucher is being signed."""
        self.unconfirmed: dict[NodeId, dict[LaneName, None]] = {}
        """Lanes whose last voucher the provider has not shown to have."""
        self.to_cancel: dict[NodeId, list[Cancellation]] = {}
        """What a provider could not be told while there was no link to it."""
        self.unproved: dict[tuple[LaneName, SequenceNumber], tuple[MessageId, JobStatements]] = {}
        """Statements of jobs without a receipt, by the voucher that is being signed once more to stand among them."""

    def enter(self, job: BuyerJob, state: BuyerState, cause: str, now: Now) -> list[MarketEffect]:
        """Change state: note it, set the state's deadline, tell whoever watches."""
        assert state in TRANSITIONS[job.state]
        assert (job.attempt is None) == (state not in HEARD), "a provider is listened to exactly while it has the job"
        assert job.paid() <= job.request.price_ceiling, "all attempts together stay under the ceiling"
        job.state = state
        job.note(now.wall_ms, state.value, cause)
        job.deadline = job.deadline_of(state, self.policy, now)
        return [
            SetTimer(timer_key(job), job.due_at()),
            Notify(JobProgressed(job.request.request, job.job_id(), state.value, clip(cause))),
        ]

    def keep_waiting(self, job: BuyerJob) -> list[MarketEffect]:
        """Without an agreement a request has no row: one that has to wait gets one, should this process end meanwhile.
        Put behind what else the step does: nothing waits for it."""
        if job.waits is job.state:
            return []
        job.waits = job.state
        return [Put(Table.STANDING, waiting_key(job.request.request), encode(job.record(self.own)))]

    def waits_no_more(self, job: BuyerJob) -> list[MarketEffect]:
        """It has an agreement, or an end."""
        if job.waits is None:
            return []
        job.waits = None
        return [Delete(Table.STANDING, waiting_key(job.request.request))]

    def postpone(self, job: BuyerJob, now: Now) -> MarketEffect:
        """Start the deadline of the state again: the provider did what was due."""
        job.deadline = job.deadline_of(job.state, self.policy, now)
        return SetTimer(timer_key(job), job.due_at())

    def put_record(self, job: BuyerJob, fault: FaultKind | None = None, reason: str = "") -> Put:
        """The job's row: by job id, or by request id before any agreement."""
        record = job.record(self.own, fault, reason)
        return Put(Table.JOB, record.job if job.attempt is not None else record.request, encode(record))

    def send_voucher(self, voucher: Voucher, node: NodeId) -> MarketEffect:
        """Sign and send; the row that it comes from has been put before."""
        return SignAndSend(MessageKind.VOUCHER, encode(voucher), (node,))

    def acknowledge(self, whole: Whole, receipt_bytes: bytes) -> tuple[tuple[Put, ...], Voucher]:
        """Commit to a receipt that was judged good: the rows of its record, and the voucher that pays with it.

        The caller puts the rows, and behind them the lane's, before it sends the voucher.
        """
        agreement = whole.agreement
        leaf = receipt_leaf(receipt_bytes)
        _, voucher, proof = self.books.pay(agreement.channel, agreement.lane, whole.progress, leaf)
        assert proof is not None
        record = ReceiptRecord(
            job=whole.job,
            request=whole.request,
            side=Side.BUYER,
            channel=agreement.channel,
            lane=agreement.lane,
            bid=whole.bid_bytes,
            agreement=whole.agreement_bytes,
            acceptance=whole.acceptance_bytes,
            receipt=receipt_bytes,
            final_voucher=b"",
            leaf=leaf,
            proof=proof,
            salt=whole.salt,
            input=whole.input,
            output=whole.output,
        )
        self.unsealed[(agreement.channel, agreement.lane)] = record
        return receipt_rows(record), voucher

    def tell_cancelled(self, job: BuyerJob, reason: str) -> list[MarketEffect]:
        """Let the provider know that it need not go on: now, or once there is a link to it again."""
        attempt = job.attempt
        if attempt is None:
            return []
        cancellation = Cancellation(attempt.job, attempt.progress.chunks, clip(reason))
        if attempt.node not in self.linked:
            waiting = self.to_cancel.setdefault(attempt.node, [])
            waiting.append(cancellation)
            del waiting[:-CANCELLATIONS_WAITING_MAX]
            if len(self.to_cancel) > UNTOLD_NODES_MAX:
                del self.to_cancel[next(iter(self.to_cancel))]
            return []
        return [SignAndSend(MessageKind.CANCELLATION, encode(cancellation), (attempt.node,))]

    def end_attempt(
        self, job: BuyerJob, fault: FaultKind | None, reason: str, *, owed_back: bool, keep_lane: bool = False
    ) -> list[MarketEffect]:
        """Give the lane back, unless its receipt is waited for, and keep the attempt's row. The job goes on without
        an attempt."""
        attempt = job.attempt
        if attempt is None:
            return []
        agreement = attempt.agreement
        channel, number = agreement.channel, agreement.lane
        lane = self.books.hold(channel, number) if keep_lane else self.books.end(channel, number, owed_back=owed_back)
        effects: list[MarketEffect] = [lane, self.put_record(job, fault, reason)]
        if job.state is not BuyerState.DONE:
            effects += self._keep_statements(attempt)
        if self.books.position(agreement.channel, agreement.lane).sequence:
            self.unconfirmed.setdefault(attempt.node, {})[(agreement.channel, agreement.lane)] = None
        del self.by_job[attempt.job]
        job.spent = job.paid()
        job.attempt = None
        job.lost_until = None
        return effects

    def _keep_statements(self, attempt: Attempt) -> list[MarketEffect]:
        """What shows, without a receipt, how far the attempt was delivered and paid."""
        agreement, statements = attempt.agreement, attempt.statements()
        effects: list[MarketEffect] = [Put(Table.JOB_STATEMENT, attempt.job, encode(statements))]
        lane = self.books.lane(agreement.channel, agreement.lane)
        voucher = self.books.last_voucher(lane) if lane is not None and attempt.paid else None
        if voucher is not None:
            # The same statement has the same bytes: signed once more, the voucher joins the others.
            self.unproved[((voucher.channel, voucher.lane), voucher.sequence)] = (attempt.job, statements)
            effects.append(SignAndSend(MessageKind.VOUCHER, encode(voucher)))
        return effects

    def voucher_signed(self, voucher: Voucher, envelope_bytes: bytes) -> list[MarketEffect]:
        """A voucher of ours is signed: it completes the statements that wait for it, if any do."""
        if not self.unproved:
            return []
        waiting = self.unproved.pop(((voucher.channel, voucher.lane), voucher.sequence), None)
        if waiting is None:
            return []
        job, statements = waiting
        return [Put(Table.JOB_STATEMENT, job, encode(replace(statements, voucher=envelope_bytes)))]

    def close(self, job: BuyerJob) -> list[MarketEffect]:
        """Forget a request that has come to its end."""
        assert job.attempt is None
        del self.requests[job.request.request]
        self.by_bid.pop(job.bid, None)
        return [*self.waits_no_more(job), CancelTimer(timer_key(job))]

    def finish_done(self, job: BuyerJob, receipt: Receipt, now: Now) -> list[MarketEffect]:
        """Delivered, paid and receipted."""
        units, chunks = job.output_units(), job.asked.pieces + receipt.chunks
        self._note_end(job, BuyerState.DONE, "receipt acknowledged, last chunk paid", now)
        self.backoff.succeeded(receipt.provider, disputed=bool(job.reconciled))
        effects = self.end_attempt(job, None, "", owed_back=False)
        effects += self.close(job)
        finished = JobFinished(job.request.request, receipt.job, receipt, job.paid(), units, chunks)
        return [*effects, Notify(finished)]

    def finish_delivered(
        self, job: BuyerJob, fault: FaultKind, reason: str, now: Now, *, awaited: bool
    ) -> tuple[JobRecord, list[MarketEffect]]:
        """Delivered and paid, without a receipt; ``awaited`` if one may still come. Returns the job's row too."""
        attempt = job.attempt
        assert attempt is not None
        agreement, progress = attempt.agreement, attempt.progress
        assert attempt.paid == progress.due, "what was delivered whole is paid whole"
        self._note_end(job, BuyerState.DELIVERED, reason, now)
        told = JobDelivered(
            request=job.request.request,
            job=attempt.job,
            provider=agreement.provider,
            model=agreement.model,
            input_units=progress.input_units,
            output_units=job.output_units(),
            chunks=job.asked.pieces + progress.chunks,
            finish=progress.finish,
            amount=progress.due,
            paid=job.paid(),
            fault=fault,
            reason=clip(reason),
        )
        record = job.record(self.own, None, reason)
        effects = self.end_attempt(job, None, reason, owed_back=False, keep_lane=awaited)
        return record, [*effects, *self.close(job), Notify(told)]

    def finish_failed(self, job: BuyerJob, fault: FaultKind, reason: str, now: Now) -> list[MarketEffect]:
        """The request fails; a live attempt has no one to blame but its fault (see ``Delivery.attempt_failed``)."""
        job_id, units = job.job_id(), job.output_units()
        first = job.first_error or (fault, reason)
        owed_back = job.attempt is not None and job.attempt.paid > 0 and not job.attempt.delivered
        self._note_end(job, BuyerState.FAILED, reason, now)
        effects: list[MarketEffect] = []
        if job.attempt is None:
            effects.append(self.put_record(job, fault, reason))
        effects += self.end_attempt(job, fault, reason, owed_back=owed_back)
        effects += self.close(job)
        event = JobFailed(job.request.request, job_id, fault, clip(reason), job.paid(), units, first[0], clip(first[1]))
        return [*effects, *map(Notify, job.unshown), Notify(event)]

    def finish_cancelled(self, job: BuyerJob, reason: str, now: Now) -> list[MarketEffect]:
        """The buyer's people wanted no more; what was paid stays paid."""
        job_id, units = job.job_id(), job.output_units()
        effects = self.tell_cancelled(job, reason)
        self._note_end(job, BuyerState.CANCELLED, reason, now)
        if job.attempt is None:
            effects.append(self.put_record(job, None, reason))
        effects += self.end_attempt(job, None, reason, owed_back=False)
        effects += self.close(job)
        event = JobCancelled(job.request.request, job_id, clip(reason), job.paid(), units)
        return [*effects, *map(Notify, job.unshown), Notify(event)]

    def attempt_event(self, job: BuyerJob, fault: FaultKind, reason: str) -> MarketEffect:
        """Tell whoever watches that a provider dropped out."""
        provider = job.match.live.account if job.match is not None else self.own
        return Notify(AttemptFailed(job.request.request, job.job_id(), provider, fault, clip(reason)))

    def _note_end(self, job: BuyerJob, state: BuyerState, cause: str, now: Now) -> None:
        assert state in TRANSITIONS[job.state]
        job.state = state
        job.note(now.wall_ms, state.value, cause)


def timer_key(job: BuyerJob) -> TimerKey:
    """A job has one timer: the deadline of its state."""
    return TimerKey(ROOM, "deadline", job.request.request)
