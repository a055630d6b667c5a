"""Another provider takes over, fairly: who is asked next, who is not, and what it may cost."""

import pytest
from msgspec.structs import replace

from protocol.market.buyer_job import RequestInvalid, check_request
from protocol.market.events import AttemptFailed, JobAgreed, JobFailed, JobFinished
from protocol.market.policies import BuyerPolicy
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Agreement, FaultKind, Refusal
from protocol.primitives.codec import Message
from protocol.primitives.units import Amount, DurationMs, WorkUnits
from protocol.settlement.pricing import amount_due
from tests.market.town import PRICES, Person, Town, Worker, envelope_of, request


def finished(town: Town) -> list[JobFinished]:
    return [event for event in town.buyer.events if isinstance(event, JobFinished)]


def failed(town: Town) -> list[JobFailed]:
    return [event for event in town.buyer.events if isinstance(event, JobFailed)]


def attempts(town: Town) -> list[AttemptFailed]:
    return [event for event in town.buyer.events if isinstance(event, AttemptFailed)]


def refuse_all(town: Town, sellers: list[Person], fault: FaultKind, reason: str) -> None:
    """These sellers answer every agreement with a refusal of this fault."""

    def heard(sender: Person, payload: Message) -> bool:
        if sender is town.buyer and isinstance(payload, Agreement):
            for seller in sellers:
                if payload.provider == seller.account:
                    refusal = Refusal(town.job_of(sender, payload), fault, reason, None, Amount(0))
                    town.links[(seller.node, sender.node)].append(envelope_of(seller, MessageKind.REFUSAL, refusal)[2])
                    return False
        return True

    town.on_send = heard


def test_capacity_refusal_moves_on_to_the_next_provider_and_blames_nobody() -> None:
    town = Town(sellers=3)
    refuse_all(town, town.sellers[:2], FaultKind.CAPACITY, "full")
    town.start(request())
    town.run()
    [done] = finished(town)
    assert done.receipt.provider == town.sellers[2].account
    assert town.buyer.buyer.demoted(town.now) == ()
    assert all(attempt.fault is FaultKind.CAPACITY for attempt in attempts(town))


@pytest.mark.parametrize("trouble", ["unreachable", "no block"])
def test_next_provider_has_deadlines_of_its_own_where_the_first_one_was_left(trouble: str) -> None:
    town = Town(sellers=2)
    if trouble == "unreachable":
        town.unreachable |= {seller.node for seller in town.sellers}
    town.start(request())
    for _ in town.sellers:
        while choices := [choice for choice in town.busy() if trouble == "unreachable" or choice != town.decide]:
            choices[0]()
        assert not failed(town)
        town.wait(30_000 if trouble == "no block" else 5_000)
    [lost] = failed(town)
    assert lost.fault is FaultKind.NETWORK
    assert len(attempts(town)) == 2
    assert town.buyer.buyer.jobs() == ()


def test_provider_fault_before_output_moves_on_and_demotes_the_provider() -> None:
    town = Town(sellers=2)
    for seller in town.sellers:
        seller.worker = Worker(fails_at=0)
    town.start(request())
    town.run()
    [lost] = failed(town)
    assert len(attempts(town)) == 2 or lost.fault is FaultKind.PROVIDER
    assert sorted(town.buyer.buyer.demoted(town.now)) == sorted(seller.account for seller in town.sellers)
    town.wait(60_000)
    assert town.buyer.buyer.demoted(town.now) == ()


def test_a_failed_provider_is_never_asked_twice_for_one_request() -> None:
    town = Town(sellers=3)
    refuse_all(town, town.sellers, FaultKind.PROVIDER, "broken")
    town.start(request())
    town.run()
    agreed = [agreement.provider for agreement in town.watch.agreements.values()]
    assert sorted(agreed) == sorted(seller.account for seller in town.sellers)


def test_a_users_fault_is_never_tried_elsewhere() -> None:
    town = Town(sellers=3)
    refuse_all(town, town.sellers, FaultKind.USER, "input limit is 3 units")
    town.start(request())
    town.run()
    [lost] = failed(town)
    assert (lost.fault, lost.reason) == (FaultKind.USER, "input limit is 3 units")
    assert len(town.watch.agreements) == 1
    assert town.buyer.buyer.demoted(town.now) == ()


def test_input_longer_than_agreed_is_the_users_fault_and_costs_nothing() -> None:
    town = Town(sellers=2)
    for seller in town.sellers:
        seller.worker = Worker(input_units=11)
    town.start(request())
    town.run()
    [lost] = failed(town)
    assert (lost.fault, lost.paid) == (FaultKind.USER, 0)
    assert "11 units" in lost.reason
    assert len(town.watch.agreements) == 1


def test_tries_are_bounded_and_the_first_error_is_kept() -> None:
    town = Town(sellers=5)
    town.buyer.buyer_policy = BuyerPolicy(attempts_max=2)
    town.crash(town.buyer)
    reasons = iter(["first", "second", "third", "fourth", "fifth"])

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Agreement):
            seller = next(seller for seller in town.sellers if seller.account == payload.provider)
            refusal = Refusal(town.job_of(sender, payload), FaultKind.NETWORK, next(reasons), None, Amount(0))
            town.links[(seller.node, sender.node)].append(envelope_of(seller, MessageKind.REFUSAL, refusal)[2])
        return not isinstance(payload, Agreement)

    town.on_send = heard
    town.start(request())
    town.run()
    [lost] = failed(town)
    assert (lost.reason, lost.first_reason) == ("second", "first")
    assert len(town.watch.agreements) == 2


def test_no_answer_moves_on_when_the_accept_deadline_passes() -> None:
    town = Town(sellers=2)
    silent = town.sellers[0]
    town.on_send = lambda sender, payload: sender is not silent
    for number in range(1, 4):
        town.start(request(number))
    town.run()
    town.wait(10_000)
    town.run()
    assert {done.receipt.provider for done in finished(town)} == {town.sellers[1].account}
    assert len(finished(town)) == 3


def test_unreachable_provider_is_passed_over_before_anything_is_deposited_for_it() -> None:
    town = Town(sellers=2)
    town.unreachable.add(town.sellers[0].node)
    for number in range(1, 4):
        town.start(request(number))
    town.run()
    town.wait(5_000)
    town.run()
    assert len(finished(town)) == 3
    assert {facts.payee for facts in town.ledger.channels.values()} == {town.sellers[1].account}


def test_when_nobody_is_left_the_job_fails_with_what_was_delivered_and_paid() -> None:
    town = Town(sellers=2)
    for seller in town.sellers:
        seller.worker = Worker(fails_at=2)
    town.start(request())
    town.run()
    [lost] = failed(town)
    both = amount_due(PRICES, 10, 10) + amount_due(PRICES, 20, 10)
    assert (lost.fault, lost.output_units, lost.paid) == (FaultKind.PROVIDER, 20, both)
    assert lost.first_reason == "worker died"
    assert len(town.watch.agreements) == 2


def test_all_attempts_together_stay_under_the_ceiling() -> None:
    # Enough for one job at its limits and a half: what the first provider took for the input is missing for a second.
    at_limits = amount_due(PRICES, 10, 40)
    for ceiling, tries in ((at_limits + amount_due(PRICES, 10, 0) - 1, 1), (at_limits + amount_due(PRICES, 10, 0), 2)):
        town = Town(sellers=2)
        for seller in town.sellers:
            seller.worker = Worker(fails_at=1)
        town.start(request(price_ceiling=ceiling))
        town.run()
        [lost] = failed(town)
        assert len(town.watch.agreements) == tries
        assert lost.paid == tries * amount_due(PRICES, 10, 0) <= ceiling
        assert lost.first_reason == "worker died"


def test_request_waits_for_an_offer_as_long_as_it_says_and_no_longer() -> None:
    town = Town()
    town.seller.seller_policy = replace(town.seller.seller_policy, slots=4)
    town.buyer.book.expire(replace(town.now, wall_ms=town.now.wall_ms + 61_000))
    town.start(request(1))
    town.start(request(2, choose_ms=DurationMs(3_000)))
    town.start(request(3, choose_ms=DurationMs(9_000)))
    assert [lost.request for lost in failed(town)] == [request(1).request]
    town.wait(5_000)
    assert [lost.request for lost in failed(town)] == [request(1).request, request(2).request]
    town.buyer.book._allowances.clear()
    town.seller.book = type(town.seller.book)()
    town.publish()
    town.do(town.buyer, town.buyer.buyer.book_changed(town.now))
    town.run()
    assert [done.request for done in finished(town)] == [request(3).request]


def test_nobody_who_would_do_is_explained_by_reasons() -> None:
    town = Town(sellers=2)
    town.start(request(price_ceiling=Amount(1)))
    town.run()
    [lost] = failed(town)
    assert lost.reason.startswith("no offer would do: 2 × price above ceiling")


def test_progress_to_a_pinned_provider_that_is_not_there_says_so() -> None:
    town = Town()
    town.start(request(provider=town.buyer.account))
    [lost] = failed(town)
    assert lost.reason == "the provider that was asked for has no live offer of this model"


def test_agreed_event_names_the_attempt_and_the_terms() -> None:
    town = Town()
    town.start(request())
    town.run()
    [agreed] = [event for event in town.buyer.events if isinstance(event, JobAgreed)]
    assert (agreed.attempt, agreed.price_ceiling) == (1, amount_due(PRICES, 10, 40))


@pytest.mark.parametrize(
    "changed",
    [
        {"output_units_max": WorkUnits(0)},
        {"chunk_units": 0},
        {"chunk_units": 257},
        {"seed": -1},
        {"temperature_milli": 10_001},
        {"price_ceiling": Amount(2**63)},
        {"total_ms": DurationMs(0)},
        {"payload": bytes(1024 * 1024 + 1)},
        {"salt": b"short"},
        {"model": b"short"},
        {"input_units_max": WorkUnits(-1)},
        {"region": "x" * 257},
    ],
)
def test_requests_that_can_not_be_are_refused_with_what_to_change(changed: dict[str, object]) -> None:
    with pytest.raises(RequestInvalid, match=r"\w+"):
        check_request(request(1, **changed))


def test_one_request_id_runs_once_at_a_time_and_requests_are_bounded() -> None:
    town = Town()
    town.buyer.buyer_policy = BuyerPolicy(jobs_max=2)
    town.crash(town.buyer)
    town.start(request(1))
    with pytest.raises(RequestInvalid, match="under way"):
        town.start(request(1))
    town.start(request(2))
    with pytest.raises(RequestInvalid, match="2 requests"):
        town.start(request(3))


def test_refused_dial_moves_on_at_once_where_somebody_else_would_do_and_waits_where_nobody_would() -> None:
    for sellers in (1, 2):
        town = Town(sellers=sellers)
        town.unreachable |= {seller.node for seller in town.sellers}
        town.start(request())
        town.run()
        first = town.buyer.buyer._core.requests[request().request].match
        assert first is not None
        town.unreachable -= {seller.node for seller in town.sellers if seller.account != first.live.account}
        town.do(town.buyer, town.buyer.buyer.unreachable(first.live.offer.node, town.now))
        town.run()
        assert len(finished(town)) == sellers - 1
        if sellers == 1:
            assert [record.state for record in town.buyer.buyer.jobs()] == ["connecting"]
            town.unreachable.clear()
            town.link(town.buyer, town.seller)
            town.run()
            assert len(finished(town)) == 1
        else:
            assert town.buyer.buyer.demoted(town.now) == (first.live.account,)


def test_lost_link_that_can_not_be_had_again_is_not_waited_for() -> None:
    town = Town(sellers=2)
    for seller in town.sellers:
        seller.worker = Worker(silent_from=2)
    town.start(request())
    town.run()
    [agreement] = town.watch.agreements.values()
    lost = next(seller for seller in town.sellers if seller.account == agreement.provider)
    for seller in town.sellers:
        seller.worker = Worker()
    town.unreachable.add(lost.node)
    town.unlink(town.buyer, lost)
    town.do(town.buyer, town.buyer.buyer.unreachable(lost.node, town.now))
    town.run()
    [done] = finished(town)
    assert done.receipt.provider != agreement.provider
    assert done.output_units == 25


def test_a_node_that_nobody_waits_for_may_be_unreachable() -> None:
    town = Town()
    town.start(request())
    town.run()
    assert town.buyer.buyer.unreachable(town.seller.node, town.now) == []


def test_want_of_room_is_no_try_everybody_is_asked_once() -> None:
    town = Town(sellers=9)
    refuse_all(town, town.sellers[:-1], FaultKind.CAPACITY, "no free slots")
    town.start(request())
    town.run()
    [done] = finished(town)
    assert done.receipt.provider == town.sellers[-1].account


def test_request_that_may_wait_asks_full_providers_again_and_again_less_often() -> None:
    town = Town()
    refuse_all(town, town.sellers, FaultKind.CAPACITY, "no free slots")
    town.start(request(choose_ms=DurationMs(20_000)))
    town.run()
    asked_at = []
    for _ in range(18):
        before = len(town.watch.agreements)
        town.wait(1_000)
        town.run()
        if len(town.watch.agreements) > before:
            asked_at.append(town.now.monotonic_ms - 1_000)
    assert asked_at == [1_000, 3_000, 7_000, 15_000]
    assert town.buyer.buyer.demoted(town.now) == ()
    town.wait(2_000)
    town.run()
    [lost] = failed(town)
    assert (lost.first_fault, lost.first_reason) == (FaultKind.CAPACITY, "no free slots")


def test_request_that_may_wait_takes_room_as_soon_as_it_is_there() -> None:
    town = Town(sellers=2)
    refuse_all(town, town.sellers, FaultKind.CAPACITY, "no free slots")
    town.start(request(choose_ms=DurationMs(20_000)))
    town.run()
    town.on_send = None
    town.wait(2_000)
    town.run()
    assert len(finished(town)) == 1
    assert len(attempts(town)) == 2
