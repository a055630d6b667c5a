"""The rules of one height as rows: what arrived, and what was signed then."""

from collections.abc import Callable

import pytest

from protocol.consensus import outputs as out
from protocol.messages.consensus import Certificate, CertificateKind, FinalBody, ProposalBody, VoteBody
from protocol.primitives.limits import VIEWS_AHEAD_MAX
from tests.consensus.council import (
    DELTA,
    HEIGHT,
    Member,
    X,
    Y,
    at,
    decided,
    final,
    member,
    proposal,
    skipped,
    vote,
    voted,
)

Statement = ProposalBody | VoteBody | FinalBody
Script = Callable[[Member], None]


def _rejected(made: Member) -> None:
    made.good = False
    made.proposes(proposal(1, X), at(1))


def _equivocation(made: Member) -> None:
    made.proposes(proposal(1, X), at(1))
    made.proposes(proposal(1, Y), at(2))


def _late_proposal(made: Member) -> None:
    made.take(made.machine.open(at(0)), at(0))
    made.proposes(proposal(1, X), at(2 * DELTA))


def _skip_then_vc(made: Member) -> None:
    made.take(made.machine.open(at(0)), at(0))
    made.tick(at(2 * DELTA))
    made.holds(voted(1, X), at(2 * DELTA + 1))


def _vc_then_deadline(made: Member) -> None:
    made.proposes(proposal(1, X), at(1))
    made.holds(voted(1, X), at(2))
    made.tick(at(10 * DELTA))


def _vote_then_three_delta(made: Member) -> None:
    made.proposes(proposal(1, X), at(0))
    made.tick(at(2 * DELTA))
    assert not made.signed(final(1, None))
    made.tick(at(3 * DELTA))


def _vc_after_leaving(made: Member) -> None:
    made.holds(skipped(4), at(1))
    made.holds(voted(2, X), at(2))


def _reproposal(made: Member) -> None:
    made.good = False
    made.proposes(proposal(3, X, base=1), at(1), (voted(1, X), skipped(2)))


def _reproposal_of_another_block(made: Member) -> None:
    made.proposes(proposal(3, Y, base=1), at(1), (voted(1, X), skipped(2)))


def _reproposal_without_skip(made: Member) -> None:
    made.holds(voted(2, X), at(1))
    made.proposes(proposal(3, Y), at(2))


def _gap_closed_later(made: Member) -> None:
    made.proposes(proposal(3, X), at(1), (skipped(2),))
    assert made.asked[-1] == out.PullCertificate(view=skipped(1).view)
    made.holds(skipped(1), at(2))


def _second_first(made: Member) -> None:
    made.proposes(proposal(1, X), at(1))
    made.proposes(proposal(1, X), at(2))


ROWS: list[tuple[str, Script, list[Statement]]] = [
    ("a good proposal is voted for", lambda m: m.proposes(proposal(1, X), at(1)), [vote(1, X)]),
    ("the same proposal twice is voted for once", _second_first, [vote(1, X)]),
    ("a bad block makes its view be skipped", _rejected, [final(1, None)]),
    ("an equivocating leader's view is skipped after the vote", _equivocation, [vote(1, X), final(1, None)]),
    ("a proposal at 2Δ is too late", _late_proposal, []),
    ("a skipped view is never finalised, its VC notwithstanding", _skip_then_vc, [final(1, None)]),
    ("a finalised view is never skipped", _vc_then_deadline, [vote(1, X), final(1, X), final(2, None)]),
    ("a voter waits for 3Δ before it skips", _vote_then_three_delta, [vote(1, X), final(1, None)]),
    ("a VC that comes after its view was left is finalised", _vc_after_leaving, [final(2, X)]),
    (
        "a justified re-proposal is voted for without judging it again",
        _reproposal,
        [final(1, X), vote(3, X)],
    ),
    (
        "a re-proposal that is not the VC's block is skipped",
        _reproposal_of_another_block,
        [final(1, X), final(3, None)],
    ),
    ("a proposal over a VC it does not show gets no vote", _reproposal_without_skip, [final(2, X)]),
    ("a gap in the justification is pulled, then the vote goes out", _gap_closed_later, [vote(3, X)]),
    ("a proposal for a later view without certificates is ignored", lambda m: m.proposes(proposal(2, X), at(1)), []),
]


@pytest.mark.parametrize(("script", "signed"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_what_an_authority_signs(script: Script, signed: list[Statement]) -> None:
    made = member(0)
    script(made)
    assert len(made.statements) == len(signed)
    assert all(made.signed(body) for body in signed)


def _one_key_in_two_views(made: Member) -> None:
    made.ballots((1,), vote(1, X), at(1))
    made.ballots((1,), vote(2, X), at(1))


OPENING: list[tuple[str, Script, bool]] = [
    ("one signature of f = 1 authorities", lambda m: m.ballots((1,), vote(1, X), at(1)), False),
    ("f + 1 authorities", lambda m: m.ballots((1, 2), final(1, None), at(1)), True),
    ("one authority signing twice", _one_key_in_two_views, False),
    ("view 1's proposal", lambda m: m.proposes(proposal(1, X), at(1)), True),
    ("a certificate", lambda m: m.holds(skipped(1), at(1)), True),
]


@pytest.mark.parametrize(("script", "opened"), [row[1:] for row in OPENING], ids=[row[0] for row in OPENING])
def test_what_opens_a_height(script: Script, opened: bool) -> None:
    made = member(0)
    script(made)
    assert made.machine.opened is opened


def test_a_leader_with_nothing_to_build_proposes_once_there_is_work() -> None:
    made = member(1)
    made.take(made.machine.open(at(0)), at(0))
    assert made.statements == []
    made.builds = X
    made.take(made.machine.work_arrived(at(5)), at(5))
    assert made.signed(proposal(1, X))
    assert made.signed(vote(1, X))


def test_a_leader_that_gave_its_view_up_does_not_propose_any_more() -> None:
    made = member(1)
    made.take(made.machine.open(at(0)), at(0))
    made.tick(at(2 * DELTA))
    made.builds = X
    made.take(made.machine.work_arrived(at(2 * DELTA + 1)), at(2 * DELTA + 1))
    assert not made.signed(proposal(1, X))


def test_a_leader_after_a_vc_waits_half_a_delta_for_the_decision_then_proposes_the_same_block() -> None:
    made = member(2)
    made.holds(voted(1, X), at(0))
    delta = made.machine.delta(made.machine.current)
    assert not made.signed(proposal(2, X, base=1))
    made.tick(at(delta // 2))
    assert made.signed(proposal(2, X, base=1))


def test_a_leader_pulls_the_gaps_below_its_view_and_the_body_of_the_vc_before_it_proposes() -> None:
    made = member(0)
    made.has_bodies = False
    made.holds(skipped(3), at(0))
    assert [o for o in made.asked if isinstance(o, out.PullCertificate)][:2] == [
        out.PullCertificate(skipped(2).view),
        out.PullCertificate(skipped(1).view),
    ]
    made.holds(voted(1, X), at(1))
    made.holds(skipped(2), at(2))
    assert any(isinstance(output, out.NeedBody) and output.block_hash == X for output in made.asked)
    assert not made.signed(proposal(4, X, base=1))
    made.take(made.machine.body_ready(X, at(3)), at(3))
    assert made.signed(proposal(4, X, base=1))


def test_a_proposal_carries_the_vc_it_builds_on_and_every_skip_since() -> None:
    made = member(0)
    for held in (voted(1, X), skipped(2), skipped(3)):
        made.holds(held, at(0))
    sent = [output for output in made.asked if isinstance(output, out.SendProposal)]
    assert [(held.kind, held.view) for held in sent[0].certificates] == [
        (CertificateKind.VOTED, 1),
        (CertificateKind.SKIPPED, 2),
        (CertificateKind.SKIPPED, 3),
    ]


def test_quorums_of_ballots_make_certificates_and_the_decision() -> None:
    made = member(0)
    made.proposes(proposal(1, X), at(1))
    made.ballots((1, 2), vote(1, X), at(2))
    assert made.machine.held.voted[vote(1, X).view].signers == (0, 1, 2)
    made.ballots((1,), final(1, X), at(3))
    assert not made.decided_by()
    made.ballots((3,), final(1, X), at(4))
    assert made.decided_by() == (0, 1, 3)


def test_durable_effects_precede_every_signature_that_rests_on_them() -> None:
    made = member(0)
    made.proposes(proposal(1, X), at(1))
    made.holds(voted(1, X), at(2))
    kinds = [type(output) for output in made.asked if isinstance(output, out.Keep | out.KeepBody | out.Sign)]
    assert kinds == [out.KeepBody, out.Sign, out.KeepBody, out.Keep, out.Sign]


def test_statements_beyond_the_views_ahead_are_dropped_and_certificates_of_any_view_kept() -> None:
    made = member(0)
    made.take(made.machine.open(at(0)), at(0))
    far = made.machine.current + VIEWS_AHEAD_MAX + 1
    made.ballots((1, 2, 3), vote(far, X), at(1))
    assert made.machine.held.highest() == 0
    made.holds(skipped(1000), at(2))
    assert made.machine.current == 1001


def test_resend_repeats_own_messages_of_the_current_view_and_the_entry_justification() -> None:
    made = member(0)
    for held in (voted(1, X), skipped(2)):
        made.holds(held, at(0))
    made.proposes(proposal(3, X, base=1), at(1))
    asked = made.take(made.machine.resend(at(1000)), at(1000))
    forwarded = [(o.certificate.kind, o.certificate.view) for o in asked if isinstance(o, out.Forward)]
    assert forwarded == [(CertificateKind.VOTED, 1), (CertificateKind.SKIPPED, 2)]
    assert sum(isinstance(output, out.SendBallot) for output in asked) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [(vote(1, X), vote(1, Y)), (final(1, X), final(1, Y)), (final(1, X), final(1, None))],
    ids=["two VOTEs", "two FINALs", "FINAL and skip"],
)
def test_two_statements_of_one_key_in_a_view_are_evidence_and_the_second_does_not_count(
    first: VoteBody | FinalBody, second: VoteBody | FinalBody
) -> None:
    made = member(0)
    made.ballots((1,), first, at(1))
    made.ballots((1, 2, 3), second, at(2))
    evidence = [output for output in made.asked if isinstance(output, out.Equivocation)]
    assert len(evidence) == 1
    assert evidence[0].authority == made.machine.rules.authorities.records[1].authority
    assert made.decision is None
    assert made.machine.held.highest() == 0


def test_a_vote_and_a_final_of_one_key_are_no_evidence() -> None:
    made = member(0)
    made.ballots((1,), vote(1, X), at(1))
    made.ballots((1,), final(1, X), at(2))
    assert not any(isinstance(output, out.Equivocation) for output in made.asked)


def test_a_watcher_signs_nothing_and_still_learns_the_decision() -> None:
    made = member(0)
    made.machine.own = None
    made.proposes(proposal(1, X), at(1))
    made.holds(voted(1, X), at(2))
    made.tick(at(10 * DELTA))
    made.ballots((1, 2, 3), final(1, X), at(3))
    assert made.statements == []
    assert made.decision is not None


def test_a_closed_height_answers_nothing() -> None:
    made = member(0)
    made.holds(decided(1, X), at(1))
    made.asked.clear()
    made.proposes(proposal(1, X), at(2))
    made.ballots((3,), final(1, None), at(2))
    made.tick(at(10 * DELTA))
    made.take(made.machine.resend(at(1000)), at(1000))
    assert made.asked == []
    assert made.statements == []


@pytest.mark.parametrize(
    ("held", "contradiction"),
    [
        (voted(1, X), voted(1, Y)),
        (skipped(1), decided(1, X)),
        (voted(2, Y), decided(1, X)),
    ],
    ids=["two VCs of a view", "SC and DC", "a VC of another block after a DC"],
)
def test_certificates_that_exclude_each_other_stop_the_node(held: Certificate, contradiction: Certificate) -> None:
    made = member(0)
    made.holds(held, at(1))
    made.holds(contradiction, at(2))
    assert made.broken == [f"certificates exclude each other at height {HEIGHT}"]
    assert made.decision is None


def test_a_copy_goes_its_own_way_and_equal_states_have_equal_fingerprints() -> None:
    made = member(0)
    made.proposes(proposal(1, X), at(1))
    twin = made.machine.copy()
    assert twin.fingerprint() == made.machine.fingerprint()
    hash(twin.fingerprint())
    twin.certificate(voted(1, X), at(2))
    assert twin.fingerprint() != made.machine.fingerprint()
    assert made.machine.held.highest() == 0
