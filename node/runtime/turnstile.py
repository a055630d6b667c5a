"""How much work of no use each link may cause, and how links take turns.

Law: a message is paid for after it was handled, with its cost if it was of no use; if it was of use, it earns. A link
in debt is not read until it has paid: TCP makes the peer wait, and nothing of an honest peer is lost. Strangers that
have wasted our time lately share one purse besides their own, so that many of them cost no more than a few;
authorities have a larger one each. Whoever has used up its turn lets all others go first, so that a flood on one link
delays another's message by a turn, not by a flood.

Costs are µs of the loop's time: estimates for an idle core, and what was measured where that is more, so that the
shares hold on a slow or crowded machine too.
"""

import asyncio
from collections.abc import Callable

from protocol.gossip.policy import Rate
from protocol.gossip.token_bucket import TokenBucket
from protocol.primitives.units import MonotonicMs, NodeId

MESSAGE_US = 20
"""Decoding, dispatch, a look-up."""
SIGNATURE_US = 95
KIBIBYTE_US = 4
"""Decrypting, decoding, encoding again, hashing."""

SLOWNESS_MAX = 20

AUTHORITY = Rate(500_000, 1_000_000)
STRANGER = Rate(50_000, 100_000)
"""A twentieth of a core for each, and in the beginning a few hundred useless messages at once."""
STRANGERS = Rate(150_000, 300_000)
"""All of them together."""

CLEAN = Rate(2_000, 10_000)
"""A stranger that wastes no more than this does not wait for the others' debts. It refills slowly: who waits for the
common purse must not look innocent again by waiting."""

USEFUL_EARNS = 4
"""Work of use makes up for so much of none: a link that mostly helps never waits for the others' debts."""

TURN_US = 1_000
WAIT_SECONDS_MAX = 1.0
"""A link in debt is looked at again this often, whatever its debt."""


class _Purse:
    __slots__ = ("bucket", "clean", "rate", "turn_us")

    def __init__(self, rate: Rate, now: MonotonicMs) -> None:
        self.rate = rate
        self.bucket = TokenBucket.full(rate, now)
        self.clean = TokenBucket.full(CLEAN, now)
        """Not for what the peer asked for and was given."""
        self.turn_us = 0
        """Work since the link last let the others go first, of use or not."""

    def debt_seconds(self, now: MonotonicMs) -> float:
        """How long until the purse is out of debt."""
        self.bucket.available(self.rate, now)
        return max(0.0, -self.bucket.parts / 1000 / self.rate.per_second)

    def is_clean(self, now: MonotonicMs) -> bool:
        """True if hardly anything was wasted lately."""
        return self.clean.available(CLEAN, now) > 0

    def earn(self, cost_us: int) -> None:
        """Work was of use."""
        self.bucket.give(self.rate, USEFUL_EARNS * cost_us)
        self.clean.give(CLEAN, USEFUL_EARNS * cost_us)


class Turnstile:
    """Every link's reader goes through it before each message and pays behind it."""

    def __init__(self, is_authority: Callable[[NodeId], bool], clock: Callable[[], MonotonicMs]) -> None:
        self._is_authority = is_authority
        self._clock = clock
        self._purses: dict[NodeId, _Purse] = {}
        self._strangers = _Purse(STRANGERS, clock())

    def _purse(self, peer: NodeId) -> _Purse:
        rate = AUTHORITY if self._is_authority(peer) else STRANGER
        purse = self._purses.get(peer)
        if purse is None or purse.rate is not rate:
            purse = self._purses[peer] = _Purse(rate, self._clock())
        return purse

    def _entered(self, peer: NodeId) -> _Purse:
        """The purse with which a peer has entered."""
        return self._purses.get(peer) or self._purse(peer)

    def forget(self, peer: NodeId) -> None:
        """The link is gone. Its debt stays with the strangers' purse."""
        self._purses.pop(peer, None)

    async def enter(self, peer: NodeId) -> None:
        """Wait until the link's next message may be handled."""
        purse = self._purse(peer)
        if purse.turn_us >= TURN_US:
            purse.turn_us = 0
            await asyncio.sleep(0)
        # Debts only shrink with time: where there was none when last looked at, there is none.
        if purse.bucket.parts >= 0 and self._strangers.bucket.parts >= 0:
            return
        seconds = self._debt_seconds(purse)
        while seconds > 0:
            await asyncio.sleep(min(seconds, WAIT_SECONDS_MAX))
            seconds = self._debt_seconds(purse)

    def _debt_seconds(self, purse: _Purse) -> float:
        now = self._clock()
        own = purse.debt_seconds(now)
        if purse.rate is not STRANGER or purse.is_clean(now):
            return own
        return max(own, self._strangers.debt_seconds(now))

    def pay(self, peer: NodeId, cost_us: int, *, useful: bool) -> None:
        """A message was handled."""
        purse = self._entered(peer)
        purse.turn_us += cost_us
        if useful:
            purse.earn(cost_us)
            return
        purse.bucket.charge(cost_us)
        purse.clean.charge(cost_us)
        if purse.rate is STRANGER:
            self._strangers.bucket.charge(cost_us)

    def take_turn(self, peer: NodeId, cost_us: int) -> None:
        """A message was handled of which nobody can say what use it is."""
        self._entered(peer).turn_us += cost_us

    def pay_for_answer(self, peer: NodeId, cost_us: int) -> None:
        """The peer was given what it had asked for: its own purse pays, nobody's time was wasted."""
        self._purse(peer).bucket.charge(cost_us)


def cost_us(size: int, signatures: int) -> int:
    """What a message of so many bytes costs, with so many signatures that had to be checked."""
    return MESSAGE_US + SIGNATURE_US * signatures + KIBIBYTE_US * size // 1024


def measured_us(estimate_us: int, seconds: float) -> int:
    """What handling took, never less than estimated; a pause of the whole process is not held against one message."""
    return max(estimate_us, min(int(seconds * 1_000_000), SLOWNESS_MAX * estimate_us))
