"""How many bytes a second may pass, for threads that move bulk bytes.

Law: a byte is paid for before it moves. Whoever takes waits in the thread that moves the bytes, never on the loop, and
is woken at once when its work is to stop.
"""

import threading

from node.clock import read_clock

_BURST_MS = 100
"""What was not used lately may be used at once, up to so much."""


class Throttle:
    """A token bucket that several threads share."""

    def __init__(self, bytes_per_second: int | None) -> None:
        """None: no limit."""
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._paid_until_us = 0

    def take(self, size: int, stop: threading.Event) -> None:
        """Wait until `size` bytes more may pass, or until `stop` is set."""
        if self._rate is None:
            return
        now_us = read_clock().monotonic_ms * 1000
        with self._lock:
            self._paid_until_us = max(self._paid_until_us, now_us - _BURST_MS * 1000) + size * 1_000_000 // self._rate
            wait_us = self._paid_until_us - now_us
        if wait_us > 0:
            stop.wait(wait_us / 1_000_000)
