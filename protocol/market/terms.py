"""What a provider checks before it takes a job.

Law: a job is taken only if its price, its limits and its timeouts are this node's own, its channel covers its ceiling
beside all other lanes, and its books agree with ours to the unit. A refusal says whose fault it is, so that the buyer
knows whether to ask elsewhere.
"""

from msgspec import Struct

from protocol.market.continuation import Continuity, continuity_of
from protocol.market.kept_deadlines import FIRST_OUTPUT_MS_MAX, STALL_MS_MAX
from protocol.market.ledger_view import ChannelFacts
from protocol.market.matching import NO_FREE_SLOTS
from protocol.market.policies import SellerPolicy
from protocol.market.records import SellerLane, seller_debt
from protocol.messages.effects import Now
from protocol.messages.market import Agreement, Bid, FaultKind, JobPayload, ModelOffer
from protocol.messages.wire import JobInput
from protocol.primitives.codec import decode
from protocol.primitives.errors import AmountOutOfRange, MalformedMessage, MercatError
from protocol.primitives.units import AccountId, MessageId, NodeId
from protocol.settlement.continuation import ContinuationInvalid, check_prefix, input_units_most, output_units_most
from protocol.settlement.pricing import amount_due
from protocol.settlement.receipts import input_commitment
from protocol.settlement.vouchers import unused_lane

BOOKS_DIFFER = "books differ"
"""Start of a refusal's reason when the lane's books disagree: the refusal then holds this node's last voucher."""


TOO_MANY_WAIT = "too many agreements wait"
NOT_SERVED_NOW = "model is not served any more"
SETTINGS_CHANGED = "runtime or settings have changed since the offer"
PRICES_CHANGED = "prices have changed since the offer"
LANE_IN_USE = "lane is in use by another job"
PASSING = (NO_FREE_SLOTS, TOO_MANY_WAIT, NOT_SERVED_NOW, SETTINGS_CHANGED, PRICES_CHANGED, LANE_IN_USE)
"""Refusals for want of capacity that time or the provider's next offer may cure; other ones its offer never will."""

PACE_OF_LATE = "at the pace of late"
"""End of a refusal's reason when a short deadline could not be kept lately."""


class TermsRefused(MercatError):
    """Why an agreement is not taken. ``may_wait``: this node's ledger may be the one that lags."""

    def __init__(self, fault: FaultKind, reason: str, *, may_wait: bool = False, books: bool = False) -> None:
        super().__init__(reason)
        self.fault = fault
        self.reason = reason
        self.may_wait = may_wait
        self.books = books


class Proposal(Struct, frozen=True):
    """An agreement as it came: who sent and signed it, with its bid."""

    job: MessageId
    peer: NodeId
    agreement: Agreement
    signer: AccountId
    bid: Bid
    bid_signer: AccountId


def check_parties(proposal: Proposal, own: AccountId, own_node: NodeId) -> None:
    """Who made the agreement with whom. Raises ``TermsRefused``."""
    agreement = proposal.agreement
    # [USER] signed by the buyer that it names
    if proposal.signer != agreement.buyer:
        raise TermsRefused(FaultKind.USER, "agreement is not signed by its buyer")
    # [USER] made with this provider and its node
    if agreement.provider != own or agreement.provider_node != own_node:
        raise TermsRefused(FaultKind.USER, "agreement is for another provider")
    # [USER] sent by the buyer's node: answers go nowhere else
    if agreement.buyer_node != proposal.peer:
        raise TermsRefused(FaultKind.USER, "agreement did not come from its buyer's node")
    # [USER] nobody buys from itself
    if agreement.buyer == own:
        raise TermsRefused(FaultKind.USER, "buyer and provider are one account")


def check_bid(proposal: Proposal, now: Now, policy: SellerPolicy) -> None:
    """The bid behind the agreement. Raises ``TermsRefused``."""
    agreement, bid = proposal.agreement, proposal.bid
    # [USER] the buyer's own bid, and not expired
    if proposal.bid_signer != agreement.buyer:
        raise TermsRefused(FaultKind.USER, "bid is not the buyer's")
    if bid.expires_at + policy.clock_tolerance_ms <= now.wall_ms:
        raise TermsRefused(FaultKind.USER, "bid has expired")
    # [USER] the agreement stays inside the bid
    if bid.model != agreement.model or bid.verification != agreement.verification:
        raise TermsRefused(FaultKind.USER, "agreement differs from its bid")
    if agreement.price_ceiling > bid.price_ceiling:
        raise TermsRefused(FaultKind.USER, "agreement's ceiling is above its bid's")
    # [USER] and together with the work behind it inside the bid's limits
    behind = agreement.continues
    if agreement.input_units_max > input_units_most(bid, behind):
        raise TermsRefused(FaultKind.USER, "agreement's limits are above its bid's")
    if agreement.output_units_max > output_units_most(bid, behind):
        raise TermsRefused(FaultKind.USER, "agreement's limits are above its bid's")
    # [NETWORK] made just now: an old agreement is not taken up again
    age = now.wall_ms - agreement.created_at
    if not -policy.clock_tolerance_ms <= age <= agreement.accept_ms + policy.clock_tolerance_ms:
        raise TermsRefused(FaultKind.NETWORK, "agreement is older than its accept deadline, or clocks differ")


def check_service(agreement: Agreement, served: ModelOffer | None, policy: SellerPolicy) -> None:
    """Model, prices, limits and timeouts against what this node sells now. Raises ``TermsRefused``."""
    # [CAPACITY] still served, in the same build and with the same settings
    if served is None:
        raise TermsRefused(FaultKind.CAPACITY, NOT_SERVED_NOW)
    if (agreement.runtime_build, agreement.settings) != (served.runtime_build, served.settings):
        raise TermsRefused(FaultKind.CAPACITY, SETTINGS_CHANGED)
    # [CAPACITY] by a runtime that can go on behind another provider's output, if it is to
    if agreement.continues is not None and continuity_of(served.runtime) is not Continuity.GOES_ON:
        raise TermsRefused(FaultKind.CAPACITY, f"{served.runtime} can't go on behind output that is there already")
    # [CAPACITY] at the live offer's prices
    if agreement.prices != served.prices:
        raise TermsRefused(FaultKind.CAPACITY, PRICES_CHANGED)
    # [USER] within the offer's limits
    if agreement.input_units_max > served.input_units_max:
        raise TermsRefused(FaultKind.USER, f"input limit is {served.input_units_max} units")
    if not 0 < agreement.output_units_max <= served.output_units_max:
        raise TermsRefused(FaultKind.USER, f"output limit is {served.output_units_max} units, and at least 1")
    # [USER] the ceiling is what these limits cost: a job within its limits never runs into it
    try:
        at_limits = amount_due(agreement.prices, agreement.input_units_max, agreement.output_units_max)
    except AmountOutOfRange:
        raise TermsRefused(FaultKind.USER, "limits cost more than can be owed") from None
    if agreement.price_ceiling < at_limits:
        raise TermsRefused(FaultKind.USER, f"ceiling is below {at_limits}, the price at the limits")
    # [USER] chunks no larger than this node risks
    if agreement.chunk_units > policy.chunk_units_max:
        raise TermsRefused(FaultKind.CAPACITY, f"chunks of more than {policy.chunk_units_max} units are not sold here")
    # [USER] a verification policy that this node takes part in
    if agreement.verification not in policy.verifications:
        raise TermsRefused(FaultKind.CAPACITY, f"verification {agreement.verification!r} is not offered here")
    _check_timeouts(agreement, policy)


def _check_timeouts(agreement: Agreement, policy: SellerPolicy) -> None:
    # [CAPACITY] timeouts that this node can keep and is ready to wait for
    if agreement.accept_ms < policy.accept_ms_min:
        raise TermsRefused(FaultKind.CAPACITY, f"accept deadline must be at least {policy.accept_ms_min} ms")
    if agreement.first_output_ms < policy.first_output_ms_min:
        raise TermsRefused(
            FaultKind.CAPACITY, f"first output deadline must be at least {policy.first_output_ms_min} ms"
        )
    if not policy.stall_ms_min <= agreement.stall_ms <= policy.stall_ms_max:
        raise TermsRefused(
            FaultKind.CAPACITY, f"stall deadline must be {policy.stall_ms_min} to {policy.stall_ms_max} ms"
        )
    if not 0 < agreement.total_ms <= policy.total_ms_max:
        raise TermsRefused(FaultKind.CAPACITY, f"total deadline must be at most {policy.total_ms_max} ms")


def too_short_lately(agreement: Agreement, reason: str) -> bool:
    """Whether a refusal names a short deadline, of which a bid says nothing and a quote promises nothing.

    Ordinary deadlines are never too short, whatever a provider says.
    """
    short = agreement.first_output_ms < FIRST_OUTPUT_MS_MAX or agreement.stall_ms < STALL_MS_MAX
    return short and reason.endswith(PACE_OF_LATE)


def check_pace(agreement: Agreement, first_output_ms: int, stall_ms: int) -> None:
    """The timeouts against the shortest that this node promises at its pace of late. Raises ``TermsRefused``."""
    # [CAPACITY] what is promised is kept: a signed failure tells everybody
    if agreement.first_output_ms < first_output_ms:
        raise TermsRefused(
            FaultKind.CAPACITY, f"first output deadline must be at least {first_output_ms} ms {PACE_OF_LATE}"
        )
    if agreement.stall_ms < stall_ms:
        raise TermsRefused(FaultKind.CAPACITY, f"stall deadline must be at least {stall_ms} ms {PACE_OF_LATE}")


def check_input(agreement: Agreement, job_input: JobInput) -> None:
    """The input that came beside the agreement. Raises ``TermsRefused``."""
    # [USER] as long as agreed, and what the commitment commits to
    if len(job_input.payload) != agreement.input_bytes:
        raise TermsRefused(FaultKind.USER, f"input has {len(job_input.payload)} bytes, {agreement.input_bytes} agreed")
    if input_commitment(job_input.salt, job_input.payload) != agreement.input_commitment:
        raise TermsRefused(FaultKind.USER, "input does not match its commitment")
    # [USER] an input that runtimes can read
    try:
        payload = decode(job_input.payload, JobPayload)
    except MalformedMessage:
        raise TermsRefused(FaultKind.USER, "input is no job payload") from None
    # [USER] whose prefix ends with the output that the agreement goes on from
    if agreement.continues is not None:
        try:
            check_prefix(agreement.continues, job_input.salt, payload.prefix)
        except ContinuationInvalid as error:
            raise TermsRefused(FaultKind.USER, str(error)) from None


def check_channel(agreement: Agreement, facts: ChannelFacts | None, reserved_elsewhere: int) -> None:
    """The channel as the ledger has it; ``reserved_elsewhere`` is what its other lanes may come to.

    Raises ``TermsRefused``.
    """
    # [NETWORK] on this node's ledger (may wait: this node may lag)
    if facts is None:
        raise TermsRefused(FaultKind.NETWORK, "channel is not on this node's ledger", may_wait=True)
    # [USER] between this buyer and this provider
    if facts.payer != agreement.buyer or facts.payee != agreement.provider:
        raise TermsRefused(FaultKind.USER, "channel is not between this buyer and this provider")
    # [NETWORK] not about to end
    if facts.closing:
        raise TermsRefused(FaultKind.NETWORK, "channel is closing")
    # [NETWORK] books not behind the ledger, as those of a lost disk are: it would pay none of the lane's next vouchers
    if any(last.lane == agreement.lane and last.sequence > agreement.sequence_start for last in facts.redeemed):
        raise TermsRefused(FaultKind.NETWORK, "the ledger has redeemed a later voucher of this lane")
    # [NETWORK] what is left covers the ceiling (may wait: a top-up may be on its way)
    if reserved_elsewhere + agreement.cumulative_start + agreement.price_ceiling > facts.deposit:
        raise TermsRefused(FaultKind.NETWORK, "what is left in the channel does not cover the ceiling", may_wait=True)


def check_lane(agreement: Agreement, lane: SellerLane | None) -> None:
    """The lane's books, ours against the agreement's. Raises ``TermsRefused``."""
    # [CAPACITY] free
    if lane is not None and lane.job is not None:
        raise TermsRefused(FaultKind.CAPACITY, LANE_IN_USE)
    position = lane.position if lane is not None else unused_lane(agreement.lane)
    debt = seller_debt(lane) if lane is not None else 0
    # [books] the same last voucher
    if agreement.sequence_start != position.sequence:
        raise TermsRefused(
            FaultKind.NETWORK,
            f"{BOOKS_DIFFER}: last voucher here is {position.sequence}, the agreement's is {agreement.sequence_start}",
            books=True,
        )
    # [books] counts from the last amount, less at most what this node owes
    if not position.cumulative - debt <= agreement.cumulative_start <= position.cumulative:
        raise TermsRefused(
            FaultKind.NETWORK,
            f"{BOOKS_DIFFER}: {position.cumulative} was paid here and {debt} is owed",
            books=True,
        )
