"""Auctions: who wins, what is paid, and why nothing that is late, copied, doubled or dearer counts."""

import pytest
from msgspec.structs import replace

from protocol.market.auction import Auction, quote_commitment
from protocol.market.events import (
    AttemptFailed,
    AuctionClosed,
    JobAgreed,
    JobFinished,
    JobProgressed,
    QuoteRevealed,
    QuoteSealed,
)
from protocol.market.order_book import LiveOffer
from protocol.market.policies import QuotePolicy
from protocol.market.quotes_held import DIAL_BURST, DIAL_BURST_EACH
from protocol.market.terms import PACE_OF_LATE
from protocol.messages.effects import Dial, Now, SetTimer, TimerKey
from protocol.messages.market import Agreement, AuctionTerms, Bid, FaultKind, Offer, Prices, Quote, QuoteSeal
from protocol.primitives.limits import AUCTION_SEALS_MAX, QUOTES_HELD_MAX
from protocol.primitives.units import (
    AMOUNT_MAX,
    AccountId,
    Amount,
    DurationMs,
    Hash,
    MessageId,
    ModelId,
    MonotonicMs,
    NodeId,
    SequenceNumber,
    TimestampMs,
    WorkUnits,
)
from protocol.settlement.pricing import amount_due
from tests.market.auction_town import AUCTION_MS, WINDOW_MS, AuctionTown
from tests.market.test_failover import refuse_all
from tests.market.town import MODEL, PRICES, SERVED, Person, identity, request

WANTED = request(auction_ms=AUCTION_MS)
BID = MessageId(b"b" * 32)
SELLER, OTHER = AccountId(identity("seller")), AccountId(identity("other"))


def told(person: Person, kind: type) -> list:  # type: ignore[type-arg]
    return [event for event in person.events if isinstance(event, kind)]


def done(town: AuctionTown) -> JobFinished:
    [finished] = told(town.buyer, JobFinished)
    return finished  # type: ignore[no-any-return]


# One auction by itself


def at(milliseconds: int) -> Now:
    return Now(MonotonicMs(milliseconds), TimestampMs(1_000_000 + milliseconds))


def offer_of(account: AccountId, prices: Prices = PRICES) -> LiveOffer:
    served = replace(SERVED, prices=prices)
    node = NodeId(b"n" * 32)
    offer = Offer(node, SequenceNumber(1), TimestampMs(2**40), ("a:1",), "", "strong", 4, 4, (served,))
    return LiveOffer(MessageId(b"o" * 32), account, offer)


def quote(**changes: object) -> Quote:
    plain = Quote(BID, PRICES, DurationMs(2_000), True, 0, 0, Hash(b"n" * 32))
    return replace(plain, **changes)


def opened() -> Auction:
    auction = Auction(BID, MODEL, DurationMs(200), DurationMs(200))
    auction.open(at(0))
    return auction


def sealed(what: Quote, account: AccountId = SELLER) -> Auction:
    auction = opened()
    assert auction.seal(account, QuoteSeal(BID, quote_commitment(account, what)), offer_of(account), at(0)) == ""
    return auction


@pytest.mark.parametrize(
    ("account", "live", "moment", "reason"),
    [
        (OTHER, offer_of(OTHER), 199, ""),
        (OTHER, offer_of(OTHER), 200, "seal came after the last moment for seals"),
        (SELLER, offer_of(SELLER), 10, "a second seal of the same account"),
        (OTHER, None, 10, "seal of an account without an offer of this model"),
    ],
)
def test_each_reason_against_a_seal_is_given(
    account: AccountId, live: LiveOffer | None, moment: int, reason: str
) -> None:
    auction = sealed(quote())
    assert auction.seal(account, QuoteSeal(BID, Hash(b"c" * 32)), live, at(moment)) == reason


def test_a_bid_that_has_not_gone_out_takes_no_seals() -> None:
    auction = Auction(BID, MODEL, DurationMs(200), DurationMs(200))
    assert auction.seal(SELLER, QuoteSeal(BID, Hash(b"c" * 32)), offer_of(SELLER), at(0)) != ""


def test_a_flood_of_seals_ends_at_the_cap() -> None:
    auction = opened()
    for number in range(AUCTION_SEALS_MAX + 50):
        account = AccountId(identity(f"flood {number}"))
        reason = auction.seal(account, QuoteSeal(BID, Hash(b"c" * 32)), offer_of(account), at(1))
        assert bool(reason) is (number >= AUCTION_SEALS_MAX)
    assert auction.seals == AUCTION_SEALS_MAX


TOO_DEAR = quote(prices=Prices(PRICES.request, Amount(PRICES.input_per_thousand + 1), PRICES.output_per_thousand))
NOTHING = Prices(Amount(0), Amount(0), Amount(0))


@pytest.mark.parametrize(
    ("sealed_as", "revealed", "live", "moment", "reason"),
    [
        (quote(), quote(), offer_of(SELLER), 200, ""),
        (quote(), quote(), offer_of(SELLER), 399, ""),
        (quote(), quote(), offer_of(SELLER), 199, "quote came before the last moment for seals"),
        (quote(), quote(), offer_of(SELLER), 400, "quote came after the last moment for quotes"),
        (quote(), quote(bid=MessageId(b"x" * 32)), offer_of(SELLER), 250, "quote is for another bid"),
        (quote(), quote(), None, 250, "quote of an account without an offer of this model"),
        (TOO_DEAR, TOO_DEAR, offer_of(SELLER), 250, "quote is above the provider's standing offer"),
        (quote(), quote(nonce=Hash(b"m" * 32)), offer_of(SELLER), 250, "quote is not what was sealed"),
        (quote(), quote(prices=NOTHING), offer_of(SELLER), 250, "quote is not what was sealed"),
    ],
)  # fmt: skip
def test_each_reason_against_a_quote_is_given(
    sealed_as: Quote, revealed: Quote, live: LiveOffer | None, moment: int, reason: str
) -> None:
    auction = sealed(sealed_as)
    assert auction.reveal(SELLER, revealed, live, at(moment)) == reason
    assert len(auction.quoted(at(moment))) == (reason == "")


def test_a_quote_without_a_seal_does_not_count() -> None:
    assert opened().reveal(SELLER, quote(), offer_of(SELLER), at(250)) == "quote without a seal"


def test_a_copied_seal_is_worth_nothing_to_its_copier() -> None:
    auction, cheap = opened(), quote(prices=Prices(Amount(1), Amount(1), Amount(1)))
    copied = QuoteSeal(BID, quote_commitment(SELLER, cheap))
    assert auction.seal(SELLER, copied, offer_of(SELLER), at(0)) == ""
    assert auction.seal(OTHER, copied, offer_of(OTHER), at(1)) == ""
    assert auction.reveal(OTHER, cheap, offer_of(OTHER), at(250)) == "quote is not what was sealed"
    assert auction.reveal(SELLER, cheap, offer_of(SELLER), at(251)) == ""


def test_a_second_quote_of_one_account_changes_nothing() -> None:
    auction = sealed(quote())
    assert auction.reveal(SELLER, quote(), offer_of(SELLER), at(250)) == ""
    assert auction.reveal(SELLER, quote(), offer_of(SELLER), at(251)) == "a second quote of the same account"


def test_a_quote_lapses_when_its_time_is_over() -> None:
    auction = sealed(quote())
    auction.reveal(SELLER, quote(), offer_of(SELLER), at(250))
    [quoted] = auction.quoted(at(2_249))
    assert not auction.lapsed(quoted.terms, at(2_249))
    assert auction.quoted(at(2_250)) == ()
    assert auction.lapsed(quoted.terms, at(2_250))


# Auctions between machines


def test_the_one_that_quotes_least_wins_and_is_paid_its_quote_and_not_its_offer() -> None:
    half = QuotePolicy(discount_permille=500)
    town = AuctionTown((0, 2), (QuotePolicy(), half))
    town.start(WANTED)
    town.after(AUCTION_MS)
    finished = done(town)
    assert finished.receipt.provider == town.sellers[1].account
    posted = town.served_by(town.sellers[1]).prices
    paid_posted = amount_due(posted, finished.receipt.input_units, finished.receipt.output_units)
    assert finished.receipt.amount < paid_posted * 51 // 100
    assert told(town.buyer, AuctionClosed) == [AuctionClosed(WANTED.request, 2, 2)]
    assert {event.provider for event in told(town.buyer, QuoteSealed)} == {seller.account for seller in town.sellers}
    assert len(told(town.buyer, QuoteRevealed)) == 2


def test_quotes_are_sealed_before_any_is_revealed_and_the_prompt_goes_to_the_winner_alone() -> None:
    town = AuctionTown((0, 1, 2))
    heard = town.overheard()
    town.start(WANTED)
    town.after(AUCTION_MS)
    kinds = [type(payload) for _, payload in heard if isinstance(payload, QuoteSeal | Quote)]
    assert kinds == [QuoteSeal] * 3 + [Quote] * 3
    [(_, bid)] = town.bids
    assert WANTED.payload not in repr(bid).encode()
    assert len([payload for _, payload in heard if isinstance(payload, Agreement)]) == 1


def test_nobody_that_answers_means_posted_prices_after_the_first_window() -> None:
    town = AuctionTown((1, 0), (QuotePolicy(answer=False), QuotePolicy(answer=False)))
    town.start(WANTED)
    town.after(WINDOW_MS + 20)
    finished = done(town)
    assert finished.receipt.provider == town.sellers[1].account
    assert told(town.buyer, AuctionClosed) == [AuctionClosed(WANTED.request, 0, 0)]


def test_an_auction_lasts_no_longer_than_its_two_windows_when_seals_are_never_revealed() -> None:
    town = AuctionTown((0, 1))

    def keeps_quiet(person: Person, payload: object) -> bool:
        return not isinstance(payload, Quote)

    town.on_send = keeps_quiet
    began = town.now.wall_ms
    town.start(WANTED)
    town.after(AUCTION_MS + 20)
    assert done(town).receipt.finished_at - began <= AUCTION_MS + 20
    assert told(town.buyer, AuctionClosed) == [AuctionClosed(WANTED.request, 2, 0)]


def test_who_never_reveals_makes_others_wait_once_and_not_again() -> None:
    town = AuctionTown((0, 1))
    silent = town.sellers[1]

    def keeps_quiet(person: Person, payload: object) -> bool:
        return not (person is silent and isinstance(payload, Quote))

    town.on_send = keeps_quiet
    lasted = []
    for number in (1, 2):
        began = town.now.wall_ms
        town.start(request(number, auction_ms=AUCTION_MS))
        town.after(AUCTION_MS + 20)
        finished = [event for event in told(town.buyer, JobFinished) if event.request == request(number).request]
        lasted.append(finished[0].receipt.finished_at - began)
    assert lasted[0] >= AUCTION_MS
    assert lasted[1] <= WINDOW_MS + 20


@pytest.mark.parametrize(
    "changes",
    [{"region": "mars"}, {"isolation": "strong+"}, {"provider": AccountId(identity("seller 0"))}],
)
def test_seals_of_providers_that_would_not_do_take_no_room(changes: dict[str, object]) -> None:
    town = AuctionTown((0, 1))
    town.start(request(1, auction_ms=AUCTION_MS, **changes))
    town.after(AUCTION_MS)
    sealed_by = {event.provider for event in told(town.buyer, QuoteSealed)}
    assert sealed_by == ({town.sellers[0].account} if "provider" in changes else set())


def test_a_price_beyond_all_money_at_the_requests_limits_breaks_nothing() -> None:
    town = AuctionTown((0,), (QuotePolicy(answer=False),))
    seller, book = town.seller, town.buyer.book
    town.start(request(1, auction_ms=AUCTION_MS, output_units_max=WorkUnits(1_000)))
    town.run()
    [(bid, _)] = town.bids
    beyond = Quote(bid, Prices(Amount(1), Amount(0), Amount(AMOUNT_MAX)), DurationMs(1), True, 0, 0, Hash(bytes(32)))
    town.say(seller, QuoteSeal(bid, quote_commitment(seller.account, beyond)))
    live = book.offer_of(seller.account)
    assert live is not None
    served = replace(SERVED, prices=beyond.prices, output_units_max=WorkUnits(1))
    offer = replace(live.offer, sequence=SequenceNumber(10**9), models=(served,))
    book.consider_offer(MessageId(b"2" * 32), offer, seller.account, Amount(5), Amount(5), town.now)
    town.wait(WINDOW_MS)
    town.say(seller, beyond)
    assert [event.price_at_limits for event in told(town.buyer, QuoteRevealed)] == [AMOUNT_MAX]
    town.after(AUCTION_MS)
    assert town.buyer.buyer.jobs() == ()


def test_who_hears_of_the_bid_late_but_seals_in_time_reveals_in_time() -> None:
    town = AuctionTown((3, 3), (QuotePolicy(), QuotePolicy(discount_permille=900)))
    town.late_ms[town.sellers[1].account] = WINDOW_MS - 10
    town.start(WANTED)
    town.after(2 * AUCTION_MS)
    assert done(town).receipt.provider == town.sellers[1].account


def test_who_hears_of_the_bid_after_the_first_window_is_too_late_whatever_it_asks() -> None:
    town = AuctionTown((0, 0), (QuotePolicy(), QuotePolicy(discount_permille=1000)))
    town.late_ms[town.sellers[1].account] = WINDOW_MS + 10
    town.start(WANTED)
    town.after(2 * AUCTION_MS)
    assert done(town).receipt.provider == town.sellers[0].account


def test_a_quote_of_an_earlier_auction_is_worth_nothing_in_the_next_one() -> None:
    town = AuctionTown((0,))
    heard = town.overheard()
    town.start(WANTED)
    town.after(AUCTION_MS)
    [old] = [payload for _, payload in heard if isinstance(payload, Quote)]
    town.start(request(2, auction_ms=AUCTION_MS))
    town.run()
    before = len(told(town.buyer, QuoteRevealed))
    town.say(town.seller, old)
    town.wait(WINDOW_MS)
    town.say(town.seller, old)
    assert len(told(town.buyer, QuoteRevealed)) == before


def test_a_seller_keeps_its_quote_though_its_posted_price_has_risen_since() -> None:
    town = AuctionTown((0,), (QuotePolicy(discount_permille=300),))
    town.start(WANTED)
    town.after(WINDOW_MS - 20)
    dearer = replace(SERVED, prices=Prices(Amount(999), Amount(99_999), Amount(99_999)))
    town.seller.seller.set_models([dearer])
    town.after(2 * AUCTION_MS)
    receipt = done(town).receipt
    assert receipt.amount < amount_due(PRICES, receipt.input_units, receipt.output_units)


def test_a_slot_waits_for_who_was_promised_it_and_for_nobody_else() -> None:
    town = AuctionTown((0,), slots=1)
    town.start(WANTED)
    town.after(WINDOW_MS // 2)
    town.start(request(2))
    town.run()
    assert [event.reason for event in told(town.buyer, AttemptFailed)] == ["no free slots"]
    town.after(2 * AUCTION_MS)
    assert done(town).request == WANTED.request


def test_a_slot_that_waited_in_vain_is_free_again_when_the_promise_is_over() -> None:
    policy = QuotePolicy(valid_ms=DurationMs(500))
    town = AuctionTown((0,), (policy,), slots=1)
    town.start(WANTED)
    town.after(WINDOW_MS // 2)
    town.do(town.buyer, town.buyer.buyer.cancel(WANTED.request, "changed their mind", town.now))
    town.after(WINDOW_MS + 500 + 1_100)
    town.start(request(2))
    town.run()
    assert done(town).request == request(2).request


def test_a_winner_that_refuses_breaks_its_promise_and_the_next_one_takes_the_job() -> None:
    town = AuctionTown((5, 0), (QuotePolicy(discount_permille=900), QuotePolicy()))
    town.start(WANTED)
    town.after(WINDOW_MS - 20)
    assert not told(town.buyer, JobAgreed)
    town.sellers[0].seller.set_models([])
    town.after(2 * AUCTION_MS)
    [broken] = told(town.buyer, AttemptFailed)
    assert (broken.provider, broken.fault) == (town.sellers[0].account, FaultKind.PROVIDER)
    assert broken.reason.startswith("provider does not keep its quote")
    assert town.buyer.buyer.demoted(town.now) == (town.sellers[0].account,)
    assert done(town).receipt.provider == town.sellers[1].account


@pytest.mark.parametrize("changes", [{"first_output_ms": 9_000}, {"stall_ms": 4_000}, {}])
def test_a_quote_promises_no_short_deadline_but_nobody_gets_out_of_one_by_naming_an_ordinary_one(
    changes: dict[str, int],
) -> None:
    town = AuctionTown((0, 10), (QuotePolicy(discount_permille=500), QuotePolicy()))
    kept = town.sellers[0].seller._core.kept
    kept.first_output_missed(MODEL, 60_000)
    kept.chunk_missed(MODEL, 10, 60_000)
    if not changes:
        too_slow = f"first output deadline must be at least 60000 ms {PACE_OF_LATE}"
        refuse_all(town, town.sellers[:1], FaultKind.CAPACITY, too_slow)
    town.start(request(auction_ms=AUCTION_MS, **changes))
    town.after(AUCTION_MS)
    [turned_away] = told(town.buyer, AttemptFailed)
    assert turned_away.provider == town.sellers[0].account
    assert turned_away.reason.endswith(PACE_OF_LATE)
    assert turned_away.fault is (FaultKind.CAPACITY if changes else FaultKind.PROVIDER)
    assert bool(town.buyer.buyer.demoted(town.now)) is not bool(changes)
    assert done(town).receipt.provider == town.sellers[1].account


def test_an_agreement_at_a_quote_made_for_somebody_else_is_refused() -> None:
    town = AuctionTown((0,), (QuotePolicy(discount_permille=500),))
    heard = town.overheard()
    town.start(WANTED)
    town.after(AUCTION_MS)
    [agreement] = [payload for _, payload in heard if isinstance(payload, Agreement)]
    assert agreement.prices != PRICES
    quotes = town.seller.seller._core.quotes
    assert quotes.named_by(agreement, town.now) is None, "a quote is good once"
    town.start(request(2, auction_ms=AUCTION_MS))
    town.run()
    held = quotes.of_bid(town.bids[-1][0])
    assert held is not None
    named = replace(agreement, offer=held.id, bid=held.bid)
    assert quotes.named_by(named, town.now) is None, "not revealed yet"
    held.revealed = True
    assert quotes.named_by(named, town.now) is held
    assert quotes.named_by(replace(named, bid=MessageId(b"z" * 32)), town.now) is None
    assert quotes.named_by(replace(named, buyer=OTHER), town.now) is None
    assert quotes.named_by(replace(named, model=ModelId(b"z" * 32)), town.now) is None
    late = Now(held.until, town.now.wall_ms)
    assert quotes.named_by(named, late) is None


def test_a_quote_that_lapsed_while_the_ledger_funded_the_channel_gives_way_to_the_posted_price() -> None:
    town = AuctionTown((0,), (QuotePolicy(discount_permille=500),))
    heard = town.overheard()
    town.halted = True
    town.start(WANTED)
    town.after(AUCTION_MS)
    town.wait(2_500)
    town.halted = False
    town.after(100)
    [agreement] = [payload for _, payload in heard if isinstance(payload, Agreement)]
    assert agreement.prices == PRICES
    live = town.buyer.book.offer_of(town.seller.account)
    assert live is not None
    assert agreement.offer == live.id


def test_a_timer_that_is_early_reveals_nothing() -> None:
    town = AuctionTown((0,))
    heard = town.overheard()
    town.start(WANTED)
    town.run()
    [(bid, _)] = town.bids
    key = TimerKey("seller", "quote", bid)
    effects = town.seller.seller.timer(key, town.now)
    assert [type(effect) for effect in effects] == [SetTimer]
    town.do(town.seller, effects)
    town.after(AUCTION_MS)
    assert [type(payload) for _, payload in heard if isinstance(payload, Quote)] == [Quote]


def test_bids_of_one_account_are_answered_so_often_and_not_more() -> None:
    town = AuctionTown((0,), slots=64)
    heard = town.overheard()
    for number in range(40):
        town.start(request(number + 1, auction_ms=AUCTION_MS))
    town.run()
    assert len([payload for _, payload in heard if isinstance(payload, QuoteSeal)]) == 16


def test_slots_wait_one_for_each_account_and_never_all_of_them() -> None:
    town = AuctionTown((0,), slots=4)
    for number in range(4):
        town.start(request(number + 1, auction_ms=AUCTION_MS))
    town.run()
    assert town.seller.seller._core.quotes.slots_held() == 1
    assert town.seller.seller._core.slots_unpromised() == 3


def test_floors_bound_what_is_quoted_from_below_and_the_posted_price_from_above() -> None:
    floors = QuotePolicy(discount_permille=1000, output_per_thousand_floor=Amount(45_000), floor_permille=200)
    town = AuctionTown((0,), (floors,))
    quoting = town.seller.seller._quoting
    quoted = quoting.prices(SERVED, 4)
    assert quoted == Prices(Amount(20), Amount(2_000), Amount(45_000))
    assert quoting.prices(SERVED, 2) == Prices(Amount(50), Amount(5_000), Amount(45_000))
    dear = QuotePolicy(request_floor=Amount(10**9))
    assert AuctionTown((0,), (dear,)).seller.seller._quoting.prices(SERVED, 4) == PRICES


def test_without_a_secret_nothing_is_quoted() -> None:
    town = AuctionTown((0,))
    town.seller.boot()
    town.start(WANTED)
    town.after(AUCTION_MS)
    assert told(town.buyer, QuoteSealed) == []
    assert done(town).receipt.amount > 0


def test_states_of_a_request_say_what_its_auction_brought() -> None:
    town = AuctionTown((0, 1))
    town.start(WANTED)
    town.after(AUCTION_MS)
    causes = [(event.state, event.cause) for event in told(town.buyer, JobProgressed)][:2]
    assert causes == [
        ("auctioning", "bid is told to all providers"),
        ("choosing", "auction is over: 2 sealed, 2 revealed"),
    ]


# Whom a provider answers


WISH = Bid(
    MODEL, WorkUnits(10), WorkUnits(40), Amount(1_000_000), TimestampMs(2**40), "none", 1, Hash(b"u" * 32),
    AuctionTerms(NodeId(b"x" * 32), ("10.0.0.1:9",), 200, 200),
)  # fmt: skip


@pytest.mark.parametrize(
    ("bid", "policy", "reason"),
    [
        (WISH, QuotePolicy(), ""),
        (WISH, QuotePolicy(answer=False), "auctions are not answered here"),
        (replace(WISH, model=ModelId(b"?" * 32)), QuotePolicy(), "model not served"),
        (replace(WISH, input_units_max=WorkUnits(1_001)), QuotePolicy(), "larger than is served here"),
        (replace(WISH, output_units_max=WorkUnits(1_001)), QuotePolicy(), "larger than is served here"),
        (replace(WISH, verification="replay"), QuotePolicy(), "verification is not offered here"),
        (replace(WISH, price_ceiling=Amount(2_199)), QuotePolicy(), "price above ceiling"),
        (replace(WISH, price_ceiling=Amount(2_199)), QuotePolicy(discount_permille=100), ""),
    ],
)
def test_each_reason_for_a_providers_silence_is_given(bid: Bid, policy: QuotePolicy, reason: str) -> None:
    town = AuctionTown((0,), (policy,))
    quoting = town.seller.seller._quoting
    assert quoting.why_silent(BID, bid, town.buyer.account, town.now) == reason


def test_a_provider_answers_neither_itself_nor_twice_nor_without_room() -> None:
    town = AuctionTown((0,), slots=1)
    quoting = town.seller.seller._quoting
    assert quoting.why_silent(BID, WISH, town.seller.account, town.now) == "own bid"
    assert quoting.heard(BID, WISH, town.buyer.account, town.now)
    assert quoting.why_silent(BID, WISH, town.buyer.account, town.now) == "answered already"
    assert quoting.why_silent(MessageId(b"2" * 32), WISH, town.buyer.account, town.now) == "no free slots"


def test_quotes_go_to_the_buyers_own_node_alone() -> None:
    """A bid may name anybody's node: an answer would be useless to it, and be held against who sent it."""
    town = AuctionTown((0,))
    quoting, stranger = town.seller.seller._quoting, AccountId(identity("stranger"))
    assert WISH.auction is not None
    node = WISH.auction.node
    quoting.link_up(node, town.buyer.account, town.now)
    assert quoting.why_silent(BID, WISH, stranger, town.now) == "quotes would go to somebody else's node"
    assert quoting.why_silent(BID, WISH, town.buyer.account, town.now) == ""
    quoting.link_down(node)
    assert [type(effect) for effect in quoting.heard(BID, WISH, stranger, town.now)] == [Dial, SetTimer]
    assert quoting.link_up(node, town.buyer.account, town.now) == []
    held = town.seller.seller._core.quotes.of_bid(BID)
    assert held is not None
    assert not held.seal_sent


def test_bids_that_name_ever_other_addresses_are_dialed_only_so_often() -> None:
    town = AuctionTown((0,), slots=64)
    quoting = town.seller.seller._quoting
    dialed = 0
    for number in range(200):
        assert WISH.auction is not None
        auction = replace(WISH.auction, node=NodeId(identity(f"nobody {number}")))
        heard = quoting.heard(
            MessageId(identity(f"bid {number}")),
            replace(WISH, auction=auction),
            AccountId(identity(f"rich {number}")),
            town.now,
        )
        dialed += sum(isinstance(effect, Dial) for effect in heard)
    assert dialed == DIAL_BURST


def test_one_account_has_few_nodes_dialed_and_leaves_the_rest_to_others() -> None:
    town = AuctionTown((0,), slots=64)
    quoting = town.seller.seller._quoting
    assert WISH.auction is not None
    dialed = []
    for number, buyer in enumerate([*("greedy",) * (DIAL_BURST_EACH + 3), "modest"]):
        auction = replace(WISH.auction, node=NodeId(identity(f"nobody {number}")))
        bid = MessageId(identity(f"bid {number}"))
        heard = quoting.heard(bid, replace(WISH, auction=auction), AccountId(identity(buyer)), town.now)
        dialed += [effect for effect in heard if isinstance(effect, Dial)]
    assert len(dialed) == DIAL_BURST_EACH + 1
    assert all(effect.once for effect in dialed)


def test_quotes_that_bind_are_bounded_whoever_asks() -> None:
    town = AuctionTown((0,), slots=1_000)
    quoting = town.seller.seller._quoting
    for number in range(QUOTES_HELD_MAX + 50):
        bid = MessageId(identity(f"bid {number}"))
        quoting._linked[NodeId(b"x" * 32)] = None
        quoting.heard(bid, WISH, AccountId(identity(f"rich {number}")), town.now)
    assert len(town.seller.seller._core.quotes) == QUOTES_HELD_MAX
