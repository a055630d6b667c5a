"""Who failed ranks last for a while, twice as long each time, and want of room is no failure."""

from protocol.market.backoff import PROVIDERS_MAX, Backoff
from protocol.market.policies import BuyerPolicy
from protocol.messages.effects import Now
from protocol.primitives.units import AccountId, DurationMs, MonotonicMs, TimestampMs

POLICY = BuyerPolicy(demoted_ms=DurationMs(100), demoted_ms_max=DurationMs(1_000), full_ms=DurationMs(50))
PROVIDER = AccountId(b"p" * 32)


def at(ms: int) -> Now:
    return Now(MonotonicMs(ms), TimestampMs(ms))


def lasts(backoff: Backoff, since: int) -> int:
    """For how many milliseconds the provider is demoted from ``since`` on."""
    return next(ms for ms in range(100_000) if backoff.demoted(at(since + ms)) == ())


def test_each_failure_in_a_row_doubles_the_time_up_to_the_cap() -> None:
    backoff, now, seen = Backoff(POLICY), 0, []
    for _ in range(7):
        backoff.failed(PROVIDER, at(now))
        seen.append(lasts(backoff, now))
        now += seen[-1]
    assert seen == [100, 200, 400, 800, 1_000, 1_000, 1_000]


def test_a_good_job_or_a_long_good_while_ends_the_row() -> None:
    backoff = Backoff(POLICY)
    for now in (0, 1):
        backoff.failed(PROVIDER, at(now))
    assert lasts(backoff, 1) == 200
    backoff.succeeded(PROVIDER)
    assert backoff.demoted(at(2)) == ()
    backoff.failed(PROVIDER, at(3))
    assert lasts(backoff, 3) == 100
    backoff.failed(PROVIDER, at(4))
    backoff.failed(PROVIDER, at(4 + 200 + 1_000))
    assert lasts(backoff, 1_204) == 100


def test_want_of_room_costs_a_moment_and_never_more() -> None:
    backoff = Backoff(POLICY)
    for now in range(10):
        backoff.full(PROVIDER, at(now))
    assert backoff.crowded(at(58)) == (PROVIDER,)
    assert backoff.crowded(at(59)) == ()
    assert backoff.demoted(at(10)) == ()


def test_dropped_claims_come_half_as_often_each_time_and_good_jobs_make_up_for_them_one_by_one() -> None:
    backoff = Backoff(POLICY)
    assert backoff.forgive(PROVIDER, at(0))
    assert not backoff.forgive(PROVIDER, at(99))
    assert backoff.forgive(PROVIDER, at(100))
    assert not backoff.forgive(PROVIDER, at(299))
    assert backoff.forgive(PROVIDER, at(300))
    backoff.succeeded(PROVIDER)
    assert not backoff.forgive(PROVIDER, at(699)), "a good job shortens the next wait, not this one"
    assert backoff.forgive(PROVIDER, at(700))
    assert not backoff.forgive(PROVIDER, at(1_099))
    assert backoff.forgive(PROVIDER, at(1_100))


def test_memory_of_providers_is_bounded_and_keeps_the_worst() -> None:
    backoff = Backoff(POLICY)
    for _ in range(3):
        backoff.failed(PROVIDER, at(0))
    for number in range(2 * PROVIDERS_MAX):
        other = AccountId(number.to_bytes(32, "big"))
        backoff.failed(other, at(0))
        backoff.full(other, at(0))
        backoff.forgive(other, at(0))
    assert len(backoff.demoted(at(1))) == len(backoff.crowded(at(1))) == PROVIDERS_MAX
    assert PROVIDER in backoff.demoted(at(300))
