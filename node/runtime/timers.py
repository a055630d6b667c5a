"""Timers of the engine on the event loop's clock.

Law: one live timer for each key; setting it again replaces it. A timer never fires early by the engine's clock.
"""

import asyncio
from collections.abc import Callable

from protocol.messages.effects import Now, TimerKey
from protocol.primitives.units import MonotonicMs


class Timers:
    """Keyed timers that call ``fire(key)`` on the loop."""

    def __init__(self, clock: Callable[[], Now], fire: Callable[[TimerKey], None]) -> None:
        self._clock = clock
        self._fire = fire
        self._handles: dict[TimerKey, asyncio.TimerHandle] = {}

    def set(self, key: TimerKey, at: MonotonicMs) -> None:
        """Arm or re-arm ``key`` for the moment ``at`` on the engine's monotonic clock."""
        self.cancel(key)
        delay_s = max(0, at - self._clock().monotonic_ms) / 1000
        self._handles[key] = asyncio.get_running_loop().call_later(delay_s, self._expire, key, at)

    def cancel(self, key: TimerKey) -> None:
        """Forget ``key``; unknown keys are fine."""
        handle = self._handles.pop(key, None)
        if handle is not None:
            handle.cancel()

    def cancel_all(self) -> None:
        """Forget every timer: the node stops."""
        for handle in self._handles.values():
            handle.cancel()
        self._handles.clear()

    def _expire(self, key: TimerKey, at: MonotonicMs) -> None:
        # The loop's clock and ours tick apart by a rounding; firing early would make the engine set it again at once.
        if self._clock().monotonic_ms < at:
            self.set(key, at)
            return
        del self._handles[key]
        self._fire(key)
