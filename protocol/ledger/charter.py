"""The rows of governance: what the network has agreed on, what is being voted on, who sat when, and who signed twice.

Law: what exists once is a field of ``Charter`` and a row of its own; a motion and a proof of double signing have a row
each. All of it is bounded, however many years pass, except one small row for each key that ever signed twice.
"""

from enum import IntEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from protocol.ledger.rows import ISSUED_KEY, META_PREFIX, PARAMETERS_KEY, Sum
from protocol.messages.genesis import Genesis, Parameters
from protocol.messages.governance import MotionNumber, MotionNumberField, Subject
from protocol.primitives.codec import Message, decode, encode
from protocol.primitives.limits import AUTHORITIES_MAX, TEXT_BYTES_MAX
from protocol.primitives.units import (
    AccountId,
    AccountIdField,
    Amount,
    AmountField,
    AuthorityId,
    AuthorityIdField,
    Height,
    HeightField,
    LedgerTimeField,
    LedgerTimeMs,
    ViewField,
)

MOTION_PREFIX = b"g"
EVIDENCE_PREFIX = b"e"
MINTING_KEY = META_PREFIX + b"minting"
AGENDA_KEY = META_PREFIX + b"agenda"
EPOCH_KEY = META_PREFIX + b"epoch"
SEATS_KEY = META_PREFIX + b"seats"
MARKS_KEY = META_PREFIX + b"marks"
VERSIONS_KEY = META_PREFIX + b"versions"

GENESIS_VERSION = 1
"""Version of the rules that a ledger starts with; later ones are voted."""
SUPPORTED_VERSIONS = (1,)
"""Versions whose rules this software knows."""

OUTCOMES_MAX = 64
"""Concluded motions that the state still tells of; blocks tell of all."""
FORMER_SEATS_MAX = 2 * AUTHORITIES_MAX
"""Members who left and can still be accused; the evidence window ends for most of them first."""


class Elector(Message, frozen=True):
    """An authority that may vote on a motion, and the account that votes for it."""

    authority: AuthorityIdField
    account: AccountIdField


class CastVote(Message, frozen=True):
    """One authority's vote."""

    authority: AuthorityIdField
    approve: bool


class MotionStatus(IntEnum):
    """Where a motion stands. OPEN and PASSED are on the agenda, the others are outcomes."""

    OPEN = 1
    PASSED = 2
    DONE = 3
    REJECTED = 4
    EXPIRED = 5
    FAILED = 6


class Motion(Message, frozen=True):
    """Something put to vote, with its electorate as it was when it was opened."""

    number: MotionNumberField
    opener: AccountIdField
    subject: Subject
    opened_height: HeightField
    opened_at: LedgerTimeField
    status: MotionStatus
    due_at: LedgerTimeField
    """Ledger time at which an open motion expires, and a passed one takes effect."""
    seats: Annotated[int, Meta(ge=1, le=AUTHORITIES_MAX)]
    """Members of the set when it was opened; those suspended among them have no vote."""
    needed: Annotated[int, Meta(ge=1, le=AUTHORITIES_MAX)]
    """Approvals that pass it."""
    electorate: Annotated[tuple[Elector, ...], Meta(max_length=AUTHORITIES_MAX)]
    votes: Annotated[tuple[CastVote, ...], Meta(max_length=AUTHORITIES_MAX)] = ()
    """In the order in which they came."""
    concluded_height: HeightField | None = None
    outcome: Annotated[str, Meta(max_length=TEXT_BYTES_MAX)] = ""
    """Why it failed; empty otherwise."""

    @property
    def approvals(self) -> int:
        """Votes for it."""
        return sum(vote.approve for vote in self.votes)

    @property
    def rejections(self) -> int:
        """Votes against it."""
        return len(self.votes) - self.approvals

    @property
    def on_agenda(self) -> bool:
        """True while it can still have an effect."""
        return self.status in (MotionStatus.OPEN, MotionStatus.PASSED)


class Evidence(Message, frozen=True):
    """A key was proved to have signed twice; it never decides again."""

    height: HeightField
    view: ViewField
    reporter: AccountIdField
    reported_height: HeightField
    forfeited: AmountField
    """What its account's bond held then."""


class DueMotion(Message, frozen=True):
    """A motion on the agenda and the ledger time at which something happens to it."""

    due_at: LedgerTimeField
    number: MotionNumberField


class Agenda(Message, frozen=True):
    """Motions that can still have an effect, the next due first, and the last outcomes, oldest first."""

    next_number: MotionNumberField = MotionNumber(1)
    due: tuple[DueMotion, ...] = ()
    outcomes: Annotated[tuple[MotionNumberField, ...], Meta(max_length=OUTCOMES_MAX)] = ()

    def with_due(self, due_at: LedgerTimeMs, number: MotionNumber) -> "Agenda":
        """The agenda with one motion at this time, wherever it stood before."""
        others = [entry for entry in self.due if entry.number != number]
        due = sorted([*others, DueMotion(due_at, number)], key=lambda entry: (entry.due_at, entry.number))
        return Agenda(self.next_number, tuple(due), self.outcomes)


class SignerCount(Message, frozen=True):
    """How many blocks of the epoch an authority signed, and the account that is paid for it."""

    authority: AuthorityIdField
    account: AccountIdField
    blocks: Annotated[int, Meta(ge=1, le=2**48)]


class Epoch(Message, frozen=True):
    """Who signed which share of the blocks since the fee pool was last paid out."""

    first_height: HeightField = Height(1)
    signers: tuple[SignerCount, ...] = ()
    """In rising order of authority keys."""


class Seat(Message, frozen=True):
    """A key decides the heights ``since`` to ``until``; ``None`` while it is a member."""

    authority: AuthorityIdField
    account: AccountIdField
    since: HeightField
    until: HeightField | None = None


class Seats(Message, frozen=True):
    """Seats of members, and of those who left so lately that they can still be accused."""

    seats: tuple[Seat, ...] = ()

    def at(self, authority: AuthorityId, height: Height) -> Seat | None:
        """The seat from which a key decided a height, or ``None``."""
        for seat in self.seats:
            if seat.authority == authority and seat.since <= height and (seat.until is None or height <= seat.until):
                return seat
        return None


class Mark(Message, frozen=True):
    """The ledger time of a height."""

    height: HeightField
    at: LedgerTimeField


class Marks(Message, frozen=True):
    """Some heights with their ledger times, rising: enough to tell how old a height is, give or take a little."""

    marks: tuple[Mark, ...] = ()


class ComingVersion(Message, frozen=True):
    """A voted version and the first height that follows its rules."""

    version: Annotated[int, Meta(ge=1, le=2**16)]
    height: HeightField


class Versions(Message, frozen=True):
    """The version of the rules at the tip, and the one that is decided to come."""

    current: Annotated[int, Meta(ge=1, le=2**16)] = GENESIS_VERSION
    coming: ComingVersion | None = None

    def at(self, height: int) -> int:
        """The version whose rules a height above the tip follows."""
        return self.coming.version if self.coming is not None and height >= self.coming.height else self.current


def unsupported_version(versions: Versions, height: int) -> int | None:
    """The version that a height above the tip follows if this software does not know its rules, else ``None``."""
    version = versions.at(height)
    return None if version in SUPPORTED_VERSIONS else version


class Minting(Message, frozen=True):
    """What votes have issued and redeemed since genesis, and what the present period has used of its cap."""

    issued: AmountField = Amount(0)
    redeemed: AmountField = Amount(0)
    period_started_at: LedgerTimeField = LedgerTimeMs(0)
    period_issued: AmountField = Amount(0)


class Charter(msgspec.Struct, frozen=True):
    """Everything of governance that exists once."""

    parameters: Parameters
    issued: Sum
    """All credits that there are, in base units: by genesis and by votes, less what votes have redeemed."""
    minting: Minting
    agenda: Agenda
    epoch: Epoch
    seats: Seats
    marks: Marks
    versions: Versions


_FIELDS: dict[bytes, tuple[str, type[Message]]] = {
    PARAMETERS_KEY: ("parameters", Parameters),
    ISSUED_KEY: ("issued", Sum),
    MINTING_KEY: ("minting", Minting),
    AGENDA_KEY: ("agenda", Agenda),
    EPOCH_KEY: ("epoch", Epoch),
    SEATS_KEY: ("seats", Seats),
    MARKS_KEY: ("marks", Marks),
    VERSIONS_KEY: ("versions", Versions),
}
CHARTER_KEYS = tuple(_FIELDS)


def genesis_charter(genesis: Genesis, issued: Amount) -> Charter:
    """What a network has agreed on before its first block."""
    records = sorted(genesis.authorities, key=lambda record: record.authority)
    return Charter(
        parameters=genesis.parameters,
        issued=Sum(issued),
        minting=Minting(),
        agenda=Agenda(),
        epoch=Epoch(),
        seats=Seats(tuple(Seat(record.authority, record.account, Height(1)) for record in records)),
        marks=Marks((Mark(Height(0), LedgerTimeMs(0)),)),
        versions=Versions(),
    )


def charter_rows(charter: Charter) -> tuple[tuple[bytes, bytes], ...]:
    """Key and value of every row of the charter."""
    return tuple((key, encode(getattr(charter, name))) for key, (name, _) in _FIELDS.items())


def charter_with_row(charter: Charter, key: bytes, value: bytes) -> Charter:
    """The charter with one stored row. Raises ``MalformedMessage``, and ``KeyError`` on a key outside of it."""
    name, kind = _FIELDS[key]
    return msgspec.structs.replace(charter, **{name: decode(value, kind)})


def changed_charter_rows(before: Charter, after: Charter) -> list[tuple[bytes, bytes, bytes]]:
    """Rows of fields that were replaced: key, value before, value after."""
    if before is after:
        return []
    pairs = ((key, getattr(before, name), getattr(after, name)) for key, (name, _) in _FIELDS.items())
    return [(key, encode(old), encode(new)) for key, old, new in pairs if old is not new]


def motion_row(number: MotionNumber, motion: Motion | None) -> tuple[bytes, bytes | None]:
    """Key and value; the value is ``None`` for a motion that is forgotten."""
    return MOTION_PREFIX + number.to_bytes(8, "big"), None if motion is None else encode(motion)


def evidence_row(authority: AuthorityId, evidence: Evidence | None) -> tuple[bytes, bytes | None]:
    """Key and value; the value is ``None`` for a key against which nothing is known."""
    return EVIDENCE_PREFIX + authority, None if evidence is None else encode(evidence)


def evidence_key_of(row_key: bytes) -> AuthorityId:
    """Inverse of ``evidence_row``'s key."""
    return AuthorityId(row_key[len(EVIDENCE_PREFIX) :])


def elector_account(electorate: tuple[Elector, ...], authority: AuthorityId) -> AccountId | None:
    """The account that votes for an authority in this electorate, or ``None``."""
    return next((elector.account for elector in electorate if elector.authority == authority), None)
