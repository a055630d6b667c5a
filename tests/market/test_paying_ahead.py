"""The input's price given with the agreement: who has what money, whatever becomes of the job."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from protocol.market.agreement import JobRequest
from protocol.market.events import AttemptFailed, JobFailed, JobFinished, SaleEnded
from protocol.market.matching import NO_FREE_SLOTS
from protocol.market.policies import BuyerPolicy, SellerPolicy
from protocol.market.records import (
    BuyerLane,
    SellerLane,
    buyer_debt,
    seller_debt,
)
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Acceptance, FaultKind, Receipt, Voucher
from protocol.primitives.codec import Message
from protocol.primitives.units import Amount, SequenceNumber, WorkUnits
from protocol.settlement.pricing import amount_due
from tests.market.test_balances import assert_balances
from tests.market.town import PRICES, SERVED, Person, Town, Worker, envelope_of, request

PREFILL, WHOLE = amount_due(PRICES, 10, 0), amount_due(PRICES, 10, 25)
SHORT = amount_due(PRICES, 10, 5)


def certain(number: int, **changes: object) -> JobRequest:
    return request(number, input_units_certain=True, **changes)


def acquainted(lanes: int = 1, policy: BuyerPolicy | None = None) -> Town:
    """After a job on each of so many lanes, paid as it went: each cost ``WHOLE``."""
    town = Town()
    town.buyer.buyer_policy = policy or BuyerPolicy(pay_ahead_permille=1000)
    town.crash(town.buyer)
    for number in range(lanes):
        town.start(certain(100 + number))
    town.run()
    assert len(town.buyer.told(JobFinished)) == lanes
    town.buyer.events.clear()
    town.seller.events.clear()
    return town


def books_of(town: Town) -> tuple[BuyerLane, SellerLane]:
    [bought] = town.buyer.buyer.books.lanes()
    [channel] = town.seller.seller.books.channels()
    [sold] = town.seller.seller.books.lanes_of(channel)
    return bought, sold


def statements(town: Town) -> list[str]:
    """Names of everybody's statements, in the order in which they leave."""
    said: list[str] = []

    def heard(person: Person, statement: Message) -> bool:
        said.append(f"{person.name.split()[0]} {type(statement).__name__}")
        return True

    town.on_send = heard
    return said


def until(town: Town, wanted: type[Message], lose: bool = False) -> None:
    """Run until somebody is about to say ``wanted``; with ``lose`` it never arrives."""
    said: list[Message] = []

    def heard(person: Person, statement: Message) -> bool:
        if isinstance(statement, wanted):
            said.append(statement)
            return not lose
        return True

    town.on_send = heard
    while not said:
        town.busy()[0]()
    town.on_send = None


def next_job_is_paid_to_the_unit(town: Town, cost: int = WHOLE) -> None:
    """Whatever is owed is set against it; then nobody owes anything, and both books say the same."""
    town.seller.worker = Worker()
    paid = books_of(town)[0].earned
    town.wait(1)
    town.publish()
    town.buyer.events.clear()
    town.start(certain(99))
    town.run()
    assert town.buyer.told(JobFinished)
    assert not town.buyer.told(AttemptFailed)
    bought, sold = books_of(town)
    assert bought.position == sold.position
    assert bought.position.cumulative == paid + cost
    assert (buyer_debt(bought), seller_debt(sold)) == (0, 0)


# The way that it is meant


def test_who_has_delivered_is_paid_ahead_and_answers_at_once() -> None:
    town = acquainted()
    town.seller.worker = Worker(pieces=(5,))
    said = statements(town)
    town.start(certain(1))
    town.run()
    assert said == [
        "buyer Agreement",
        "buyer Bid",
        "buyer Voucher",
        "seller Acceptance",
        "seller Chunk",
        "seller Chunk",
        "seller Receipt",
        "buyer Voucher",
    ]
    [finished] = town.buyer.told(JobFinished)
    assert isinstance(finished, JobFinished)
    assert finished.paid == SHORT == finished.receipt.amount
    bought, sold = books_of(town)
    assert bought.position == sold.position
    assert (buyer_debt(bought), seller_debt(sold)) == (0, 0)
    assert_balances(town, WHOLE + SHORT)


def test_a_job_of_many_chunks_is_paid_by_one_voucher_each_after_it() -> None:
    town = acquainted()
    said = statements(town)
    town.start(certain(1))
    town.run()
    assert [each for each in said if each.endswith(("Voucher", "Chunk", "Receipt"))] == [
        "buyer Voucher",  # of the input
        "seller Chunk",
        "seller Chunk",
        "buyer Voucher",
        "seller Chunk",
        "buyer Voucher",
        "seller Chunk",
        "seller Receipt",
        "buyer Voucher",
    ]
    assert_balances(town, 2 * WHOLE)


def test_what_was_paid_too_much_for_the_input_counts_for_its_output() -> None:
    town = acquainted()
    town.seller.worker = Worker(input_units=3)
    town.start(certain(1))
    town.run()
    assert_balances(town, WHOLE + amount_due(PRICES, 3, 25))


def first_voucher_is_ahead(town: Town) -> bool:
    said = statements(town)
    town.start(certain(2))
    town.run()
    assert town.buyer.told(JobFinished)
    return said.index("buyer Voucher") < said.index("seller Acceptance")


def test_nobody_is_paid_ahead_who_has_not_delivered_on_the_lane() -> None:
    assert first_voucher_is_ahead(acquainted())
    assert not first_voucher_is_ahead(Town())


def test_nothing_is_paid_ahead_against_the_policy() -> None:
    assert not first_voucher_is_ahead(acquainted(policy=BuyerPolicy(pay_ahead_permille=0)))


def test_nothing_is_paid_ahead_where_the_price_of_the_input_is_not_known() -> None:
    town = acquainted()
    said = statements(town)
    town.start(request(1))
    town.run()
    assert said.index("buyer Voucher") > said.index("seller Acceptance")


def test_nothing_is_paid_ahead_to_the_second_provider_of_a_request() -> None:
    town = Town(sellers=2)
    town.buyer.buyer_policy = BuyerPolicy(pay_ahead_permille=1000)
    town.crash(town.buyer)
    for number, seller in enumerate(town.sellers):
        town.start(certain(100 + number, provider=seller.account))
    town.run()
    for seller in town.sellers:
        seller.worker = Worker(fails_at=0)
    said = statements(town)
    town.start(certain(1))
    town.run()
    [failed] = town.buyer.told(JobFailed)
    assert isinstance(failed, JobFailed)
    assert failed.paid == PREFILL, "and owed back"
    assert said.count("buyer Agreement") == 2
    assert said.count("buyer Voucher") == 1


@pytest.mark.parametrize(("permille", "jobs_ahead"), [(34, 0), (35, 1), (68, 1), (69, 2)])
def test_what_is_paid_ahead_stays_below_a_share_of_what_was_delivered(permille: int, jobs_ahead: int) -> None:
    """Of 5800 that were delivered one input's price is 34.5 permille, two are 69."""
    town = acquainted(lanes=2, policy=BuyerPolicy(pay_ahead_permille=permille))
    for number in (200, 201):
        town.start(request(number))
    town.run()
    assert (4 * WHOLE, PREFILL) == (5800, 200)
    for number in (1, 2):
        town.start(certain(number))
    promised = sum(lane.position.cumulative for lane in town.buyer.buyer.books.lanes())
    assert promised == 4 * WHOLE + jobs_ahead * PREFILL


# What becomes of it when the job does not


def test_a_provider_without_room_keeps_it_for_the_next_job_and_is_not_blamed() -> None:
    town = acquainted()
    town.seller.seller_policy = SellerPolicy(slots=0)
    town.crash(town.seller)
    town.link(town.buyer, town.seller)
    town.start(certain(1, patient=False))
    town.run()
    town.wait(60_000)
    [failed] = town.buyer.told(JobFailed)
    assert isinstance(failed, JobFailed)
    assert (failed.fault, failed.paid) == (FaultKind.CAPACITY, 0)
    assert NO_FREE_SLOTS in failed.first_reason
    bought, sold = books_of(town)
    assert (buyer_debt(bought), seller_debt(sold)) == (PREFILL, PREFILL)
    assert town.buyer.buyer.books.debtors() == ()
    assert town.buyer.buyer.books.debt(town.seller.account) == PREFILL
    town.seller.seller_policy = SellerPolicy(slots=4)
    town.crash(town.seller)
    town.link(town.buyer, town.seller)
    next_job_is_paid_to_the_unit(town)


def test_a_provider_that_fails_before_any_output_owes_it() -> None:
    town = acquainted()
    town.seller.worker = Worker(fails_at=0)
    town.start(certain(1))
    town.run()
    bought, sold = books_of(town)
    assert (buyer_debt(bought), seller_debt(sold)) == (PREFILL, PREFILL)
    assert town.buyer.buyer.books.debtors() == (town.seller.account,)
    town.wait(60_000)
    next_job_is_paid_to_the_unit(town)


def test_a_silent_provider_owes_it_and_gets_no_more_ahead_on_that_lane() -> None:
    town = acquainted()
    town.on_send = lambda person, statement: person is town.buyer
    town.start(certain(1))
    town.run()
    town.wait(60_000)
    town.on_send = None
    town.run()
    assert buyer_debt(books_of(town)[0]) == PREFILL
    town.publish()
    assert not first_voucher_is_ahead(town)


def test_cancelled_before_the_provider_began_it_comes_back() -> None:
    town = acquainted()
    town.seller.worker = Worker(silent_from=0)
    town.start(certain(1))
    town.run()
    town.do(town.buyer, town.buyer.buyer.cancel(certain(1).request, "changed my mind", town.now))
    town.run()
    bought, sold = books_of(town)
    assert (buyer_debt(bought), seller_debt(sold)) == (PREFILL, PREFILL)
    assert town.buyer.buyer.books.debtors() == ()
    next_job_is_paid_to_the_unit(town)


def cancelled_too_late(town: Town, number: int) -> None:
    """The provider has answered, and the buyer has not heard it yet."""
    town.start(certain(number))
    until(town, Receipt if len(town.seller.worker.pieces) == 1 else Acceptance)
    town.do(town.buyer, town.buyer.buyer.cancel(certain(number).request, "changed my mind", town.now))
    town.run()


def test_cancelled_too_late_it_is_the_providers_by_its_word_and_nobody_is_blamed() -> None:
    town = acquainted()
    town.seller.worker = Worker(pieces=(5,))
    cancelled_too_late(town, 1)
    bought, sold = books_of(town)
    assert (buyer_debt(bought), seller_debt(sold)) == (PREFILL, 0)
    town.buyer.events.clear()
    town.start(certain(2))
    town.run()
    assert town.buyer.told(JobFinished)
    assert not town.buyer.told(AttemptFailed)
    assert town.buyer.buyer.demoted(town.now) == ()
    assert_balances(town, WHOLE + PREFILL + SHORT)


def test_what_is_left_to_a_providers_word_stays_within_the_share_over_restarts_of_the_buyer() -> None:
    town = acquainted(policy=BuyerPolicy(pay_ahead_permille=200))
    town.seller.worker = Worker(pieces=(5,))
    for number in range(1, 33, 2):
        cancelled_too_late(town, number)
        town.wait(1)
        town.start(certain(number + 1))
        town.run()
        town.crash(town.buyer)
        town.link(town.buyer, town.seller)
        town.run()
    assert not town.buyer.told(AttemptFailed)
    lane, _ = books_of(town)
    assert PREFILL < lane.dropped <= (lane.earned - lane.dropped) / 5


def test_an_answer_that_is_lost_with_its_link_comes_again_with_the_next_one() -> None:
    town = acquainted()
    town.seller.worker = Worker(pieces=(5,))
    town.start(certain(1))
    until(town, Receipt)
    town.unlink(town.buyer, town.seller)
    town.link(town.buyer, town.seller)
    town.run()
    assert len(town.buyer.told(JobFinished)) == 1
    assert_balances(town, WHOLE + SHORT)


def test_a_provider_that_restarts_with_everything_said_says_all_of_it_again() -> None:
    town = acquainted()
    town.seller.worker = Worker(pieces=(5,))
    town.start(certain(1))
    until(town, Receipt)
    town.crash(town.seller)
    town.link(town.buyer, town.seller)
    town.run()
    assert len(town.buyer.told(JobFinished)) == 1
    assert_balances(town, WHOLE + SHORT)


def test_a_provider_that_restarts_while_at_work_owes_it() -> None:
    town = acquainted()
    town.seller.worker = Worker(silent_from=0)
    town.start(certain(1))
    town.run()
    town.crash(town.seller)
    town.link(town.buyer, town.seller)
    town.run()
    bought, sold = books_of(town)
    assert (buyer_debt(bought), seller_debt(sold)) == (PREFILL, PREFILL)
    town.wait(60_000)
    next_job_is_paid_to_the_unit(town)


def test_a_buyer_that_restarts_has_it_back_if_nothing_was_done_for_it() -> None:
    town = acquainted()
    town.seller.worker = Worker(silent_from=0)
    town.start(certain(1))
    town.run()
    town.crash(town.buyer)
    town.link(town.buyer, town.seller)
    town.run()
    bought, sold = books_of(town)
    assert (buyer_debt(bought), seller_debt(sold)) == (PREFILL, PREFILL)
    next_job_is_paid_to_the_unit(town)


# Buyers that lie, and what overtakes what


def lie_with(change: Callable[[Voucher], Voucher]) -> Town:
    """A buyer's voucher ahead says something else than it should."""
    town = acquainted()
    [before] = [lane.position for lane in town.buyer.buyer.books.lanes()]

    def heard(person: Person, statement: Message) -> bool:
        if isinstance(statement, Voucher) and statement.sequence == before.sequence + 1 and town.on_send is not None:
            town.on_send = None
            _, _, lie = envelope_of(person, MessageKind.VOUCHER, change(statement))
            town.links[(town.buyer.node, town.seller.node)].append(lie)
            return False
        return True

    town.on_send = heard
    town.start(certain(1))
    town.run()
    return town


@pytest.mark.parametrize("more", [-PREFILL, -1, 1, 1_000])
def test_another_amount_than_the_inputs_price_ends_the_job_before_anything_is_released(more: int) -> None:
    town = lie_with(lambda voucher: replace(voucher, cumulative=Amount(voucher.cumulative + more)))
    [ended] = town.seller.told(SaleEnded)
    assert isinstance(ended, SaleEnded)
    assert (ended.state, ended.earned, ended.output_units) == ("failed", 0, WorkUnits(0))
    assert books_of(town)[1].position.cumulative == WHOLE
    assert len(town.watch.chunks) == 1, "of the job before alone"


def test_a_voucher_with_receipts_that_were_never_given_releases_nothing() -> None:
    town = lie_with(lambda voucher: replace(voucher, receipts_count=voucher.receipts_count + 1))
    assert books_of(town)[1].position.cumulative == WHOLE
    assert len(town.watch.chunks) == 1, "of the job before alone"


def test_a_voucher_for_nothing_is_no_earnings() -> None:
    """What comes for a lane without a job is owed, unless this node can't know what it had released there."""
    town = acquainted()
    bought, _ = books_of(town)
    voucher = Voucher(
        channel=bought.channel,
        payee=bought.provider,
        lane=bought.lane,
        sequence=SequenceNumber(bought.position.sequence + 1),
        cumulative=Amount(bought.position.cumulative + PREFILL),
        receipts_root=bought.position.receipts_root,
        receipts_count=bought.position.receipts_count,
    )
    envelope, decoded, envelope_bytes = envelope_of(town.buyer, MessageKind.VOUCHER, voucher)
    town.do(town.seller, town.seller.seller.receive(town.buyer.node, envelope, decoded, envelope_bytes, town.now))
    assert seller_debt(books_of(town)[1]) == PREFILL


def test_it_waits_with_an_agreement_that_waits_for_the_ledger() -> None:
    town = acquainted()
    [(channel, known)] = town.ledger.channels.items()
    said = statements(town)
    town.start(certain(1))
    # The provider's ledger lags: a top-up that the buyer has seen has not come here yet.
    town.ledger.channels[channel] = replace(known, deposit=Amount(2 * WHOLE))
    town.run()
    assert said == ["buyer Agreement", "buyer Bid", "buyer Voucher"]
    town.ledger.channels[channel] = known
    town.decide()
    town.run()
    assert town.buyer.told(JobFinished)
    assert_balances(town, 2 * WHOLE)


def test_it_is_owed_when_the_agreement_that_it_waited_with_is_refused() -> None:
    town = acquainted()
    [(channel, known)] = town.ledger.channels.items()
    town.start(certain(1))
    town.ledger.channels[channel] = replace(known, deposit=Amount(2 * WHOLE))
    town.run()
    town.wait(6_000)
    town.run()
    assert seller_debt(books_of(town)[1]) == PREFILL == buyer_debt(books_of(town)[0])
    town.ledger.channels[channel] = known
    town.wait(60_000)
    next_job_is_paid_to_the_unit(town)


def test_it_is_owed_when_its_agreement_is_refused_before_it_comes() -> None:
    town = acquainted()
    town.seller.seller.set_models([])
    town.start(certain(1, patient=False))
    town.run()
    assert town.buyer.told(JobFailed)
    assert seller_debt(books_of(town)[1]) == PREFILL == buyer_debt(books_of(town)[0])
    town.seller.seller.set_models([SERVED])
    next_job_is_paid_to_the_unit(town)
