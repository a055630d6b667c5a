"""What all steps of the buyer share: its jobs, its books, its links, and how a job changes state.

Law: a lane is given back in the same step in which its attempt ends, and a request that has ended is in no table any
more: whatever still comes for it is late.
"""

from msgspec import Struct

from protocol.market.buyer_books import BuyerBooks
from protocol.market.buyer_job import TRANSITIONS, BuyerJob, BuyerState, clip
from protocol.market.events import AttemptFailed, JobCancelled, JobFailed, JobFinished, JobProgressed
from protocol.market.ledger_view import LedgerView
from protocol.market.order_book import OrderBook
from protocol.market.policies import BuyerPolicy
from protocol.market.records import ReceiptRecord
from protocol.market.requests import MarketEffect
from protocol.messages.effects import CancelTimer, Notify, Now, Put, SetTimer, SignAndSend, Table, TimerKey
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Cancellation, FaultKind, Receipt, Voucher
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
    WorkUnits,
)

ROOM = "buyer"


class Funding(Struct, frozen=True):
    """A channel transaction under way for one provider; ``deposits`` is what its channels held at that time."""

    deposits: Amount


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
        self.demoted: dict[AccountId, MonotonicMs] = {}
        """Provider → until when it ranks last."""
        self.unsealed: dict[LaneName, ReceiptRecord] = {}
        """Receipts whose final voucher is being signed."""
        self.unconfirmed: dict[NodeId, dict[LaneName, None]] = {}
        """Lanes whose last voucher the provider has not shown to have."""
        self.to_cancel: dict[NodeId, list[Cancellation]] = {}
        """What a provider could not be told before a restart."""

    def enter(self, job: BuyerJob, state: BuyerState, cause: str, now: Now) -> list[MarketEffect]:
        """Change state: note it, set the state's deadline, tell whoever watches."""
        assert state in TRANSITIONS[job.state]
        job.state = state
        job.note(now.wall_ms, state.value, cause)
        job.deadline = job.deadline_of(state, self.policy, now)
        return [
            SetTimer(timer_key(job), job.deadline),
            Notify(JobProgressed(job.request.request, job.job_id(), state.value, clip(cause))),
        ]

    def postpone(self, job: BuyerJob, now: Now) -> MarketEffect:
        """Start the deadline of the state again: the provider did what was due."""
        job.deadline = job.deadline_of(job.state, self.policy, now)
        return SetTimer(timer_key(job), job.deadline)

    def put_record(self, job: BuyerJob, fault: FaultKind | None = None, reason: str = "") -> Put:
        """The job's row: by job id, or by request id before any agreement."""
        record = job.record(self.own, fault, reason)
        return Put(Table.JOB, record.job if job.attempt is not None else record.request, encode(record))

    def send_voucher(self, voucher: Voucher, node: NodeId) -> MarketEffect:
        """Sign and send; the row that it comes from has been put before."""
        return SignAndSend(MessageKind.VOUCHER, encode(voucher), (node,))

    def tell_cancelled(self, job: BuyerJob, reason: str) -> list[MarketEffect]:
        """Let the provider know that it need not go on."""
        attempt = job.attempt
        if attempt is None or job.state in (BuyerState.CHOOSING, BuyerState.CONNECTING, BuyerState.OPENING_CHANNEL):
            return []
        cancellation = Cancellation(attempt.job, attempt.progress.chunks, clip(reason))
        return [SignAndSend(MessageKind.CANCELLATION, encode(cancellation), (attempt.node,))]

    def end_attempt(
        self, job: BuyerJob, fault: FaultKind | None, reason: str, *, owed_back: bool
    ) -> list[MarketEffect]:
        """Give the lane back and keep the attempt's row. The job goes on without an attempt."""
        attempt = job.attempt
        if attempt is None:
            return []
        agreement = attempt.agreement
        effects: list[MarketEffect] = [
            self.books.end(agreement.channel, agreement.lane, owed_back=owed_back),
            self.put_record(job, fault, reason),
        ]
        if job.state is not BuyerState.DONE:
            effects.append(Put(Table.JOB_STATEMENT, attempt.job, encode(attempt.statements())))
        if self.books.position(agreement.channel, agreement.lane).sequence:
            self.unconfirmed.setdefault(attempt.node, {})[(agreement.channel, agreement.lane)] = None
        del self.by_job[attempt.job]
        job.spent = job.paid()
        job.attempt = None
        return effects

    def close(self, job: BuyerJob) -> list[MarketEffect]:
        """Forget a request that has come to its end."""
        assert job.attempt is None
        del self.requests[job.request.request]
        self.by_bid.pop(job.bid, None)
        return [CancelTimer(timer_key(job))]

    def finish_done(self, job: BuyerJob, receipt: Receipt, now: Now) -> list[MarketEffect]:
        """Delivered, paid and receipted."""
        self._note_end(job, BuyerState.DONE, "receipt acknowledged, last chunk paid", now)
        effects = self.end_attempt(job, None, "", owed_back=False)
        effects += self.close(job)
        return [*effects, Notify(JobFinished(job.request.request, receipt.job, receipt, job.paid()))]

    def finish_failed(self, job: BuyerJob, fault: FaultKind, reason: str, now: Now) -> list[MarketEffect]:
        """The request fails; a live attempt has no one to blame but its fault (see ``Delivery.attempt_failed``)."""
        job_id = job.job_id()
        units = job.attempt.progress.output_units if job.attempt is not None else WorkUnits(0)
        first = job.first_error or (fault, reason)
        owed_back = job.attempt is not None and job.attempt.paid > 0 and not job.attempt.delivered
        self._note_end(job, BuyerState.FAILED, reason, now)
        effects: list[MarketEffect] = []
        if job.attempt is None:
            effects.append(self.put_record(job, fault, reason))
        effects += self.end_attempt(job, fault, reason, owed_back=owed_back)
        effects += self.close(job)
        event = JobFailed(job.request.request, job_id, fault, clip(reason), job.paid(), units, first[0], clip(first[1]))
        return [*effects, Notify(event)]

    def finish_cancelled(self, job: BuyerJob, reason: str, now: Now) -> list[MarketEffect]:
        """The buyer's people wanted no more; what was paid stays paid."""
        job_id = job.job_id()
        units = job.attempt.progress.output_units if job.attempt is not None else WorkUnits(0)
        effects = self.tell_cancelled(job, reason)
        self._note_end(job, BuyerState.CANCELLED, reason, now)
        if job.attempt is None:
            effects.append(self.put_record(job, None, reason))
        effects += self.end_attempt(job, None, reason, owed_back=False)
        effects += self.close(job)
        return [*effects, Notify(JobCancelled(job.request.request, job_id, clip(reason), job.paid(), units))]

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
