"""Token buckets as data: integers, and time as an argument."""

import msgspec

from protocol.gossip.policy import Rate
from protocol.primitives.units import MonotonicMs

_PARTS = 1000
"""A token in thousandths: at ``per_second`` tokens a second, a millisecond adds ``per_second`` parts."""


class TokenBucket(msgspec.Struct):
    """What a peer may still use. ``parts`` may fall below zero for what could not be refused; it must be paid back."""

    parts: int
    updated: MonotonicMs

    @staticmethod
    def full(rate: Rate, now: MonotonicMs) -> "TokenBucket":
        """A bucket that has not been used."""
        return TokenBucket(rate.burst * _PARTS, now)

    def available(self, rate: Rate, now: MonotonicMs) -> int:
        """Whole tokens in the bucket now; refills it. A clock that stands still or steps back adds nothing."""
        elapsed = max(0, now - self.updated)
        self.parts = min(rate.burst * _PARTS, self.parts + elapsed * rate.per_second)
        self.updated = MonotonicMs(max(self.updated, now))
        return max(0, self.parts // _PARTS)

    def take(self, rate: Rate, now: MonotonicMs, tokens: int) -> bool:
        """Take ``tokens`` if they are there."""
        if self.available(rate, now) < tokens:
            return False
        self.parts -= tokens * _PARTS
        return True

    def give(self, rate: Rate, tokens: int) -> None:
        """Give tokens back, up to a full bucket."""
        self.parts = min(rate.burst * _PARTS, self.parts + tokens * _PARTS)

    def charge(self, tokens: int) -> None:
        """Take tokens for something that has happened already, into debt if need be."""
        self.parts -= tokens * _PARTS
