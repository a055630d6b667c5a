"""How much of a reported failure counts against a provider: what ledger and market judge alike.

Law: who takes from a standing has paid into it. A buyer's reports of one provider count, all together, at most the part
``BACKED_SHARE`` of what that provider has redeemed from it; a report that is not backed yet counts once later payments
back it. Reports of strangers count too, but all of them together never take more than ``STRANGERS_SHARE`` says. All of
it fades alike. What a deadline is worth that nobody could keep is so bounded by money that was really paid for work.
"""

from typing import NamedTuple

from protocol.primitives.units import AMOUNT_MAX, CREDIT, Amount
from protocol.settlement.fading import faded

PRIOR_VOLUME = Amount(CREDIT // 20)
"""Settled volume that everybody is credited with when failures are weighed, so that the first one ruins nobody."""

FAILED_VOLUME_MIN = Amount(1_000)
"""What a failed job weighs at least, so that failures of free work are seen; a stranger's report weighs no more."""

BACKED_SHARE = 4
"""Failures of a quarter of what a buyer paid for: beyond it a report of the same buyer says nothing new."""

STRANGERS_SHARE = 50
"""Strangers' reports count while all failures are below this part of what was settled: a tenth of a score at most."""


class Blame(NamedTuple):
    """What counts now, in base units, and the ``backing`` that is left: below zero what still waits for backing."""

    counted: Amount
    backing: int


def blamed(stake: Amount, backing: int, settled: int, failed: int) -> Blame:
    """A failure of a job that could have cost ``stake`` is reported.

    ``backing`` is the reporter's with this provider; ``settled`` and ``failed`` are the provider's recent volumes.
    """
    backed = min(stake, max(0, backing))
    room = (PRIOR_VOLUME + settled) // STRANGERS_SHARE - failed
    counted = max(backed, min(stake, FAILED_VOLUME_MIN, max(0, room)))
    # What counted without backing is not claimed from later payments again.
    return Blame(Amount(counted), _bounded(backing - stake + counted - backed))


def backed(paid: Amount, backing: int) -> Blame:
    """The reporter has paid the provider: reports that waited count as far as this backs them."""
    gained = paid // BACKED_SHARE
    return Blame(Amount(min(gained, max(0, -backing))), _bounded(backing + gained))


def faded_backing(backing: int, elapsed_ms: int) -> int:
    """What is left of it, of either sign, after so much ledger time."""
    return faded(backing, elapsed_ms) if backing >= 0 else -faded(-backing, elapsed_ms)


def _bounded(backing: int) -> int:
    return max(-AMOUNT_MAX, min(backing, AMOUNT_MAX))
