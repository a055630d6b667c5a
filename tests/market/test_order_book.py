"""Which offers count: each check of the list by a row that fails it alone."""

import pytest
from msgspec.structs import replace

from protocol.market.order_book import (
    OFFER_BURST,
    OFFER_INTERVAL_MS,
    OFFER_LIFETIME_MS_MAX,
    Judgement,
    OrderBook,
    Ruling,
)
from protocol.messages.effects import Now
from protocol.messages.market import Offer, Prices
from protocol.primitives.units import (
    AMOUNT_MAX,
    AccountId,
    Amount,
    MessageId,
    ModelId,
    MonotonicMs,
    NodeId,
    SequenceNumber,
    TimestampMs,
    WorkUnits,
)
from tests.market.town import MODEL, SERVED, identity

NOW = Now(MonotonicMs(1_000), TimestampMs(1_000_000))
OTHER_MODEL = ModelId(b"o" * 32)
BOND = Amount(100)
OFFER = Offer(
    node=NodeId(b"n" * 32),
    sequence=SequenceNumber(5),
    expires_at=TimestampMs(NOW.wall_ms + 60_000),
    addresses=("127.0.0.1:4000", "[::1]:4000"),
    region="earth",
    isolation="strong",
    slots_total=4,
    slots_free=4,
    models=(SERVED,),
)


def at(milliseconds: int) -> Now:
    return Now(MonotonicMs(NOW.monotonic_ms + milliseconds), TimestampMs(NOW.wall_ms + milliseconds))


def consider(
    book: OrderBook, offer: Offer, name: str = "seller", bond: Amount = BOND, now: Now = NOW, id_of: str = ""
) -> Judgement:
    offer_id = MessageId(identity(id_of or f"{name} {offer}"))
    return book.consider_offer(offer_id, offer, AccountId(identity(name)), bond, BOND, now)


def test_good_offer_is_kept_and_found_by_model_and_account() -> None:
    book = OrderBook()
    assert consider(book, OFFER).ruling is Ruling.ACCEPT
    [live] = book.offers_for(MODEL)
    assert live.offer == OFFER
    assert live == book.offer_of(AccountId(identity("seller")))
    assert book.models() == (MODEL,)
    assert book.offers_for(OTHER_MODEL) == ()


@pytest.mark.parametrize(
    ("offer", "bond", "ruling", "reason", "retryable"),
    [
        (replace(OFFER, expires_at=NOW.wall_ms), BOND, Ruling.IGNORE, "expired", False),
        (
            replace(OFFER, expires_at=TimestampMs(NOW.wall_ms + OFFER_LIFETIME_MS_MAX + 1)),
            BOND,
            Ruling.IGNORE,
            "expires too far ahead",
            True,
        ),
        (OFFER, Amount(99), Ruling.IGNORE, "bond below minimum", True),
        (replace(OFFER, models=()), BOND, Ruling.REJECT, "offers no model", False),
        (replace(OFFER, slots_free=5), BOND, Ruling.REJECT, "more slots free than there are", False),
        (replace(OFFER, addresses=("nowhere",)), BOND, Ruling.REJECT, "address is not host:port", False),
        (replace(OFFER, addresses=("host:0",)), BOND, Ruling.REJECT, "address is not host:port", False),
        (replace(OFFER, addresses=("host:65536",)), BOND, Ruling.REJECT, "address is not host:port", False),
        (replace(OFFER, models=(SERVED, SERVED)), BOND, Ruling.REJECT, "a model is offered twice", False),
        (
            replace(OFFER, models=(replace(SERVED, output_units_max=WorkUnits(0)),)),
            BOND,
            Ruling.REJECT,
            "a model without output",
            False,
        ),
        (
            replace(OFFER, models=(replace(SERVED, prices=Prices(Amount(AMOUNT_MAX), Amount(1), Amount(1))),)),
            BOND,
            Ruling.REJECT,
            "prices beyond all money",
            False,
        ),
    ],
)
def test_offer_that_fails_a_check_is_ruled_by_it(
    offer: Offer, bond: Amount, ruling: Ruling, reason: str, retryable: bool
) -> None:
    book = OrderBook()
    assert consider(book, offer, bond=bond) == Judgement(ruling, reason, retryable)
    assert len(book) == 0


def test_the_same_offer_again_is_ignored() -> None:
    book = OrderBook()
    consider(book, OFFER, id_of="one")
    assert consider(book, OFFER, id_of="one").reason == "already held"


@pytest.mark.parametrize("sequence", [4, 5])
def test_an_older_or_equal_sequence_never_replaces_a_newer_one(sequence: int) -> None:
    book = OrderBook()
    consider(book, OFFER)
    older = replace(OFFER, sequence=SequenceNumber(sequence), region="elsewhere")
    assert consider(book, older).reason == "older than the offer that is held"
    assert book.offers()[0].offer == OFFER


def test_a_newer_offer_replaces_and_unserved_models_are_forgotten() -> None:
    book = OrderBook()
    consider(book, OFFER)
    newer = replace(OFFER, sequence=SequenceNumber(6), models=(replace(SERVED, model=OTHER_MODEL),))
    assert consider(book, newer).ruling is Ruling.ACCEPT
    assert book.models() == (OTHER_MODEL,)
    assert len(book) == 1


def test_offers_leave_when_they_expire_and_not_before() -> None:
    book = OrderBook()
    consider(book, OFFER)
    consider(book, replace(OFFER, sequence=SequenceNumber(6), expires_at=TimestampMs(NOW.wall_ms + 90_000)))
    consider(book, OFFER, name="other")
    assert book.next_expiry() == NOW.wall_ms + 60_000
    assert book.expire(at(59_999)) == ()
    assert book.expire(at(60_000)) == (AccountId(identity("other")),)
    assert book.expire(at(90_000)) == (AccountId(identity("seller")),)
    assert (len(book), book.models(), book.next_expiry()) == (0, (), None)


def test_a_full_book_makes_room_only_for_expired_offers() -> None:
    book = OrderBook(offers_max=2)
    consider(book, OFFER, name="one")
    consider(book, OFFER, name="two")
    assert consider(book, OFFER, name="three").reason == "order book is full"
    renewed = replace(OFFER, sequence=SequenceNumber(6))
    assert consider(book, renewed, name="two").ruling is Ruling.ACCEPT
    late = replace(OFFER, expires_at=TimestampMs(NOW.wall_ms + 120_000))
    assert consider(book, late, name="three", now=at(60_000)).ruling is Ruling.ACCEPT


def test_an_account_that_renews_too_often_waits_and_others_do_not() -> None:
    book = OrderBook()
    for sequence in range(OFFER_BURST):
        assert consider(book, replace(OFFER, sequence=SequenceNumber(sequence + 1))).ruling is Ruling.ACCEPT
    again = replace(OFFER, sequence=SequenceNumber(99))
    assert consider(book, again) == Judgement(Ruling.IGNORE, "renewed too often", True)
    assert consider(book, OFFER, name="other").ruling is Ruling.ACCEPT
    assert consider(book, again, now=at(OFFER_INTERVAL_MS)).ruling is Ruling.ACCEPT


def test_offers_whose_bond_is_gone_are_dropped() -> None:
    book = OrderBook()
    consider(book, OFFER, name="kept")
    consider(book, OFFER, name="gone")
    bonds = {AccountId(identity("kept")): BOND}
    gone = book.drop_unbonded(lambda account: bonds.get(account, Amount(0)), BOND, NOW)
    assert gone == (AccountId(identity("gone")),)
    assert [live.account for live in book.offers()] == [AccountId(identity("kept"))]


def test_many_renewals_leave_no_growing_tail() -> None:
    book = OrderBook()
    for sequence in range(1, 500):
        consider(book, replace(OFFER, sequence=SequenceNumber(sequence)), now=at(sequence * OFFER_INTERVAL_MS // 8))
    assert len(book._expiries) <= 80


def test_the_catalogue_follows_offers_as_they_come_change_and_go() -> None:
    book = OrderBook()
    other = replace(SERVED, model=OTHER_MODEL, name="other")
    consider(book, OFFER)
    consider(book, OFFER, "second")
    assert book.catalogue.find(SERVED.name) == (MODEL,)
    consider(book, replace(OFFER, sequence=SequenceNumber(6), slots_free=0))
    assert book.catalogue.find(SERVED.name) == (MODEL,)
    consider(book, replace(OFFER, sequence=SequenceNumber(7), models=(other,)))
    assert book.catalogue.find("other") == (OTHER_MODEL,)
    assert book.catalogue.listing(MODEL) is not None, "the second one still serves it"
    book.drop_unbonded(lambda account: Amount(0), BOND, NOW)
    assert book.catalogue.find("other") == book.catalogue.find(SERVED.name) == ()
    assert book.catalogue.listing(MODEL) is None
