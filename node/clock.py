"""The one real clock.

Law: nothing else in the daemon reads time; pure code is handed a ``Now``, so a simulation can hand it another.
"""

import time

from protocol.messages.effects import Now
from protocol.primitives.units import MonotonicMs, TimestampMs


def read_clock() -> Now:
    """This moment on the machine's monotonic and wall clocks."""
    return Now(MonotonicMs(time.monotonic_ns() // 1_000_000), TimestampMs(time.time_ns() // 1_000_000))
