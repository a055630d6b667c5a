"""Debts, set-off, and what happens when the two sides' books differ."""

import pytest
from msgspec.structs import replace

from protocol.market.agreement import LaneTerms
from protocol.market.buyer_books import BuyerBooks
from protocol.market.events import JobFailed, JobFinished
from protocol.market.ledger_view import ChannelFacts
from protocol.market.policies import BuyerPolicy
from protocol.market.records import BuyerLane, SellerLane, buyer_debt, seller_debt
from protocol.messages.effects import Table
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Refusal, Voucher
from protocol.primitives.codec import Message
from protocol.primitives.limits import LANES_PER_CHANNEL
from protocol.primitives.units import (
    AccountId,
    Amount,
    ChannelId,
    Hash,
    Lane,
    LedgerTimeMs,
    MessageId,
    NodeId,
    SequenceNumber,
    WorkUnits,
)
from protocol.settlement.accumulator import EMPTY_ROOT
from protocol.settlement.chunks import Progress, progress_start
from protocol.settlement.pricing import amount_due
from tests.market.town import PRICES, Person, Town, Worker, envelope_of, request

PREFILL = amount_due(PRICES, 10, 0)
WHOLE = amount_due(PRICES, 10, 25)
CHANNEL = ChannelId(b"c" * 32)
PROVIDER = AccountId(b"p" * 32)
NODE = NodeId(b"n" * 32)


def books_of(town: Town) -> tuple[BuyerLane, SellerLane]:
    [bought] = town.buyer.buyer.books.lanes()
    [channel] = town.seller.seller.books.channels()
    [sold] = town.seller.seller.books.lanes_of(channel)
    return bought, sold


def fail_after_prefill(town: Town) -> None:
    town.seller.worker = Worker(fails_at=1)
    town.start(request(1))
    town.run()
    town.seller.worker = Worker()


def test_who_takes_the_price_of_the_input_and_delivers_nothing_owes_it() -> None:
    town = Town()
    fail_after_prefill(town)
    bought, sold = books_of(town)
    assert (buyer_debt(bought), seller_debt(sold)) == (PREFILL, PREFILL)
    assert town.buyer.buyer.books.debt(town.seller.account) == PREFILL


def test_debt_is_set_against_the_next_job_to_the_unit() -> None:
    town = Town()
    fail_after_prefill(town)
    town.start(request(2))
    town.run()
    assert len(town.buyer.told(JobFinished)) == 1
    bought, sold = books_of(town)
    assert bought.position == sold.position
    assert bought.position.cumulative == WHOLE
    assert (buyer_debt(bought), seller_debt(sold)) == (0, 0)


def test_debt_larger_than_the_next_job_is_carried_on_and_nothing_ever_falls() -> None:
    town = Town()
    for number in range(1, 5):
        town.seller.worker = Worker(fails_at=1)
        town.start(request(number))
        town.run()
    bought, sold = books_of(town)
    # Each new failure was paid out of the debt of the one before: one input's price is owed, not four.
    assert (bought.position.cumulative, buyer_debt(bought), seller_debt(sold)) == (PREFILL, PREFILL, PREFILL)
    assert bought.position.sequence == 4


def test_debt_larger_than_a_whole_chunk_keeps_the_voucher_where_it_was() -> None:
    town = Town()
    fail_after_prefill(town)
    town.seller.worker = Worker(input_units=1, pieces=(1,))
    town.start(request(2))
    town.run()
    assert len(town.buyer.told(JobFinished)) == 1
    bought, sold = books_of(town)
    assert bought.position == sold.position
    # 200 were paid, 160 are worked for by now: the voucher stays, 40 are owed still.
    whole = amount_due(PRICES, 1, 1)
    assert (bought.position.cumulative, bought.position.sequence) == (PREFILL, 3)
    assert (buyer_debt(bought), seller_debt(sold)) == (PREFILL - whole, PREFILL - whole)


def test_debt_is_kept_when_no_try_is_left() -> None:
    town = Town()
    town.buyer.buyer_policy = BuyerPolicy(attempts_max=1)
    town.crash(town.buyer)
    fail_after_prefill(town)
    bought, sold = books_of(town)
    assert (buyer_debt(bought), seller_debt(sold)) == (PREFILL, PREFILL)


def test_failure_after_output_leaves_no_debt() -> None:
    town = Town()
    town.seller.worker = Worker(fails_at=2)
    town.start(request())
    town.run()
    bought, sold = books_of(town)
    assert (buyer_debt(bought), seller_debt(sold)) == (0, 0)
    assert bought.earned == bought.position.cumulative == amount_due(PRICES, 10, 10)


def test_provider_that_restarts_after_the_input_was_paid_owes_it() -> None:
    town = Town()
    town.seller.worker = Worker(silent_from=1)
    town.start(request())
    town.run()
    town.crash(town.seller)
    town.run()
    bought, sold = books_of(town)
    assert (buyer_debt(bought), seller_debt(sold)) == (PREFILL, PREFILL)


def test_provider_that_restarts_after_output_was_paid_owes_nothing() -> None:
    town = Town()
    town.seller.worker = Worker(silent_from=2)
    town.start(request())
    town.run()
    town.crash(town.seller)
    town.run()
    bought, sold = books_of(town)
    assert (buyer_debt(bought), seller_debt(sold)) == (0, 0)


def test_failure_before_anything_was_paid_leaves_no_debt() -> None:
    town = Town()
    town.seller.worker = Worker(fails_at=0)
    town.start(request())
    town.run()
    bought, sold = books_of(town)
    assert (buyer_debt(bought), seller_debt(sold), bought.position.sequence) == (0, 0, 0)


def test_buyer_that_cancels_after_the_input_claims_nothing_back() -> None:
    town = Town()
    town.seller.worker = Worker(silent_from=1)
    town.start(request())
    town.run()
    town.do(town.buyer, town.buyer.buyer.cancel(request().request, "enough", town.now))
    town.run()
    bought, sold = books_of(town)
    assert (buyer_debt(bought), seller_debt(sold)) == (0, 0)
    assert bought.position.cumulative == PREFILL


def test_claim_that_the_provider_does_not_share_is_dropped_and_they_deal() -> None:
    town = Town()
    fail_after_prefill(town)
    [channel] = town.seller.seller.books.channels()
    [sold] = town.seller.seller.books.lanes_of(channel)
    town.seller.seller.books._keep(replace(sold, earned=sold.position.cumulative))
    town.start(request(2))
    town.run()
    assert len(town.buyer.told(JobFinished)) == 1
    bought, sold = books_of(town)
    assert bought.position == sold.position
    assert bought.position.cumulative == PREFILL + WHOLE


def test_a_voucher_that_never_arrived_is_sent_again_before_the_next_deal() -> None:
    town = Town()
    town.on_send = lambda sender, payload: not (isinstance(payload, Voucher) and payload.receipts_count)
    town.start(request(1))
    town.run()
    town.wait(31_000)
    town.on_send = None
    assert len(town.buyer.told(JobFinished)) == 1
    assert town.seller.seller.jobs() == ()
    town.publish()
    town.start(request(2))
    town.run()
    assert len(town.buyer.told(JobFinished)) == 2
    bought, sold = books_of(town)
    assert bought.position == sold.position
    assert (bought.position.cumulative, bought.position.receipts_count) == (2 * WHOLE, 2)
    assert all(row for row in town.seller.rows(Table.RECEIPT))


def test_books_that_differ_by_a_voucher_and_then_by_a_debt_are_brought_together_in_two_steps() -> None:
    town = Town()
    town.on_send = lambda sender, payload: not isinstance(payload, Voucher)
    town.start(request(1))
    town.run()
    buyers_timers = dict(town.buyer.timers)
    town.buyer.timers.clear()
    town.wait(30_000)  # the seller gives up on the voucher that was lost, and says so
    town.buyer.timers.update(buyers_timers)
    town.run()
    town.on_send = None
    bought, sold = books_of(town)
    assert (bought.position.sequence, sold.position.sequence) == (1, 0)
    assert (buyer_debt(bought), seller_debt(sold)) == (PREFILL, 0)
    town.publish()
    town.start(request(2))
    town.run()
    assert len(town.buyer.told(JobFinished)) == 1
    bought, sold = books_of(town)
    assert bought.position == sold.position
    assert bought.position.cumulative == PREFILL + WHOLE


def test_buyer_with_an_old_backup_learns_its_own_vouchers_and_retires_the_lane() -> None:
    town = Town()
    town.start(request(1))
    town.run()
    for key in [key for key in town.buyer.disk if key[0] in (Table.BUYER_LANE, Table.RECEIPT)]:
        del town.buyer.disk[key]
    town.crash(town.buyer)
    town.start(request(2))
    town.run()
    assert len(town.buyer.told(JobFinished)) == 2
    lanes = town.buyer.buyer.books.lanes()
    assert [(lane.lane, lane.retired, lane.position.cumulative) for lane in lanes] == [
        (0, True, WHOLE),
        (1, False, WHOLE),
    ]


def test_voucher_in_a_refusal_counts_only_if_it_is_our_own_of_that_lane() -> None:
    town = Town()
    town.start(request(1))
    town.run()
    bought, _ = books_of(town)
    seen: list[Refusal] = []

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Refusal):
            seen.append(payload)
        return True

    town.on_send = heard
    # The seller claims that its last voucher was another, signed by itself.
    [channel] = town.seller.seller.books.channels()
    [sold] = town.seller.seller.books.lanes_of(channel)
    later = replace(
        Voucher(channel, town.seller.account, Lane(0), SequenceNumber(50), Amount(10_000), EMPTY_ROOT, 0),
        receipts_root=sold.position.receipts_root,
        receipts_count=1,
    )
    forged = envelope_of(town.seller, MessageKind.VOUCHER, later)[2]
    position = replace(sold.position, sequence=SequenceNumber(50), cumulative=Amount(10_000))
    town.seller.seller.books._keep(replace(sold, position=position, voucher=forged))
    town.start(request(2))
    town.run()
    assert len(seen) == 3
    [lost] = [event for event in town.buyer.events if isinstance(event, JobFailed)]
    assert lost.paid == 0
    assert town.buyer.buyer.books.lane(bought.channel, bought.lane) == replace(
        bought,
        start=bought.position.cumulative,
        paid=Amount(0),
        ceiling=amount_due(PRICES, 10, 40),
        input_units=WorkUnits(0),
        output_units=WorkUnits(0),
    )


def facts(deposit: int) -> ChannelFacts:
    return ChannelFacts(CHANNEL, AccountId(b"b" * 32), PROVIDER, Amount(deposit), (), False, LedgerTimeMs(0))


def delivered(due: int) -> Progress:
    return replace(progress_start(job(0)), due=Amount(due))


def job(number: int) -> MessageId:
    return MessageId(number.to_bytes(32, "big"))


def test_lowest_free_lane_is_taken_until_deposit_or_lanes_run_out() -> None:
    books = BuyerBooks()
    for number in range(LANES_PER_CHANNEL):
        lane = books.free_lane(facts(6_400), 100)
        assert lane == number
        books.begin(books.terms(CHANNEL, lane), PROVIDER, NODE, job(number), Amount(100))
    assert books.committed(CHANNEL) == 6_400
    assert books.free_lane(facts(1_000_000), 1) is None
    books.end(CHANNEL, Lane(7), owed_back=False)
    assert books.free_lane(facts(6_400), 100) == 7
    assert books.free_lane(facts(6_400), 101) is None


def test_lane_with_a_debt_comes_first_and_counts_the_debt() -> None:
    books = BuyerBooks()
    for number in (0, 1):
        books.begin(books.terms(CHANNEL, Lane(number)), PROVIDER, NODE, job(number), Amount(100))
    books.pay(CHANNEL, Lane(1), delivered(40), None)
    books.end(CHANNEL, Lane(0), owed_back=False)
    books.end(CHANNEL, Lane(1), owed_back=True)
    assert books.free_lane(facts(140), 100) == 1
    assert books.terms(CHANNEL, Lane(1)) == LaneTerms(CHANNEL, Lane(1), Amount(0), SequenceNumber(1))
    # The debt pays for part of it: 40 promised, 60 left, a job of 100.
    assert books.free_lane(facts(100), 100) == 1
    assert books.free_lane(facts(99), 100) is None


def test_paying_more_than_the_ceiling_or_less_than_before_is_our_own_defect() -> None:
    books = BuyerBooks()
    books.begin(books.terms(CHANNEL, Lane(0)), PROVIDER, NODE, job(0), Amount(100))
    with pytest.raises(AssertionError):
        books.pay(CHANNEL, Lane(0), delivered(101), None)
    books.pay(CHANNEL, Lane(0), delivered(50), None)
    with pytest.raises(AssertionError):
        books.pay(CHANNEL, Lane(0), delivered(49), None)


def test_adopting_never_lowers_a_promise() -> None:
    books = BuyerBooks()
    books.begin(books.terms(CHANNEL, Lane(0)), PROVIDER, NODE, job(0), Amount(100))
    books.pay(CHANNEL, Lane(0), delivered(50), None)
    books.end(CHANNEL, Lane(0), owed_back=True)
    ours = books.position(CHANNEL, Lane(0))

    def theirs(sequence: int, cumulative: int, root: Hash = EMPTY_ROOT, count: int = 0) -> Voucher:
        return Voucher(CHANNEL, PROVIDER, Lane(0), SequenceNumber(sequence), Amount(cumulative), root, count)

    assert books.adopt(CHANNEL, Lane(0), None, Amount(0)) is None
    assert books.adopt(CHANNEL, Lane(0), theirs(0, 0), Amount(0)) is None
    assert books.adopt(CHANNEL, Lane(0), theirs(2, 49), Amount(0)) is None
    assert books.adopt(CHANNEL, Lane(0), theirs(1, 51), Amount(0)) is None
    assert books.adopt(CHANNEL, Lane(0), theirs(1, 50), Amount(51)) is None
    assert books.position(CHANNEL, Lane(0)) == ours
    assert books.adopt(CHANNEL, Lane(0), theirs(1, 50), Amount(20)) is not None
    assert books.debt(PROVIDER) == 20
    assert books.adopt(CHANNEL, Lane(0), theirs(3, 60), Amount(0)) is not None
    lane = books.lane(CHANNEL, 0)
    assert lane is not None
    assert (lane.position.cumulative, lane.retired) == (60, False)
    assert books.adopt(CHANNEL, Lane(0), theirs(4, 60, Hash(b"r" * 32), 1), Amount(0)) is not None
    lane = books.lane(CHANNEL, 0)
    assert lane is not None
    assert lane.retired
    assert books.free_lane(facts(1_000), 1) == 1
