"""What a buyer looks for, what would do, and why anything else would not.

Law: one offer, one wish, one answer; the first reason against an offer is the one that is given. Who of those that
would do is best, ``offer_search.py`` says.
"""

from msgspec import Struct
from msgspec.structs import replace

from protocol.market.order_book import LiveOffer
from protocol.market.ranking import Scores, Weights
from protocol.messages.market import ModelOffer, Prices
from protocol.primitives.errors import AmountOutOfRange
from protocol.primitives.units import (
    AMOUNT_MAX,
    AccountId,
    Amount,
    DurationMs,
    Hash,
    MessageId,
    ModelId,
    MonotonicMs,
    WorkUnits,
    format_credits,
)
from protocol.settlement.pricing import amount_due

ISOLATION_ORDER = ("none", "declared", "fallback", "strong", "strong+")
"""Levels of isolation, each including what the ones before it give. ``declared`` is never proved."""

MODEL_NOT_SERVED = "model not served"
NO_FREE_SLOTS = "no free slots"
"""How a provider says that it has no room: in its offer, or when it refuses an agreement."""


class Quoted(Struct, frozen=True):
    """A provider's own price for one bid, in place of its posted one. It binds the provider until ``until``."""

    account: AccountId
    terms: MessageId
    """The id of the signed quote: what an agreement at this price names."""
    prices: Prices
    until: MonotonicMs
    slot_held: bool


class Want(Struct, frozen=True, kw_only=True):
    """What a buyer looks for. Empty ``region`` or ``isolation``: any. ``buyer`` is not matched with itself."""

    buyer: AccountId
    model: ModelId
    input_units_max: WorkUnits
    output_units_max: WorkUnits
    input_units_expected: WorkUnits
    output_units_expected: WorkUnits
    price_ceiling: Amount
    unique: Hash
    region: str = ""
    isolation: str = ""
    provider: AccountId | None = None
    """Only this provider."""
    excluded: tuple[AccountId, ...] = ()
    """Providers that failed this request before."""
    demoted: tuple[AccountId, ...] = ()
    """Providers that failed another request lately: taken only when there is no other."""
    weights: Weights = Weights()
    quoted: tuple[Quoted, ...] = ()
    """What an auction brought."""
    region_preferred: str = ""
    """Counts in the score; others are taken too."""


class Match(Struct, frozen=True, gc=False):
    """An offer that would do: its price at the limits and as expected, in base units, and how it scored.

    ``terms`` is the signed statement whose prices these are: the offer's id, or that of a quote that betters it.
    """

    live: LiveOffer
    served: ModelOffer
    price_at_limits: Amount
    price_expected: Amount
    terms: MessageId
    scores: Scores = Scores(0, 0, 0, 0, 0)
    expected_ms: DurationMs | None = None
    """As measured by this node; ``None`` where it has measured nothing."""


class NoMatch(Struct, frozen=True, gc=False):
    """A provider that would not do, and why."""

    account: AccountId
    reason: str


def match_offer(live: LiveOffer, want: Want) -> Match | NoMatch:
    """Judge one live offer; the first reason against it is the one that is given. The match is not scored."""
    served = live.model(want.model)
    # [model] served at all
    if served is None:
        return NoMatch(live.account, MODEL_NOT_SERVED)
    # [self], [chosen], [excluded]
    if (reason := _why_not_this_one(live.account, want)) is not None:
        return NoMatch(live.account, reason)
    # [isolation], [region]
    if (reason := why_not_there(live.offer.isolation_of(served), live.offer.region, want)) is not None:
        return NoMatch(live.account, reason)
    # [limits] takes inputs and outputs that large
    if (reason := why_not_so_much(served.input_units_max, served.output_units_max, want)) is not None:
        return NoMatch(live.account, reason)
    # [price] the most that it can cost stays under the ceiling, by its quote if there is one
    quoted = next((quoted for quoted in want.quoted if quoted.account == live.account), None)
    if quoted is not None:
        served = replace(served, prices=quoted.prices)
    try:
        price_at_limits = amount_due(served.prices, want.input_units_max, want.output_units_max)
    except AmountOutOfRange:
        price_at_limits = Amount(AMOUNT_MAX)
    if price_at_limits > want.price_ceiling:
        return NoMatch(live.account, too_dear(price_at_limits))
    # [slots] room for one more job, be it one that waits for this buyer
    if live.offer.slots_free == 0 and (quoted is None or not quoted.slot_held):
        return NoMatch(live.account, NO_FREE_SLOTS)
    input_units, output_units = expected_units(want)
    expected = amount_due(served.prices, input_units, output_units)
    return Match(live, served, price_at_limits, expected, live.id if quoted is None else quoted.terms)


def isolation_suffices(offered: str, wanted: str) -> bool:
    """True if a level gives at least another one; an unknown level gives only itself."""
    if not wanted or offered == wanted:
        return True
    if offered not in ISOLATION_ORDER or wanted not in ISOLATION_ORDER:
        return False
    return ISOLATION_ORDER.index(offered) >= ISOLATION_ORDER.index(wanted)


# The reasons


def _why_not_this_one(account: AccountId, want: Want) -> str | None:
    # [self] nobody sells to itself
    if account == want.buyer:
        return "own offer"
    # [chosen] the buyer wants one provider
    if want.provider is not None and account != want.provider:
        return "not the provider that was asked for"
    # [excluded] failed this request before
    if account in want.excluded:
        return "excluded after failure"
    return None


def why_not_there(isolation: str, region: str, want: Want) -> str | None:
    """Why an isolation or a region does not do."""
    # [isolation] proves at least what is asked
    if not isolation_suffices(isolation, want.isolation):
        return f"isolation {isolation or 'unknown'} is below {want.isolation}"
    # [region]
    if want.region and region != want.region:
        return f"region {region or 'unknown'} is not {want.region}"
    return None


def why_not_so_much(input_units_max: int, output_units_max: int, want: Want) -> str | None:
    """Why limits do not do."""
    if want.input_units_max > input_units_max:
        return f"input limit of {input_units_max} units is too small"
    if want.output_units_max > output_units_max:
        return f"output limit of {output_units_max} units is too small"
    return None


def too_dear(price_at_limits: int) -> str:
    """Why a price does not do."""
    return f"price above ceiling: up to {format_credits(price_at_limits)} credits"


def expected_units(want: Want) -> tuple[int, int]:
    """Input and output that the job will probably have, within its limits."""
    return min(want.input_units_expected, want.input_units_max), min(want.output_units_expected, want.output_units_max)
