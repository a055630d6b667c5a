"""One request of the buyer's: its states as tables, and what is known of it.

Law: every state has a deadline (``LASTS``), an outcome for when it passes and who is paid then (``EXPIRIES``), and
listens to the provider's statements in ``HEARD`` alone; a request moves only along ``TRANSITIONS``.

    AUCTIONING → CHOOSING → CONNECTING → OPENING_CHANNEL → OFFERED → PREFILLING → STREAMING → SETTLING → DONE
                     ↑____________ next provider, behind what was delivered by now ______|            DELIVERED
                                                                     before SETTLING every state → FAILED, CANCELLED
"""

from collections.abc import Callable
from enum import Enum

from msgspec import Struct

from protocol.market.agreement import JobRequest
from protocol.market.auction import Auction
from protocol.market.continuation import Asked, Continuity
from protocol.market.events import NO_JOB, JobText
from protocol.market.matching import Match
from protocol.market.policies import BuyerPolicy
from protocol.market.records import CHUNKS, JobRecord, JobStatements, Side, noted
from protocol.messages.effects import Now
from protocol.messages.market import Acceptance, Agreement, Chunk, Failure, FaultKind, HistoryEntry, Receipt, Refusal
from protocol.primitives.codec import Message
from protocol.primitives.errors import UserError
from protocol.primitives.limits import (
    AUCTION_WINDOW_MS_MAX,
    CHUNK_UNITS_MAX,
    JOB_INPUT_BYTES_MAX,
    REPLICAS_MAX,
    TEXT_BYTES_MAX,
)
from protocol.primitives.units import (
    AMOUNT_MAX,
    AccountId,
    Amount,
    ChannelId,
    DurationMs,
    Lane,
    MessageId,
    MonotonicMs,
    NodeId,
    TimestampMs,
    WorkUnits,
)
from protocol.settlement.chunks import Progress, progress_start

RECONCILIATIONS_MAX = 8
"""Lanes reconciled for one request: a buyer with an old backup needs some, a provider that lies gets no more."""


AGREEMENTS_MAX = 64
"""Offered for one request, refusals for want of room among them: each leaves a row."""

RECONCILIATIONS_PER_LANE_MAX = 2
"""A lost voucher can leave two differences: first in what was promised, and once that is known, in what is owed."""


class RequestInvalid(UserError):
    """A request that no provider could take; ``str`` says what to change."""


class BuyerState(Enum):
    """Where a request is."""

    AUCTIONING = "auctioning"
    CHOOSING = "choosing"
    CONNECTING = "connecting"
    OPENING_CHANNEL = "opening channel"
    OFFERED = "offered"
    PREFILLING = "prefilling"
    STREAMING = "streaming"
    SETTLING = "settling"
    DONE = "done"
    DELIVERED = "delivered"
    """Whole and paid, without a receipt."""
    FAILED = "failed"
    CANCELLED = "cancelled"


class Payout(Enum):
    """What the provider of an attempt has in the end when a state's deadline passes, or the attempt fails in it."""

    NOTHING = "nothing was delivered, nothing is paid"
    VERIFIED = "every verified chunk is paid; the input's price alone, without any output, is owed back"
    WHOLE = "everything was delivered and is paid, the receipt is not acknowledged"


class Expiry(Struct, frozen=True):
    """What a state's passed deadline means: whose fault it is, what the person is told, who has what money."""

    fault: FaultKind
    reason: str
    payout: Payout = Payout.NOTHING


EXPIRIES: dict[BuyerState, Expiry] = {
    BuyerState.AUCTIONING: Expiry(FaultKind.CAPACITY, "nobody quoted a price in time"),
    BuyerState.CHOOSING: Expiry(FaultKind.CAPACITY, "no offer came that would do"),
    BuyerState.CONNECTING: Expiry(FaultKind.NETWORK, "provider could not be reached"),
    BuyerState.OPENING_CHANNEL: Expiry(FaultKind.NETWORK, "the ledger did not fund the channel in time"),
    BuyerState.OFFERED: Expiry(FaultKind.NETWORK, "provider did not answer the agreement in time"),
    BuyerState.PREFILLING: Expiry(FaultKind.PROVIDER, "provider did not process the input in time"),
    BuyerState.STREAMING: Expiry(FaultKind.PROVIDER, "provider stopped delivering", Payout.VERIFIED),
    BuyerState.SETTLING: Expiry(FaultKind.PROVIDER, "provider delivered everything but no receipt", Payout.WHOLE),
}
"""The default outcome of every state that is not an end."""

LASTS: dict[BuyerState, Callable[[JobRequest, BuyerPolicy], DurationMs]] = {
    BuyerState.AUCTIONING: lambda request, policy: request.auction_ms,
    BuyerState.CHOOSING: lambda request, policy: request.choose_ms,
    BuyerState.CONNECTING: lambda request, policy: policy.connect_ms,
    BuyerState.OPENING_CHANNEL: lambda request, policy: policy.funding_ms,
    BuyerState.OFFERED: lambda request, policy: request.accept_ms,
    BuyerState.PREFILLING: lambda request, policy: request.first_output_ms,
    BuyerState.STREAMING: lambda request, policy: request.stall_ms,
    BuyerState.SETTLING: lambda request, policy: request.stall_ms,
}
"""How long every state that is not an end lasts, CHOOSING from the request's start, the others from their own; never
longer than ``total_ms``. A request that lacks nothing but room stays in CHOOSING for ``patience_ms`` at least. From the
agreement on they are its own timeouts; before it there is nobody else to bind."""

HEARD: dict[BuyerState, tuple[type[Message], ...]] = {
    BuyerState.OFFERED: (Acceptance, Refusal, Failure),
    BuyerState.PREFILLING: (Chunk, Failure),
    BuyerState.STREAMING: (Chunk, Failure),
    BuyerState.SETTLING: (Receipt, Failure),
}
"""Which of its provider's statements a request listens to; any other one, in any other state, changes nothing."""

TIME_LIMIT_OVER = Expiry(FaultKind.USER, "the job's time limit is over")
"""Whoever asks for too little time can't blame a provider, nor rank it behind others for it."""

_ENDS = (BuyerState.FAILED, BuyerState.CANCELLED)
_RETRY = (BuyerState.CHOOSING, BuyerState.CONNECTING, BuyerState.OPENING_CHANNEL, BuyerState.OFFERED)
TRANSITIONS: dict[BuyerState, tuple[BuyerState, ...]] = {
    BuyerState.AUCTIONING: (BuyerState.CHOOSING, *_ENDS),
    BuyerState.CHOOSING: (BuyerState.AUCTIONING, *_RETRY, *_ENDS),
    BuyerState.CONNECTING: (*_RETRY, *_ENDS),
    BuyerState.OPENING_CHANNEL: (*_RETRY, *_ENDS),
    BuyerState.OFFERED: (*_RETRY, BuyerState.PREFILLING, *_ENDS),
    BuyerState.PREFILLING: (*_RETRY, BuyerState.STREAMING, BuyerState.SETTLING, *_ENDS),
    BuyerState.STREAMING: (*_RETRY, BuyerState.STREAMING, BuyerState.SETTLING, *_ENDS),
    BuyerState.SETTLING: (BuyerState.DONE, BuyerState.DELIVERED),
    BuyerState.DONE: (),
    BuyerState.DELIVERED: (),
    BuyerState.FAILED: (),
    BuyerState.CANCELLED: (),
}


class Attempt:
    """One agreement with one provider, and what it has delivered."""

    __slots__ = (
        "acceptance",
        "acceptance_bytes",
        "agreement",
        "agreement_bytes",
        "chunk_bytes",
        "continuity",
        "ending_bytes",
        "job",
        "output",
        "output_bytes",
        "paid",
        "progress",
        "quiet",
    )

    def __init__(self, job: MessageId, agreement: Agreement, continuity: Continuity) -> None:
        self.job = job
        self.agreement = agreement
        self.continuity = continuity
        """What the request can do when this provider stops after some output."""
        self.quiet: tuple[BuyerState, int] | None = None
        """Where the attempt stood when it was last looked at: one that stands there still is compared."""
        self.agreement_bytes = b""
        self.acceptance: Acceptance | None = None
        self.acceptance_bytes = b""
        self.chunk_bytes = b""
        """Envelope of the last chunk that was verified."""
        self.ending_bytes = b""
        """Envelope of the refusal or failure that ended the attempt."""
        self.progress: Progress = progress_start(job)
        self.paid = Amount(0)
        """Price of the chunks that a voucher covers."""
        self.output: list[bytes] = []
        self.output_bytes = 0

    @property
    def node(self) -> NodeId:
        """Where this attempt's messages go."""
        return self.agreement.provider_node

    @property
    def delivered(self) -> bool:
        """True once any chunk of output came."""
        return self.progress.delivered

    def statements(self) -> JobStatements:
        """What both sides have signed of it."""
        return JobStatements(self.agreement_bytes, self.acceptance_bytes, self.chunk_bytes, self.ending_bytes)


class BuyerJob:
    """A request under way. Mutable; changed by the buyer's steps alone."""

    __slots__ = (
        "asked",
        "attempt",
        "attempts",
        "auction",
        "bid",
        "bid_bytes",
        "bid_payload",
        "choose_until",
        "deadline",
        "excluded",
        "first_error",
        "full",
        "history",
        "lost_since",
        "lost_until",
        "match",
        "reconciled",
        "refusals",
        "request",
        "room_until",
        "spent",
        "state",
        "total_until",
        "unshown",
        "waits",
    )

    def __init__(self, request: JobRequest, now: Now) -> None:
        self.request = request
        self.asked = Asked(request)
        """What a provider is asked for now: the request less what earlier ones delivered."""
        self.unshown: list[JobText] = []
        """Output that is shown when it is whole, or when nobody will make it whole any more."""
        self.refusals = 0
        """Agreements that were refused for want of room."""
        self.full: dict[AccountId, MessageId] = {}
        """Who refused them since the last look, and the offer it had then: left out until the next look or offer."""
        self.room_until: MonotonicMs | None = None
        """Nothing but room is missing: how long it is waited for."""
        self.lost_since = MonotonicMs(0)
        self.lost_until: MonotonicMs | None = None
        """The attempt's link is gone: how long it is waited for, until more is known."""
        self.state = BuyerState.CHOOSING
        self.waits: BuyerState | None = None
        """The state in which the disk has it as one that waits."""
        self.bid: MessageId = NO_JOB
        self.bid_bytes = b""
        self.auction: Auction | None = None
        self.bid_payload = b""
        self.match: Match | None = None
        self.attempt: Attempt | None = None
        self.attempts = 0
        self.excluded: tuple[AccountId, ...] = ()
        self.first_error: tuple[FaultKind, str] | None = None
        self.reconciled: tuple[tuple[ChannelId, Lane], ...] = ()
        """Lanes whose books were brought together for this request; the last one is used next."""
        self.spent = Amount(0)
        """Price of what earlier attempts were paid for."""
        self.history: list[HistoryEntry] = []
        self.choose_until = MonotonicMs(now.monotonic_ms + request.choose_ms)
        self.total_until = MonotonicMs(now.monotonic_ms + request.total_ms)
        self.deadline = self.total_until

    def paid(self) -> Amount:
        """Price of all that was paid for, over all attempts."""
        return Amount(self.spent + (self.attempt.paid if self.attempt is not None else 0))

    def exhausted(self, policy: BuyerPolicy) -> bool:
        """No further provider is tried: a refusal for want of room costs nothing, so it counts as no try."""
        return self.attempts - self.refusals >= policy.attempts_max or self.attempts >= AGREEMENTS_MAX

    def output_units(self) -> WorkUnits:
        """Output units of all attempts together, each counted once."""
        return WorkUnits(self.asked.units + (self.attempt.progress.output_units if self.attempt is not None else 0))

    def due_at(self) -> MonotonicMs:
        """When the request has to be looked at: its state's deadline, or its lost link's."""
        return self.deadline if self.lost_until is None else MonotonicMs(min(self.deadline, self.lost_until))

    def job_id(self) -> MessageId:
        """The current agreement's id, or ``NO_JOB``."""
        return self.attempt.job if self.attempt is not None else NO_JOB

    def note(self, at: TimestampMs, state: str, cause: str) -> None:
        """Add a line to the timeline, with what had come and was paid by then, over all attempts."""
        chunks = self.attempt.progress.chunks if self.attempt is not None else 0
        entry = HistoryEntry(at, state, clip(cause), attempt=self.attempts, chunks=chunks, paid=self.paid())
        noted(self.history, entry)

    def note_chunk(self, at: TimestampMs, index: int) -> None:
        """A chunk of output was verified and paid: chunks after chunks share one line of the timeline."""
        self.note(at, CHUNKS, f"chunk {index} verified and paid")

    def deadline_of(self, state: BuyerState, policy: BuyerPolicy, now: Now) -> MonotonicMs:
        """When ``state``, entered now, ends by itself; never after the request's own end."""
        lasts = LASTS[state](self.request, policy)
        until = self.choose_until if state is BuyerState.CHOOSING else now.monotonic_ms + lasts
        return MonotonicMs(min(until, self.total_until))

    def record(self, own: AccountId, fault: FaultKind | None = None, reason: str = "") -> JobRecord:
        """The current attempt, or the request as a whole when there is none, as its row."""
        attempt = self.attempt
        agreement = attempt.agreement if attempt is not None else None
        return JobRecord(
            job=self.job_id(),
            request=self.request.request,
            side=Side.BUYER,
            buyer=own,
            provider=agreement.provider if agreement is not None else own,
            model=self.request.model,
            channel=agreement.channel if agreement is not None else None,
            lane=agreement.lane if agreement is not None else Lane(0),
            price_ceiling=agreement.price_ceiling if agreement is not None else self.request.price_ceiling,
            state=self.state.value if fault is None else BuyerState.FAILED.value,
            fault=fault,
            reason=clip(reason),
            paid=attempt.paid if attempt is not None else Amount(0),
            input_units=attempt.progress.input_units if attempt is not None else WorkUnits(0),
            output_units=attempt.progress.output_units if attempt is not None else WorkUnits(0),
            chunks=attempt.progress.chunks if attempt is not None else 0,
            history=tuple(self.history),
            model_name=clip(self.request.model_name),
            node=agreement.provider_node if agreement is not None else None,
            attempt=self.attempts,
            created_at=agreement.created_at if agreement is not None else TimestampMs(0),
            accepted_at=attempt.acceptance.accepted_at
            if attempt is not None and attempt.acceptance is not None
            else TimestampMs(0),
        )


def clip(text: str) -> str:
    """Text that fits a line of a message."""
    return text[:TEXT_BYTES_MAX]


def check_request(request: JobRequest) -> None:
    """Refuse what could not be written into an agreement. Raises ``RequestInvalid``."""
    texts = (request.region, request.isolation, request.verification)
    durations = (request.accept_ms, request.first_output_ms, request.stall_ms, request.total_ms)
    for holds, problem in (
        (len(request.request) == len(request.salt) == len(request.unique) == 32, "ids and salt must be 32 bytes"),
        (len(request.model) == 32, "a model id is 32 bytes"),
        (len(request.payload) <= JOB_INPUT_BYTES_MAX, f"input is larger than {JOB_INPUT_BYTES_MAX} bytes"),
        (0 < request.output_units_max <= 2**40, "output limit must be at least 1 unit"),
        (0 <= request.input_units_max <= 2**40, "input limit is out of range"),
        (0 <= request.price_ceiling <= AMOUNT_MAX, "price ceiling is out of range"),
        (1 <= request.chunk_units <= CHUNK_UNITS_MAX, f"chunks hold 1 to {CHUNK_UNITS_MAX} units"),
        (0 <= request.seed < 2**63, "seed is out of range"),
        (0 <= request.temperature_milli <= 10_000, "temperature is out of range"),
        (0 <= request.auction_ms <= 2 * AUCTION_WINDOW_MS_MAX, "an auction lasts 20 s at most"),
        (1 <= request.replication <= REPLICAS_MAX, f"replicas must be 1 to {REPLICAS_MAX}"),
        (1 <= request.replicas_min <= request.replication, "the least number of replicas is above their number"),
        (all(0 < duration <= 2**40 for duration in durations), "deadlines must be above zero"),
        (all(len(text) <= TEXT_BYTES_MAX for text in texts), f"texts are limited to {TEXT_BYTES_MAX} letters"),
    ):
        if not holds:
            raise RequestInvalid(problem)
