"""View timers and the timestamp rule."""

import pytest

from protocol.consensus.timing import delta_ms, is_timely
from protocol.primitives.units import DurationMs, TimestampMs, View

BASE, CAP, PRECISION = DurationMs(500), DurationMs(30_000), DurationMs(200)


@pytest.mark.parametrize(
    ("view", "expected"), [(1, 500), (2, 750), (3, 1125), (4, 1687), (11, 28832), (12, 30_000), (2**32, 30_000)]
)
def test_delta_grows_by_half_up_to_its_cap_for_any_view(view: int, expected: int) -> None:
    assert delta_ms(View(view), BASE, CAP) == expected


@pytest.mark.parametrize(
    ("age", "view", "timely"),
    [
        (0, 1, True),
        (-200, 1, True),
        (-201, 1, False),
        (1200, 1, True),
        (1201, 1, False),
        (1201, 2, True),
        (60_200, 2**32, True),
        (60_201, 2**32, False),
    ],
)
def test_a_timestamp_may_lie_within_precision_ahead_and_delay_behind(age: int, view: int, timely: bool) -> None:
    received = TimestampMs(1_000_000)
    assert is_timely(TimestampMs(received - age), received, View(view), BASE, CAP, PRECISION) is timely
