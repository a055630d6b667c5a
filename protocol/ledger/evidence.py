"""Proof that an authority key signed twice, and what follows from it.

Law: two signed statements of one key at one (height, view) and of one kind exclude each other, so together they prove a
broken rule to anybody, whoever brings them. A key is accused once. From then on it never counts again: it keeps its
seat in n, f and Q until it is replaced, but neither leads nor votes, and never comes back. The bond of its account is
lost to the fee pool, the part that was on its way out included; no part gets out while its seat can be accused.

What an honest authority can do: its sign guard makes two such statements impossible, so real ones come from a key that
runs twice.
"""

from typing import NamedTuple

from protocol.ledger.charter import Evidence, Seat
from protocol.ledger.epochs import latest_time_of
from protocol.ledger.errors import (
    AlreadyReported,
    EvidenceEarly,
    EvidenceExpired,
    NotAnAuthority,
    NotATransaction,
    NotEquivocation,
    SuspensionHalts,
    TransactionInvalid,
)
from protocol.ledger.rows import NO_BOND
from protocol.ledger.state import LedgerState
from protocol.ledger.view import Context, Overlay
from protocol.messages.consensus import FinalBody, ProposalBody, VoteBody
from protocol.messages.envelope import Envelope, open_envelope
from protocol.messages.genesis import Membership
from protocol.messages.quorum import AuthoritySet
from protocol.messages.transactions import EvidenceReport
from protocol.primitives.errors import MalformedMessage
from protocol.primitives.units import AccountId, Amount, AuthorityId, Height, View, checked_add


class Accusation(NamedTuple):
    """What two statements prove, once their signatures hold."""

    authority: AuthorityId
    height: Height
    view: View


def open_statement(received: bytes) -> tuple[Envelope, ProposalBody | VoteBody | FinalBody]:
    """A statement of consensus and its envelope; ``NotATransaction`` on anything else. Checks no signature."""
    try:
        envelope, body = open_envelope(received)
    except MalformedMessage as error:
        raise NotATransaction(reason=str(error)) from None
    if not isinstance(body, ProposalBody | VoteBody | FinalBody):
        raise NotATransaction(reason=f"evidence holds a {envelope.kind.name}")
    return envelope, body


def accusation(first: bytes, second: bytes) -> Accusation:
    """What two envelopes prove; ``NotEquivocation`` or ``NotATransaction`` if nothing. Checks no signature."""
    one, said = open_statement(first)
    other, also_said = open_statement(second)
    if one.sender != other.sender:
        raise NotEquivocation(reason="two keys signed")
    if one.kind is not other.kind:
        raise NotEquivocation(reason=f"a {one.kind.name} does not exclude a {other.kind.name}")
    if (said.height, said.view) != (also_said.height, also_said.view):
        raise NotEquivocation(reason="two heights or views")
    if said == also_said:
        raise NotEquivocation(reason="one statement twice")
    return Accusation(AuthorityId(one.sender), said.height, said.view)


def _judged(overlay: Overlay, context: Context, action: EvidenceReport) -> tuple[Accusation, Seat]:
    """Who is accused and the seat from which it signed. Raises ``TransactionInvalid``."""
    accused = accusation(action.first, action.second)
    # [evidence] once for each key
    if overlay.evidence(accused.authority) is not None:
        raise AlreadyReported(authority=accused.authority.hex())
    # [evidence] of a height that this block may have been decided at, by a member of that height's set
    if accused.height > context.height:
        raise EvidenceEarly(height=accused.height, now=context.height)
    seat = overlay.charter.seats.at(accused.authority, accused.height)
    if seat is None:
        raise NotAnAuthority(reason=f"{accused.authority.hex()} had no seat at height {accused.height}")
    # [evidence] not older than the window, which ends once both blocks and ledger time have passed
    if _window_over(overlay, context, accused.height):
        raise EvidenceExpired(height=accused.height, now=context.height)
    return accused, seat


def _window_over(overlay: Overlay, context: Context, height: Height) -> bool:
    """True once it is too late to report what was signed at a height."""
    parameters = overlay.parameters
    if context.height - height <= parameters.evidence_blocks:
        return False
    time_then = latest_time_of(overlay, height)
    return time_then is not None and context.ledger_time_ms - time_then > parameters.evidence_ms


def is_answerable(overlay: Overlay, context: Context, account: AccountId) -> bool:
    """True while an account's bond can be lost for a seat: it decides, or did so lately that it can be accused of it.

    Else whoever has unlocked a bond in good time could sign twice just before it is paid out, at no risk.
    """
    return any(
        seat.account == account
        and overlay.evidence(AuthorityId(seat.authority)) is None
        and (seat.until is None or not _window_over(overlay, context, Height(seat.until)))
        for seat in overlay.charter.seats.seats
    )


def _suspended(membership: Membership, authority: AuthorityId) -> Membership:
    """The membership with one more key suspended. Raises ``SuspensionHalts`` where that would end the ledger."""
    if all(record.authority != authority for record in membership.records):
        return membership  # it has left, or is about to
    counted = AuthoritySet.of(membership)
    active_after = counted.n - len(counted.suspended) - 1
    if active_after < counted.quorum:
        raise SuspensionHalts(active=active_after, quorum=counted.quorum)
    return Membership(membership.records, tuple(sorted((*membership.suspended, authority))))


def report(overlay: Overlay, context: Context, sender: AccountId, action: EvidenceReport) -> AuthorityId:
    """Suspend a key from two heights on, and take its account's bond. Returns the key.

    Raises ``TransactionInvalid``.
    """
    accused, seat = _judged(overlay, context, action)
    schedule = overlay.schedule
    following = _suspended(schedule.following, accused.authority)
    overlay.schedule = type(schedule)(schedule.previous, schedule.current, following)
    bond = overlay.bond(AccountId(seat.account))
    if bond.total:
        overlay.bonds[AccountId(seat.account)] = NO_BOND
        overlay.fee_pool = checked_add(overlay.fee_pool, bond.total)
    overlay.accused[accused.authority] = Evidence(
        accused.height, accused.view, sender, context.height, Amount(bond.total)
    )
    return accused.authority


def refusal(state: LedgerState, first: bytes, second: bytes) -> TransactionInvalid | None:
    """Why the next block would not take a report of these envelopes, whose signatures hold; ``None`` if it would."""
    context = Context(Height(state.height + 1), state.ledger_time_ms, state.tip.timestamp_ms)
    try:
        report(Overlay(state), context, AccountId(bytes(32)), EvidenceReport(first, second))
    except TransactionInvalid as error:
        return error
    return None


def is_reportable(state: LedgerState, first: bytes, second: bytes) -> bool:
    """True if the next block would take a report of these two envelopes."""
    return refusal(state, first, second) is None


def may_be_reported_later(state: LedgerState, first: bytes, second: bytes) -> bool:
    """True if all that stands against a report is that too few would be left: a replacement changes that."""
    return isinstance(refusal(state, first, second), SuspensionHalts)
