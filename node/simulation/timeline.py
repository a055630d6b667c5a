"""Virtual time: a queue of things that happen at a millisecond, first come first served within it."""

import heapq
from collections.abc import Callable


class Timeline:
    """Virtual milliseconds since the start of the simulation."""

    def __init__(self) -> None:
        self.now_ms = 0
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0

    def at(self, time_ms: int, action: Callable[[], None]) -> None:
        """Run the action at this time, or at once if that has passed."""
        self._sequence += 1
        heapq.heappush(self._queue, (max(time_ms, self.now_ms), self._sequence, action))

    def after(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Run the action after a delay."""
        self.at(self.now_ms + delay_ms, action)

    def run_until(self, time_ms: int, stop: Callable[[], bool] = lambda: False) -> bool:
        """Let happen what is due up to this time; stops early, and returns True, once ``stop`` holds."""
        while self._queue and self._queue[0][0] <= time_ms:
            if stop():
                return True
            self.now_ms, _, action = heapq.heappop(self._queue)
            action()
        self.now_ms = max(self.now_ms, time_ms)
        return stop()
