"""Numbers of one node that steer its buying and selling. Cluster-wide numbers are in the genesis instead.

Law: data only; durations in milliseconds, amounts in base units.
"""

from msgspec import Struct

from protocol.market.ranking import Weights
from protocol.primitives.limits import CHUNK_UNITS_MAX
from protocol.primitives.units import CREDIT, Amount, DurationMs


class BuyerPolicy(Struct, frozen=True, kw_only=True):
    """How this node buys."""

    weights: Weights = Weights()
    region_preferred: str = ""
    """Counts in the ranking; others are taken too."""

    channel_deposit: Amount = Amount(10 * CREDIT)
    """Deposit of a new channel, or the job's ceiling if that is more, or what the balance allows."""
    channel_top_up: Amount = Amount(10 * CREDIT)
    """Added when what is left in a channel doesn't cover a job."""
    channel_idle_ms: DurationMs = DurationMs(86_400_000)
    """A channel that nobody used for so long is closed, so that its deposit comes back. 0: never."""
    attempts_max: int = 5
    """Providers tried for one request."""
    jobs_max: int = 1024
    """Requests under way at once."""
    connect_ms: DurationMs = DurationMs(5_000)
    reconnect_ms: DurationMs = DurationMs(3_000)
    """How long a job outlives its lost link when nobody else would do."""
    failover_ms: DurationMs = DurationMs(300)
    """How long it waits for the link when somebody else would: a link that only blinked is back by then."""
    funding_ms: DurationMs = DurationMs(30_000)
    """How long to wait for the ledger to open or top up a channel."""
    demoted_ms: DurationMs = DurationMs(15_000)
    """How long a provider that failed ranks behind all others; twice as long after each further failure in a row."""
    demoted_ms_max: DurationMs = DurationMs(900_000)
    patience_ms: DurationMs = DurationMs(10_000)
    """How long a request waits for a free slot when nothing else is missing, from the moment when none is left."""
    full_ms: DurationMs = DurationMs(500)
    """How long a provider without room ranks behind others: no longer than its next offer takes to come."""
    full_ms_max: DurationMs = DurationMs(8_000)
    """A request that waits for room asks again after ``full_ms``, then twice as long each time, up to this."""
    reconcile_ms: DurationMs = DurationMs(5_000)
    """How often open jobs that are quiet are compared with the provider's."""
    output_bytes_max: int = 8 * 1024 * 1024
    """Output of one job that this node is ready to hold."""
    report_failures: bool = True
    """Put a provider's signed failure on the ledger, if the attempt cost at least what the report does."""


class QuotePolicy(Struct, frozen=True, kw_only=True):
    """How this node answers auctions. By default at its posted prices."""

    answer: bool = True
    discount_permille: int = 0
    """Taken off the posted prices while all slots are free, less in proportion while some are taken."""
    floor_permille: int = 0
    """Never less than this part of the posted prices."""
    request_floor: Amount = Amount(0)
    input_per_thousand_floor: Amount = Amount(0)
    output_per_thousand_floor: Amount = Amount(0)
    """Never less than what the work costs this node."""
    valid_ms: DurationMs = DurationMs(2_000)
    """How long a quote binds this node once it is revealed."""
    slots_held_permille: int = 500
    """Part of the slots, one at least, that may wait for buyers who were promised one. 0: none."""


class SellerPolicy(Struct, frozen=True, kw_only=True):
    """How this node sells."""

    slots: int = 1
    """Jobs worked on at once."""
    chunk_units_max: int = CHUNK_UNITS_MAX
    """A larger chunk puts more at risk."""
    accept_ms_min: DurationMs = DurationMs(100)
    first_output_ms_min: DurationMs = DurationMs(1_000)
    """Shorter promises than these are not made."""
    stall_ms_min: DurationMs = DurationMs(500)
    stall_ms_max: DurationMs = DurationMs(120_000)
    """A slot is not held longer for a silent buyer."""
    total_ms_max: DurationMs = DurationMs(3_600_000)
    hold_ms: DurationMs = DurationMs(5_000)
    """How long an agreement waits for its input, or for this node's ledger to show its channel."""
    clock_tolerance_ms: DurationMs = DurationMs(60_000)
    """How far a buyer's clock may differ."""
    work_ahead: bool = True
    """Let the worker compute the next chunk while the last one is not paid yet. It is never released early."""
    trust_permille: int = 100
    """A job whose whole output is there at once goes out as one chunk, input and output together, where all that the
    lane's buyer has not paid is then at most this part of what it has paid on that lane. 0: the input is always paid
    first."""
    output_bytes_max: int = 8 * 1024 * 1024
    reconcile_ms: DurationMs = DurationMs(5_000)
    """How often open jobs that are quiet are compared with the buyer's."""
    quotes: QuotePolicy = QuotePolicy()
    verifications: tuple[str, ...] = ("none",)
    """Verification policies that this node takes part in."""
    redeem_amount: Amount = Amount(10 * CREDIT)
    """Redeem a channel once so much waits on it."""
    redeem_age_ms: DurationMs = DurationMs(3_600_000)
    """Redeem a channel once its oldest unredeemed voucher is so old."""
    redeem_worth_min: Amount = Amount(1)
    """Never redeem less than this: the redeem fee would eat it."""
    redeem_retry_ms: DurationMs = DurationMs(60_000)
    """Ask again when the ledger has not shown a redemption for so long."""
