"""What once went wrong with inputs that were paid ahead: each is one defect of an earlier version."""

import pytest
from msgspec.structs import replace

from protocol.market.events import AttemptFailed, JobFailed, JobFinished, SaleEnded
from protocol.market.policies import BuyerPolicy
from protocol.market.records import (
    PAID_AHEAD,
    JobRecord,
    LaneEnd,
    SellerLane,
    buyer_debt,
    lane_key,
    seller_debt,
)
from protocol.market.terms import BOOKS_DIFFER
from protocol.market.timeline import AttemptStory, merged
from protocol.messages.effects import Table
from protocol.messages.envelope import open_envelope
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Cancellation, Chunk, FaultKind, Receipt, Refusal, Voucher
from protocol.primitives.codec import Message, decode
from protocol.primitives.units import WorkUnits
from protocol.settlement.pricing import amount_due
from tests.market.test_paying_ahead import PREFILL, acquainted, books_of, certain, next_job_is_paid_to_the_unit, until
from tests.market.town import PRICES, SERVED, Person, Town, Worker, envelope_of, request


def acquainted_with_both() -> Town:
    town = Town(sellers=2)
    town.buyer.buyer_policy = BuyerPolicy(pay_ahead_permille=1000)
    town.crash(town.buyer)
    for number, seller in enumerate(town.sellers):
        town.start(certain(100 + number, provider=seller.account))
    town.run()
    assert len(town.buyer.told(JobFinished)) == 2
    town.buyer.events.clear()
    return town


def nobody_is_blamed(town: Town) -> None:
    bought, sold = books_of(town)
    assert buyer_debt(bought) <= seller_debt(sold) or bought.ended is LaneEnd.APART
    assert town.buyer.buyer.books.debtors() == ()


def test_what_was_worked_for_a_cancelled_job_is_not_taken_for_what_a_later_one_paid_ahead() -> None:
    town = acquainted()
    town.start(request(1))
    until(town, Chunk)
    town.do(town.buyer, town.buyer.buyer.cancel(request(1).request, "changed my mind", town.now))
    town.run()
    town.seller.seller.set_models([])
    town.start(certain(2, patient=False))
    town.run()
    assert town.buyer.told(JobFailed)
    town.seller.seller.set_models([SERVED])
    nobody_is_blamed(town)
    next_job_is_paid_to_the_unit(town)


def test_a_cancellation_that_is_lost_leaves_nothing_to_blame_anybody_for() -> None:
    town = acquainted()
    town.start(request(1))
    until(town, Chunk)
    town.on_send = lambda person, statement: not isinstance(statement, Cancellation)
    town.do(town.buyer, town.buyer.buyer.cancel(request(1).request, "changed my mind", town.now))
    town.unlink(town.buyer, town.seller)
    town.on_send = None
    town.start(certain(2, patient=False))
    town.run()
    nobody_is_blamed(town)


def test_a_provider_that_restarted_and_refuses_twice_is_not_blamed() -> None:
    town = acquainted()
    town.seller.worker = Worker(silent_from=0)
    town.start(request(1))
    town.run()
    town.crash(town.seller)
    town.seller.seller.set_models([])
    town.link(town.buyer, town.seller)
    town.run()
    for number in (2, 3):
        town.wait(60_000)
        town.publish()
        town.start(certain(number, patient=False, input_units_max=WorkUnits(10 * number)))
        town.run()
    nobody_is_blamed(town)


def test_an_honest_provider_keeps_its_place_after_a_late_cancellation() -> None:
    town = acquainted_with_both()
    honest = town.sellers[0]
    for seller in town.sellers:
        seller.worker = Worker(pieces=(5,))
    town.start(certain(1, provider=honest.account))
    until(town, Receipt)
    town.do(town.buyer, town.buyer.buyer.cancel(certain(1).request, "changed my mind", town.now))
    town.run()
    for number in range(2, 8):
        town.wait(200_000)
        town.publish()
        town.start(certain(number))
        town.run()
    assert not town.buyer.told(AttemptFailed)
    assert len(town.buyer.told(JobFinished)) == 6
    assert town.buyer.buyer.demoted(town.now) == ()


@pytest.mark.parametrize("providers", [1, 2])
def test_a_refusal_leaves_the_ceiling_to_whoever_takes_the_job_then(providers: int) -> None:
    town = acquainted() if providers == 1 else acquainted_with_both()
    for seller in town.sellers:
        seller.seller.set_models([])
    town.start(certain(1, price_ceiling=amount_due(PRICES, 10, 40)))
    [asked] = [job.provider for job in town.buyer.buyer.jobs()]
    for seller in town.sellers:
        if providers == 2 and seller.account != asked:
            seller.seller.set_models([SERVED])
    town.run()
    if providers == 1:
        town.seller.seller.set_models([SERVED])
        town.wait(1_000)
        town.publish()
        town.do(town.buyer, town.buyer.buyer.book_changed(town.now))
        town.run()
    assert town.buyer.told(JobFinished)


def test_a_liars_books_take_nothing_beyond_the_ceiling() -> None:
    """It refuses with "books differ", keeps what came ahead, then has no room, and another one delivers."""
    town = acquainted_with_both()
    ceiling = amount_due(PRICES, 10, 40) + PREFILL
    before = sum(lane.position.cumulative for lane in town.buyer.buyer.books.lanes())
    town.start(certain(1, price_ceiling=ceiling))
    [asked] = [job.provider for job in town.buyer.buyer.jobs()]
    liar, other = sorted(town.sellers, key=lambda seller: seller.account != asked)
    other.worker = Worker(pieces=(10, 10, 10, 10))
    liar.seller.set_models([])
    refused: list[Refusal] = []

    def heard(person: Person, statement: Message) -> bool:
        if person is not liar or not isinstance(statement, Refusal) or refused:
            return True
        refused.append(statement)
        lie = replace(statement, reason=BOOKS_DIFFER, fault=FaultKind.NETWORK)
        town.links[(liar.node, town.buyer.node)].append(envelope_of(liar, MessageKind.REFUSAL, lie)[2])
        return False

    town.on_send = heard
    town.run()
    town.wait(60_000)
    assert refused
    assert sum(lane.position.cumulative for lane in town.buyer.buyer.books.lanes()) - before <= ceiling


@pytest.mark.parametrize("how", ["restarts", "fails", "is cancelled"])
def test_both_sides_say_the_same_of_a_job_that_came_to_nothing(how: str) -> None:
    town = acquainted()
    town.seller.worker = Worker(fails_at=0) if how == "fails" else Worker(silent_from=0)
    town.start(certain(1))
    while not town.seller.seller.jobs():
        town.busy()[0]()
    [job] = [each.job for each in town.seller.seller.jobs()]
    town.run()
    if how == "restarts":
        town.crash(town.seller)
        town.link(town.buyer, town.seller)
    elif how == "is cancelled":
        town.do(town.buyer, town.buyer.buyer.cancel(certain(1).request, "changed my mind", town.now))
    town.run()
    sold = decode(town.seller.disk[(Table.JOB, job)], JobRecord)
    bought = decode(town.buyer.disk[(Table.JOB, job)], JobRecord)
    assert (sold.paid, sold.chunks) == (bought.paid, bought.chunks) == (PREFILL, 0)


def test_a_debt_by_failure_stays_one_when_the_buyer_restarts_during_the_next_job() -> None:
    town = acquainted()
    town.seller.worker = Worker(fails_at=0)
    town.start(certain(1))
    town.run()
    town.wait(60_000)
    town.publish()
    town.seller.worker = Worker(silent_from=0)
    town.start(certain(2))
    town.run()
    town.crash(town.buyer)
    town.link(town.buyer, town.seller)
    town.run()
    bought, sold = books_of(town)
    assert (buyer_debt(bought), seller_debt(sold)) == (PREFILL, PREFILL)
    assert town.buyer.buyer.books.debtors() == (town.seller.account,)


def test_no_crash_of_the_provider_comes_between_the_job_and_its_voucher() -> None:
    for effects in range(12):
        town = acquainted()
        town.start(certain(1))
        town.hand_all_back(town.buyer)
        link = (town.buyer.node, town.seller.node)
        while len(town.links[link]) > 1:
            town.deliver(link)
        _, before = books_of(town)
        town.crash_after = effects
        town.deliver(link)
        town.crash_after = None
        row = decode(town.seller.disk[(Table.SELLER_LANE, lane_key(before.channel, before.lane))], SellerLane)
        assert (row.start > before.start) == (row.position.sequence > before.position.sequence)


def test_a_voucher_that_waits_with_its_agreement_is_of_use() -> None:
    """What causes nothing is held against its sender."""
    town = acquainted()
    town.start(certain(1))
    town.hand_all_back(town.buyer)
    link = (town.buyer.node, town.seller.node)
    town.deliver(link)
    town.deliver(link)
    sent = town.links[link][0]
    assert isinstance(sent, bytes)
    envelope, voucher = open_envelope(sent)
    assert isinstance(voucher, Voucher)
    assert town.seller.seller.receive(town.buyer.node, envelope, voucher, sent, town.now)


def test_it_is_told_that_the_input_was_paid_ahead() -> None:
    town = acquainted()
    town.start(certain(1))
    town.run()
    [finished] = town.buyer.told(JobFinished)
    assert isinstance(finished, JobFinished)
    own = decode(town.buyer.disk[(Table.JOB, finished.job)], JobRecord)
    assert PAID_AHEAD in {line.cause for line in merged((AttemptStory(1, own, None),), ())}


def test_a_job_behind_a_debt_says_nothing_of_that_debt_after_a_restart() -> None:
    town = acquainted()
    town.seller.worker = Worker(silent_from=0)
    town.start(certain(1))
    town.run()
    town.do(town.buyer, town.buyer.buyer.cancel(certain(1).request, "changed my mind", town.now))
    town.run()
    assert books_of(town)[0].ended is LaneEnd.APART
    town.start(request(2))
    while not town.seller.seller.jobs():
        town.busy()[0]()
    [job] = [each.job for each in town.seller.seller.jobs()]
    town.run()
    town.crash(town.buyer)
    town.link(town.buyer, town.seller)
    town.run()
    sold = decode(town.seller.disk[(Table.JOB, job)], JobRecord)
    bought = decode(town.buyer.disk[(Table.JOB, job)], JobRecord)
    assert (bought.paid, sold.paid) == (0, 0)


def test_a_voucher_ahead_that_comes_late_does_not_show_that_its_chunk_was_heard() -> None:
    town = acquainted()
    town.start(certain(1))
    town.hand_all_back(town.buyer)
    queue = town.links[(town.buyer.node, town.seller.node)]
    [late] = [sent for sent in queue if isinstance(sent, bytes) and isinstance(open_envelope(sent)[1], Voucher)]
    queue.remove(late)
    while queue:
        town.deliver((town.buyer.node, town.seller.node))
    town.work(town.seller)  # chunk 0 is out
    queue.append(late)
    town.deliver((town.buyer.node, town.seller.node))
    town.unlink(town.buyer, town.seller)
    town.link(town.buyer, town.seller)
    town.run()
    assert town.buyer.told(JobFinished)


def test_what_was_paid_ahead_for_a_refused_job_ends_no_job_before_it() -> None:
    town = acquainted()
    town.start(certain(1))
    until(town, Receipt)
    until(town, Voucher, lose=True)
    town.run()
    assert town.buyer.told(JobFinished)
    town.start(certain(2, patient=False))
    town.run()
    ended = [event.state for event in town.seller.events if isinstance(event, SaleEnded)]
    assert "failed" not in ended


def test_what_a_liar_keeps_of_a_job_that_it_refused_is_told_and_costs_it_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It takes what was paid ahead for earned, and refuses: its books differ, it says, and it owes nothing."""
    town = acquainted(policy=BuyerPolicy(pay_ahead_permille=100))
    for number in (200, 201):
        town.start(request(number))
        town.run()
    town.buyer.events.clear()
    liar = town.seller.seller
    monkeypatch.setattr(liar._intake, "paid_ahead", lambda *voucher: [])
    monkeypatch.setattr(liar.books, "_earned_after", lambda held, voucher: voucher.cumulative)
    lanes = town.buyer.buyer.books.lanes
    start = sum(lane.position.cumulative for lane in lanes())
    rows_before = sum(decode(row, JobRecord).paid for row in town.buyer.rows(Table.JOB))
    for number in range(1, 20):
        town.wait(1)
        town.start(certain(number))
        town.run()
    gone = sum(lane.position.cumulative - buyer_debt(lane) for lane in lanes()) - start
    assert gone > 0
    assert sum(decode(row, JobRecord).paid for row in town.buyer.rows(Table.JOB)) - rows_before == gone
    assert len(town.buyer.told(JobFinished)) < 19
    assert town.buyer.buyer.demoted(town.now) == (town.seller.account,)
