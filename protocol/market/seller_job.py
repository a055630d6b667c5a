"""One job of the seller's: its states as tables, and what is known of it.

Law: every state has a deadline (``SALE_LASTS``), an outcome for when it passes and who has what money then
(``SALE_EXPIRIES``), and takes the inputs in ``TAKES`` alone; a job moves only along ``SALES``. Before PREFILL it is an
arrival at the ``Intake``: bid, agreement and input come in any order and are judged together.

    PREFILL → AWAIT_VOUCHER → WORKING → AWAIT_VOUCHER → … → AWAIT_FINAL → DONE;  every state → FAILED, CANCELLED
"""

from collections.abc import Callable
from enum import Enum

from msgspec import Struct

from protocol.market.records import CHUNKS, NO_REQUEST, JobRecord, JobStatements, Side, noted
from protocol.messages.effects import Now
from protocol.messages.market import Agreement, FaultKind, FinishReason, HistoryEntry
from protocol.primitives.limits import TEXT_BYTES_MAX
from protocol.primitives.units import Amount, DurationMs, MessageId, MonotonicMs, Salt, TimestampMs, WorkUnits
from protocol.settlement.chunks import Progress, progress_start


class SellerState(Enum):
    """Where a job is."""

    PREFILL = "processing the input"
    AWAIT_VOUCHER = "awaiting a voucher"
    WORKING = "working"
    AWAIT_FINAL = "awaiting the final voucher"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


_ENDS = (SellerState.FAILED, SellerState.CANCELLED)
_BETWEEN_CHUNKS = (SellerState.AWAIT_VOUCHER, SellerState.WORKING)
SALES: dict[SellerState, tuple[SellerState, ...]] = {
    SellerState.PREFILL: (SellerState.AWAIT_VOUCHER, SellerState.AWAIT_FINAL, *_ENDS),
    SellerState.AWAIT_VOUCHER: (
        SellerState.WORKING,
        SellerState.AWAIT_VOUCHER,
        SellerState.AWAIT_FINAL,
        *_ENDS,
    ),
    SellerState.WORKING: (SellerState.AWAIT_VOUCHER, SellerState.AWAIT_FINAL, *_ENDS),
    SellerState.AWAIT_FINAL: (SellerState.DONE, *_ENDS),
    SellerState.DONE: (),
    SellerState.FAILED: (),
    SellerState.CANCELLED: (),
}


class SaleInput(Enum):
    """What can happen to a job under way, beside its deadline."""

    VOUCHER = "the buyer pays"
    CANCELLATION = "the buyer wants no more"
    PREFILLED = "the worker has processed the input"
    PIECE = "the worker has more output"
    WORK_FAILED = "the worker can't go on"


TAKES: dict[SellerState, tuple[SaleInput, ...]] = {
    SellerState.PREFILL: (SaleInput.CANCELLATION, SaleInput.PREFILLED, SaleInput.PIECE, SaleInput.WORK_FAILED),
    SellerState.AWAIT_VOUCHER: (
        SaleInput.VOUCHER,
        SaleInput.CANCELLATION,
        SaleInput.PIECE,
        SaleInput.WORK_FAILED,
    ),
    SellerState.WORKING: (SaleInput.CANCELLATION, SaleInput.PIECE, SaleInput.WORK_FAILED),
    SellerState.AWAIT_FINAL: (SaleInput.VOUCHER, SaleInput.CANCELLATION),
}
"""What a job takes in which state; anything else changes nothing. A piece that nobody asked for ends the job: a worker
that breaks its order of pieces can't be metered."""


class Earning(Enum):
    """What the provider has worked for in the end when a state's deadline passes, or the job fails in it."""

    NOTHING = "nothing was released, nothing is earned"
    PAID = "what was paid is earned once output was released; the input's price alone is owed back"
    RELEASED = "all that was released is earned; at most its last chunk is not paid"


class SaleExpiry(Struct, frozen=True):
    """What a state's passed deadline means; ``ours`` when the provider is the one who was late."""

    fault: FaultKind
    reason: str
    ours: bool
    earning: Earning


SALE_EXPIRIES: dict[SellerState, SaleExpiry] = {
    SellerState.PREFILL: SaleExpiry(
        FaultKind.PROVIDER, "processing the input took longer than agreed", True, Earning.NOTHING
    ),
    SellerState.WORKING: SaleExpiry(FaultKind.PROVIDER, "the worker took longer than agreed", True, Earning.PAID),
    SellerState.AWAIT_VOUCHER: SaleExpiry(
        FaultKind.NETWORK, "the buyer did not pay the last chunk in time", False, Earning.RELEASED
    ),
    SellerState.AWAIT_FINAL: SaleExpiry(
        FaultKind.NETWORK, "the buyer did not acknowledge the receipt in time", False, Earning.RELEASED
    ),
}
"""The default outcome of every state that is not an end."""

TIME_LIMIT_OVER = "the job's time limit is over"
"""Why a job ends, by its buyer's fault, where this node was at work and still had the time that it had promised to need
at most. How long the whole job may take is the buyer's choice; nobody signs a failure of its own for that."""

SALE_LASTS: dict[SellerState, Callable[[Agreement], DurationMs]] = {
    SellerState.PREFILL: lambda agreement: agreement.first_output_ms,
    SellerState.AWAIT_VOUCHER: lambda agreement: agreement.stall_ms,
    SellerState.WORKING: lambda agreement: agreement.stall_ms,
    SellerState.AWAIT_FINAL: lambda agreement: agreement.stall_ms,
}
"""How long every state that is not an end lasts, by the agreement alone; never longer than its ``total_ms``."""


class Piece(Struct, frozen=True):
    """What the worker handed over and nobody outside has seen yet."""

    payload: bytes
    units: int
    finish: FinishReason


class SellerJob:
    """A job under way. Mutable; changed by the seller's steps alone."""

    __slots__ = (
        "acceptance_bytes",
        "accepted_at",
        "agreement",
        "agreement_bytes",
        "bid_bytes",
        "chunks_paid",
        "deadline",
        "ending_bytes",
        "gathering_since",
        "held",
        "history",
        "input",
        "job",
        "metered",
        "model_name",
        "output",
        "output_bytes",
        "paid",
        "progress",
        "pulling",
        "quiet",
        "salt",
        "since",
        "state",
        "total_until",
        "unanswered",
        "working",
    )

    def __init__(
        self,
        job: MessageId,
        agreement: Agreement,
        agreement_bytes: bytes,
        bid_bytes: bytes,
        salt: Salt,
        job_input: bytes,
        now: Now,
    ) -> None:
        self.job = job
        self.agreement = agreement
        self.agreement_bytes = agreement_bytes
        self.bid_bytes = bid_bytes
        self.acceptance_bytes = b""
        self.ending_bytes = b""
        """Envelope of the buyer's cancellation."""
        self.model_name = ""
        self.accepted_at: TimestampMs = now.wall_ms
        self.salt = salt
        self.input = job_input
        self.state = SellerState.PREFILL
        self.since = now.monotonic_ms
        """When it entered its state."""
        self.progress: Progress = progress_start(job)
        """What was released."""
        self.paid = Amount(0)
        self.chunks_paid = 0
        self.metered = WorkUnits(0)
        """Input units, once the input is processed."""
        self.gathering_since: MonotonicMs | None = None
        """In PREFILL: when the input was processed, if chunk 0 waits to see whether the output is whole with it."""
        self.held: Piece | None = None
        """Computed ahead: goes out once the chunk before is paid."""
        self.pulling = False
        """True while the worker owes a piece."""
        self.working = True
        """True while the job takes one of the node's slots."""
        self.output: list[bytes] = []
        self.output_bytes = 0
        self.unanswered: list[bytes] = []
        """Envelopes that the buyer has not reacted to yet: sent again when its link comes back."""
        self.history: list[HistoryEntry] = []
        self.total_until = MonotonicMs(now.monotonic_ms + agreement.total_ms)
        self.deadline = self.deadline_of(SellerState.PREFILL, now)

        self.quiet: tuple[SellerState, int] | None = None
        """Where the job stood when it was last looked at: one that stands there still is compared."""

    @property
    def delivered(self) -> bool:
        """True once any chunk of output was released."""
        return self.progress.delivered

    @property
    def receipt_out(self) -> bool:
        """True once nothing but the buyer's last voucher is missing."""
        return self.state is SellerState.AWAIT_FINAL

    def note(self, at: TimestampMs, cause: str) -> None:
        """Add the state to the timeline, with what was released and paid by then; chunk after chunk shares a line."""
        state = CHUNKS if self.state in _BETWEEN_CHUNKS else self.state.value
        entry = HistoryEntry(at, state, cause[:TEXT_BYTES_MAX], chunks=self.progress.chunks, paid=self.paid)
        noted(self.history, entry)

    def statements(self) -> JobStatements:
        """What both sides have signed of it; its own chunks are not kept twice."""
        return JobStatements(self.agreement_bytes, self.acceptance_bytes, b"", self.ending_bytes)

    def deadline_of(self, state: SellerState, now: Now) -> MonotonicMs:
        """When ``state``, entered now, ends by itself; never after the job's own end."""
        return MonotonicMs(min(now.monotonic_ms + SALE_LASTS[state](self.agreement), self.total_until))

    def out_of_time(self, now: Now) -> bool:
        """True if the buyer's limit for the whole job is over before the deadline that was promised in this state."""
        promised_until = self.since + SALE_LASTS[self.state](self.agreement)
        return promised_until > self.total_until <= now.monotonic_ms

    def record(self, fault: FaultKind | None = None, reason: str = "") -> JobRecord:
        """The job as its row."""
        return JobRecord(
            job=self.job,
            request=NO_REQUEST,
            side=Side.SELLER,
            buyer=self.agreement.buyer,
            provider=self.agreement.provider,
            model=self.agreement.model,
            channel=self.agreement.channel,
            lane=self.agreement.lane,
            price_ceiling=self.agreement.price_ceiling,
            state=self.state.value,
            fault=fault,
            reason=reason[:TEXT_BYTES_MAX],
            paid=self.paid,
            input_units=self.progress.input_units,
            output_units=self.progress.output_units,
            chunks=self.progress.chunks,
            history=tuple(self.history),
            model_name=self.model_name,
            node=self.agreement.buyer_node,
            created_at=self.agreement.created_at,
            accepted_at=self.accepted_at,
        )
