"""One model's offers, arranged so that the best one is found without looking at most of them.

Law: an arrangement of what the order book holds and nothing of its own: the same offers give the same answers, however
they came. Offers that are alike in all that ranking looks at are one ``OfferClass``. Classes lie in the leaves of a
k-d tree over the three prices and the merit (the part of a score that does not hang on the wish), in one tree for each
pair of isolation and region. A leaf knows its lowest prices and its highest merit, so that for any wish it is clear
without opening it how good its offers can be at best.
Source: J. L. Bentley, Multidimensional binary search trees used for associative searching (1975).
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

from msgspec import Struct

from protocol.market.ranking import NEUTRAL, Standing, Weights, speed_score
from protocol.messages.market import ModelOffer, Offer
from protocol.primitives.units import AccountId

LEAF_CLASSES_MAX = 32
"""A leaf with more is split: opening one costs about as much as looking at thirty closed ones."""

_TYPICAL_INPUT, _TYPICAL_OUTPUT = 200, 200
"""Units by which the axis is chosen along which a leaf is split; a bad choice costs time, never correctness."""


class Terms(Struct, frozen=True, gc=False):
    """All of an offer of one model that ranking looks at, but for isolation and region."""

    request: int
    input_per_thousand: int
    output_per_thousand: int
    speed: int
    """As long as nobody has measured the provider."""
    reputation: int
    newcomer: bool
    input_units_max: int
    output_units_max: int

    def standing(self) -> Standing:
        """What the ledger said of the providers."""
        return Standing(self.reputation, self.newcomer)


class OfferClass:
    """Providers whose offers are alike, sorted by account, with the two merits that they share."""

    __slots__ = ("members", "merit", "merit_exploring", "terms")

    def __init__(self, terms: Terms, weights: Weights) -> None:
        self.terms = terms
        self.members: list[AccountId] = []
        speed, standing = weights.speed * terms.speed, terms.standing()
        self.merit = speed + weights.reputation * standing.counted(False)
        self.merit_exploring = speed + weights.reputation * standing.counted(True)


class Leaf:
    """Some classes and the bounds of all of them. Bounds may be loose after an offer has gone, never wrong."""

    __slots__ = (
        "classes",
        "input_lowest",
        "merit_exploring_highest",
        "merit_highest",
        "output_lowest",
        "request_lowest",
        "split_above",
    )

    def __init__(self, classes: Iterable[OfferClass]) -> None:
        self.classes: dict[Terms, OfferClass] = {}
        self.request_lowest = self.input_lowest = self.output_lowest = 2**64
        self.merit_highest = self.merit_exploring_highest = 0
        self.split_above = LEAF_CLASSES_MAX
        for offer_class in classes:
            self.add(offer_class)

    def add(self, offer_class: OfferClass) -> None:
        """One more class."""
        terms = offer_class.terms
        self.classes[terms] = offer_class
        self.request_lowest = min(self.request_lowest, terms.request)
        self.input_lowest = min(self.input_lowest, terms.input_per_thousand)
        self.output_lowest = min(self.output_lowest, terms.output_per_thousand)
        self.merit_highest = max(self.merit_highest, offer_class.merit)
        self.merit_exploring_highest = max(self.merit_exploring_highest, offer_class.merit_exploring)


class _Fork:
    """An inner place of the tree: what is at most ``threshold`` on the axis lies to the left."""

    __slots__ = ("axis", "left", "right", "threshold")

    def __init__(self, axis: int, threshold: int, left: "_Fork | Leaf", right: "_Fork | Leaf") -> None:
        self.axis = axis
        self.threshold = threshold
        self.left = left
        self.right = right


Position = tuple[int, int, int, int, int, int]


def _position(offer_class: OfferClass) -> Position:
    """Where a class lies on each axis; the limits are there so that no leaf grows without end."""
    terms = offer_class.terms
    return (
        terms.request,
        terms.input_per_thousand,
        terms.output_per_thousand,
        offer_class.merit,
        terms.input_units_max,
        terms.output_units_max,
    )


class Section:
    """All classes of one isolation and region."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._root: _Fork | Leaf = Leaf(())
        self._leaves: tuple[Leaf, ...] | None = None
        self._classes = 0
        self._removed = 0

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """Every leaf that holds anything."""
        if self._leaves is None:
            self._leaves = tuple(leaf for leaf in _leaves_below(self._root) if leaf.classes)
        return self._leaves

    def put(self, account: AccountId, terms: Terms) -> None:
        """An account offers on these terms."""
        fork, leaf = self._find(OfferClass(terms, self._weights))
        offer_class = leaf.classes.get(terms)
        if offer_class is None:
            offer_class = OfferClass(terms, self._weights)
            if not leaf.classes:
                self._leaves = None
            leaf.add(offer_class)
            self._classes += 1
            self._split(fork, leaf)
        insort(offer_class.members, account)

    def remove(self, account: AccountId, terms: Terms) -> None:
        """An account no longer offers on these terms."""
        _, leaf = self._find(OfferClass(terms, self._weights))
        members = leaf.classes[terms].members
        del members[bisect_left(members, account)]
        if members:
            return
        del leaf.classes[terms]
        self._classes -= 1
        self._removed += 1
        if not leaf.classes:
            self._leaves = None
        if self._removed > LEAF_CLASSES_MAX + self._classes:
            self._rebuild()

    def __len__(self) -> int:
        return self._classes

    def _find(self, offer_class: OfferClass) -> tuple[_Fork | None, Leaf]:
        position = _position(offer_class)
        fork: _Fork | None = None
        place = self._root
        while isinstance(place, _Fork):
            fork = place
            place = place.left if position[place.axis] <= place.threshold else place.right
        return fork, place

    def _split(self, fork: _Fork | None, leaf: Leaf) -> None:
        if len(leaf.classes) <= leaf.split_above:
            return
        grown = self._grown(list(leaf.classes.values()))
        self._leaves = None
        if fork is None:
            self._root = grown
        elif fork.left is leaf:
            fork.left = grown
        else:
            fork.right = grown

    def _rebuild(self) -> None:
        """Make bounds tight again; what this costs was earned by the removals."""
        self._root = self._grown([each for leaf in self.leaves for each in leaf.classes.values()])
        self._leaves = None
        self._removed = 0

    def _grown(self, classes: list[OfferClass]) -> "_Fork | Leaf":
        if len(classes) <= LEAF_CLASSES_MAX:
            return Leaf(classes)
        axis = self._widest(classes)
        places = sorted(_position(each)[axis] for each in classes)
        threshold = places[len(places) // 2]
        if threshold == places[-1]:
            threshold = places[bisect_left(places, threshold) - 1]
        if threshold == places[-1]:
            leaf = Leaf(classes)  # alike on every axis
            leaf.split_above = 2 * len(classes)
            return leaf
        left = [each for each in classes if _position(each)[axis] <= threshold]
        right = [each for each in classes if _position(each)[axis] > threshold]
        return _Fork(axis, threshold, self._grown(left), self._grown(right))

    def _widest(self, classes: list[OfferClass]) -> int:
        """The axis along which a typical score varies most."""
        ranges = [(min(places), max(places)) for places in zip(*map(_position, classes), strict=True)]
        units = (1000, _TYPICAL_INPUT, _TYPICAL_OUTPUT)
        lowest = max(1, sum(low * unit for (low, _), unit in zip(ranges, units, strict=False)))
        spreads = [
            self._weights.price * 1000 * (high - low) * unit // lowest
            for (low, high), unit in zip(ranges, units, strict=False)
        ]
        spreads.append(ranges[3][1] - ranges[3][0])
        if max(spreads) == 0:  # too little to count: any axis along which anything differs
            spreads = [high - low for low, high in ranges]
        return spreads.index(max(spreads))


SectionName = tuple[str, str]
"""Isolation and region."""


class OfferIndex:
    """All offers of one model that have a free slot."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.sections: dict[SectionName, Section] = {}
        self._places: dict[AccountId, tuple[SectionName, Terms]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, account: AccountId) -> bool:
        return account in self._places

    def put(self, account: AccountId, offer: Offer, served: ModelOffer, standing: Standing) -> None:
        """Take up an account's offer in place of its earlier one. Without a free slot it is in no one's way."""
        place = (offer.isolation_of(served), offer.region), terms_of(offer, served, standing)
        before = self._places.get(account)
        if offer.slots_free and before == place:
            return
        self.remove(account)
        if not offer.slots_free:
            return
        name, terms = place
        section = self.sections.get(name)
        if section is None:
            section = self.sections[name] = Section(self.weights)
        section.put(account, terms)
        self._places[account] = place

    def remove(self, account: AccountId) -> None:
        """Forget an account's offer, if there is one."""
        place = self._places.pop(account, None)
        if place is None:
            return
        name, terms = place
        section = self.sections[name]
        section.remove(account, terms)
        if not len(section):
            del self.sections[name]


def terms_of(offer: Offer, served: ModelOffer, standing: Standing) -> Terms:
    """What ranking looks at."""
    return Terms(
        served.prices.request,
        served.prices.input_per_thousand,
        served.prices.output_per_thousand,
        speed_score(NEUTRAL, offer.slots_free, offer.slots_total),
        standing.reputation,
        standing.newcomer,
        served.input_units_max,
        served.output_units_max,
    )


def _leaves_below(place: "_Fork | Leaf") -> Iterator[Leaf]:
    waiting = [place]
    while waiting:
        place = waiting.pop()
        if isinstance(place, Leaf):
            yield place
        else:
            waiting += (place.right, place.left)
