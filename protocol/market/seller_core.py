"""What all steps of the seller share: its models, its books, its jobs and slots, and how a job begins and ends.

Law: a slot is taken from the acceptance until the worker is closed, exactly once each; a lane is given back in the same
step in which its job ends.
"""

from msgspec import Struct
from msgspec.structs import replace

from protocol.market.events import SaleEnded, SlotsChanged
from protocol.market.kept_deadlines import KeptDeadlines
from protocol.market.ledger_view import LedgerView
from protocol.market.policies import SellerPolicy
from protocol.market.quotes_held import QuotesHeld
from protocol.market.records import JobRecord, ReceiptRecord, noted
from protocol.market.requests import MarketEffect
from protocol.market.seller_books import SellerBooks
from protocol.market.seller_job import SALES, SellerJob, SellerState
from protocol.messages.effects import CancelTimer, CloseWork, Notify, Now, Put, SetTimer, SignAndSend, Table, TimerKey
from protocol.messages.envelope import open_as
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Failure, FaultKind, HistoryEntry, ModelOffer, Receipt
from protocol.messages.wire import JobStanding
from protocol.primitives.codec import encode
from protocol.primitives.limits import TEXT_BYTES_MAX
from protocol.primitives.units import AccountId, Amount, ChannelId, Lane, MessageId, ModelId, NodeId

ROOM = "seller"

PAID_LATE = "paid late"
"""State of a history entry: the job was over when its last chunk was paid."""

FAILURES_KEPT_MAX = 256
"""Failures whose words are kept: 400 bytes each. A buyer that asks later learns that the job is over, and no more."""


UNPAID_KEPT_MAX = 256
"""Jobs that ended before their last chunk was paid and whose voucher may still come: a row of 2 KB each."""


class Unpaid(Struct, frozen=True):
    """A job that ended with something unpaid: its row, where its vouchers count from, and what was due."""

    record: JobRecord
    start: Amount
    due: Amount


class SellerCore:
    """The seller's state."""

    def __init__(self, own: AccountId, own_node: NodeId, ledger: LedgerView, policy: SellerPolicy) -> None:
        self.own = own
        self.own_node = own_node
        self.ledger = ledger
        self.policy = policy
        self.models: dict[ModelId, ModelOffer] = {}
        self.books = SellerBooks()
        self.jobs: dict[MessageId, SellerJob] = {}
        self.pending: dict[tuple[ChannelId, Lane], ReceiptRecord] = {}
        """Issued receipts that no voucher has committed to yet."""
        self.unpaid: dict[tuple[ChannelId, Lane], Unpaid] = {}
        """By the lane, until its next job."""
        self.slots_taken = 0
        self.kept = KeptDeadlines()
        self.quotes = QuotesHeld(policy.quotes, policy.slots)
        self.ended: dict[MessageId, tuple[NodeId, Failure]] = {}
        """Jobs that ended here and with what words, should their buyers' nodes have missed them."""

    def slots_free(self) -> int:
        """How many more jobs this node can take now."""
        return max(0, self.policy.slots - self.slots_taken)

    def slots_unpromised(self) -> int:
        """How many of them wait for nobody."""
        return max(0, self.slots_free() - self.quotes.slots_held())

    def said_last(self, standing: JobStanding, peer: NodeId) -> tuple[bytes, ...]:
        """The receipt of a job that is over, if its buyer has not acknowledged it, behind the last chunk, if its buyer
        lacks that, too; for its buyer's node alone."""
        name = (standing.channel, standing.lane)
        record, lane = self.pending.get(name), self.books.lane(*name)
        if record is None or record.job != standing.job or lane is None or lane.node != peer:
            return ()
        _, receipt = open_as(record.receipt, MessageKind.RECEIPT)
        assert isinstance(receipt, Receipt)
        lacks_chunk = record.last_chunk and standing.chunks < receipt.chunks
        return (record.last_chunk, record.receipt) if lacks_chunk else (record.receipt,)

    def take_slot(self) -> MarketEffect:
        """One more job has the worker."""
        self.slots_taken += 1
        return self.slots_event()

    def slots_event(self) -> MarketEffect:
        """Tell the engine that the offer should follow."""
        return Notify(SlotsChanged(self.slots_free(), self.policy.slots))

    def close_work(self, job: SellerJob) -> list[MarketEffect]:
        """The job needs no more work; its slot is free again."""
        if not job.working:
            return []
        job.working = job.pulling = False
        self.slots_taken -= 1
        assert self.slots_taken >= 0
        return [CloseWork(job.job), self.slots_event()]

    def enter(self, job: SellerJob, state: SellerState, cause: str, now: Now) -> MarketEffect:
        """Change state and set its deadline."""
        assert state in SALES[job.state]
        job.state, job.since = state, now.monotonic_ms
        job.note(now.wall_ms, cause)
        job.deadline = job.deadline_of(state, now)
        return SetTimer(TimerKey(ROOM, "deadline", job.job), job.deadline)

    def end(
        self, job: SellerJob, state: SellerState, fault: FaultKind | None, reason: str, earned: Amount, now: Now
    ) -> list[MarketEffect]:
        """The job is over; ``earned`` is what was worked for by its prices."""
        assert state in SALES[job.state]
        agreement = job.agreement
        job.state = state
        job.note(now.wall_ms, reason)
        del self.jobs[job.job]
        receipted, record = state is SellerState.DONE, job.record(fault, reason)
        if job.paid < job.progress.due:
            self.unpaid[(agreement.channel, agreement.lane)] = Unpaid(
                record, agreement.cumulative_start, job.progress.due
            )
            if len(self.unpaid) > UNPAID_KEPT_MAX:
                del self.unpaid[next(iter(self.unpaid))]
        kept = [] if receipted else [Put(Table.JOB_STATEMENT, job.job, encode(job.statements()))]
        return [
            self.books.end(agreement.channel, agreement.lane, earned),
            Put(Table.JOB, job.job, encode(record)),
            *kept,
            *self.close_work(job),
            CancelTimer(TimerKey(ROOM, "deadline", job.job)),
            Notify(
                SaleEnded(
                    job.job, agreement.buyer, state.value, reason[:TEXT_BYTES_MAX], job.paid, job.progress.output_units
                )
            ),
        ]

    def paid_late(self, channel: ChannelId, lane: Lane, cumulative: Amount, now: Now) -> list[MarketEffect]:
        """A voucher came for a lane without a job: what it pays of the last one is told in that job's row."""
        unpaid = self.unpaid.get((channel, lane))
        if unpaid is None:
            return []
        record = unpaid.record
        paid = Amount(min(unpaid.due, max(record.paid, cumulative - unpaid.start)))
        if paid == record.paid:
            return []
        history = list(record.history)
        chunks = history[-1].chunks if history else record.chunks
        noted(history, HistoryEntry(now.wall_ms, PAID_LATE, "its voucher came after the end", chunks=chunks, paid=paid))
        record = replace(record, paid=paid, history=tuple(history))
        self.unpaid[(channel, lane)] = replace(unpaid, record=record)
        return [Put(Table.JOB, record.job, encode(record))]

    def fail(self, job: SellerJob, fault: FaultKind, reason: str, now: Now, *, ours: bool) -> list[MarketEffect]:
        """The job can't go on; tell the buyer.

        When it is ours and no output was released, nothing was earned: what was paid for the input becomes a debt.
        """
        earned = Amount(0) if ours and not job.delivered else job.progress.due
        failure = Failure(job.job, fault, job.progress.chunks, reason[:TEXT_BYTES_MAX])
        self.ended[job.job] = (job.agreement.buyer_node, failure)
        if len(self.ended) > FAILURES_KEPT_MAX:
            del self.ended[next(iter(self.ended))]
        return [
            *self.end(job, SellerState.FAILED, fault, reason, earned, now),
            SignAndSend(MessageKind.FAILURE, encode(failure), (job.agreement.buyer_node,)),
        ]
