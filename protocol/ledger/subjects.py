"""What passing a motion does, and what can never be passed.

Law: a subject is judged by the same rules when it is put to vote and when it takes effect: what was sensible may not
be any more, and then fails with a recorded reason. Authorities change at most f keys at a time, below four one key; the
next change waits until the last one is active. Credits come and go by ``Issuance`` and ``Redemption`` alone.

A reason for which a passed motion failed is a part of its row, and so of the state root: whoever words one differently
comes to another state. Its text, and that of ``check_parameters``, changes with the version of the rules alone.
"""

from typing import assert_never

from protocol.ledger.charter import (
    FORMER_SEATS_MAX,
    ComingVersion,
    Minting,
    Motion,
    Seat,
    Seats,
    Versions,
)
from protocol.ledger.errors import SubjectInvalid
from protocol.ledger.rows import AuthoritySchedule, Sum
from protocol.ledger.view import Context, Overlay
from protocol.messages.genesis import AuthorityRecord, Membership, Parameters
from protocol.messages.governance import (
    AuthorityChange,
    Issuance,
    ParameterChange,
    ParametersInvalid,
    Redemption,
    Subject,
    VersionChange,
    check_parameters,
    with_values,
)
from protocol.messages.quorum import AuthoritySet
from protocol.primitives.limits import AUTHORITIES_MAX
from protocol.primitives.units import AMOUNT_MAX, AccountId, Amount, AuthorityId, Height, checked_add, checked_subtract

AUTHORITIES_MIN = 4
"""Fewer survive no faulty one, so outside development no vote leads below."""
CHANGE_DELAY_BLOCKS = 2
"""What a block at h changes decides h + 2: header h names the sets of h and h + 1."""


_BOUNDS_OF_ISSUANCE = ("issuance_cap", "issuance_period_ms")
"""What limits a simple majority must not be a simple majority's to change."""


def needs_quorum(subject: Subject) -> bool:
    """True for what Q authorities must approve; the rest passes with more than half."""
    if isinstance(subject, ParameterChange):
        return any(entry.name in _BOUNDS_OF_ISSUANCE for entry in subject.values)
    return isinstance(subject, AuthorityChange | VersionChange)


def check_subject(overlay: Overlay, context: Context, opener: AccountId, subject: Subject) -> None:
    """Refuse what could not take effect if it were passed now. Raises ``SubjectInvalid``."""
    match subject:
        case AuthorityChange():
            _changed_membership(overlay, subject)
        case ParameterChange():
            _changed_parameters(overlay, subject)
        case VersionChange():
            _coming_version(overlay, context, subject)
        case Issuance():
            _minted(overlay, context, subject.amount, fresh_period=True)
        case Redemption():
            _check_redemption(overlay, opener, subject)
        case _:
            assert_never(subject)


def carry_out(overlay: Overlay, context: Context, motion: Motion) -> bool:
    """Let a passed motion take effect; false if it has to wait for a block. Raises ``SubjectInvalid``."""
    subject = motion.subject
    match subject:
        case AuthorityChange():
            return _change_authorities(overlay, context, subject)
        case ParameterChange():
            overlay.with_charter(parameters=_changed_parameters(overlay, subject))
        case VersionChange():
            coming = _coming_version(overlay, context, subject)
            overlay.with_charter(versions=Versions(overlay.charter.versions.current, coming))
        case Issuance():
            _issue(overlay, context, subject)
        case Redemption():
            _redeem(overlay, AccountId(motion.opener), subject)
        case _:
            assert_never(subject)
    return True


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise SubjectInvalid(reason=reason)


# Authorities


def _changed_membership(overlay: Overlay, change: AuthorityChange) -> Membership:
    """Who decides after the change. Raises ``SubjectInvalid``."""
    membership = overlay.schedule.following
    size, faulty_max = len(membership.records), (len(membership.records) - 1) // 3
    touched, touched_max = max(len(change.remove), len(change.add)), max(1, faulty_max)
    _require(touched > 0, "changes no authority")
    _require(touched <= touched_max, f"{touched} keys at a time, {touched_max} of {size} are allowed")
    removed = dict.fromkeys(change.remove)
    _require(len(removed) == len(change.remove), "removes a key twice")
    members = {record.authority: record for record in membership.records}
    for authority in removed:
        _require(authority in members, f"{authority.hex()} is no authority")
    records = [record for record in membership.records if record.authority not in removed]
    for record in change.add:
        _check_newcomer(overlay, records, record)
        records.append(record)
    _require(len(records) <= AUTHORITIES_MAX, f"more than {AUTHORITIES_MAX} authorities")
    least = 1 if overlay.development else min(AUTHORITIES_MIN, size)
    _require(len(records) >= least, f"{len(records)} authorities are left, {least} are needed")
    suspended = tuple(authority for authority in membership.suspended if authority not in removed)
    active, quorum = len(records) - len(suspended), 2 * len(records) // 3 + 1
    _require(active >= quorum, f"{active} authorities that count can't make a quorum of {quorum}")
    return AuthoritySet(tuple(records), suspended).membership()


def _check_newcomer(overlay: Overlay, records: list[AuthorityRecord], record: AuthorityRecord) -> None:
    evidence = overlay.evidence(AuthorityId(record.authority))
    _require(evidence is None, f"{record.authority.hex()} signed twice and never comes back")
    for other in records:
        _require(record.authority != other.authority, f"{record.authority.hex()} is an authority already")
        _require(record.account != other.account, f"account {record.account.hex()} is {other.name}'s")
        _require(record.node != other.node, f"node {record.node.hex()} is {other.name}'s")


def _change_authorities(overlay: Overlay, context: Context, change: AuthorityChange) -> bool:
    schedule = overlay.schedule
    if not schedule.previous.records == schedule.current.records == schedule.following.records:
        return False
    following = _changed_membership(overlay, change)
    overlay.schedule = AuthoritySchedule(schedule.previous, schedule.current, following)
    overlay.with_charter(seats=_changed_seats(overlay, context, change))
    return True


def _changed_seats(overlay: Overlay, context: Context, change: AuthorityChange) -> Seats:
    """Who sat when: those who leave decide up to the next height; the oldest who left are forgotten first."""
    since = Height(context.height + CHANGE_DELAY_BLOCKS)
    removed = dict.fromkeys(change.remove)
    former: list[Seat] = []
    present: list[Seat] = []
    for seat in overlay.charter.seats.seats:
        if seat.until is not None:
            former.append(seat)
        elif seat.authority in removed:
            former.append(Seat(seat.authority, seat.account, seat.since, Height(since - 1)))
        else:
            present.append(seat)
    present += [Seat(record.authority, record.account, since) for record in change.add]
    return Seats((*former[-FORMER_SEATS_MAX:], *present))


# Numbers


def _changed_parameters(overlay: Overlay, change: ParameterChange) -> Parameters:
    try:
        parameters = with_values(overlay.parameters, change)
        check_parameters(parameters, overlay.development)
    except ParametersInvalid as error:
        raise SubjectInvalid(reason=str(error)) from None
    _require(parameters != overlay.parameters, "changes no parameter")
    return parameters


def _coming_version(overlay: Overlay, context: Context, change: VersionChange) -> ComingVersion:
    versions = overlay.charter.versions
    _require(versions.coming is None, "another version is decided to come")
    _require(change.version == versions.current + 1, f"version {versions.current + 1} comes next")
    earliest = context.height + CHANGE_DELAY_BLOCKS
    _require(change.height >= earliest, f"height {change.height} lies before {earliest}: nodes could not stop in time")
    return ComingVersion(change.version, change.height)


# Money


def _minted(overlay: Overlay, context: Context, amount: Amount, fresh_period: bool = False) -> Minting:
    """The books after one more issuance. Raises ``SubjectInvalid`` above the cap."""
    minting, parameters = overlay.charter.minting, overlay.parameters
    started_at, used = minting.period_started_at, minting.period_issued
    if fresh_period or context.ledger_time_ms - started_at >= parameters.issuance_period_ms:
        started_at, used = context.ledger_time_ms, Amount(0)
    _require(amount > 0, "issues nothing")
    cap = parameters.issuance_cap
    _require(used + amount <= cap, f"{used} of {cap} base units are issued in this period, {amount} more are too many")
    _require(overlay.charter.issued.amount + amount <= AMOUNT_MAX, "more credits than there can be")
    _require(minting.issued + amount <= AMOUNT_MAX, "more credits than can be counted")
    return Minting(checked_add(minting.issued, amount), minting.redeemed, started_at, checked_add(used, amount))


def _issue(overlay: Overlay, context: Context, subject: Issuance) -> None:
    minting = _minted(overlay, context, subject.amount)
    overlay.with_charter(minting=minting, issued=Sum(checked_add(overlay.charter.issued.amount, subject.amount)))
    recipient = overlay.account(AccountId(subject.recipient))
    overlay.accounts[AccountId(subject.recipient)] = recipient.with_balance(
        checked_add(recipient.balance, subject.amount)
    )


def _check_redemption(overlay: Overlay, holder: AccountId, subject: Redemption) -> None:
    balance = overlay.account(holder).balance
    _require(subject.amount > 0, "redeems nothing")
    _require(subject.amount <= balance, f"{subject.amount} base units where the holder has {balance}")
    total = overlay.charter.minting.redeemed + subject.amount
    _require(total <= AMOUNT_MAX, "more credits than can be counted")


def _redeem(overlay: Overlay, holder: AccountId, subject: Redemption) -> None:
    _check_redemption(overlay, holder, subject)
    minting, account = overlay.charter.minting, overlay.account(holder)
    overlay.accounts[holder] = account.with_balance(checked_subtract(account.balance, subject.amount))
    redeemed = checked_add(minting.redeemed, subject.amount)
    overlay.with_charter(
        minting=Minting(minting.issued, redeemed, minting.period_started_at, minting.period_issued),
        issued=Sum(checked_subtract(overlay.charter.issued.amount, subject.amount)),
    )
