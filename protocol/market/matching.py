"""Who would take a bid, at what price, and why each other provider would not.

Law: the answer depends on the local order book and the wish alone, not on the order in which offers came: by price, by
free slots, then by a hash over the wish and the provider, so that equal offers share the buyers among them.
"""

from msgspec import Struct

from protocol.market.order_book import LiveOffer, OrderBook
from protocol.messages.effects import Now
from protocol.messages.market import ModelOffer
from protocol.primitives.errors import AmountOutOfRange
from protocol.primitives.hashing import Domain, digest
from protocol.primitives.limits import REFUSALS_SHOWN_MAX
from protocol.primitives.units import AccountId, Amount, Hash, ModelId, WorkUnits, format_credits
from protocol.settlement.pricing import amount_due

ISOLATION_ORDER = ("none", "declared", "fallback", "strong", "strong+")
"""Levels of isolation, each including what the ones before it give. ``declared`` is never proved."""


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


class Match(Struct, frozen=True):
    """An offer that would do: its price at the limits and as expected, in base units."""

    live: LiveOffer
    served: ModelOffer
    price_at_limits: Amount
    price_expected: Amount


class NoMatch(Struct, frozen=True):
    """An offer that would not do, and why."""

    live: LiveOffer
    reason: str


class Quote(Struct, frozen=True):
    """Offers that would do, best first, and the others with their reasons (at most ``REFUSALS_SHOWN_MAX``)."""

    ranked: tuple[Match, ...]
    refused: tuple[NoMatch, ...]
    refused_total: int


def quote(book: OrderBook, want: Want, now: Now, *, whole_book: bool = True) -> Quote:
    """Rank the live offers for a wish.

    With ``whole_book`` off, offers that don't serve the model are left out instead of being refused one by one.
    """
    ranked: list[Match] = []
    refused: list[NoMatch] = []
    for live in book.offers() if whole_book else book.offers_for(want.model):
        if live.offer.expires_at <= now.wall_ms:
            continue
        outcome = match_offer(live, want)
        if isinstance(outcome, Match):
            ranked.append(outcome)
        else:
            refused.append(outcome)
    ranked.sort(key=lambda match: _rank(match, want))
    return Quote(tuple(ranked), tuple(refused[:REFUSALS_SHOWN_MAX]), len(refused))


def match_offer(live: LiveOffer, want: Want) -> Match | NoMatch:
    """Judge one live offer; the first reason against it is the one that is given."""
    served = live.model(want.model)
    # [model] served at all
    if served is None:
        return NoMatch(live, "model not served")
    # [self] nobody sells to itself
    if live.account == want.buyer:
        return NoMatch(live, "own offer")
    # [chosen] the buyer wants one provider
    if want.provider is not None and live.account != want.provider:
        return NoMatch(live, "not the provider that was asked for")
    # [excluded] failed this request before
    if live.account in want.excluded:
        return NoMatch(live, "excluded after failure")
    # [isolation] proves at least what is asked
    if not isolation_suffices(live.offer.isolation, want.isolation):
        return NoMatch(live, f"isolation {live.offer.isolation or 'unknown'} is below {want.isolation}")
    # [region]
    if want.region and live.offer.region != want.region:
        return NoMatch(live, f"region {live.offer.region or 'unknown'} is not {want.region}")
    # [limits] takes inputs and outputs that large
    if want.input_units_max > served.input_units_max:
        return NoMatch(live, f"input limit of {served.input_units_max} units is too small")
    if want.output_units_max > served.output_units_max:
        return NoMatch(live, f"output limit of {served.output_units_max} units is too small")
    # [price] the most that it can cost stays under the ceiling
    try:
        price_at_limits = amount_due(served.prices, want.input_units_max, want.output_units_max)
    except AmountOutOfRange:
        return NoMatch(live, "price above ceiling")
    if price_at_limits > want.price_ceiling:
        return NoMatch(live, f"price above ceiling: up to {format_credits(price_at_limits)} credits")
    # [slots] room for one more job
    if live.offer.slots_free == 0:
        return NoMatch(live, "no free slots")
    expected = amount_due(
        served.prices,
        min(want.input_units_expected, want.input_units_max),
        min(want.output_units_expected, want.output_units_max),
    )
    return Match(live, served, price_at_limits, expected)


def isolation_suffices(offered: str, wanted: str) -> bool:
    """True if a level gives at least another one; an unknown level gives only itself."""
    if not wanted or offered == wanted:
        return True
    if offered not in ISOLATION_ORDER or wanted not in ISOLATION_ORDER:
        return False
    return ISOLATION_ORDER.index(offered) >= ISOLATION_ORDER.index(wanted)


def _rank(match: Match, want: Want) -> tuple[bool, int, int, int, Hash]:
    return (
        match.live.account in want.demoted,
        match.price_expected,
        match.price_at_limits,
        -match.live.offer.slots_free,
        digest(Domain.MATCH_TIE, want.unique, match.live.account),
    )
