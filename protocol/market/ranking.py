"""What makes one offer better than another: price, speed, reputation and region, each with a weight of the buyer's.

Law: integers alone; a score depends on the offer, the wish and what this node knows, never on the order in which offers
came. Each factor counts from 0 to 1000, and a higher one is better:

    price       1000 × cheapest / price: twice as dear as the cheapest that would do is 500
    speed       1000 × usual / (usual + expected) of the times this node has measured; 500 where it has measured none;
                of that, half goes as the provider's slots fill up
    reputation  the ledger's score of the account; a newcomer's counts as the best in the share of choices that explores
    region      1000 in the region that the buyer prefers, or when it prefers none
"""

from collections.abc import Iterable

from msgspec import Struct

SCORE_MAX = 1000
NEUTRAL = SCORE_MAX // 2
"""What nobody has measured is neither fast nor slow."""

WEIGHT_MAX = 1000


class Weights(Struct, frozen=True):
    """How much each factor counts, 0 to ``WEIGHT_MAX``; only their proportions matter.

    By default price counts most: an offer that is a thirtieth cheaper wins over one that is idle, and one that is a
    fifteenth cheaper over the best reputation against a newcomer's.
    """

    price: int = 800
    speed: int = 80
    reputation: int = 100
    region: int = 20


class Scores(Struct, frozen=True, gc=False):
    """One offer's factors, 0 to 1000, and ``total``: the sum of each times its weight."""

    price: int
    speed: int
    reputation: int
    region: int
    total: int


class Standing(Struct, frozen=True, gc=False):
    """What the ledger says of a provider: its score, 0 to 1000, and whether it is hardly known."""

    reputation: int
    newcomer: bool

    def counted(self, exploring: bool) -> int:
        """The reputation that counts for one choice."""
        return SCORE_MAX if exploring and self.newcomer else self.reputation


def price_score(price: int, cheapest: int) -> int:
    """1000 for the cheapest, less in proportion for others."""
    return SCORE_MAX if price <= cheapest else SCORE_MAX * cheapest // price


def speed_score(measured: int, slots_free: int, slots_total: int) -> int:
    """``measured`` for an idle provider, half of it for a full one."""
    return measured * (slots_total + slots_free) // (2 * max(1, slots_total))


def measured_score(expected_ms: int, usual_ms: int) -> int:
    """500 for the usual time, more for less."""
    return SCORE_MAX * usual_ms // max(1, usual_ms + expected_ms)


def usual_time(times_ms: Iterable[int]) -> int:
    """The mean of what was measured; 0 for nothing."""
    times = tuple(times_ms)
    return sum(times) // len(times) if times else 0


def region_score(region: str, preferred: str) -> int:
    """All or nothing: regions are names, not places."""
    return SCORE_MAX if not preferred or region == preferred else 0


def scores(weights: Weights, price: int, speed: int, reputation: int, region: int) -> Scores:
    """The factors with their weighted sum."""
    total = weights.price * price + weights.speed * speed + weights.reputation * reputation + weights.region * region
    return Scores(price, speed, reputation, region, total)
