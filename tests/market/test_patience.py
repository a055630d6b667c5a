"""Want of room passes: a request that lacks nothing else waits for it, bounded in time, and hardly asks in vain."""

import pytest
from msgspec.structs import replace

from protocol.market.events import JobProgressed
from protocol.market.policies import BuyerPolicy, SellerPolicy
from protocol.market.terms import NOT_SERVED_NOW, PASSING
from protocol.messages.market import FaultKind
from protocol.primitives.units import Amount, DurationMs
from tests.market.test_failover import attempts, failed, finished, refuse_all
from tests.market.town import Town, Worker, request

PATIENCE_MS = BuyerPolicy().patience_ms
NO_SLOTS = "no free slots"


def town_of(*slots: int, patience_ms: int = PATIENCE_MS) -> Town:
    """Sellers with so many slots each, linked to the buyer, who has open channels to none of them."""
    town = Town(sellers=len(slots))
    town.buyer.buyer_policy = replace(town.buyer.buyer_policy, patience_ms=DurationMs(patience_ms))
    town.buyer.boot()
    for seller, count in zip(town.sellers, slots, strict=True):
        seller.seller_policy = SellerPolicy(slots=count)
        seller.boot()
    republish(town, after_ms=0)
    return town


def republish(town: Town, after_ms: int = 1_000) -> None:
    """Every seller's next offer comes, and requests that wait look at it."""
    town.wait(after_ms)
    town.publish()
    town.do(town.buyer, town.buyer.buyer.book_changed(town.now))
    town.run()


def occupied(town: Town, jobs: int) -> None:
    """Jobs of another request each, which hang behind their first output, hold slots; the offers say so."""
    for seller in town.sellers:
        seller.worker = Worker(silent_from=2)
    for number in range(jobs):
        town.start(request(100 + number, stall_ms=DurationMs(100_000)))
        town.run()
    for seller in town.sellers:
        seller.worker = Worker()
    republish(town)


def set_free(town: Town, number: int = 100) -> None:
    """One of those jobs ends."""
    town.do(town.buyer, town.buyer.buyer.cancel(request(number).request, "enough", town.now))
    town.run()


def said(town: Town) -> list[str]:
    return [event.cause for event in town.buyer.events if isinstance(event, JobProgressed)]


def test_all_slots_taken_is_waited_for_and_the_next_offer_is_taken_at_once() -> None:
    town = town_of(1)
    occupied(town, 1)
    before = len(town.watch.agreements)
    town.start(request())
    town.run()
    assert said(town)[-1] == "waiting for a free slot"
    assert failed(town) == []
    set_free(town)
    assert len(town.watch.agreements) == before, "no offer, no try"
    republish(town)
    assert [done.request for done in finished(town)] == [request().request]
    assert attempts(town) == []


def test_room_that_does_not_come_back_ends_in_a_reason_when_patience_is_over() -> None:
    town = town_of(1)
    occupied(town, 1)
    town.start(request())
    town.run()
    town.wait(PATIENCE_MS - 1)
    assert failed(town) == []
    town.wait(1)
    [lost] = failed(town)
    assert (lost.fault, lost.reason) == (FaultKind.CAPACITY, "no offer would do: 1 × no free slots")
    assert lost.paid == 0


@pytest.mark.parametrize("reason", PASSING)
def test_refusal_that_time_cures_is_asked_again_less_often_within_patience(reason: str) -> None:
    town = town_of(1)
    refuse_all(town, town.sellers, FaultKind.CAPACITY, reason)
    town.start(request())
    town.run()
    begun, asked_at = town.now.monotonic_ms, []
    for _ in range(PATIENCE_MS // 500):
        before = len(town.watch.agreements)
        town.wait(500)
        town.run()
        if len(town.watch.agreements) > before:
            asked_at.append(town.now.monotonic_ms - begun)
    assert asked_at == [1_000, 3_000, 7_000, 10_000]
    [lost] = failed(town)
    assert (lost.fault, lost.first_reason) == (FaultKind.CAPACITY, reason)
    assert town.buyer.buyer.jobs() == ()


def test_refused_request_takes_the_providers_next_offer_at_once() -> None:
    town = town_of(1)
    refuse_all(town, town.sellers, FaultKind.CAPACITY, NOT_SERVED_NOW)
    town.start(request())
    town.run()
    town.on_send = None
    republish(town, after_ms=501)  # the first look again comes after a second
    [done] = finished(town)
    assert done.paid > 0


def test_the_same_offer_is_not_tried_again_before_its_time() -> None:
    town = town_of(1)
    refuse_all(town, town.sellers, FaultKind.CAPACITY, NO_SLOTS)
    town.start(request())
    town.run()
    for _ in range(5):
        town.do(town.buyer, town.buyer.buyer.book_changed(town.now))
        town.run()
    assert len(town.watch.agreements) == 1


def test_an_offer_of_one_slot_is_taken_by_the_oldest_of_those_that_wait() -> None:
    town = town_of(1)
    occupied(town, 1)
    for number in (3, 1, 2):
        town.start(request(number))
        town.run()
    set_free(town)
    for seller in town.sellers:
        seller.worker = Worker(silent_from=2)
    before = len(town.watch.agreements)
    republish(town)
    assert len(town.watch.agreements) == before + 1, "the others would only be refused"
    states = {view.request: view.state for view in town.buyer.buyer.jobs()}
    assert states == {
        request(3).request: "streaming",
        request(1).request: "choosing",
        request(2).request: "choosing",
    }


def test_all_that_wait_are_served_in_turn_by_one_slot() -> None:
    town = town_of(1)
    occupied(town, 1)
    for number in range(1, 6):
        town.start(request(number))
        town.run()
    set_free(town)
    for _ in range(8):
        republish(town)
    assert sorted(done.request for done in finished(town)) == [request(number).request for number in range(1, 6)]
    assert len(attempts(town)) <= 10


def test_a_dead_provider_and_a_full_one_are_no_end_of_a_job_under_way() -> None:
    town = town_of(1, 1)
    town.sellers[0].worker = town.sellers[1].worker = Worker(silent_from=2)
    for number in (100, 1):
        town.start(request(number, stall_ms=DurationMs(100_000)))
        town.run()
    [mine] = [view for view in town.buyer.buyer.jobs() if view.request == request(1).request]
    dead = next(seller for seller in town.sellers if seller.account == mine.provider)
    for seller in town.sellers:
        seller.worker = Worker()
    town.unreachable.add(dead.node)
    republish(town)
    town.do(town.buyer, town.buyer.buyer.link_down(dead.node, town.now))
    town.do(town.buyer, town.buyer.buyer.unreachable(dead.node, town.now))
    town.wait(4_000)
    town.run()
    assert said(town)[-1] == "waiting for a free slot"
    set_free(town)
    republish(town)
    done = finished(town)[-1]
    assert done.request == request(1).request
    assert done.output_units == 25
    assert attempts(town)[-1].fault is FaultKind.NETWORK


def test_patience_begins_anew_when_room_was_there_meanwhile() -> None:
    town = town_of(1)
    occupied(town, 1)
    town.start(request(1))
    town.run()
    town.wait(PATIENCE_MS - 2_000)
    set_free(town)
    town.seller.worker = Worker(silent_from=2)
    republish(town)
    job = town.buyer.buyer._core.requests[request(1).request]
    assert job.state.value == "streaming"
    assert job.room_until is None


def test_a_request_waits_no_longer_than_its_own_time() -> None:
    town = town_of(1)
    occupied(town, 1)
    town.start(request(total_ms=DurationMs(2_500)))
    town.run()
    town.wait(2_499)
    assert failed(town) == []
    town.wait(1)
    [lost] = failed(town)
    assert lost.fault is FaultKind.CAPACITY


def test_nothing_is_begun_when_the_requests_time_is_over() -> None:
    town = town_of(1)
    refuse_all(town, town.sellers, FaultKind.CAPACITY, NO_SLOTS)
    town.start(request(total_ms=DurationMs(3_500)))
    town.run()
    for _ in range(8):
        town.wait(500)
        town.run()
    assert len(town.watch.agreements) == 3, "at once, after 1 s and after 3 s"
    [lost] = failed(town)
    assert (lost.fault, lost.paid) == (FaultKind.CAPACITY, 0)


def test_a_longer_wait_that_the_asker_names_wins() -> None:
    town = town_of(1)
    occupied(town, 1)
    town.start(request(choose_ms=DurationMs(2 * PATIENCE_MS)))
    town.run()
    town.wait(PATIENCE_MS)
    assert failed(town) == []
    town.wait(PATIENCE_MS)
    assert len(failed(town)) == 1


def test_without_patience_want_of_room_is_told_at_once() -> None:
    town = town_of(1, patience_ms=0)
    occupied(town, 1)
    town.start(request(1))
    town.run()
    assert len(failed(town)) == 1
    town = town_of(1)
    occupied(town, 1)
    town.start(request(1, patient=False))
    town.run()
    assert len(failed(town)) == 1


def test_what_room_would_not_cure_is_told_at_once() -> None:
    town = town_of(1)
    occupied(town, 1)
    town.start(request(1, price_ceiling=Amount(1)))
    town.start(request(2, region="mars"))
    town.run()
    assert len(failed(town)) == 2
    town = town_of(1)
    refuse_all(town, town.sellers, FaultKind.CAPACITY, "chunks of more than 5 units are not sold here")
    town.start(request())
    town.run()
    [lost] = failed(town)
    assert lost.reason.endswith("no other provider would do")


def test_waiting_requests_count_among_those_under_way_and_can_be_cancelled() -> None:
    town = town_of(1)
    occupied(town, 1)
    town.start(request())
    town.run()
    assert len(town.buyer.buyer.jobs()) == 2
    town.do(town.buyer, town.buyer.buyer.cancel(request().request, "enough", town.now))
    set_free(town)
    republish(town)
    assert town.buyer.buyer.jobs() == ()
    assert finished(town) == []
