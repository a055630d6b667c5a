"""From a matched offer, a bid and a free lane to an agreement.

Law: the agreement repeats all terms, so that neither the offer nor the bid is needed to judge it later.
"""

from msgspec import Struct

from protocol.market.matching import Match
from protocol.messages.market import Agreement, Bid, Continuation, Refusal
from protocol.primitives.codec import Message
from protocol.primitives.units import (
    AccountId,
    Amount,
    ChannelId,
    DurationMs,
    Hash,
    Lane,
    MessageId,
    ModelId,
    NodeId,
    Salt,
    SequenceNumber,
    TimestampMs,
    WorkUnits,
)
from protocol.settlement.receipts import input_commitment


class JobRequest(Struct, frozen=True, kw_only=True):
    """What a program of the buyer asks for. Everything random in it comes from outside ``protocol``.

    ``request`` is the asker's own id for it (32 bytes), ``payload`` an encoded ``JobPayload``, ``salt`` and ``unique``
    are fresh random bytes. Units are the model's own; durations in milliseconds; the ceiling bounds all attempts
    together, in base units.
    """

    request: Hash
    model: ModelId
    payload: bytes
    salt: Salt
    unique: Hash
    input_units_max: WorkUnits
    output_units_max: WorkUnits
    price_ceiling: Amount
    input_units_expected: WorkUnits = WorkUnits(0)
    output_units_expected: WorkUnits = WorkUnits(0)
    chunk_units: int = 64
    region: str = ""
    isolation: str = ""
    provider: AccountId | None = None
    model_name: str = ""
    """What the asker's node knows the model by; kept with the job."""
    verification: str = "none"
    seed: int = 0
    temperature_milli: int = 0
    choose_ms: DurationMs = DurationMs(0)
    """How long to wait for an offer when there is none that would do."""
    patient: bool = True
    """Wait for a free slot as long as this node's policy says, though ``choose_ms`` is shorter."""
    accept_ms: DurationMs = DurationMs(10_000)
    first_output_ms: DurationMs = DurationMs(60_000)
    """From the acceptance to chunk 0: the model may have to be loaded."""
    stall_ms: DurationMs = DurationMs(30_000)
    """Between two chunks, and between a chunk and its voucher."""
    total_ms: DurationMs = DurationMs(600_000)
    """All attempts together."""
    auction_ms: DurationMs = DurationMs(0)
    """How long to collect sealed quotes before the first choice; 0: the posted prices will do."""
    auction_addresses: tuple[str, ...] = ()
    """Where providers may dial this node with their quotes."""
    replication: int = 1
    """The same job at so many different providers; their outputs are compared."""
    replicas_min: int = 1
    """So many at least; with fewer the request is refused, or fails."""
    group: Hash | None = None
    """The request whose replica this is."""


class LaneTerms(Struct, frozen=True):
    """Where the vouchers of a job go and what they count from."""

    channel: ChannelId
    lane: Lane
    cumulative_start: Amount
    sequence_start: SequenceNumber


def make_bid(request: JobRequest, now: TimestampMs) -> Bid:
    """The bid of a request."""
    return Bid(
        model=request.model,
        input_units_max=request.input_units_max,
        output_units_max=request.output_units_max,
        price_ceiling=request.price_ceiling,
        expires_at=TimestampMs(now + request.total_ms),
        verification=request.verification,
        replication=request.replication,
        unique=request.unique,
    )


def make_agreement(
    request: JobRequest,
    match: Match,
    *,
    bid: MessageId,
    buyer: AccountId,
    buyer_node: NodeId,
    lane: LaneTerms,
    chunk_units: int,
    total_ms: DurationMs,
    now: TimestampMs,
    continues: Continuation | None = None,
) -> Agreement:
    """The agreement that the buyer signs; its price ceiling is the offer's price at the request's limits."""
    return Agreement(
        bid=bid,
        offer=match.terms,
        buyer=buyer,
        provider=match.live.account,
        buyer_node=buyer_node,
        provider_node=match.live.offer.node,
        model=request.model,
        runtime_build=match.served.runtime_build,
        settings=match.served.settings,
        prices=match.served.prices,
        chunk_units=chunk_units,
        input_units_max=request.input_units_max,
        output_units_max=request.output_units_max,
        price_ceiling=match.price_at_limits,
        input_commitment=input_commitment(request.salt, request.payload),
        input_bytes=len(request.payload),
        channel=lane.channel,
        lane=lane.lane,
        cumulative_start=lane.cumulative_start,
        sequence_start=lane.sequence_start,
        created_at=now,
        accept_ms=request.accept_ms,
        first_output_ms=request.first_output_ms,
        stall_ms=request.stall_ms,
        total_ms=total_ms,
        seed=request.seed,
        temperature_milli=request.temperature_milli,
        verification=request.verification,
        continues=continues,
    )


def enclosed_envelopes(payload: Message) -> tuple[bytes, ...]:
    """Envelopes inside a market statement, whose signatures the door must settle with the statement's own."""
    if isinstance(payload, Refusal) and payload.last_voucher is not None:
        return (payload.last_voucher,)
    return ()
