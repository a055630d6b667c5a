"""A provider promises no deadline that it could not keep lately, and never turns ordinary time away."""

from hypothesis import given
from hypothesis import strategies as st

from protocol.market.events import JobFailed, JobFinished, SaleEnded, SaleRefused
from protocol.market.kept_deadlines import FIRST_OUTPUT_MS_MAX, MODELS_MAX, STALL_MS_MAX, KeptDeadlines
from protocol.messages.market import FaultKind
from protocol.primitives.units import DurationMs, ModelId
from tests.market.town import MODEL, Town, Worker, request


def publish_anew(town: Town) -> None:
    town.wait(1)
    town.publish()


def failures_signed(town: Town) -> int:
    return sum(isinstance(event, SaleEnded) and event.state == "failed" for event in town.seller.events)


def test_a_deadline_that_was_missed_is_not_promised_again_so_a_provider_is_made_to_fail_but_a_few_times() -> None:
    town = Town()
    town.seller.worker = Worker(silent_from=0)
    for number in range(20):
        publish_anew(town)
        town.start(request(number + 1, first_output_ms=DurationMs(1_000), patient=False))
        town.run()
        town.wait(20_000)
    assert failures_signed(town) == 1
    refusals = [event for event in town.seller.events if isinstance(event, SaleRefused)]
    assert {(refusal.fault, refusal.reason) for refusal in refusals} == {
        (FaultKind.CAPACITY, "first output deadline must be at least 2000 ms at the pace of late")
    }


def test_the_same_between_chunks_for_chunks_of_that_size() -> None:
    town = Town()
    town.seller.worker = Worker(silent_from=2)
    for number in range(6):
        publish_anew(town)
        town.start(request(number + 1, stall_ms=DurationMs(500), patient=False))
        town.run()
        town.wait(20_000)
    assert failures_signed(town) == 1
    town.seller.worker = Worker(pieces=(5, 5))
    publish_anew(town)
    town.start(request(90, stall_ms=DurationMs(500), chunk_units=5))
    town.run()
    [*_, last] = [event for event in town.buyer.events if isinstance(event, JobFinished | JobFailed)]
    assert isinstance(last, JobFinished)


def test_ordinary_deadlines_are_taken_however_often_shorter_ones_were_missed() -> None:
    town = Town()
    town.seller.worker = Worker(silent_from=0)
    for number in range(8):
        publish_anew(town)
        town.start(request(number + 1, first_output_ms=DurationMs(1_000 << number), patient=False))
        town.run()
        town.wait(600_000)
    town.seller.worker = Worker()
    publish_anew(town)
    town.start(request(90, first_output_ms=DurationMs(FIRST_OUTPUT_MS_MAX), stall_ms=DurationMs(STALL_MS_MAX)))
    town.run()
    assert town.buyer.told(JobFinished)


def test_work_that_goes_well_makes_short_deadlines_possible_again() -> None:
    kept = KeptDeadlines()
    kept.first_output_missed(MODEL, 4_000)
    kept.chunk_missed(MODEL, 10, 1_000)
    assert (kept.first_output_ms(MODEL), kept.stall_ms(MODEL, 10), kept.stall_ms(MODEL, 5)) == (8_000, 2_000, 1_000)
    for _ in range(20):
        kept.first_output_took(MODEL, 100)
        kept.chunk_took(MODEL, 10, 0)
    assert kept.first_output_ms(MODEL) <= 230
    assert kept.stall_ms(MODEL, 10) <= 10


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**40), st.integers(0, 256)), max_size=40))
def test_whatever_it_learns_it_never_asks_for_more_than_ordinary_time(seen: list[tuple[int, int, int]]) -> None:
    kept = KeptDeadlines()
    for what, ms, units in seen:
        match what:
            case 0:
                kept.first_output_took(MODEL, ms)
            case 1:
                kept.chunk_took(MODEL, units, ms)
            case 2:
                kept.first_output_missed(MODEL, ms)
            case _:
                kept.chunk_missed(MODEL, max(1, units), ms)
        assert 0 <= kept.first_output_ms(MODEL) <= FIRST_OUTPUT_MS_MAX
        assert all(0 <= kept.stall_ms(MODEL, size) <= STALL_MS_MAX for size in (1, 32, 256))


def test_the_models_that_are_remembered_are_bounded() -> None:
    kept = KeptDeadlines()
    for number in range(MODELS_MAX + 1):
        kept.first_output_missed(ModelId(number.to_bytes(32, "big")), 1_000)
    assert kept.first_output_ms(ModelId(bytes(32))) == 0
    assert kept.first_output_ms(ModelId(MODELS_MAX.to_bytes(32, "big"))) == 2_000
