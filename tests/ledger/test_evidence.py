"""Double signing: what proves it, what is refused as proof, and what it costs."""

from collections.abc import Callable

import pytest

from protocol.engine.payouts import Payouts
from protocol.ledger import errors, subjects
from protocol.ledger.charter import MotionStatus
from protocol.ledger.errors import TransactionInvalid
from protocol.ledger.evidence import is_reportable, may_be_reported_later
from protocol.ledger.signatures import transaction_checks
from protocol.ledger.state import LedgerState
from protocol.messages.blocks import header_hash
from protocol.messages.consensus import CertificateKind, FinalBody, ProposalBody, VoteBody
from protocol.messages.effects import Now
from protocol.messages.kinds import MessageKind
from protocol.messages.quorum import CertificateInvalid, certificate_checks
from protocol.messages.transactions import BondDeposit, BondRelease, BondUnlock, EvidenceReport
from protocol.primitives.units import Amount, MonotonicMs, TimestampMs, View
from tests.ledger.assembly import Assembly, X, Y, authority, ballot, change, final, proposal, settings
from tests.ledger.world import FEE, account_of, sealed

Statement = ProposalBody | VoteBody | FinalBody

GUILTY: list[tuple[str, Callable[[Assembly], EvidenceReport]]] = [
    (
        "two proposals of different blocks",
        lambda a: EvidenceReport(a.said(3, proposal(1, 2, X)), a.said(3, proposal(1, 2, Y))),
    ),
    (
        "one block proposed from two views",
        lambda a: EvidenceReport(a.said(3, proposal(1, 2, X, 0)), a.said(3, proposal(1, 2, X, 1))),
    ),
    ("two votes", lambda a: EvidenceReport(a.said(3, ballot(1, 2, X)), a.said(3, ballot(1, 2, Y)))),
    ("two finals", lambda a: EvidenceReport(a.said(3, final(1, 2, X)), a.said(3, final(1, 2, Y)))),
    ("a final and a skip", lambda a: EvidenceReport(a.said(3, final(1, 2, None)), a.said(3, final(1, 2, X)))),
]


@pytest.mark.parametrize("make", [row[1] for row in GUILTY], ids=[row[0] for row in GUILTY])
def test_who_signed_twice_is_suspended_two_heights_later_and_loses_its_bond(
    make: Callable[[Assembly], EvidenceReport],
) -> None:
    assembly = Assembly()
    assembly.act("auth3-account", BondUnlock(Amount(700)))
    report = make(assembly)
    assert is_reportable(assembly.state, report.first, report.second)
    pool, reporter = assembly.state.fee_pool, assembly.balance("alice")
    assembly.act("alice", report)
    assert not is_reportable(assembly.state, report.first, report.second)
    assert assembly.state.bond(account_of("auth3-account")).total == 0
    assert assembly.state.fee_pool == pool + 2_000 + FEE
    assert assembly.balance("alice") == reporter - FEE
    schedule = assembly.state.schedule
    assert (schedule.previous.suspended, schedule.current.suspended) == ((), ())
    assert schedule.following.suspended == (authority(3),)
    assembly.tick(2)
    now = assembly.state.authorities
    assert (now.n, now.f, now.quorum) == (4, 1, 3)
    assert not now.counts(authority(3))
    assert authority(3) not in [now.leader(assembly.state.height, View(view)) for view in range(1, 9)]
    found = assembly.state.evidence(authority(3))
    assert found is not None
    assert (found.height, found.view, found.reporter, found.forfeited) == (1, 2, account_of("alice"), 2_000)
    supply = assembly.state.supply()
    assert supply.total == supply.issued
    rebuilt = LedgerState.from_rows(assembly.genesis, assembly.state.rows(), assembly.state.tip)
    assert rebuilt.evidence(authority(3)) == found


def _stranger(assembly: Assembly) -> EvidenceReport:
    return EvidenceReport(assembly.said(9, ballot(1, 2, X)), assembly.said(9, ballot(1, 2, Y)))


def _twice(assembly: Assembly) -> EvidenceReport:
    assembly.act("bob", GUILTY[2][1](assembly))
    return GUILTY[3][1](assembly)


def second_of_four(assembly: Assembly) -> EvidenceReport:
    assembly.act("bob", GUILTY[2][1](assembly))
    return EvidenceReport(assembly.said(2, ballot(1, 2, X)), assembly.said(2, ballot(1, 2, Y)))


def _not_of_consensus(assembly: Assembly) -> EvidenceReport:
    voucher = assembly.voucher(assembly.open_channel("alice", "bob", 5), "alice", "bob", 1, 1)
    return EvidenceReport(voucher, voucher)


def _said(first: tuple[int, Statement], second: tuple[int, Statement]) -> Callable[[Assembly], EvidenceReport]:
    return lambda assembly: EvidenceReport(assembly.said(*first), assembly.said(*second))


INNOCENT: list[tuple[str, Callable[[Assembly], EvidenceReport], type[TransactionInvalid]]] = [
    ("one statement twice", _said((3, ballot(1, 2)), (3, ballot(1, 2))), errors.NotEquivocation),
    ("two views", _said((3, ballot(1, 2, X)), (3, ballot(1, 3, Y))), errors.NotEquivocation),
    ("two heights", _said((3, ballot(1, 2, X)), (3, ballot(2, 2, Y))), errors.NotEquivocation),
    ("two keys", _said((3, ballot(1, 2, X)), (2, ballot(1, 2, Y))), errors.NotEquivocation),
    ("a vote and a skip", _said((3, ballot(1, 2, X)), (3, final(1, 2, None))), errors.NotEquivocation),
    ("a key without a seat", _stranger, errors.NotAnAuthority),
    ("a key that is accused already", _twice, errors.AlreadyReported),
    ("a height that has not come", _said((3, ballot(9, 2, X)), (3, ballot(9, 2, Y))), errors.EvidenceEarly),
    ("one whose loss would halt the ledger", second_of_four, errors.SuspensionHalts),
    ("no statements of consensus", _not_of_consensus, errors.NotATransaction),
    ("no envelopes", lambda a: EvidenceReport(b"\xc1", b"\xc1"), errors.NotATransaction),
]


@pytest.mark.parametrize(("make", "error"), [row[1:] for row in INNOCENT], ids=[row[0] for row in INNOCENT])
def test_what_proves_nothing_is_refused_by_name(
    make: Callable[[Assembly], EvidenceReport], error: type[TransactionInvalid]
) -> None:
    assembly = Assembly()
    report = make(assembly)
    assert not is_reportable(assembly.state, report.first, report.second)
    with pytest.raises(error):
        assembly.act("alice", report)


def test_a_report_that_only_a_replacement_can_make_room_for_is_kept_for_later() -> None:
    assembly = Assembly()
    second = second_of_four(assembly)
    assert may_be_reported_later(assembly.state, second.first, second.second)
    nothing = _said((3, ballot(1, 2)), (3, ballot(1, 2)))(assembly)
    assert not may_be_reported_later(assembly.state, nothing.first, nothing.second)


def test_the_last_active_authority_is_never_suspended() -> None:
    assembly = Assembly(1)
    with pytest.raises(errors.SuspensionHalts):
        assembly.act("alice", EvidenceReport(assembly.said(0, ballot(1, 2, X)), assembly.said(0, ballot(1, 2, Y))))


def test_the_door_checks_the_statements_inside_a_report() -> None:
    assembly = Assembly()
    honest = assembly.transaction("alice", GUILTY[2][1](assembly)).envelope_bytes
    assert [check.holds() for check in transaction_checks(assembly.hash, honest)] == [True, True, True]
    other = sealed(type(assembly.hash)(b"o" * 32), "auth3", MessageKind.VOTE, ballot(1, 2, Y))
    forged = EvidenceReport(assembly.said(3, ballot(1, 2, X)), other)
    received = assembly.transaction("alice", forged).envelope_bytes
    assert [check.holds() for check in transaction_checks(assembly.hash, received)] == [True, True, False]
    with pytest.raises(errors.NotATransaction):
        transaction_checks(assembly.hash, assembly.transaction("alice", EvidenceReport(b"", b"")).envelope_bytes)


@pytest.mark.parametrize(
    ("blocks", "step_ms", "taken"),
    [(19, 1_000, True), (21, 20, True), (12, 15_000, True), (22, 15_000, False)],
    ids=["within both", "long in blocks alone", "long in time alone", "long in both"],
)
def test_evidence_is_taken_until_both_blocks_and_time_have_passed(blocks: int, step_ms: int, taken: bool) -> None:
    assembly = Assembly(evidence_blocks=20, evidence_ms=8_000, heartbeat_ms=20)
    report = GUILTY[2][1](assembly)
    for _ in range(blocks):
        assembly.include(after_ms=step_ms)
    assert is_reportable(assembly.state, report.first, report.second) is taken
    if taken:
        assembly.act("alice", report)
    else:
        with pytest.raises(errors.EvidenceExpired):
            assembly.act("alice", report)


def test_the_notes_of_time_stay_few_however_long_the_ledger_runs() -> None:
    assembly = Assembly(evidence_blocks=20, evidence_ms=8_000, heartbeat_ms=20)
    for number in range(400):
        assembly.include(after_ms=20 + number % 7 * 150)
    assert len(assembly.state.charter.marks.marks) <= 35


def test_a_key_that_has_left_can_be_accused_of_what_it_signed_as_a_member_only() -> None:
    assembly = Assembly(evidence_blocks=1_000)
    assembly.decide(change(remove=(3,)))
    left_at = assembly.state.height + 1  # the last height that it decides
    assembly.tick(4)
    for height, seated in ((left_at + 1, False), (left_at, True)):
        report = EvidenceReport(assembly.said(3, ballot(height, 2, X)), assembly.said(3, ballot(height, 2, Y)))
        assert is_reportable(assembly.state, report.first, report.second) is seated
    assembly.act("alice", report)
    assert assembly.state.schedule.following.suspended == ()
    assert assembly.state.bond(account_of("auth3-account")).total == 0


def test_only_so_many_who_have_left_are_remembered_the_last_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects, "FORMER_SEATS_MAX", 2)
    assembly = Assembly(1)
    for turn in range(4):
        assembly.open(turn, change(remove=(turn,), add=(turn + 1,)))  # the only authority votes its successor in
        assembly.tick(4)
    former = [seat.authority for seat in assembly.state.charter.seats.seats if seat.until is not None]
    assert former == [authority(2), authority(3)]


def test_a_key_that_signed_twice_never_comes_back() -> None:
    assembly = Assembly()
    assembly.act("alice", GUILTY[2][1](assembly))
    assembly.decide(change(remove=(3,), add=(8,)))
    assembly.tick(4)
    assert assembly.members() == ["auth0", "auth1", "auth2", "auth8"]
    assert assembly.state.schedule.following.suspended == ()
    with pytest.raises(errors.SubjectInvalid, match="never comes back"):
        assembly.open(0, change(remove=(8,), add=(3,)))


def test_a_key_that_signed_twice_before_its_admission_takes_effect_is_not_admitted() -> None:
    assembly = Assembly(motion_timelock_ms=30_000, evidence_blocks=1_000)
    assembly.decide(change(remove=(3,)))
    assembly.tick(5)
    number = assembly.open(0, change(add=(3,)))
    for index in (1, 2):
        assembly.vote(index, number)
    assembly.act("alice", GUILTY[2][1](assembly))
    assembly.tick(3)
    motion = assembly.motion(number)
    assert motion.status is MotionStatus.FAILED
    assert "signed twice" in motion.outcome


def test_a_suspended_authority_neither_votes_nor_opens_motions_and_motions_it_could_have_saved_end() -> None:
    assembly = Assembly()
    number = assembly.open(0, settings(fee_min=20))
    assembly.vote(1, number)
    assembly.vote(2, number, approve=False)
    other = assembly.open(1, settings(fee_min=30))
    assembly.act("alice", GUILTY[2][1](assembly))
    assert assembly.motion(number).status is MotionStatus.REJECTED  # only auth3 could have passed it
    assert assembly.motion(other).status is MotionStatus.OPEN
    with pytest.raises(errors.NotAnAuthority):
        assembly.vote(3, other)
    with pytest.raises(errors.NotAnAuthority):
        assembly.open(3, settings(fee_min=40))
    later = assembly.motion(assembly.open(2, settings(fee_min=50)))
    assert authority(3) not in [elector.authority for elector in later.electorate]
    assert (later.seats, later.needed) == (4, 3)  # its seat still counts, its vote does not


def test_with_one_suspended_no_healthy_authority_can_be_voted_out_but_the_suspended_one_can() -> None:
    assembly = Assembly()
    assembly.act("alice", GUILTY[2][1](assembly))
    with pytest.raises(errors.SubjectInvalid, match="quorum of 3"):
        assembly.open(0, change(remove=(2,)))
    assembly.open(0, change(remove=(3,)))


def test_a_certificate_with_a_suspended_signer_does_not_count() -> None:
    assembly = Assembly()
    assembly.act("alice", GUILTY[2][1](assembly))
    assembly.tick(2)
    tip = assembly.state.tip
    good = assembly.certify(tip, CertificateKind.DECIDED)
    assert header_hash(tip) == good.block_hash
    members = assembly.state.authorities
    position = members.index_of(authority(3))
    assert position is not None
    signers = tuple(sorted((position, *good.signers[:-1])))
    forged = type(good)(good.kind, good.height, good.view, good.block_hash, signers, good.signatures)
    with pytest.raises(CertificateInvalid, match="suspended"):
        certificate_checks(assembly.hash, members, forged)


def test_an_accused_account_may_bond_again_and_keeps_that() -> None:
    assembly = Assembly()
    assembly.act("alice", GUILTY[2][1](assembly))
    assembly.act("auth3-account", BondDeposit(Amount(50)))
    assert assembly.state.bond(account_of("auth3-account")).amount == 50


def test_the_bond_of_a_seat_is_paid_out_only_once_its_holder_has_left_and_can_not_be_accused_any_more() -> None:
    assembly = Assembly(evidence_blocks=6, evidence_ms=60_000)
    holder = account_of("auth3-account")
    payouts, now = Payouts(holder), Now(MonotonicMs(0), TimestampMs(0))
    assembly.act("auth3-account", BondUnlock(Amount(2_000)))
    assembly.pass_time(assembly.state.parameters.unbonding_ms)
    with pytest.raises(errors.BondAnswerable):
        assembly.act("alice", BondRelease(holder))
    assembly.decide(change(remove=(3,)))
    left_at = assembly.state.height + 1  # the last height that it decides
    report = EvidenceReport(assembly.said(3, ballot(left_at, 2, X)), assembly.said(3, ballot(left_at, 2, Y)))
    refused = 0
    while not payouts.due(assembly.state, now):
        with pytest.raises(errors.BondAnswerable):
            assembly.act("alice", BondRelease(holder))
        assembly.tick()
        refused += 1
    assert refused > 6
    assert not is_reportable(assembly.state, report.first, report.second)
    before = assembly.balance("auth3-account")
    assembly.act("alice", BondRelease(holder))
    assert assembly.balance("auth3-account") == before + 2_000


def test_whoever_unlocked_long_before_signing_twice_loses_it_all_the_same() -> None:
    assembly = Assembly(evidence_blocks=100_000, evidence_ms=60_000)
    holder = account_of("auth3-account")
    assembly.act("auth3-account", BondUnlock(Amount(2_000)))
    assembly.pass_time(assembly.state.parameters.unbonding_ms)
    report = GUILTY[2][1](assembly)
    with pytest.raises(errors.BondAnswerable):
        assembly.act("auth3-account", BondRelease(holder))
    assembly.act("alice", report)
    assert assembly.state.bond(holder).total == 0
