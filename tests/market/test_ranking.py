"""Which offer is best: by the weights, whatever the order of arrival, and the same whether all are looked at or few."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from protocol.market.events import JobAgreed, JobFailed, JobFinished, JobPrefilled
from protocol.market.matching import Match, Quoted, Want
from protocol.market.offer_search import best_offer, quote
from protocol.market.order_book import OrderBook
from protocol.market.pace import MODELS_MAX, PROVIDERS_PER_MODEL_MAX, Pace, Paces
from protocol.market.ranking import Weights, price_score
from protocol.market.reputation import EXPLORATION_PERMILLE, Dealing, SideRecord, TrackRecord, explores
from protocol.messages.effects import Now
from protocol.messages.market import FaultKind, FinishReason, Offer, Prices, Receipt
from protocol.primitives.units import (
    AccountId,
    Amount,
    ChannelId,
    Hash,
    Lane,
    LedgerTimeMs,
    MessageId,
    ModelId,
    MonotonicMs,
    NodeId,
    SequenceNumber,
    TimestampMs,
    WorkUnits,
)
from tests.market.test_matching import NOW, OFFER, WANT
from tests.market.town import MODEL, SERVED, identity

NOT_EXPLORING = next(unique for number in range(9) if not explores(unique := Hash(identity(f"wish {number}"))))
EXPLORING = next(unique for number in range(999) if explores(unique := Hash(identity(f"wish {number}"))))


class Opinions:
    """A ledger that knows of some providers' dealings and nothing else."""

    def __init__(self, failed: tuple[AccountId, ...] = (), proven: tuple[AccountId, ...] = ()) -> None:
        self._failed = failed
        self._proven = proven

    def track_record(self, account: AccountId) -> TrackRecord:
        if account in self._failed:
            return TrackRecord(account, SideRecord(failures=9, failed_volume=Amount(10**9)))
        if account in self._proven:
            dealings = tuple(
                Dealing(AccountId(identity(f"{n}")), Amount(10**8), LedgerTimeMs(1_000)) for n in range(16)
            )
            volume = Amount(16 * 10**8)
            return TrackRecord(account, SideRecord(16, volume, volume, dealings=dealings, last_at=LedgerTimeMs(1_000)))
        return TrackRecord(account)

    def ledger_time(self) -> LedgerTimeMs:
        return LedgerTimeMs(1_000)


def account(number: int) -> AccountId:
    return AccountId(identity(f"provider {number}"))


def offer(number: int, dice: Random) -> Offer:
    """Few different values, so that ties are common."""
    prices = Prices(
        Amount(dice.choice((100, 110, 500))), Amount(dice.choice((9_000, 10_000))), Amount(50_000 + dice.randrange(3))
    )
    served = replace(SERVED, prices=prices, output_units_max=WorkUnits(dice.choice((150, 1_000))))
    return replace(
        OFFER,
        models=(served,),
        node=NodeId(identity(f"node {number}")),
        slots_free=dice.randrange(5),
        region=dice.choice(("earth", "mars")),
        isolation=dice.choice(("strong", "fallback")),
    )


def book_of(offers: list[tuple[int, Offer]], opinions: Opinions | None = None) -> OrderBook:
    book = OrderBook()
    if opinions is not None:
        book.judge_by(opinions)  # type: ignore[arg-type]
    for number, each in offers:
        book.consider_offer(MessageId(identity(f"{number} {each}")), each, account(number), Amount(1), Amount(1), NOW)
    return book


def keyed(matches: tuple[Match, ...]) -> list[tuple[AccountId, int]]:
    return [(match.live.account, match.scores.total) for match in matches]


@given(st.integers(0, 10**6))
def test_order_of_arrival_changes_nothing_and_the_short_search_finds_the_first_of_the_long_one(seed: int) -> None:
    dice = Random(seed)
    offers = [(number, offer(number, dice)) for number in range(dice.randrange(1, 120))]
    opinions = Opinions(failed=tuple(account(number) for number in range(0, 30, 3)))
    want = replace(
        WANT,
        unique=Hash(dice.randbytes(32)),
        region=dice.choice(("", "earth")),
        isolation=dice.choice(("", "strong")),
        region_preferred=dice.choice(("", "mars")),
        price_ceiling=Amount(dice.choice((10**6, 10_710, 10_600))),
        excluded=tuple(account(dice.randrange(120)) for _ in range(dice.randrange(3))),
        demoted=tuple(account(dice.randrange(120)) for _ in range(dice.randrange(3))),
        weights=dice.choice((Weights(), Weights(1, 1, 1, 1), Weights(0, 0, 1, 0), Weights(1, 0, 0, 0))),
    )
    paced = [(account(dice.randrange(120)), dice.randrange(500), dice.randrange(9_000)) for _ in range(5)]
    found = []
    for _ in range(2):
        book = book_of(offers, opinions)
        best_offer(book, want, NOW)  # the index is there before half of the offers, or after all of them
        for provider, first_ms, unit_us in paced:
            book.paces.learn(MODEL, provider, first_ms, unit_us)
        ranking = quote(book, want, NOW)
        best = best_offer(book, want, NOW)
        assert best == (ranking.ranked[0] if ranking.ranked else None)
        assert len(ranking.ranked) + len(ranking.refused) == len(offers)
        few = quote(book, want, NOW, ranked_max=3)
        assert (few.ranked, few.refused, few.would) == (ranking.ranked[:3], ranking.refused, len(ranking.ranked))
        found.append((keyed(ranking.ranked), ranking.refused))
        dice.shuffle(offers)
    assert found[0] == found[1]


@given(st.integers(0, 10**6))
def test_an_index_that_is_kept_up_says_what_a_new_one_says(seed: int) -> None:
    dice = Random(seed)
    book, current = OrderBook(), dict[int, Offer]()
    want = replace(WANT, unique=Hash(dice.randbytes(32)))
    best_offer(book, want, NOW)
    for step in range(250):
        number = dice.randrange(60)
        changed = replace(offer(number, dice), sequence=SequenceNumber(step + 1))
        now = Now(MonotonicMs(step * 3_000), NOW.wall_ms)
        book.consider_offer(MessageId(identity(f"{step}")), changed, account(number), Amount(1), Amount(1), now)
        current[number] = changed
        if step % 50 == 0:
            best_offer(book, want, NOW)
    new = book_of(list(current.items()))
    assert keyed(quote(book, want, NOW).ranked) == keyed(quote(new, want, NOW).ranked)
    best, expected = best_offer(book, want, NOW), best_offer(new, want, NOW)
    assert (best is None) == (expected is None)
    assert best is None or expected is None or best.live.account == expected.live.account


def two(first: Offer, second: Offer, opinions: Opinions | None = None) -> OrderBook:
    return book_of([(1, first), (2, second)], opinions)


def winner(book: OrderBook, want: Want) -> int:
    best = best_offer(book, want, NOW)
    assert best is not None
    return 1 if best.live.account == account(1) else 2


def priced(output_per_thousand: int, **changes: object) -> Offer:
    prices = Prices(Amount(0), Amount(0), Amount(output_per_thousand))
    plain = replace(OFFER, slots_free=4, models=(replace(SERVED, prices=prices),))
    return replace(plain, **changes)


PLAIN = replace(WANT, unique=NOT_EXPLORING)


@pytest.mark.parametrize(
    ("weights", "wins"),
    [(Weights(), 1), (Weights(1, 0, 0, 0), 1), (Weights(0, 0, 1, 0), 2), (Weights(100, 0, 900, 0), 2)],
)
def test_reputation_wins_over_price_as_far_as_its_weight_goes(weights: Weights, wins: int) -> None:
    opinions = Opinions(failed=(account(1),))
    book = two(priced(40_000), priced(50_000), opinions)
    assert winner(book, replace(PLAIN, weights=weights)) == wins


def test_the_preferred_region_wins_among_equals_and_not_against_a_much_lower_price() -> None:
    here, there = priced(50_000, region="earth"), priced(50_000, region="mars")
    assert winner(two(here, there), replace(PLAIN, region_preferred="mars")) == 2
    assert winner(two(priced(40_000), there), replace(PLAIN, region_preferred="mars")) == 1


def test_measured_speed_counts_and_what_was_never_measured_is_neither_fast_nor_slow() -> None:
    book = two(priced(50_000), priced(50_000))
    book.paces.learn(MODEL, account(1), 1_000, 90_000)
    book.paces.learn(MODEL, account(2), 100, 1_000)
    ranked = quote(book, PLAIN, NOW).ranked
    assert [match.live.account for match in ranked] == [account(2), account(1)]
    assert ranked[0].scores.speed > 500 > ranked[1].scores.speed
    assert ranked[0].expected_ms == 100 + 80
    [alone] = quote(book_of([(3, priced(50_000))]), PLAIN, NOW).ranked
    assert (alone.scores.speed, alone.expected_ms) == (500, None)


def test_a_busy_provider_ranks_behind_an_idle_one_of_the_same_price() -> None:
    assert winner(two(priced(50_000, slots_free=1), priced(50_000)), PLAIN) == 2


def test_a_share_of_choices_tries_a_newcomer_where_the_known_one_is_no_cheaper() -> None:
    book = two(priced(50_000), priced(50_000), Opinions(proven=(account(1),)))
    assert winner(book, PLAIN) == 1
    assert winner(book, replace(PLAIN, unique=EXPLORING)) == 2
    dearer = two(priced(40_000), priced(50_000), Opinions(proven=(account(1),)))
    assert winner(dearer, replace(PLAIN, unique=EXPLORING)) == 1, "a chance is no blank cheque"
    assert EXPLORATION_PERMILLE <= 100


def test_scores_say_how_they_came_about() -> None:
    [best, other] = quote(two(priced(40_000), priced(50_000)), PLAIN, NOW).ranked
    assert (best.scores.price, other.scores.price) == (1000, 800)
    weights = Weights()
    assert (
        best.scores.total
        == 1000 * weights.price + 500 * weights.speed + 500 * weights.reputation + 1000 * weights.region
    )


def test_a_quote_of_an_auction_takes_the_place_of_the_posted_price() -> None:
    book = two(priced(40_000), priced(50_000, slots_free=0))
    cheap = Quoted(account(2), MessageId(b"q" * 32), Prices(Amount(0), Amount(0), Amount(10_000)), MonotonicMs(1), True)
    best = best_offer(book, replace(PLAIN, quoted=(cheap,)), NOW)
    assert best is not None
    assert (best.live.account, best.terms, best.served.prices) == (account(2), cheap.terms, cheap.prices)
    no_slot = replace(cheap, slot_held=False)
    assert winner(book, replace(PLAIN, quoted=(no_slot,))) == 1


def test_price_scores_halve_when_the_price_doubles() -> None:
    assert [price_score(price, 100) for price in (50, 100, 200, 10**9)] == [1000, 1000, 500, 0]
    assert price_score(0, 0) == 1000


# What is remembered of speed


RECEIPT = Receipt(
    MessageId(b"j" * 32), MessageId(b"b" * 32), account(0), account(1), MODEL, "", "", Hash(bytes(32)), Hash(bytes(32)),
    WorkUnits(1), WorkUnits(100), 2, Hash(bytes(32)), Amount(1), FinishReason.STOP, ChannelId(bytes(32)), Lane(0),
    TimestampMs(0), TimestampMs(0),
)  # fmt: skip
REQUEST, JOB = Hash(b"r" * 32), MessageId(b"j" * 32)
AGREED = JobAgreed(REQUEST, JOB, account(1), MODEL, Amount(1), ChannelId(bytes(32)), Lane(0), 1)


def clock(milliseconds: int) -> Now:
    return Now(MonotonicMs(milliseconds), TimestampMs(milliseconds))


def test_a_finished_job_tells_the_pace_of_its_provider() -> None:
    paces = Paces()
    paces.observe(AGREED, clock(1_000))
    paces.observe(JobPrefilled(REQUEST, JOB, WorkUnits(1)), clock(1_300))
    paces.observe(JobFinished(REQUEST, JOB, RECEIPT, Amount(1), WorkUnits(100), 2), clock(2_300))
    assert paces.of(MODEL) == {account(1): Pace(300, 10_000, 1)}
    assert paces.of(MODEL)[account(1)].expected_ms(50) == 800


def test_a_failed_job_tells_nothing() -> None:
    paces = Paces()
    paces.observe(AGREED, clock(1_000))
    failed = JobFailed(REQUEST, JOB, FaultKind.PROVIDER, "", Amount(0), WorkUnits(0), FaultKind.PROVIDER, "")
    paces.observe(failed, clock(1_300))
    paces.observe(JobFinished(REQUEST, JOB, RECEIPT, Amount(1), WorkUnits(100), 2), clock(2_300))
    assert paces.of(MODEL) == {}


def test_newer_jobs_move_the_pace_a_quarter_of_the_way() -> None:
    paces = Paces()
    paces.learn(MODEL, account(1), 100, 1_000)
    paces.learn(MODEL, account(1), 500, 5_000)
    assert paces.of(MODEL)[account(1)] == Pace(200, 2_000, 2)


def test_what_is_remembered_of_speed_is_bounded() -> None:
    paces = Paces()
    for number in range(PROVIDERS_PER_MODEL_MAX + 10):
        paces.learn(MODEL, account(number), 1, 1)
    assert len(paces.of(MODEL)) == PROVIDERS_PER_MODEL_MAX
    for number in range(MODELS_MAX + 10):
        paces.learn(ModelId(identity(f"model {number}")), account(1), 1, 1)
    assert len(paces._models) == MODELS_MAX
