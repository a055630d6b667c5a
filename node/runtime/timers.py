"""Timers of the engine on the event loop's clock.

Law: one live timer for each key; setting it again replaces it. A timer never fires early by the engine's clock.

Nearly every timer is put off or cancelled before it is due, so neither costs more than an entry here: the loop has one
timer for all of them, set for the earliest.
"""

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from protocol.messages.effects import Now, TimerKey
from protocol.primitives.units import MonotonicMs

_STALE_MIN = 64
_STALE_SHARE = 4
"""Entries that nobody waits for any more are cleared out once there are so many times as many as others."""


class Timers:
    """Keyed timers that call ``fire(key)`` on the loop."""

    def __init__(self, clock: Callable[[], Now], fire: Callable[[TimerKey], None]) -> None:
        self._clock = clock
        self._fire = fire
        self._due: dict[TimerKey, MonotonicMs] = {}
        self._entries: list[tuple[MonotonicMs, int, TimerKey]] = []
        """A heap of what was set and when, in the order of setting where times are the same; some of it is stale."""
        self._count = 0
        self._wake: asyncio.TimerHandle | None = None
        self._wake_at = MonotonicMs(0)

    def set(self, key: TimerKey, at: MonotonicMs) -> None:
        """Arm or re-arm ``key`` for the moment ``at`` on the engine's monotonic clock."""
        if self._due.get(key) == at:
            return  # a second entry for it would count as well, and no clearing out would ever remove it
        self._due[key] = at
        self._count += 1
        heappush(self._entries, (at, self._count, key))
        if len(self._entries) > _STALE_MIN + _STALE_SHARE * len(self._due):
            self._entries = [entry for entry in self._entries if self._due.get(entry[2]) == entry[0]]
            heapify(self._entries)
        self._wake_by(at)

    def cancel(self, key: TimerKey) -> None:
        """Forget ``key``; unknown keys are fine."""
        self._due.pop(key, None)

    def cancel_all(self) -> None:
        """Forget every timer: the node stops."""
        self._due.clear()
        self._entries.clear()
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None

    def _wake_by(self, at: MonotonicMs) -> None:
        if self._wake is not None:
            if self._wake_at <= at:
                return
            self._wake.cancel()
        delay_s = max(0, at - self._clock().monotonic_ms) / 1000
        self._wake, self._wake_at = asyncio.get_running_loop().call_later(delay_s, self._look), at

    def _look(self) -> None:
        """Fire what is due. The loop's clock and ours tick apart by a rounding: what is not due yet waits on."""
        self._wake = None
        now = self._clock().monotonic_ms
        try:
            while (entry := self._next()) is not None and entry[0] <= now:
                heappop(self._entries)
                del self._due[entry[2]]
                self._fire(entry[2])
        finally:
            following = self._next()
            if following is not None:
                self._wake_by(following[0])

    def _next(self) -> tuple[MonotonicMs, int, TimerKey] | None:
        """The earliest entry that still counts; stale ones before it go."""
        while self._entries and self._due.get(self._entries[0][2]) != self._entries[0][0]:
            heappop(self._entries)
        return self._entries[0] if self._entries else None
