"""Money under every order of events: losses, broken links, crashes between any two effects.

``Watch`` judges every statement as it is signed; after healing, every job has ended, every slot and lane is free, and
the same two nodes can deal again.
"""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.market.events import JobFinished
from protocol.market.policies import SellerPolicy
from protocol.market.records import buyer_debt, seller_debt
from protocol.primitives.units import Amount
from protocol.settlement.pricing import amount_due
from tests.market.town import PRICES, Person, Town, Worker, request

COMMON = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def heal(town: Town) -> None:
    """Links come back, time passes, everything settles."""
    town.crash_after = None
    town.on_send = None
    for _ in range(4):
        town.run()
        town.wait(200_000)
    town.run()


def settled(town: Town) -> None:
    """No job under way, no slot or lane taken, and no debt beyond what the other side's books allow."""
    for person in (*town.buyers, *town.sellers):
        assert person.buyer.jobs() == ()
        assert person.seller.jobs() == ()
        assert person.seller.slots_free() == person.seller_policy.slots
        assert all(lane.job is None for lane in person.buyer.books.lanes())
        for channel in person.seller.books.channels():
            assert all(lane.job is None for lane in person.seller.books.lanes_of(channel))


def deal_again(town: Town, number: int) -> None:
    """A fresh request between the same two nodes succeeds, whatever happened before."""
    town.seller.worker = Worker()
    town.publish()
    before = len(town.buyer.told(JobFinished))
    town.start(request(number))
    town.run()
    assert len(town.buyer.told(JobFinished)) == before + 1
    [channel] = town.seller.seller.books.channels()
    for lane in town.seller.seller.books.lanes_of(channel):
        bought = town.buyer.buyer.books.lane(channel, lane.lane)
        assert bought is not None
        assert bought.position.sequence >= lane.position.sequence
        assert bought.position.cumulative >= lane.position.cumulative


def act(town: Town, choice: int, started: list[int]) -> None:
    """One event: mostly something that is due, sometimes a fault."""
    buyer, seller = town.buyer, town.seller
    if choice >= 40:
        choices = town.busy()
        if choices:
            choices[choice % len(choices)]()
        return
    match choice:
        case 0 | 1:
            town.crash(buyer if choice else seller)
        case 2 | 3:
            town.unlink(buyer, seller)
        case 4 | 5 | 6 | 7:
            town.link(buyer, seller)
        case 8 | 9 | 10 | 11 | 12 | 13:
            town.crash_after = choice - 8
        case 14 | 15:
            town.wait(31_000)
        case 16 | 17 | 18:
            town.wait(700)
        case 19:
            if started:
                town.do(buyer, buyer.buyer.cancel(request(started[-1]).request, "changed my mind", town.now))
        case 20 | 21 | 22 | 23:
            if len(started) < 4:
                started.append(len(started) + 1)
                town.start(request(started[-1]))
        case 24:
            town.decide()
        case 25:
            seller.worker = Worker(fails_at=1)
        case 26:
            seller.worker = Worker(silent_from=2)
        case 27:
            seller.worker = Worker(pieces=(10, 10, 10, 10))
        case _:
            town.run(200) if choice % 2 else None


def acquainted() -> Town:
    """The two have dealt before, on two lanes, and output is short: it goes out with its input from now on."""
    town = Town()
    town.seller.seller_policy = SellerPolicy(slots=4, trust_permille=1000)
    town.crash(town.seller)
    for number in (101, 102):
        town.start(request(number))
    town.run()
    assert len(town.buyer.told(JobFinished)) == 2
    town.buyer.events.clear()
    town.seller.worker = Worker(pieces=(5,))
    return town


@pytest.mark.parametrize("trusted", [False, True])
@given(choices=st.lists(st.integers(0, 255), max_size=120))
@COMMON
def test_any_interleaving_keeps_the_money_laws_and_ends_settled(trusted: bool, choices: Sequence[int]) -> None:
    town = acquainted() if trusted else Town()
    started: list[int] = [1]
    town.start(request(1))
    for choice in choices:
        act(town, choice, started)
    heal(town)
    settled(town)
    town.link(town.buyer, town.seller)
    town.run()
    deal_again(town, 99)


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("victim", ["buyer", "seller"])
def test_crash_after_any_effect_of_a_job_loses_no_money_and_leaves_the_lane_usable(victim: str, trusted: bool) -> None:
    for step in range(60):
        town = acquainted() if trusted else Town()
        person: Person = town.buyer if victim == "buyer" else town.seller
        town.start(request(1))
        count = 0
        while (choices := town.busy()) and count < step:
            choices[0]()
            count += 1
        for effects in range(4):
            town.crash_after = effects
            choices = town.busy()
            if choices:
                choices[0]()
            town.crash_after = None
        town.crash(person)
        heal(town)
        settled(town)
        town.link(town.buyer, town.seller)
        town.run()
        deal_again(town, 2)


def test_without_faults_both_books_agree_to_the_unit() -> None:
    town = Town()
    for number in range(1, 9):
        town.start(request(number))
    town.run()
    finished = [event for event in town.buyer.told(JobFinished) if isinstance(event, JobFinished)]
    # Eight at once, four slots: the other four were refused for capacity and have nowhere else to go.
    assert len(finished) == 4
    due = amount_due(PRICES, 10, 25)
    [channel] = town.seller.seller.books.channels()
    lanes = town.seller.seller.books.lanes_of(channel)
    assert sum(lane.position.cumulative for lane in lanes) == 4 * due
    for lane in lanes:
        bought = town.buyer.buyer.books.lane(channel, lane.lane)
        assert bought is not None
        assert bought.position == lane.position
        assert (buyer_debt(bought), seller_debt(lane)) == (Amount(0), Amount(0))
