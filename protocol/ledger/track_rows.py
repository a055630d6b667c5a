"""The rows of track records: what an account has settled as provider and as buyer, and which failures were reported.

Law: a row is bounded, however long somebody trades: totals, the counterparties of most recent volume, the reports of
late. It holds facts of decided blocks alone and no credits. Whoever settled nothing has no row; each row was paid for
by a redeem fee or the fee of a report.
"""

from enum import IntEnum
from typing import Annotated, NewType

from msgspec import Meta

from protocol.primitives.codec import Message, encode
from protocol.primitives.units import (
    AMOUNT_MAX,
    AccountId,
    AccountIdField,
    Amount,
    AmountField,
    LedgerTimeField,
    LedgerTimeMs,
    MessageIdField,
    TimestampField,
    TimestampMs,
)

TRACK_PREFIX = b"t"

DEALINGS_MAX = 32
"""Counterparties that a row tells apart: twice as many as make full experience, at most 2 KB."""
REPORTED_MAX = 16
"""Reports that a buyer may file out of the order in which it agreed the jobs."""

TrackId = NewType("TrackId", bytes)
"""A role's byte and an account."""

Total = Annotated[int, Meta(ge=0, le=AMOUNT_MAX)]
"""A total that stops at its most: credits that go round can take it past all credits there are."""


class Role(IntEnum):
    """In which role an account deals; the byte in its row's key."""

    BUYER = ord("b")
    PROVIDER = ord("p")


class Dealing(Message, frozen=True):
    """What was settled with one counterparty, as it had faded by ``settled_at``, when it last changed."""

    counterparty: AccountIdField
    volume: AmountField
    settled_at: LedgerTimeField
    backing: Annotated[int, Meta(ge=-AMOUNT_MAX, le=AMOUNT_MAX)] = 0
    """In a buyer's row: what its further reports of this provider may count, faded alike; below zero what its reports
    claim that no payment backs yet. See ``settlement.blame``."""


class ReportedJob(Message, frozen=True):
    """A job whose failure its buyer has reported."""

    created_at: TimestampField
    """The agreement's."""
    job: MessageIdField


class Track(Message, frozen=True):
    """One account's record in one role."""

    jobs: Total
    """Receipts anchored by the vouchers that were redeemed."""
    volume: Total
    """Base units redeemed."""
    recent_volume: AmountField
    """The same, as it had faded by ``last_at``."""
    first_at: LedgerTimeField
    last_at: LedgerTimeField
    """Ledger times of the first and the last settlement or report."""
    dealings: Annotated[tuple[Dealing, ...], Meta(max_length=DEALINGS_MAX)]
    """In the order of the counterparties' ids."""
    failures: Total
    """Jobs that failed by the provider's own fault, as both parties signed: its own, or what the buyer suffered."""
    failed_volume: AmountField
    """What they could have cost, as far as it counts, as it had faded by ``failed_at``."""
    failed_at: LedgerTimeField
    reported: Annotated[tuple[ReportedJob, ...], Meta(max_length=REPORTED_MAX)]
    """A buyer's latest reports, in the order of their jobs; empty for a provider."""
    reported_before: TimestampField
    """A buyer can't report jobs agreed at or before this any more: which of them it has reported is forgotten."""


NO_TRACK = Track(
    jobs=0,
    volume=0,
    recent_volume=Amount(0),
    first_at=LedgerTimeMs(0),
    last_at=LedgerTimeMs(0),
    dealings=(),
    failures=0,
    failed_volume=Amount(0),
    failed_at=LedgerTimeMs(0),
    reported=(),
    reported_before=TimestampMs(0),
)


def track_id(role: Role, account: AccountId) -> TrackId:
    """The identity of a row: what follows the prefix in its key."""
    return TrackId(bytes((role,)) + account)


def track_row(identity: TrackId, track: Track) -> tuple[bytes, bytes | None]:
    """Key and value; the value is ``None`` for a record that says nothing."""
    return TRACK_PREFIX + identity, None if track == NO_TRACK else encode(track)
