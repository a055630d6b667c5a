"""What the ledger knows of an account's past dealings, and one number made of it.

Law: only facts that a decided block holds: vouchers that were redeemed, and failures that both parties have signed.
Integers alone, so that every node reckons the same score from the same record. Everything fades with ledger time.

What a score is worth: jobs are what two parties say, so they are shown and never counted. Volume costs the redeem fee,
and what one counterparty adds is capped: who trades with itself pays, for each invented counterparty, a channel and a
redeem, and again after each half-life. With the fees of a new network's genesis (0.1 % of what is redeemed) the
cheapest way to 100 points above a newcomer's costs 0.07 credits, to 250 points 0.4, to all 500 points 1.6, a month
after the first settlement; at first half of that is to be had for the same.

What a failure costs its provider is bounded by what the buyer who reports it has paid it (``settlement.blame``): to
take a tenth of an honest provider's score, buyers have to pay it a tenth of all that it settled lately, for work; to
take a quarter, more than a third; no report takes more than five ninths, and strangers' together no more than a tenth.

A newcomer starts in the middle; whoever starts anew after failures gives up what it had earned and pays a bond. So that
newcomers get work at all, a small share of choices prefers them.
"""

from enum import IntEnum
from math import isqrt

from msgspec import Struct

from protocol.primitives.units import CREDIT, AccountId, Amount, Hash, LedgerTimeMs
from protocol.settlement.blame import PRIOR_VOLUME
from protocol.settlement.fading import faded

SCORE_MAX = 1000
NEWCOMER_SCORE_MILLI = 500
"""Of an account that the ledger knows nothing of: failures can take it down, settled work can take it up."""

EXPLORATION_PERMILLE = 50
"""So many of a thousand choices put newcomers first: enough to be noticed, too few to live on by starting anew."""

COUNTERPARTY_VOLUME_FULL = Amount(100 * CREDIT)
"""Recent volume from which on one counterparty adds no more; below it, it adds by the square root."""
COUNTERPARTIES_FULL = 16
"""So many counterparties of full volume make full experience; only the best ones are counted."""
AGE_FULL_MS = 30 * 24 * 3_600_000
"""Ledger time since the first settlement after which all of the experience counts; at first half of it does."""

FAILURE_WEIGHT = 5
"""A failure weighs as much as five settled jobs of its size: one job in ten failing costs a third of the score."""

NEWCOMER_EXPERIENCE_MILLI = 100
NEWCOMER_RELIABILITY_MILLI = 900
"""A newcomer has little experience and has hardly failed: who fails is not explored again and again."""


class Side(IntEnum):
    """In which role an account is looked at."""

    PROVIDER = 1
    BUYER = 2


class Dealing(Struct, frozen=True):
    """What an account settled with one counterparty: ``volume`` in base units as it had faded by ``settled_at``."""

    counterparty: AccountId
    volume: Amount
    settled_at: LedgerTimeMs


class SideRecord(Struct, frozen=True):
    """Ledger facts of one account in one role. All zeros: it has settled nothing and nothing was reported."""

    jobs: int = 0
    """Receipts that its redeemed vouchers anchored: what both parties say, at no cost, so never a part of a score."""
    volume: Amount = Amount(0)
    """All that was ever redeemed, base units."""
    recent_volume: Amount = Amount(0)
    """The same, faded by ``last_at``."""
    first_at: LedgerTimeMs = LedgerTimeMs(0)
    last_at: LedgerTimeMs = LedgerTimeMs(0)
    """Ledger time of the first and the last settlement or report."""
    dealings: tuple[Dealing, ...] = ()
    """The counterparties of most recent volume, as many as the ledger keeps."""
    failures: int = 0
    """Jobs whose failure by the provider's own fault both parties signed: suffered, if the account is the buyer."""
    failed_volume: Amount = Amount(0)
    """What those jobs could have cost, as far as it counts, faded by ``failed_at``."""
    failed_at: LedgerTimeMs = LedgerTimeMs(0)


NOTHING_KNOWN = SideRecord()


class TrackRecord(Struct, frozen=True):
    """Ledger facts of one account in both roles."""

    account: AccountId
    as_provider: SideRecord = NOTHING_KNOWN
    as_buyer: SideRecord = NOTHING_KNOWN

    def on(self, side: Side) -> SideRecord:
        """The facts of one role."""
        return self.as_provider if side is Side.PROVIDER else self.as_buyer


class Score(Struct, frozen=True):
    """How a score came about, all in thousandths: ``total = (neutral + earned) · reliability``."""

    experience: int
    """Recent volume, capped for each counterparty."""
    maturity: int
    """How much of the experience counts, by age: 500 to 1000."""
    earned: int
    """0 to 500."""
    reliability: int
    """Settled against settled and failed; 1000 without failures."""
    total: int


def score(record: SideRecord, now_ledger_ms: LedgerTimeMs) -> Score:
    """The score of one role with its parts."""
    volumes = sorted((_counted(dealing, now_ledger_ms) for dealing in record.dealings), reverse=True)
    roots = [isqrt(volume * SCORE_MAX**2 // COUNTERPARTY_VOLUME_FULL) for volume in volumes[:COUNTERPARTIES_FULL]]
    experience = sum(roots) // COUNTERPARTIES_FULL
    age_ms = min(max(0, now_ledger_ms - record.first_at), AGE_FULL_MS)
    maturity = SCORE_MAX // 2 + SCORE_MAX // 2 * age_ms // AGE_FULL_MS
    earned = experience * maturity * (SCORE_MAX - NEWCOMER_SCORE_MILLI) // SCORE_MAX**2
    settled = PRIOR_VOLUME + faded(record.recent_volume, now_ledger_ms - record.last_at)
    failed = FAILURE_WEIGHT * faded(record.failed_volume, now_ledger_ms - record.failed_at)
    reliability = SCORE_MAX * settled // (settled + failed)
    return Score(experience, maturity, earned, reliability, (NEWCOMER_SCORE_MILLI + earned) * reliability // SCORE_MAX)


def _counted(dealing: Dealing, now_ledger_ms: LedgerTimeMs) -> int:
    return min(faded(dealing.volume, now_ledger_ms - dealing.settled_at), COUNTERPARTY_VOLUME_FULL)


def score_milli(record: TrackRecord, now_ledger_ms: LedgerTimeMs, side: Side = Side.PROVIDER) -> int:
    """0 to 1000, higher is better; ``NEWCOMER_SCORE_MILLI`` for an account that nothing is known of."""
    return score(record.on(side), now_ledger_ms).total


def is_newcomer(record: TrackRecord, now_ledger_ms: LedgerTimeMs, side: Side = Side.PROVIDER) -> bool:
    """True for an account with little experience that has hardly failed."""
    judged = score(record.on(side), now_ledger_ms)
    return judged.experience < NEWCOMER_EXPERIENCE_MILLI and judged.reliability >= NEWCOMER_RELIABILITY_MILLI


def explores(unique: Hash) -> bool:
    """True for the share of choices that puts newcomers first; ``unique`` are the wish's own random bytes."""
    return int.from_bytes(unique[-8:], "big") % 1000 < EXPLORATION_PERMILLE


def ranking_score_milli(record: TrackRecord, now_ledger_ms: LedgerTimeMs, unique: Hash) -> int:
    """A provider's score for one choice: ``score_milli``, but the best there is for a newcomer if this one explores."""
    if explores(unique) and is_newcomer(record, now_ledger_ms):
        return SCORE_MAX
    return score_milli(record, now_ledger_ms)
