"""Token buckets: never more than burst plus rate times time, whatever the order of calls."""

from hypothesis import given
from hypothesis import strategies as st

from protocol.gossip.policy import Rate
from protocol.gossip.token_bucket import TokenBucket
from protocol.primitives.units import MonotonicMs

STEPS = st.lists(st.tuples(st.integers(-100, 5_000), st.integers(0, 50)), max_size=60)


@given(per_second=st.integers(1, 1_000), burst=st.integers(1, 100), steps=STEPS)
def test_taken_tokens_stay_below_burst_plus_rate_times_time(
    per_second: int, burst: int, steps: list[tuple[int, int]]
) -> None:
    rate = Rate(per_second, burst)
    bucket = TokenBucket.full(rate, MonotonicMs(0))
    now = latest = taken = 0
    for elapsed, tokens in steps:
        now += elapsed
        latest = max(latest, now)
        if bucket.take(rate, MonotonicMs(now), tokens):
            taken += tokens
    assert taken * 1000 <= burst * 1000 + latest * per_second


def test_debt_is_paid_back_before_anything_is_available() -> None:
    rate = Rate(10, 10)
    bucket = TokenBucket.full(rate, MonotonicMs(0))
    bucket.charge(30)
    assert bucket.available(rate, MonotonicMs(2_000)) == 0
    assert bucket.available(rate, MonotonicMs(2_100)) == 1
