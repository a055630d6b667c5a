"""Motions: what authorities put to vote, their votes, and what becomes of it.

Law: one authority, one vote, sent by its account and never taken back; who may vote and how many are needed is fixed
when a motion is opened. More than half of the seats pass parameters and money, Q of them membership and versions. A
motion ends as soon as it has passed or can't pass any more, at the latest when its ledger time is over. What passed
takes effect at the opening of a later block, once the timelock is over. Only motions that are due are looked at.
"""

import msgspec

from protocol.ledger.charter import (
    OUTCOMES_MAX,
    Agenda,
    CastVote,
    Elector,
    Motion,
    MotionStatus,
    elector_account,
)
from protocol.ledger.errors import (
    AlreadyVoted,
    MotionConcluded,
    MotionUnknown,
    NotAnAuthority,
    SubjectInvalid,
    TooManyMotions,
)
from protocol.ledger.subjects import carry_out, check_subject, needs_quorum
from protocol.ledger.view import Context, Overlay, View
from protocol.messages.governance import MotionNumber, Redemption
from protocol.messages.transactions import MotionOpen, MotionVote
from protocol.primitives.limits import TEXT_BYTES_MAX
from protocol.primitives.units import AccountId, AuthorityId, LedgerTimeMs

OPEN_PER_OPENER_MAX = 4
"""Motions on the agenda that one account has opened: thirty authorities together stay below 120."""
REDEMPTIONS_OPEN_MAX = 64
"""Anybody may ask for a redemption, for the fee of a motion; authorities' motions have room of their own."""


def open_motion(overlay: Overlay, context: Context, sender: AccountId, action: MotionOpen) -> MotionNumber:
    """Put a subject to vote; the opening authority approves it thereby. Raises ``TransactionInvalid``."""
    electorate = _electorate(overlay)
    subject = action.subject
    if action.authority is not None:
        _check_elector(overlay, electorate, action.authority, sender)
    elif not isinstance(subject, Redemption):
        raise NotAnAuthority(reason=f"only an authority puts a {type(subject).__name__} to vote")
    _check_room(overlay, sender, isinstance(subject, Redemption) and not _is_electors(electorate, sender))
    check_subject(overlay, context, sender, subject)
    seats = len(overlay.schedule.following.records)
    agenda = overlay.charter.agenda
    number = agenda.next_number
    expires_at = LedgerTimeMs(context.ledger_time_ms + overlay.parameters.motion_ms)
    motion = Motion(
        number=number,
        opener=sender,
        subject=subject,
        opened_height=context.height,
        opened_at=context.ledger_time_ms,
        status=MotionStatus.OPEN,
        due_at=expires_at,
        seats=seats,
        needed=2 * seats // 3 + 1 if needs_quorum(subject) else seats // 2 + 1,
        electorate=electorate,
        votes=() if action.authority is None else (CastVote(action.authority, True),),
    )
    agenda = Agenda(MotionNumber(number + 1), agenda.due, agenda.outcomes).with_due(expires_at, number)
    overlay.with_charter(agenda=agenda)
    _settle(overlay, context, motion)
    return number


def vote(overlay: Overlay, context: Context, sender: AccountId, action: MotionVote) -> None:
    """Count one authority's vote. Raises ``TransactionInvalid``."""
    motion = overlay.motion(action.motion)
    if motion is None:
        raise MotionUnknown(motion=action.motion)
    if motion.status is not MotionStatus.OPEN:
        raise MotionConcluded(motion=motion.number, status=motion.status.name)
    _check_elector(overlay, motion.electorate, action.authority, sender)
    if any(cast.authority == action.authority for cast in motion.votes):
        raise AlreadyVoted(motion=motion.number, authority=action.authority.hex())
    votes = (*motion.votes, CastVote(action.authority, action.approve))
    _settle(overlay, context, msgspec.structs.replace(motion, votes=votes))


def reconsider_open(overlay: Overlay, context: Context) -> None:
    """End open motions that can't pass any more because a key that had not voted was suspended."""
    for entry in overlay.charter.agenda.due:
        motion = overlay.motion(entry.number)
        assert motion is not None
        if motion.status is MotionStatus.OPEN:
            _settle(overlay, context, motion)


def settle_due(overlay: Overlay, context: Context) -> None:
    """At the opening of a block: open motions whose time is over expire, passed ones take effect."""
    for entry in overlay.charter.agenda.due:
        if entry.due_at > context.ledger_time_ms:
            return
        motion = overlay.motion(entry.number)
        assert motion is not None
        if motion.status is MotionStatus.OPEN:
            _conclude(overlay, context, motion, MotionStatus.EXPIRED)
            continue
        attempt = Overlay(overlay)
        try:
            done = carry_out(attempt, context, motion)
        except SubjectInvalid as error:
            _conclude(overlay, context, motion, MotionStatus.FAILED, str(error.facts["reason"]))
            continue
        if done:
            overlay.take_from(attempt)
            _conclude(overlay, context, motion, MotionStatus.DONE)


def motion_due(state: View, ledger_time_ms: LedgerTimeMs) -> bool:
    """True if a block that is opened at this ledger time ends a motion or lets one take effect."""
    due = state.charter.agenda.due
    return bool(due) and due[0].due_at <= ledger_time_ms


def _electorate(overlay: Overlay) -> tuple[Elector, ...]:
    """Members of the latest set that are not suspended."""
    membership = overlay.schedule.following
    return tuple(
        Elector(record.authority, record.account)
        for record in membership.records
        if record.authority not in membership.suspended
    )


def _check_elector(
    overlay: Overlay, electorate: tuple[Elector, ...], authority: AuthorityId, sender: AccountId
) -> None:
    if elector_account(electorate, authority) != sender:
        raise NotAnAuthority(reason=f"account {sender.hex()} has no vote for authority {authority.hex()} here")
    if overlay.evidence(authority) is not None:
        raise NotAnAuthority(reason=f"authority {authority.hex()} is suspended")


def _is_electors(electorate: tuple[Elector, ...], account: AccountId) -> bool:
    return any(elector.account == account for elector in electorate)


def _check_room(overlay: Overlay, sender: AccountId, redemption: bool) -> None:
    """So many motions of one opener, and of holders' redemptions in all, may be on the agenda."""
    listed = [overlay.motion(entry.number) for entry in overlay.charter.agenda.due]
    of_sender = sum(motion is not None and motion.opener == sender for motion in listed)
    if of_sender >= OPEN_PER_OPENER_MAX:
        raise TooManyMotions(open=of_sender, opener=sender.hex())
    redemptions = sum(
        motion is not None
        and isinstance(motion.subject, Redemption)
        and not _is_electors(motion.electorate, AccountId(motion.opener))
        for motion in listed
    )
    if redemption and redemptions >= REDEMPTIONS_OPEN_MAX:
        raise TooManyMotions(open=redemptions, kind="Redemption")


def _settle(overlay: Overlay, context: Context, motion: Motion) -> None:
    """Note an open motion as it stands now: passed, rejected or still open."""
    if motion.approvals >= motion.needed:
        due_at = LedgerTimeMs(context.ledger_time_ms + overlay.parameters.motion_timelock_ms)
        passed = msgspec.structs.replace(motion, status=MotionStatus.PASSED, due_at=due_at)
        overlay.motions[motion.number] = passed
        overlay.with_charter(agenda=overlay.charter.agenda.with_due(due_at, motion.number))
        return
    voted = {cast.authority for cast in motion.votes}
    can_vote = sum(
        elector.authority not in voted and overlay.evidence(AuthorityId(elector.authority)) is None
        for elector in motion.electorate
    )
    overlay.motions[motion.number] = motion
    if motion.approvals + can_vote < motion.needed:
        _conclude(overlay, context, motion, MotionStatus.REJECTED)


def _conclude(overlay: Overlay, context: Context, motion: Motion, status: MotionStatus, outcome: str = "") -> None:
    """Take a motion off the agenda and keep its outcome; the oldest outcome makes room."""
    overlay.motions[motion.number] = msgspec.structs.replace(
        motion, status=status, concluded_height=context.height, outcome=outcome[:TEXT_BYTES_MAX]
    )
    agenda = overlay.charter.agenda
    due = tuple(entry for entry in agenda.due if entry.number != motion.number)
    outcomes = (*agenda.outcomes, motion.number)
    for forgotten in outcomes[:-OUTCOMES_MAX]:
        overlay.motions[forgotten] = None
    overlay.with_charter(agenda=Agenda(agenda.next_number, due, outcomes[-OUTCOMES_MAX:]))
