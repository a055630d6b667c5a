"""Motions: who may open and vote, when they pass, end and take effect, and what each subject may do."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from protocol.ledger import errors, motions
from protocol.ledger.blocks import execute_block
from protocol.ledger.charter import OUTCOMES_MAX, SUPPORTED_VERSIONS, MotionStatus
from protocol.ledger.errors import BlockInvalid, TransactionInvalid
from protocol.ledger.state import LedgerState
from protocol.messages.genesis import AuthorityRecord
from protocol.messages.governance import (
    AuthorityChange,
    Issuance,
    MotionNumber,
    ParameterChange,
    ParameterValue,
    Redemption,
    Subject,
    VersionChange,
)
from protocol.messages.transactions import MotionOpen, MotionVote, Output, Transfer
from protocol.primitives.units import AMOUNT_MAX, Amount, Height, NodeId, TimestampMs
from tests.ledger.assembly import Assembly, authority, change, record, settings
from tests.ledger.world import FEE, account_of


def issue(amount: int, name: str = "dave") -> Issuance:
    return Issuance(account_of(name), Amount(amount), "bank transfer 12")


def redeem(amount: int) -> Redemption:
    return Redemption(Amount(amount), "withdrawal 3")


# Voting


def test_a_parameter_changes_once_more_than_half_approve_and_a_later_block_opens() -> None:
    assembly = Assembly()
    number = assembly.open(0, settings(fee_min=20))
    assembly.vote(1, number)
    assert assembly.motion(number).status is MotionStatus.OPEN  # two of four are not more than half
    assembly.vote(2, number)
    assert assembly.motion(number).status is MotionStatus.PASSED
    assert assembly.state.parameters.fee_min == FEE  # nothing changes in the middle of a block
    assembly.tick()
    assert assembly.state.parameters.fee_min == 20
    motion = assembly.motion(number)
    assert (motion.status, motion.approvals, motion.concluded_height) == (MotionStatus.DONE, 3, assembly.state.height)
    assert assembly.state.charter.agenda.due == ()
    with pytest.raises(errors.FeeTooLow):
        assembly.act("alice", Transfer((Output(account_of("bob"), Amount(1)),)), fee=19)


@pytest.mark.parametrize(
    ("size", "subject", "needed"),
    [
        (1, settings(fee_min=20), 1),
        (3, settings(fee_min=20), 2),
        (4, settings(fee_min=20), 3),
        (7, issue(5), 4),
        (7, settings(fee_min=20, epoch_blocks=20), 4),
        (7, settings(issuance_cap=5), 5),
        (7, settings(fee_min=20, issuance_period_ms=60_001), 5),
        (4, change(add=(8,)), 3),
        (7, change(add=(8,)), 5),
        (7, VersionChange(2, Height(100)), 5),
    ],
)
def test_half_passes_numbers_and_money_and_a_quorum_passes_members_versions_and_caps(
    size: int, subject: Subject, needed: int
) -> None:
    assembly = Assembly(size)
    number = assembly.open(0, subject)
    for index in range(1, needed):
        assert assembly.motion(number).status is MotionStatus.OPEN
        assembly.vote(index, number)
    assert assembly.motion(number).status is MotionStatus.PASSED
    assert assembly.motion(number).needed == needed


def test_a_motion_that_can_no_longer_pass_ends_at_once() -> None:
    assembly = Assembly()
    number = assembly.open(0, settings(fee_min=20))
    assembly.vote(1, number, approve=False)
    assert assembly.motion(number).status is MotionStatus.OPEN
    assembly.vote(2, number, approve=False)
    motion = assembly.motion(number)
    assert (motion.status, motion.rejections) == (MotionStatus.REJECTED, 2)
    with pytest.raises(errors.MotionConcluded):
        assembly.vote(3, number)
    assembly.tick()
    assert assembly.state.parameters.fee_min == FEE


def test_a_motion_expires_when_its_ledger_time_is_over_and_not_before() -> None:
    assembly = Assembly(motion_ms=60_000)
    number = assembly.open(0, settings(fee_min=20))
    expires_at = assembly.motion(number).due_at
    assembly.tick(3)
    last = assembly.transaction("auth1-account", MotionVote(number, authority(1), True))
    assembly.include(last, after_ms=expires_at - 1 - assembly.state.ledger_time_ms)
    assert assembly.motion(number).status is MotionStatus.OPEN
    assembly.tick()
    assert assembly.motion(number).status is MotionStatus.EXPIRED
    with pytest.raises(errors.MotionConcluded):
        assembly.vote(2, number)


def test_a_timelock_lies_between_passing_and_effect() -> None:
    assembly = Assembly(motion_timelock_ms=45_000)
    number = assembly.open(0, settings(fee_min=20))
    assembly.vote(1, number)
    assembly.vote(2, number)
    due_at = assembly.motion(number).due_at
    assert due_at == assembly.state.ledger_time_ms + 45_000
    while assembly.state.ledger_time_ms + 15_000 < due_at:
        assembly.tick()
        assert assembly.state.parameters.fee_min == FEE
    assembly.tick()
    assert assembly.state.parameters.fee_min == 20


def test_the_electorate_is_that_of_the_opening_whoever_comes_and_goes_meanwhile() -> None:
    assembly = Assembly()
    number = assembly.open(0, settings(fee_min=20))
    assembly.decide(change(remove=(3,), add=(8,)))
    with pytest.raises(errors.NotAnAuthority):
        assembly.vote(8, number)
    assembly.vote(3, number)  # it was a member then
    later = assembly.open(0, settings(fee_min=30))
    with pytest.raises(errors.NotAnAuthority):
        assembly.vote(3, later)
    assembly.vote(8, later)


def _two_of_one_kind(assembly: Assembly) -> None:
    for _ in range(motions.OPEN_PER_OPENER_MAX):
        assembly.act("alice", MotionOpen(None, redeem(1)))
    assembly.act("alice", MotionOpen(None, redeem(1)))


def _vote(name: str, index: int, number: int = 1) -> Callable[[Assembly], object]:
    return lambda assembly: assembly.act(name, MotionVote(MotionNumber(number), authority(index), True))


def _open(name: str, subject: Subject, index: int | None = None, fee: int = FEE) -> Callable[[Assembly], object]:
    on_behalf = None if index is None else authority(index)
    return lambda assembly: assembly.act(name, MotionOpen(on_behalf, subject), fee=fee)


def _propose(subject: Subject) -> Callable[[Assembly], object]:
    return _open("auth0-account", subject, 0)


def _with_account(index: int, account: str) -> AuthorityChange:
    entry = record(index)
    return AuthorityChange((), (AuthorityRecord(entry.authority, account_of(account), entry.node, entry.name),))


def _with_node(index: int, node: str) -> AuthorityChange:
    entry = record(index)
    return AuthorityChange((), (AuthorityRecord(entry.authority, entry.account, NodeId(account_of(node)), entry.name),))


MONEY_MAX = Amount(AMOUNT_MAX)
SUBJECT = errors.SubjectInvalid
REFUSED: list[tuple[str, Callable[[Assembly], object], type[TransactionInvalid], str]] = [
    ("a vote by a stranger", _vote("alice", 1), errors.NotAnAuthority, ""),
    ("a vote for another authority", _vote("auth2-account", 1), errors.NotAnAuthority, ""),
    ("a second vote", _vote("auth0-account", 0), errors.AlreadyVoted, ""),
    ("a vote on no motion", _vote("auth1-account", 1, 7), errors.MotionUnknown, ""),
    ("a motion by a stranger", _open("alice", settings(fee_min=20)), errors.NotAnAuthority, ""),
    ("a motion in a stranger's name", _open("alice", settings(fee_min=20), 0), errors.NotAnAuthority, ""),
    ("a fifth motion of one opener", _two_of_one_kind, errors.TooManyMotions, ""),
    ("no change of members", _propose(change()), SUBJECT, "no authority"),
    ("two members at once", _propose(change(add=(8, 9))), SUBJECT, "1 of 4"),
    ("two out, one in", _propose(change((2, 3), (9,))), SUBJECT, "1 of 4"),
    ("a member once more", _propose(change(add=(1,))), SUBJECT, "already"),
    ("a stranger out", _propose(change(remove=(9,))), SUBJECT, "is no authority"),
    (
        "an account used twice",
        _propose(_with_account(8, "auth1-account")),
        errors.SubjectInvalid,
        "account",
    ),
    ("a node used twice", _propose(_with_node(8, "auth1-node")), SUBJECT, "node"),
    ("an unknown number", _propose(settings(colour=3)), SUBJECT, "no parameter"),
    (
        "a number out of bounds",
        _propose(settings(redeem_fee_share_ppm=100_001)),
        errors.SubjectInvalid,
        "100000",
    ),
    (
        "a cap below its base",
        _propose(settings(delta_cap_ms=1)),
        errors.SubjectInvalid,
        "delta_cap_ms",
    ),
    (
        "a number as it is",
        _propose(settings(fee_min=FEE)),
        errors.SubjectInvalid,
        "changes no parameter",
    ),
    (
        "a number twice",
        _propose(ParameterChange((ParameterValue("fee_min", 1), ParameterValue("fee_min", 2)))),
        SUBJECT,
        "twice",
    ),
    ("a version too far", _propose(VersionChange(3, Height(99))), SUBJECT, "comes next"),
    ("a version too soon", _propose(VersionChange(2, Height(3))), SUBJECT, "in time"),
    ("nothing to issue", _propose(issue(0)), SUBJECT, "issues nothing"),
    ("more than the cap", _propose(issue(50_001)), SUBJECT, "50000"),
    ("nothing to redeem", _open("alice", redeem(0)), SUBJECT, "redeems nothing"),
    ("more than one has", _open("alice", redeem(1_000_000)), SUBJECT, "the holder has"),
    ("a motion for too little", _open("alice", redeem(5), fee=FEE - 1), errors.FeeTooLow, ""),
]


@pytest.mark.parametrize(("act", "error", "word"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_may_not_be_done_is_refused_by_name(
    act: Callable[[Assembly], object], error: type[TransactionInvalid], word: str
) -> None:
    assembly = Assembly()
    assembly.open(0, settings(fee_min=20))
    with pytest.raises(error) as caught:
        act(assembly)
    assert word in str(caught.value)


def test_opening_a_motion_can_cost_more_than_another_transaction() -> None:
    assembly = Assembly(motion_fee_min=500)
    with pytest.raises(errors.FeeTooLow):
        assembly.act("auth0-account", MotionOpen(authority(0), settings(fee_min=20)), fee=499)
    assembly.act("auth0-account", MotionOpen(authority(0), settings(fee_min=20)), fee=500)


def test_strangers_redemptions_leave_room_for_what_authorities_want(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(motions, "REDEMPTIONS_OPEN_MAX", 2)
    assembly = Assembly()
    for name in ("alice", "bob"):
        assembly.act(name, MotionOpen(None, redeem(1)))
    with pytest.raises(errors.TooManyMotions):
        assembly.act("carol", MotionOpen(None, redeem(1)))
    assembly.open(0, settings(fee_min=20))
    assembly.open(1, redeem(1))


def test_only_the_last_outcomes_are_kept_as_rows() -> None:
    assembly = Assembly(1)
    for turn in range(OUTCOMES_MAX + 3):
        assembly.decide(settings(fee_min=FEE - turn % 2 - 1), voters=1)
    outcomes = assembly.state.charter.agenda.outcomes
    assert outcomes == tuple(range(4, OUTCOMES_MAX + 4))
    assert [motion.number for motion in assembly.state.motions()] == list(outcomes)
    rebuilt = LedgerState.from_rows(assembly.genesis, assembly.state.rows(), assembly.state.tip)
    assert rebuilt.motions() == assembly.state.motions()
    assert rebuilt.charter == assembly.state.charter


# Members


def test_a_new_authority_decides_two_heights_after_its_motion_takes_effect() -> None:
    assembly = Assembly()
    motion = assembly.decide(change(add=(8,)))
    assert motion.concluded_height == assembly.state.height
    schedule = assembly.state.schedule
    assert [len(part.records) for part in (schedule.previous, schedule.current, schedule.following)] == [4, 4, 5]
    assembly.tick(2)
    assert assembly.state.authorities.n == 5
    assembly.decide(change(remove=(0,)), voters=4)
    assembly.tick(2)
    assert assembly.members() == ["auth1", "auth2", "auth3", "auth8"]


def test_the_next_change_of_members_waits_until_the_last_is_active() -> None:
    assembly = Assembly()
    first, second = assembly.open(0, change(add=(8,))), assembly.open(1, change(add=(9,)))
    assembly.vote(2, first)
    assembly.vote(2, second)
    cast = [
        assembly.transaction(f"auth{index}-account", MotionVote(number, authority(index), True))
        for index, number in ((1, first), (0, second))
    ]
    assembly.include(*cast)
    assembly.tick()
    assert assembly.motion(second).status is MotionStatus.PASSED
    assert assembly.members() == ["auth0", "auth1", "auth2", "auth3", "auth8"]
    for _ in range(8):
        schedule = assembly.state.schedule
        sets = [
            {entry.name for entry in part.records} for part in (schedule.previous, schedule.current, schedule.following)
        ]
        assert max(len(one ^ other) for one in sets for other in sets) <= 1
        assembly.tick()
    assert assembly.motion(second).status is MotionStatus.DONE
    assert "auth9" in assembly.members()


def test_a_change_that_has_become_impossible_fails_with_its_reason() -> None:
    assembly = Assembly()
    first, second = assembly.open(0, change(remove=(3,))), assembly.open(1, change(remove=(3,), add=(8,)))
    for number, voters in ((first, (1, 2)), (second, (0, 2))):
        for index in voters:
            assembly.vote(index, number)
    assembly.tick(4)
    motion = assembly.motion(second)
    assert motion.status is MotionStatus.FAILED
    assert "is no authority" in motion.outcome


def test_outside_development_no_vote_leads_below_four_authorities() -> None:
    real = {"challenge_ms": 3_600_000, "unbonding_ms": 86_400_000, "evidence_ms": 3_600_000, "motion_ms": 3_600_000}
    assembly = Assembly(4, development=False, **real)
    with pytest.raises(errors.SubjectInvalid, match="4 are needed"):
        assembly.open(0, change(remove=(3,)))
    assembly.open(0, change(remove=(3,), add=(8,)))
    Assembly(4).open(0, change(remove=(3,)))


def test_seven_authorities_may_change_two_at_a_time_and_three_only_one() -> None:
    Assembly(7).open(0, change((1, 2), (8, 9)))
    with pytest.raises(errors.SubjectInvalid, match="2 of 7"):
        Assembly(7).open(0, change((1, 2, 3), (8, 9)))
    with pytest.raises(errors.SubjectInvalid, match="removes a key twice"):
        Assembly(7).open(0, change((1, 1), (8, 9)))
    Assembly(3).open(0, change((1,), (8,)))
    with pytest.raises(errors.SubjectInvalid, match="1 of 3"):
        Assembly(3).open(0, change((1, 2), (8,)))


def test_an_authority_may_move_to_another_node_and_account_with_its_key() -> None:
    assembly = Assembly()
    moved = AuthorityRecord(authority(3), account_of("dave"), NodeId(account_of("elsewhere")), "auth3")
    assembly.decide(AuthorityChange((authority(3),), (moved,)))
    assembly.tick(2)
    assert moved in assembly.state.authorities.records
    assert assembly.state.authorities.n == 4


# Versions


def test_a_voted_version_stands_in_headers_from_its_height_on() -> None:
    assembly = Assembly()
    assembly.decide(VersionChange(2, Height(10)))
    while assembly.state.height < 12:
        built = assembly.build([], TimestampMs(assembly.state.tip.timestamp_ms + 15_000))
        height = built.header.height
        assert built.header.version == (2 if height >= 10 else 1)
        other = replace(built.block, header=replace(built.header, version=3 - built.header.version))
        with pytest.raises(BlockInvalid, match="version"):
            execute_block(assembly.state, other)
        assembly.tick()
    assert assembly.state.charter.versions.current == 2
    assert 2 not in SUPPORTED_VERSIONS


def test_one_version_comes_after_the_other() -> None:
    assembly = Assembly()
    assembly.decide(VersionChange(2, Height(50)))
    with pytest.raises(errors.SubjectInvalid, match="decided to come"):
        assembly.open(0, VersionChange(2, Height(60)))


def test_a_version_whose_height_has_come_before_its_motion_fails() -> None:
    assembly = Assembly()
    number = assembly.open(0, VersionChange(2, Height(4)))
    for index in (1, 2):
        assembly.vote(index, number)
    assembly.tick()
    assert assembly.motion(number).status is MotionStatus.FAILED
    assert assembly.state.charter.versions.coming is None


# Money


def test_issued_and_redeemed_credits_are_counted_and_the_supply_is_what_was_issued() -> None:
    assembly = Assembly()
    before = assembly.state.supply()
    assembly.decide(issue(50_000))
    assert assembly.balance("dave") == 1_050_000
    number = assembly.state.charter.agenda.next_number
    assembly.act("dave", MotionOpen(None, redeem(30_000)))
    for index in range(3):
        assembly.vote(index, number)
    assembly.tick()
    supply, minting = assembly.state.supply(), assembly.state.charter.minting
    assert supply.total == supply.issued == before.issued + 20_000
    assert (minting.issued, minting.redeemed) == (50_000, 30_000)
    assert assembly.balance("dave") == 1_020_000 - FEE


def test_votes_issue_no_more_than_the_cap_in_a_period_and_start_anew_in_the_next() -> None:
    assembly = Assembly(issuance_cap=50_000, issuance_period_ms=100_000)
    assert assembly.decide(issue(40_000)).status is MotionStatus.DONE
    late = assembly.decide(issue(10_001))
    assert late.status is MotionStatus.FAILED
    assert "50000" in late.outcome
    assert assembly.decide(issue(10_000)).status is MotionStatus.DONE
    assembly.pass_time(100_000)
    assert assembly.decide(issue(50_000)).status is MotionStatus.DONE
    assert assembly.state.charter.minting.issued == 100_000


def test_a_redemption_whose_holder_has_spent_the_credits_fails_and_burns_nothing() -> None:
    assembly = Assembly()
    number = assembly.state.charter.agenda.next_number
    assembly.act("dave", MotionOpen(None, redeem(900_000)))
    assembly.act("dave", Transfer((Output(account_of("bob"), Amount(200_000)),)))
    for index in range(3):
        assembly.vote(index, number)
    assembly.tick()
    motion = assembly.motion(number)
    assert motion.status is MotionStatus.FAILED
    assert "the holder has" in motion.outcome
    assert assembly.state.supply().total == assembly.state.issued == 16 * 1_002_000


def test_no_vote_issues_more_credits_than_there_can_be() -> None:
    assembly = Assembly(issuance_cap=MONEY_MAX)
    with pytest.raises(errors.SubjectInvalid, match="more credits"):
        assembly.open(0, Issuance(account_of("dave"), MONEY_MAX, ""))
