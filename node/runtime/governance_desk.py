"""The node's answers about governance, and its operator's motions and votes turned into actions.

Law: reads answer from the state after the last decided block. Nothing here decides: the ledger's rules do.
"""

from node.runtime.control import (
    AuthoritiesView,
    AuthorityView,
    ControlError,
    MotionView,
    ParametersView,
    ParameterView,
    VoteView,
)
from node.runtime.ledger_views import account_argument, account_text, describe_subject
from node.runtime.motion_bodies import (
    AuthoritiesBody,
    AuthorityBody,
    IssuanceBody,
    ParametersBody,
    RedemptionBody,
    SubjectBody,
    VersionBody,
)
from protocol.ledger.charter import Motion
from protocol.ledger.state import LedgerState
from protocol.messages.genesis import AuthorityRecord
from protocol.messages.governance import (
    PARAMETER_BOUNDS,
    AuthorityChange,
    Issuance,
    MotionNumber,
    ParameterChange,
    ParameterValue,
    Redemption,
    Subject,
    VersionChange,
)
from protocol.messages.transactions import MotionOpen, MotionVote
from protocol.primitives.addresses import AddressInvalid, AddressKind, format_address, parse_address
from protocol.primitives.units import AccountId, Amount, AuthorityId, Height, NodeId


def _key(kind: AddressKind, text: str) -> bytes:
    try:
        return parse_address(kind, text)
    except AddressInvalid as error:
        raise ControlError("bad_address", str(error), exit_code=2) from None


def _record(body: AuthorityBody) -> AuthorityRecord:
    return AuthorityRecord(
        AuthorityId(_key(AddressKind.AUTHORITY, body.authority)),
        AccountId(_key(AddressKind.ACCOUNT, body.account)),
        NodeId(_key(AddressKind.NODE, body.node)),
        body.name,
    )


def subject_of(body: SubjectBody) -> Subject:
    """What to put to vote. Raises ``ControlError`` on an address with a typing error."""
    match body:
        case AuthoritiesBody():
            removed = tuple(AuthorityId(_key(AddressKind.AUTHORITY, text)) for text in body.remove)
            return AuthorityChange(removed, tuple(_record(entry) for entry in body.add))
        case ParametersBody():
            return ParameterChange(tuple(ParameterValue(name, value) for name, value in body.values.items()))
        case VersionBody():
            return VersionChange(body.version, Height(body.height))
        case IssuanceBody():
            return Issuance(account_argument(body.recipient), Amount(body.amount), body.reason)
        case RedemptionBody():
            return Redemption(Amount(body.amount), body.reason)


def authorities_view(state: LedgerState) -> AuthoritiesView:
    """Everybody who decides the next block or the one after the next."""
    deciding, following = state.authorities, state.schedule.following
    signed = {entry.authority: entry.blocks for entry in state.charter.epoch.signers}
    records = {record.authority: record for record in (*deciding.records, *following.records)}
    views = []
    for authority in sorted(records):
        record = records[authority]
        seat = max((s for s in state.charter.seats.seats if s.authority == authority), key=lambda s: s.since)
        if state.evidence(AuthorityId(authority)) is not None:
            standing = "suspended"
        elif authority not in deciding:
            standing = "joining"
        else:
            standing = "active" if seat.until is None else "leaving"
        views.append(
            AuthorityView(
                name=record.name,
                authority=format_address(AddressKind.AUTHORITY, authority),
                account=account_text(record.account),
                node=format_address(AddressKind.NODE, record.node),
                state=standing,
                since_height=seat.since,
                until_height=seat.until,
                bond=state.bond(AccountId(record.account)).amount,
                blocks_signed=signed.get(authority, 0),
            )
        )
    return AuthoritiesView(state.height, deciding.quorum, deciding.f, tuple(views))


def parameters_view(state: LedgerState) -> ParametersView:
    """Every parameter with the range in which a vote may set it."""
    versions, parameters = state.charter.versions, state.parameters
    rows = []
    for name, bounds in PARAMETER_BOUNDS.items():
        least = bounds.least_development if state.development else bounds.least
        rows.append(ParameterView(name, getattr(parameters, name), least, bounds.most))
    coming = versions.coming
    return ParametersView(
        version=versions.current,
        coming_version=coming.version if coming is not None else None,
        coming_version_height=coming.height if coming is not None else None,
        parameters=tuple(rows),
    )


def motion_view(state: LedgerState, motion: Motion) -> MotionView:
    """A motion and who has voted what."""
    names = {record.authority: record.name for record in state.schedule.following.records}
    cast = {vote.authority: vote.approve for vote in motion.votes}
    return MotionView(
        motion=motion.number,
        subject=type(motion.subject).__name__,
        detail=describe_subject(motion.subject),
        status=motion.status.name.lower(),
        opener=account_text(motion.opener),
        opened_height=motion.opened_height,
        due_at_ledger_ms=motion.due_at,
        ledger_time_ms=state.ledger_time_ms,
        approvals=motion.approvals,
        rejections=motion.rejections,
        needed=motion.needed,
        votes=tuple(
            VoteView(
                names.get(elector.authority, "has left"),
                format_address(AddressKind.AUTHORITY, elector.authority),
                cast.get(elector.authority),
            )
            for elector in motion.electorate
        ),
        concluded_height=motion.concluded_height,
        outcome=motion.outcome,
    )


def find_motion(state: LedgerState, number: int) -> MotionView:
    """A motion by its number. Raises ``ControlError``."""
    motion = state.motion(MotionNumber(number))
    if motion is None:
        raise ControlError("motion_not_found", f"the ledger tells of no motion {number}")
    return motion_view(state, motion)


def own_authority(state: LedgerState, account: AccountId) -> AuthorityId | None:
    """The authority on whose behalf an account acts, or ``None``."""
    records = (*state.schedule.following.records, *state.schedule.previous.records)
    return next((AuthorityId(record.authority) for record in records if record.account == account), None)


def motion_action(state: LedgerState, account: AccountId, body: SubjectBody) -> MotionOpen:
    """The action that puts a subject to vote. Raises ``ControlError``."""
    subject, authority = subject_of(body), own_authority(state, account)
    if authority is None and not isinstance(subject, Redemption):
        raise ControlError("not_an_authority", "only authorities put this to vote; this node's account is none's", 4)
    return MotionOpen(authority, subject)


def vote_action(state: LedgerState, account: AccountId, number: int, approve: bool) -> MotionVote:
    """The action that votes on a motion as the authority whose account this is. Raises ``ControlError``."""
    find_motion(state, number)
    motion = state.motion(MotionNumber(number))
    electorate = motion.electorate if motion is not None else ()
    authority = next((elector.authority for elector in electorate if elector.account == account), None)
    if authority is None:
        raise ControlError("not_an_elector", f"this node's account has no vote on motion {number}", 4)
    return MotionVote(MotionNumber(number), AuthorityId(authority), approve)
