"""Quotes: who would, at what price, in which order, and why each other would not."""

from itertools import permutations

import pytest
from msgspec.structs import replace

from protocol.market.matching import Match, NoMatch, Want, isolation_suffices, match_offer
from protocol.market.offer_search import best_offer, quote
from protocol.market.order_book import OrderBook
from protocol.messages.effects import Now
from protocol.messages.market import Offer, Prices
from protocol.primitives.limits import REFUSALS_SHOWN_MAX
from protocol.primitives.units import (
    AMOUNT_MAX,
    AccountId,
    Amount,
    Hash,
    MessageId,
    ModelId,
    MonotonicMs,
    NodeId,
    SequenceNumber,
    TimestampMs,
    WorkUnits,
    format_credits,
)
from protocol.settlement.pricing import amount_due
from tests.market.town import MODEL, PRICES, SERVED, identity

NOW = Now(MonotonicMs(0), TimestampMs(1_000_000))
OFFER = Offer(
    NodeId(b"n" * 32), SequenceNumber(1), TimestampMs(1_060_000), ("a:1",), "earth", "strong", 4, 2, (SERVED,)
)
WANT = Want(
    buyer=AccountId(identity("buyer")),
    model=MODEL,
    input_units_max=WorkUnits(100),
    output_units_max=WorkUnits(200),
    input_units_expected=WorkUnits(50),
    output_units_expected=WorkUnits(80),
    price_ceiling=Amount(1_000_000),
    unique=Hash(b"u" * 32),
)


def book_of(*offers: tuple[str, Offer]) -> OrderBook:
    book = OrderBook()
    for name, offer in offers:
        book.consider_offer(
            MessageId(identity(f"id {name}")), offer, AccountId(identity(name)), Amount(1), Amount(1), NOW
        )
    return book


def cheaper(by: int) -> Offer:
    prices = replace(PRICES, output_per_thousand=Amount(PRICES.output_per_thousand - by))
    return replace(OFFER, models=(replace(SERVED, prices=prices),))


def names(matches: tuple[Match, ...], *candidates: str) -> list[str]:
    by_account = {identity(name): name for name in candidates}
    return [by_account[match.live.account] for match in matches]


def test_price_at_the_limits_and_as_expected_are_named() -> None:
    [match] = quote(book_of(("s", OFFER)), WANT, NOW).ranked
    assert match.price_at_limits == amount_due(PRICES, 100, 200)
    assert match.price_expected == amount_due(PRICES, 50, 80)


def test_cheapest_first_then_the_idle_one_whatever_the_order_of_arrival() -> None:
    offers = (("dear", OFFER), ("cheap", cheaper(1000)), ("roomy", replace(OFFER, slots_free=4)))
    for order in permutations(offers):
        ranked = quote(book_of(*order), WANT, NOW).ranked
        assert names(ranked, "dear", "cheap", "roomy") == ["cheap", "roomy", "dear"]


def test_equal_offers_share_the_buyers() -> None:
    book = book_of(*((f"s{number}", OFFER) for number in range(4)))
    first = {
        names(quote(book, replace(WANT, unique=Hash(identity(f"{wish}"))), NOW).ranked, "s0", "s1", "s2", "s3")[0]: None
        for wish in range(60)
    }
    assert sorted(first) == ["s0", "s1", "s2", "s3"]


def test_a_demoted_provider_ranks_behind_dearer_ones() -> None:
    book = book_of(("cheap", cheaper(50)), ("dear", OFFER))
    want = replace(WANT, demoted=(AccountId(identity("cheap")),))
    assert names(quote(book, want, NOW).ranked, "cheap", "dear") == ["dear", "cheap"]


@pytest.mark.parametrize(
    ("offer", "want", "reason"),
    [
        (OFFER, replace(WANT, model=ModelId(b"x" * 32)), "model not served"),
        (OFFER, replace(WANT, buyer=AccountId(identity("s"))), "own offer"),
        (OFFER, replace(WANT, provider=AccountId(identity("t"))), "not the provider that was asked for"),
        (OFFER, replace(WANT, excluded=(AccountId(identity("s")),)), "excluded after failure"),
        (replace(OFFER, isolation="fallback"), replace(WANT, isolation="strong"), "isolation fallback is below strong"),
        (replace(OFFER, isolation="declared"), replace(WANT, isolation="strong"), "isolation declared is below strong"),
        (replace(OFFER, isolation=""), replace(WANT, isolation="strong"), "isolation unknown is below strong"),
        (OFFER, replace(WANT, region="mars"), "region earth is not mars"),
        (OFFER, replace(WANT, input_units_max=WorkUnits(1001)), "input limit of 1000 units is too small"),
        (OFFER, replace(WANT, output_units_max=WorkUnits(1001)), "output limit of 1000 units is too small"),
        (
            OFFER,
            replace(WANT, price_ceiling=Amount(amount_due(PRICES, 100, 200) - 1)),
            f"price above ceiling: up to {format_credits(amount_due(PRICES, 100, 200))} credits",
        ),
        (replace(OFFER, slots_free=0), WANT, "no free slots"),
    ],
)
def test_each_reason_against_an_offer_is_given(offer: Offer, want: Want, reason: str) -> None:
    found = quote(book_of(("s", offer)), want, NOW)
    assert found.ranked == ()
    assert [refusal.reason for refusal in found.refused] == [reason]


def test_the_ceiling_itself_is_not_above_the_ceiling() -> None:
    want = replace(WANT, price_ceiling=amount_due(PRICES, 100, 200))
    assert len(quote(book_of(("s", OFFER)), want, NOW).ranked) == 1


def test_an_expired_offer_is_not_there() -> None:
    late = Now(MonotonicMs(0), TimestampMs(1_060_000))
    found = quote(book_of(("s", OFFER)), WANT, late)
    assert found.ranked == ()
    assert [refusal.reason for refusal in found.refused] == ["offer has expired"]


def test_a_provider_whose_bond_is_too_low_is_named_with_it() -> None:
    book = OrderBook()
    account = AccountId(identity("s"))
    book.consider_offer(MessageId(identity("id")), OFFER, account, Amount(1), Amount(2_000_000), NOW)
    [refusal] = quote(book, WANT, NOW).refused
    assert refusal == NoMatch(account, "bond of 0.000001 credits is below 2.00")
    book = book_of(("s", OFFER))
    book.drop_unbonded(lambda account: Amount(1), Amount(2_000_000), NOW)
    assert [refusal.reason for refusal in quote(book, WANT, NOW).refused] == [refusal.reason]


def test_every_refusal_is_given_however_many() -> None:
    full = replace(OFFER, slots_free=0)
    book = book_of(*((f"s{number}", full) for number in range(REFUSALS_SHOWN_MAX + 6)))
    found = quote(book, WANT, NOW)
    assert [refusal.reason for refusal in found.refused] == ["no free slots"] * (REFUSALS_SHOWN_MAX + 6)


def test_a_job_leaves_out_what_does_not_serve_the_model() -> None:
    other = replace(OFFER, models=(replace(SERVED, model=ModelId(b"x" * 32)),))
    book = book_of(("s", OFFER), ("t", other))
    assert [type(entry) for entry in quote(book, WANT, NOW, whole_book=False).refused] == []
    assert [type(entry) for entry in quote(book, WANT, NOW).refused] == [NoMatch]


@pytest.mark.parametrize(
    ("offered", "wanted", "suffices"),
    [
        ("strong", "", True),
        ("strong", "strong", True),
        ("strong+", "strong", True),
        ("strong", "strong+", False),
        ("none", "declared", False),
        ("own words", "own words", True),
        ("own words", "strong", False),
        ("strong", "own words", False),
    ],
)
def test_levels_of_isolation_include_the_lower_ones(offered: str, wanted: str, suffices: bool) -> None:
    assert isolation_suffices(offered, wanted) is suffices


def test_prices_beyond_all_money_at_the_wish_are_above_any_ceiling() -> None:
    served = replace(
        SERVED, prices=Prices(Amount(0), Amount(0), Amount(AMOUNT_MAX // 10)), output_units_max=WorkUnits(9)
    )
    book = book_of(("s", replace(OFFER, models=(served,))))
    want = replace(WANT, output_units_max=WorkUnits(9), price_ceiling=Amount(10))
    [refusal] = quote(book, want, NOW).refused
    assert refusal.reason.startswith("price above ceiling")


def test_a_declared_model_of_a_strong_node_is_never_matched_with_a_buyer_who_asks_for_strong() -> None:
    mixed = replace(OFFER, models=(replace(SERVED, isolation="declared"),))
    book = book_of(("mixed", mixed), ("strong", OFFER))
    anybody = quote(book, WANT, NOW).ranked
    assert names(anybody, "mixed", "strong") in (["mixed", "strong"], ["strong", "mixed"])
    wanted = replace(WANT, isolation="strong")
    found = quote(book, wanted, NOW)
    assert names(found.ranked, "mixed", "strong") == ["strong"]
    assert [refusal.reason for refusal in found.refused] == ["isolation declared is below strong"]
    live = book.offer_of(AccountId(identity("mixed")))
    assert live is not None
    assert isinstance(match_offer(live, wanted), NoMatch)
    assert isinstance(match_offer(live, WANT), Match)
    chosen = best_offer(book, wanted, NOW)
    assert chosen is not None
    assert chosen.live.account == identity("strong")
    assert best_offer(book_of(("mixed", mixed)), wanted, NOW) is None
