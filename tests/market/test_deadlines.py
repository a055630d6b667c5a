"""Every state has a deadline and a default outcome: tables on both sides, and each one passing."""

import pytest

from protocol.market.buyer_job import EXPIRIES, TRANSITIONS, BuyerState
from protocol.market.events import JobCancelled, JobDelivered, JobFailed, JobFinished, SaleEnded
from protocol.market.seller_job import SALE_EXPIRIES, SALES, TIME_LIMIT_OVER, SellerState
from protocol.messages.effects import SetTimer
from protocol.messages.market import Acceptance, Agreement, Chunk, Failure, FaultKind, Receipt, Voucher
from protocol.primitives.codec import Message
from protocol.primitives.units import DurationMs, MonotonicMs
from protocol.settlement.pricing import amount_due
from tests.market.town import MODEL, PRICES, Person, Town, Worker, request


def test_every_state_that_is_no_end_has_an_outcome_and_every_end_has_none() -> None:
    assert {state for state, leads_to in TRANSITIONS.items() if leads_to} == set(EXPIRIES)
    assert {state for state, leads_to in SALES.items() if leads_to} == set(SALE_EXPIRIES)
    assert set(TRANSITIONS) == set(BuyerState)
    assert set(SALES) == set(SellerState)


def test_every_state_can_fail_and_be_cancelled() -> None:
    before_all_is_there = {state: leads_to for state, leads_to in TRANSITIONS.items() if leads_to}
    assert set(before_all_is_there.pop(BuyerState.SETTLING)) == {BuyerState.DONE, BuyerState.DELIVERED}
    assert all({BuyerState.FAILED, BuyerState.CANCELLED} <= set(leads_to) for leads_to in before_all_is_there.values())
    assert all({SellerState.FAILED, SellerState.CANCELLED} <= set(leads_to) for leads_to in SALES.values() if leads_to)


def deaf_to(town: Town, *kinds: type[Message]) -> None:
    """Statements of these kinds are lost on their way."""

    def heard(sender: Person, payload: Message) -> bool:
        return not isinstance(payload, kinds)

    town.on_send = heard


BUYER_ROWS = [
    ("unreachable", BuyerState.CONNECTING, 5_000, FaultKind.NETWORK),
    ("no block", BuyerState.OPENING_CHANNEL, 30_000, FaultKind.NETWORK),
    ("no answer", BuyerState.OFFERED, 10_000, FaultKind.NETWORK),
    ("no chunk 0", BuyerState.PREFILLING, 60_000, FaultKind.PROVIDER),
    ("no chunk 1", BuyerState.STREAMING, 30_000, FaultKind.PROVIDER),
    ("no receipt", BuyerState.SETTLING, 30_000, FaultKind.PROVIDER),
]


@pytest.mark.parametrize(("trouble", "state", "deadline_ms", "fault"), BUYER_ROWS)
def test_buyers_state_ends_at_its_deadline_and_not_before(
    trouble: str, state: BuyerState, deadline_ms: int, fault: FaultKind
) -> None:
    town = Town()
    match trouble:
        case "unreachable":
            town.unreachable.add(town.seller.node)
        case "no answer":
            deaf_to(town, Acceptance)
        case "no chunk 0":
            deaf_to(town, Chunk)
        case "no chunk 1":
            town.seller.worker = Worker(silent_from=1)
        case "no receipt":
            deaf_to(town, Receipt)
        case _:
            pass
    town.start(request())
    if trouble == "no block":
        while [choice for choice in town.busy() if choice != town.decide]:
            town.busy()[0]()
    else:
        town.run()
    [record] = town.buyer.buyer.jobs()
    assert record.state == state.value
    town.wait(deadline_ms - 1)
    [record] = town.buyer.buyer.jobs()
    assert record.state == state.value
    town.wait(1)
    [lost] = [event for event in town.buyer.events if isinstance(event, JobFailed | JobDelivered)]
    assert isinstance(lost, JobDelivered) is (state is BuyerState.SETTLING)
    assert lost.fault is fault
    assert town.buyer.buyer.jobs() == ()


SELLER_ROWS = [
    ("slow prefill", SellerState.PREFILL, 60_000, FaultKind.PROVIDER),
    ("slow worker", SellerState.WORKING, 30_000, FaultKind.PROVIDER),
    ("no voucher", SellerState.AWAIT_VOUCHER, 30_000, FaultKind.NETWORK),
    ("no final voucher", SellerState.AWAIT_FINAL, 30_000, FaultKind.NETWORK),
]


@pytest.mark.parametrize(("trouble", "state", "deadline_ms", "fault"), SELLER_ROWS)
def test_sellers_state_ends_at_its_deadline_and_not_before(
    trouble: str, state: SellerState, deadline_ms: int, fault: FaultKind
) -> None:
    town = Town()
    wanted = request(first_output_ms=DurationMs(60_000))
    match trouble:
        case "slow prefill":
            town.seller.worker = Worker(silent_from=0)
        case "slow worker":
            town.seller.worker = Worker(silent_from=2)
        case "no voucher":
            deaf_to(town, Voucher)
        case _:
            town.on_send = lambda sender, payload: not (isinstance(payload, Voucher) and payload.receipts_count)
    town.start(wanted)
    town.run()
    town.buyer.timers.clear()  # the buyer is gone: only the seller's deadline is left
    [record] = town.seller.seller.jobs()
    assert record.state == state.value
    town.wait(deadline_ms - 1)
    assert len(town.seller.seller.jobs()) == 1
    town.wait(1)
    assert town.seller.seller.jobs() == ()
    [ended] = [event for event in town.seller.events if isinstance(event, SaleEnded)]
    assert ended.state == "failed"
    assert town.seller.seller.slots_free() == 4
    assert ended.reason == SALE_EXPIRIES[state].reason
    assert SALE_EXPIRIES[state].fault is fault


def test_the_requests_own_end_bounds_every_state() -> None:
    town = Town()
    deaf_to(town, Chunk)
    town.start(request(total_ms=DurationMs(20_000)))
    town.run()
    town.wait(20_000)
    assert len(town.buyer.told(JobFailed)) == 1
    town.run()
    assert town.seller.seller.jobs() == ()


def failures_said(town: Town) -> list[Failure]:
    said: list[Failure] = []

    def hear(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Failure):
            said.append(payload)
        return True

    town.on_send = hear
    return said


@pytest.mark.parametrize("total_ms", [1, 20_000])
@pytest.mark.parametrize("silent_from", [0, 1, 2])
def test_a_provider_does_not_sign_for_a_time_limit_that_its_buyer_set_below_the_deadlines_that_were_agreed(
    total_ms: int, silent_from: int
) -> None:
    town = Town()
    town.seller.worker = Worker(silent_from=silent_from)
    said = failures_said(town)
    town.start(request(total_ms=DurationMs(total_ms), first_output_ms=DurationMs(60_000)))
    town.run()
    town.buyer.timers.clear()  # a buyer that only waits for something to report
    town.wait(total_ms)
    town.run()
    assert {(failure.fault, failure.reason) for failure in said} == {(FaultKind.USER, TIME_LIMIT_OVER)}
    kept = town.seller.seller._core.kept
    assert (kept.first_output_ms(MODEL), kept.stall_ms(MODEL, 10)) == (0, 0)


def test_a_worker_that_stops_because_the_buyers_time_limit_is_over_is_not_to_blame_either() -> None:
    town = Town()
    town.seller.worker = Worker(silent_from=1)
    said = failures_said(town)
    town.start(request(total_ms=DurationMs(20_000)))
    town.run()
    town.buyer.timers.clear()
    town.seller.timers.clear()  # the worker's clock is first
    town.wait(20_000)
    [record] = town.seller.seller.jobs()
    late = town.seller.seller.work_failed(record.job, FaultKind.PROVIDER, "over its time", town.now)
    town.do(town.seller, late)
    assert {(failure.fault, failure.reason) for failure in said} == {(FaultKind.USER, TIME_LIMIT_OVER)}


def test_the_buyers_own_time_limit_blames_nobody_and_leaves_books_that_come_together() -> None:
    town = Town()
    town.seller.worker = Worker(silent_from=1)
    town.start(request(1, total_ms=DurationMs(20_000)))
    town.run()
    town.wait(20_000)
    town.run()
    [lost] = [event for event in town.buyer.events if isinstance(event, JobFailed)]
    assert (lost.fault, lost.paid) == (FaultKind.USER, amount_due(PRICES, 10, 0))
    assert town.buyer.buyer.demoted(town.now) == ()
    town.seller.worker = Worker()
    town.publish()
    town.start(request(2))
    town.run()
    assert len(town.buyer.told(JobFinished)) == 1
    [bought] = town.buyer.buyer.books.lanes()
    sold = town.seller.seller.books.lane(bought.channel, bought.lane)
    assert sold is not None
    assert bought.position == sold.position


def test_a_lost_link_shortens_the_wait_and_a_link_that_comes_back_loses_nothing() -> None:
    for back in (False, True):
        town = Town()
        town.start(request())
        while not town.watch.vouchers:
            town.busy()[0]()
        if not back:
            town.unreachable.add(town.seller.node)
        town.unlink(town.buyer, town.seller)  # the buyer dials again at once
        town.run()
        town.wait(3_000)
        town.run()
        assert len(town.buyer.told(JobFinished if back else JobFailed)) == 1
        if not back:
            [lost] = [event for event in town.buyer.events if isinstance(event, JobFailed)]
            assert lost.fault is FaultKind.NETWORK


@pytest.mark.parametrize("kind", [Agreement, Acceptance, Chunk, Voucher, Receipt])
def test_any_statement_lost_with_its_link_is_said_again(kind: type[Message]) -> None:
    town = Town()
    lost: list[Message] = []

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, kind) and not lost:
            lost.append(payload)
            return False
        return True

    town.on_send = heard
    town.start(request())
    town.run()
    assert town.buyer.told(JobFinished) == []
    town.unlink(town.buyer, town.seller)
    town.link(town.buyer, town.seller)
    town.run()
    assert len(town.buyer.told(JobFinished)) == 1


@pytest.mark.parametrize("steps", range(0, 30, 2))
def test_cancelling_keeps_what_was_paid_and_frees_both_sides(steps: int) -> None:
    town = Town()
    town.start(request())
    for _ in range(steps):
        if town.busy():
            town.busy()[0]()
    town.do(town.buyer, town.buyer.buyer.cancel(request().request, "enough", town.now))
    town.run()
    town.wait(100_000)
    town.run()
    assert (town.buyer.buyer.jobs(), town.seller.seller.jobs()) == ((), ())
    assert town.seller.seller.slots_free() == 4
    cancelled = [event for event in town.buyer.events if isinstance(event, JobCancelled)]
    assert len(cancelled) + len(town.buyer.told(JobFinished)) == 1
    for event in cancelled:
        assert event.paid in (0, *(amount_due(PRICES, 10, units) for units in (0, 10, 20)))
        promised = [voucher.cumulative for lane in town.watch.vouchers.values() for voucher in lane.values()]
        assert max(promised, default=0) == event.paid


def test_cancel_after_everything_was_delivered_is_too_late() -> None:
    town = Town()
    deaf_to(town, Receipt)
    town.start(request())
    town.run()
    assert town.buyer.buyer.cancel(request().request, "enough", town.now) == []
    assert town.buyer.buyer.cancel(request(9).request, "unknown", town.now) == []
    [record] = town.buyer.buyer.jobs()
    assert record.state == "settling"


def test_a_timer_that_comes_early_is_set_again_and_ends_nothing() -> None:
    town = Town()
    deaf_to(town, Voucher)
    town.start(request())
    town.run()
    for person in (town.buyer, town.seller):
        for key, at in tuple(person.timers.items()):
            machine = person.buyer if key.room == "buyer" else person.seller
            assert machine.timer(key, town.now) == [SetTimer(key, MonotonicMs(at))]
    assert (len(town.buyer.buyer.jobs()), len(town.seller.seller.jobs())) == (1, 1)
