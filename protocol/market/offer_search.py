"""Who would take a bid, at what price and in what time, and why each other provider would not.

Law: the answer depends on the order book, the wish and what this node has measured, not on the order in which offers
came: by the weighted score (``ranking.py``), then by the expected price, then by the price at the limits. Offers that
are equal in all that share the buyers among them: a hash of the wish says where among them to begin. ``best_offer``
finds the first of ``quote`` without looking at every offer.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from operator import attrgetter, itemgetter
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from protocol.market.matching import (
    Match,
    NoMatch,
    Want,
    expected_units,
    match_offer,
    too_dear,
    why_not_so_much,
    why_not_there,
)
from protocol.market.offer_index import Leaf, OfferClass, OfferIndex, Terms
from protocol.market.order_book import LiveOffer, OrderBook
from protocol.market.pace import Pace
from protocol.market.ranking import (
    NEUTRAL,
    Scores,
    measured_score,
    price_score,
    region_score,
    scores,
    speed_score,
    usual_time,
)
from protocol.market.reputation import explores
from protocol.messages.effects import Now
from protocol.primitives.hashing import Domain, digest
from protocol.primitives.units import (
    AMOUNT_MAX,
    AccountId,
    Amount,
    DurationMs,
)
from protocol.settlement.pricing import UNITS_PER_PRICE

_account = attrgetter("account")
_RANK = itemgetter(slice(0, 4))


class Ranking(Struct, frozen=True):
    """Offers that would do, best first, and every other provider with its reason.

    ``would`` counts all that would do, should only the first of them have been asked for.
    """

    ranked: tuple[Match, ...]
    refused: tuple[NoMatch, ...]
    would: int


def quote(book: OrderBook, want: Want, now: Now, *, whole_book: bool = True, ranked_max: int | None = None) -> Ranking:
    """Judge every provider for a wish; at most ``ranked_max`` of those that would do are described.

    With ``whole_book`` off, providers that don't serve the model, or whose offers no longer count, are left out instead
    of being refused one by one.
    """
    book.expire(now)
    search = _Search(book, want)
    refused: list[NoMatch] = []
    classes, singles = search.classes(refused), search.singles(refused)
    would = search.judged() - len(refused)
    ranked = tuple(islice(search.in_order(classes, singles), ranked_max))
    index = search.index
    others = book.live() if whole_book else book.offers_for(want.model)
    refused += [
        NoMatch(live.account, _why_not(live, want))
        for live in others
        if live.account not in index and not search.is_quoted(live.account)
    ]
    if whole_book:
        refused += [NoMatch(account, reason) for account, reason in book.not_counting(now)]
    refused.sort(key=_account)
    return Ranking(ranked, tuple(refused), would)


def best_offer(book: OrderBook, want: Want, now: Now) -> Match | None:
    """The first of ``quote``, found by looking at the offers that could be it."""
    book.expire(now)
    search = _Search(book, want)
    singles = search.singles([])
    if want.provider is None:
        best = search.best([single for single in singles if not single.demoted])
        if best is not None:
            return best
    return next(search.in_order([], singles), None)


def _why_not(live: LiveOffer, want: Want) -> str:
    outcome = match_offer(live, want)
    assert isinstance(outcome, NoMatch), "an offer that would do is in the index"
    return outcome.reason


def _price(terms: Terms, units: tuple[int, int]) -> int:
    """``amount_due`` without its checks: what passes a ceiling is in range."""
    metered = terms.input_per_thousand * units[0] + terms.output_per_thousand * units[1]
    return terms.request + -(-metered // UNITS_PER_PRICE)


class _Candidate(Struct, frozen=True, gc=False):
    """Offers that would do on the same terms, or a ``single`` one that was judged by itself."""

    price: int
    price_at_limits: int
    speed: int
    reputation: int
    region: int
    members: Sequence[AccountId]
    single: Match | None = None
    demoted: bool = False
    expected_ms: DurationMs | None = None


_Classed = tuple[int, int, int, int, OfferClass]
"""A class that would do: expected price, price at the limits, all of its score but the price's part, the region's
score, and the class. A plain tuple: there may be ten thousand."""


class _Closed(NamedTuple):
    """A leaf that was not looked into: what its offers can be at best."""

    price_lowest: int
    number: int
    leaf: Leaf
    merit_highest: int
    region: int


class _Search:
    """One wish, asked of one model's index."""

    def __init__(self, book: OrderBook, want: Want) -> None:
        self._book = book
        self._want = want
        self.index: OfferIndex = book.index_of(want.model, want.weights)
        self._exploring = explores(want.unique)
        self._expected = expected_units(want)
        self._limits = int(want.input_units_max), int(want.output_units_max)
        self._paces: Mapping[AccountId, Pace] = book.paces.of(want.model)
        self._quoted = dict.fromkeys(quoted.account for quoted in want.quoted)
        named = (want.buyer, *want.excluded, *want.demoted, *self._paces, *self._quoted)
        self._named = dict.fromkeys(named if want.provider is None else (*named, want.provider))
        """Accounts that are judged one by one."""
        self._usual_ms = usual_time(pace.expected_ms(self._expected[1]) for pace in self._paces.values())
        self._begin = int.from_bytes(digest(Domain.MATCH_TIE, want.unique)[:8], "big")

    def is_quoted(self, account: AccountId) -> bool:
        """True if the provider has quoted a price of its own, so that it was judged whatever its offer says."""
        return account in self._quoted

    def judged(self) -> int:
        """How many providers ``classes`` and ``singles`` judge together."""
        return len(self.index) + sum(
            account not in self.index and self._book.offer_of(account) is not None for account in self._quoted
        )

    # All of them

    def classes(self, refused: list[NoMatch]) -> list[_Classed]:
        """Classes that would do; members of others are refused. Accounts that are judged one by one are left out."""
        found: list[_Classed] = []
        named, exploring, weights = self._named, self._exploring, self._want.weights
        asked = "not the provider that was asked for" if self._want.provider is not None else None
        for (isolation, region), section in self.index.sections.items():
            reason_for_all = asked or why_not_there(isolation, region, self._want)
            region_counts = region_score(region, self._want.region_preferred)
            bonus = weights.region * region_counts
            for leaf in section.leaves:
                for offer_class in leaf.classes.values():
                    terms = offer_class.terms
                    price_at_limits = _price(terms, self._limits)
                    reason = reason_for_all or self._why_not_class(terms, price_at_limits)
                    if reason is not None:
                        refused += [NoMatch(account, reason) for account in offer_class.members if account not in named]
                    elif self._has_unnamed(offer_class):
                        merit = (offer_class.merit_exploring if exploring else offer_class.merit) + bonus
                        price = _price(terms, self._expected)
                        found.append((price, price_at_limits, merit, region_counts, offer_class))
        return found

    def singles(self, refused: list[NoMatch]) -> list[_Candidate]:
        """Accounts that are judged one by one: whose pace is known, who have failed lately, or who are named."""
        found: list[_Candidate] = []
        for account in self._named:
            live = self._book.offer_of(account)
            if live is None or (account not in self.index and account not in self._quoted):
                continue
            outcome = match_offer(live, self._want)
            if isinstance(outcome, NoMatch):
                refused.append(outcome)
            else:
                found.append(self._single(live, outcome))
        return found

    def in_order(self, classes: Sequence[_Classed], singles: Sequence[_Candidate]) -> Iterator[Match]:
        """Every member of all of these, best first. Who ranks last anyway is nobody's measure."""
        prices = [classed[0] for classed in classes]
        prices += [single.price for single in singles if not single.demoted]
        cheapest = min(prices or [single.price for single in singles], default=0)
        return self._in_order(classes, singles, cheapest)

    def _in_order(self, classes: Sequence[_Classed], singles: Sequence[_Candidate], cheapest: int) -> Iterator[Match]:
        """Sorted at once, described one by one: whoever wants the first few pays for no more."""
        weight = self._want.weights.price
        places = [
            (False, -weight * price_score(price, cheapest) - merit, price, price_at_limits, number)
            for number, (price, price_at_limits, merit, _, _) in enumerate(classes)
        ]
        places += [
            (single.demoted, -self._scored(single, cheapest).total, single.price, single.price_at_limits, number)
            for number, single in enumerate(singles, len(classes))
        ]
        places.sort()
        for _, equal_places in groupby(places, key=_RANK):
            numbers = [place[4] for place in equal_places]
            equals = [
                self._candidate(classes[number]) if number < len(classes) else singles[number - len(classes)]
                for number in numbers
            ]
            yield from self._shared_out([(each, self._scored(each, cheapest)) for each in equals])

    def _shared_out(self, equals: list[tuple[_Candidate, Scores]]) -> Iterator[Match]:
        """Equal offers, beginning at a place that hangs on the wish."""
        equals.sort(key=lambda entry: entry[0].members[0])
        begin = self._begin % sum(len(candidate.members) for candidate, _ in equals)
        first = 0
        while begin >= len(equals[first][0].members):
            begin -= len(equals[first][0].members)
            first += 1
        split, scored = equals[first]
        yield from self._matches(split, scored, split.members[begin:])
        for candidate, scores_of_it in (*equals[first + 1 :], *equals[:first]):
            yield from self._matches(candidate, scores_of_it, candidate.members)
        yield from self._matches(split, scored, split.members[:begin])

    def _matches(self, candidate: _Candidate, scored: Scores, members: Iterable[AccountId]) -> Iterator[Match]:
        for account in members:
            if candidate.single is not None or account not in self._named:
                yield self._match(account, candidate, scored)

    def _match(self, account: AccountId, candidate: _Candidate, scored: Scores) -> Match:
        if candidate.single is not None:
            return replace(candidate.single, scores=scored, expected_ms=candidate.expected_ms)
        live = self._book.offer_of(account)
        assert live is not None
        served = live.model(self._want.model)
        assert served is not None
        limits, expected = Amount(candidate.price_at_limits), Amount(candidate.price)
        return Match(live, served, limits, expected, live.id, scored)

    def _scored(self, candidate: _Candidate, cheapest: int) -> Scores:
        price = price_score(candidate.price, cheapest)
        return scores(self._want.weights, price, candidate.speed, candidate.reputation, candidate.region)

    def _candidate(self, classed: _Classed) -> _Candidate:
        price, price_at_limits, _, region, offer_class = classed
        terms = offer_class.terms
        reputation = terms.standing().counted(self._exploring)
        return _Candidate(price, price_at_limits, terms.speed, reputation, region, offer_class.members)

    def _single(self, live: LiveOffer, match: Match) -> _Candidate:
        offer, pace = live.offer, self._paces.get(live.account)
        expected_ms = pace.expected_ms(self._expected[1]) if pace is not None else None
        measured = NEUTRAL if expected_ms is None else measured_score(expected_ms, self._usual_ms)
        return _Candidate(
            match.price_expected,
            match.price_at_limits,
            speed_score(measured, offer.slots_free, offer.slots_total),
            self._book.standing_of(live.account).counted(self._exploring),
            region_score(offer.region, self._want.region_preferred),
            (live.account,),
            match,
            live.account in self._want.demoted,
            expected_ms,
        )

    def _why_not_class(self, terms: Terms, price_at_limits: int) -> str | None:
        want = self._want
        if want.input_units_max > terms.input_units_max or want.output_units_max > terms.output_units_max:
            return why_not_so_much(terms.input_units_max, terms.output_units_max, want)
        return too_dear(min(price_at_limits, AMOUNT_MAX)) if price_at_limits > want.price_ceiling else None

    def _has_unnamed(self, offer_class: OfferClass) -> bool:
        named = self._named
        for account in offer_class.members:  # noqa: SIM110 (mostly the first: a generator costs more than it saves)
            if account not in named:
                return True
        return False

    # The best of them

    def best(self, singles: Sequence[_Candidate]) -> Match | None:
        """The first of all classes and of these, without opening every leaf."""
        closed = self._closed()
        cheapest = self._cheapest(closed, min((single.price for single in singles), default=None))
        if cheapest is None:
            return None
        weights, exploring = self._want.weights, self._exploring
        highest = max((leaf.merit_highest for leaf in closed), default=0)
        found: list[_Classed] = []
        best = max((self._scored(single, cheapest).total for single in singles), default=0)
        for price_lowest, _, leaf, merit_highest, region in closed:
            at_best = weights.price * price_score(price_lowest, cheapest)
            if at_best + highest < best:
                break
            if at_best + merit_highest < best:
                continue
            for offer_class in leaf.classes.values():
                merit = offer_class.merit_exploring if exploring else offer_class.merit
                merit += weights.region * region
                if at_best + merit < best:
                    continue
                price = _price(offer_class.terms, self._expected)
                total = weights.price * price_score(price, cheapest) + merit
                if total >= best and self._would_do(offer_class):
                    best = total
                    found.append((price, _price(offer_class.terms, self._limits), merit, region, offer_class))
        return next(self._in_order(found, singles, cheapest), None)

    def _closed(self) -> list[_Closed]:
        """The leaves that may hold offers that would do, the cheapest first."""
        (input_units, output_units), exploring, want = self._expected, self._exploring, self._want
        closed: list[_Closed] = []
        for (isolation, region), section in self.index.sections.items():
            if why_not_there(isolation, region, want) is None:
                region_counts = region_score(region, want.region_preferred)
                bonus = want.weights.region * region_counts
                closed += [
                    _Closed(
                        leaf.request_lowest
                        - -(leaf.input_lowest * input_units + leaf.output_lowest * output_units) // UNITS_PER_PRICE,
                        number,
                        leaf,
                        (leaf.merit_exploring_highest if exploring else leaf.merit_highest) + bonus,
                        region_counts,
                    )
                    for number, leaf in enumerate(section.leaves, len(closed))
                ]
        closed.sort()
        return closed

    def _cheapest(self, closed: Iterable[_Closed], cheapest: int | None) -> int | None:
        """The lowest expected price of all that would do, or of those that are known to."""
        for price_lowest, _, leaf, _, _ in closed:
            if cheapest is not None and price_lowest >= cheapest:
                break
            for offer_class in leaf.classes.values():
                price = _price(offer_class.terms, self._expected)
                if (cheapest is None or price < cheapest) and self._would_do(offer_class):
                    cheapest = price
        return cheapest

    def _would_do(self, offer_class: OfferClass) -> bool:
        reason = self._why_not_class(offer_class.terms, _price(offer_class.terms, self._limits))
        return reason is None and self._has_unnamed(offer_class)
