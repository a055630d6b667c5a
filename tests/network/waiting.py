"""Waiting for what a real network does in its own time."""

import time
from collections.abc import Callable

POLL_SECONDS = 0.05


def seconds_until(holds: Callable[[], bool], within: float, what: str) -> float:
    """How long it took until the condition held. Raises ``AssertionError`` naming it when the time is over."""
    begun = time.monotonic()
    while not holds():
        waited = time.monotonic() - begun
        assert waited < within, f"{what}: not within {within:.0f} s"
        time.sleep(POLL_SECONDS)
    return time.monotonic() - begun


def stays(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """The condition holds for so long without a break."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert holds(), what
        time.sleep(POLL_SECONDS)
