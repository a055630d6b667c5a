"""Several providers under every order of faults: each text is whole or ends with a reason, and is paid to the unit."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.market.events import JobCancelled, JobFailed, JobFinished, JobPrefilled, JobText
from protocol.primitives.units import Amount, DurationMs, Hash
from protocol.settlement.pricing import amount_due
from tests.market.test_interleavings import heal, settled
from tests.market.town import PRICES, Person, Town, Worker, request

COMMON = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
PIECES = (10, 10, 10, 5)
CEILING = Amount(6_000)
"""Enough for a job at its limits and two seams."""


def act(town: Town, choice: int, started: list[Hash]) -> None:
    """One event: mostly something that is due, sometimes a fault of one of the providers."""
    if choice >= 80:
        choices = town.busy()
        if choices:
            choices[choice % len(choices)]()
        return
    seller = town.sellers[choice % len(town.sellers)]
    match choice // 3:
        case 0:
            town.crash(seller)
        case 1:
            town.unlink(town.buyer, seller)
        case 2 | 3:
            town.link(town.buyer, seller)
        case 4 | 5:
            town.wait((31_000, 700, 300)[choice % 3])
        case 6 | 7:
            if len(started) < 4:
                wanted = request(len(started) + 1, price_ceiling=CEILING, total_ms=DurationMs(120_000))
                started.append(wanted.request)
                town.start(wanted)
        case 8:
            town.decide()
        case 9:
            seller.worker = Worker(pieces=PIECES, fails_at=choice % 5)
        case 10:
            seller.worker = Worker(pieces=PIECES, silent_from=1 + choice % 4)
        case 11 | 12:
            seller.worker = Worker(pieces=PIECES)
        case 13:
            town.unreachable ^= {seller.node}
        case 14:
            town.do(town.buyer, town.buyer.buyer.unreachable(seller.node, town.now))
        case 15:
            if started and choice % 3 == 0:
                town.do(town.buyer, town.buyer.buyer.cancel(started[-1], "changed my mind", town.now))
        case _:
            for _ in range(choice):
                if town.busy():
                    town.busy()[0]()


def cost(town: Town, wanted: Hash, buyer: Person) -> int:
    """What the verified chunks of a request cost, by what its reader was shown and told."""
    inputs = {event.job: event.input_units for event in buyer.events if isinstance(event, JobPrefilled)}
    shown: dict[bytes, int] = {}
    before = 0
    for event in buyer.events:
        if isinstance(event, JobText) and event.request == wanted:
            shown[event.job] = shown.get(event.job, 0) + event.output_units - before
            before = event.output_units
    ours = [event.job for event in buyer.events if isinstance(event, JobPrefilled) and event.request == wanted]
    return sum(amount_due(PRICES, inputs[job], shown.get(job, 0)) for job in ours)


def check_texts(town: Town, started: Sequence[Hash]) -> None:
    """No gap, no repeat, one end each, paid to the unit and under the ceiling."""
    whole = Worker(pieces=PIECES).output()
    for wanted in started:
        texts = [event for event in town.buyer.events if isinstance(event, JobText) and event.request == wanted]
        text = b"".join(event.payload for event in texts)
        assert whole.startswith(text)
        assert [event.index for event in texts] == list(range(1, len(texts) + 1))
        ends = [
            event
            for event in town.buyer.events
            if isinstance(event, JobFinished | JobFailed | JobCancelled) and event.request == wanted
        ]
        assert len(ends) == 1
        [end] = ends
        if isinstance(end, JobFinished):
            assert text == whole
        assert end.paid == cost(town, wanted, town.buyer) <= CEILING
        assert end.output_units == (texts[-1].output_units if texts else 0)


@given(st.lists(st.integers(0, 255), max_size=150))
@COMMON
def test_text_has_no_gap_and_money_is_right_whatever_happens_to_the_providers(choices: Sequence[int]) -> None:
    town = Town(sellers=3)
    for seller in town.sellers:
        seller.worker = Worker(pieces=PIECES)
    started: list[Hash] = []
    act(town, 18, started)
    for choice in choices:
        act(town, choice, started)
    town.unreachable.clear()
    heal(town)
    settled(town)
    check_texts(town, started)


@pytest.mark.parametrize("effects", range(5))
@pytest.mark.parametrize("steps", range(6, 40, 3))
def test_provider_that_crashes_at_any_step_leaves_a_seam_that_nobody_sees(steps: int, effects: int) -> None:
    town = Town(sellers=2)
    for seller in town.sellers:
        seller.worker = Worker(pieces=PIECES)
    town.start(request())
    for _ in range(steps):
        if town.busy():
            town.busy()[0]()
    agreements = list(town.watch.agreements.values())
    if not agreements:
        return
    victim = next(seller for seller in town.sellers if seller.account == agreements[0].provider)
    town.unreachable.add(victim.node)
    for _ in range(effects):
        if victim.returned or victim.pulled:
            (town.hand_back if victim.returned else town.work)(victim)
    town.crash(victim)
    town.run()
    town.wait(300)
    town.run()
    town.wait(60_000)
    town.run()
    text = b"".join(event.payload for event in town.buyer.events if isinstance(event, JobText))
    whole = Worker(pieces=PIECES).output()
    assert whole.startswith(text)
    [end] = [event for event in town.buyer.events if isinstance(event, JobFinished | JobFailed)]
    # All but the receipt may have been there already: nobody else can give that.
    assert text == whole
    assert end.output_units == 35
