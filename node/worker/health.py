"""How often a model's worker has crashed, and what follows: a pause before it is started again, or quarantine.

Law: pure; times are seconds of one clock that never goes back. A worker that ended because a job was not given up, or
because we ended it, has not crashed. The first crash costs no pause; each further one in the window twice the last.
So many in one window and the model is quarantined: it is not offered and not started until the time is over; each
quarantine that follows within a window of the last is twice as long.
"""

from collections import deque
from dataclasses import dataclass

from node.worker.errors import DeathReason

CRASHES: tuple[DeathReason, ...] = (
    "start", "crashed", "memory", "time", "output_cap", "malformed_frame", "stalled",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """When a crash is one too many. Times in seconds."""

    crashes_max: int = 4  # in one window; the fourth crash quarantines
    window_s: float = 300.0
    pause_s: float = 0.5  # before the second restart
    pause_max_s: float = 30.0
    quarantine_s: float = 300.0
    quarantine_max_s: float = 3600.0


DEFAULT_HEALTH = HealthLimits()


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Why a model is not served, and until when."""

    until: float
    reason: str


class Health:
    """The history of one model's workers."""

    def __init__(self, limits: HealthLimits) -> None:
        self._limits = limits
        self._crashes: deque[float] = deque(maxlen=limits.crashes_max)
        self._quarantines = 0
        self._released_at: float | None = None
        self._last: Quarantine | None = None

    def crashed(self, now: float, reason: str) -> Quarantine | None:
        """Note a crash. Returns the quarantine that it brings, if any."""
        limits = self._limits
        self._crashes.append(now)
        recent = [crash for crash in self._crashes if now - crash <= limits.window_s]
        if len(recent) < limits.crashes_max:
            return None
        if self._released_at is not None and now - self._released_at > limits.window_s:
            self._quarantines = 0
        length = min(limits.quarantine_s * 2**self._quarantines, limits.quarantine_max_s)
        self._quarantines += 1
        self._crashes.clear()
        self._released_at = now + length
        self._last = Quarantine(
            now + length, f"crashed {limits.crashes_max} times in {round(now - recent[0])} s, at last: {reason}"
        )
        return self._last

    def quarantine(self, now: float) -> Quarantine | None:
        """The quarantine that holds now."""
        return self._last if self._last is not None and now < self._last.until else None

    def pause_s(self, now: float) -> float:
        """How long to wait before the next start."""
        recent = sum(now - crash <= self._limits.window_s for crash in self._crashes)
        if recent <= 1:
            return 0.0
        return float(min(self._limits.pause_s * 2 ** (recent - 2), self._limits.pause_max_s))
