"""How the past loses weight: what ledger and market count alike when they look back.

Law: pure integers of ledger time, so that every node gets the same number. A weight halves every ``HALF_LIFE_MS``,
straight in between, and never grows; fading in two steps gives at most what fading in one gives plus rounding.
"""

from protocol.primitives.units import Amount

HALF_LIFE_MS = 30 * 24 * 3_600_000
"""Thirty days of ledger time: what somebody did two months ago counts a quarter."""


def faded(amount: int, elapsed_ms: int) -> Amount:
    """What is left of ``amount`` after so much ledger time; all of it if no time has passed."""
    halvings, rest_ms = divmod(max(0, elapsed_ms), HALF_LIFE_MS)
    if halvings >= amount.bit_length():
        return Amount(0)
    halved = amount >> halvings
    return Amount(halved - halved * rest_ms // (2 * HALF_LIFE_MS))
