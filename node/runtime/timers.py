"""Timers of the engine on the event loop's clock.

Law: one live timer for each key; setting it again replaces it. A timer never fires early by the engine's clock.

Nearly every timer is put off or cancelled before it is due: that costs a look-up, and the loop's own timer is left to
find out.
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
        self._due: dict[TimerKey, MonotonicMs] = {}
        self._armed: dict[TimerKey, tuple[MonotonicMs, asyncio.TimerHandle]] = {}
        """The loop's timer of a key, and when it looks: never later than the key is due."""

    def set(self, key: TimerKey, at: MonotonicMs) -> None:
        """Arm or re-arm ``key`` for the moment ``at`` on the engine's monotonic clock."""
        self._due[key] = at
        armed = self._armed.get(key)
        if armed is None or armed[0] > at:
            self._arm(key, at)

    def cancel(self, key: TimerKey) -> None:
        """Forget ``key``; unknown keys are fine."""
        self._due.pop(key, None)
        armed = self._armed.pop(key, None)
        if armed is not None:
            armed[1].cancel()

    def cancel_all(self) -> None:
        """Forget every timer: the node stops."""
        for key in tuple(self._armed):
            self.cancel(key)

    def _arm(self, key: TimerKey, at: MonotonicMs) -> None:
        armed = self._armed.get(key)
        if armed is not None:
            armed[1].cancel()
        delay_s = max(0, at - self._clock().monotonic_ms) / 1000
        self._armed[key] = at, asyncio.get_running_loop().call_later(delay_s, self._look, key)

    def _look(self, key: TimerKey) -> None:
        del self._armed[key]
        at = self._due[key]
        # It was put off, or the loop's clock and ours tick apart by a rounding.
        if self._clock().monotonic_ms < at:
            self._arm(key, at)
            return
        del self._due[key]
        self._fire(key)
