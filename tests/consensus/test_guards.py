"""Each guard of the protocol is needed: with it one authority's lies break nothing, without it agreement breaks.

Authority 1 leads view 1 and authority 2 leads view 2. The liar is one of them; a liar signs anything, everybody else
only what its machine signed.
"""

from protocol.consensus.height import AuthorityHeight
from protocol.messages.consensus import FinalBody, VoteBody
from protocol.messages.effects import GuardClass
from protocol.messages.genesis import AuthorityRecord
from protocol.messages.quorum import AuthoritySet
from protocol.primitives.codec import encode
from protocol.primitives.units import BlockHash, View
from tests.consensus.council import (
    DELTA,
    Member,
    X,
    Y,
    at,
    authority_set,
    final,
    member,
    proposal,
    skipped,
    vote,
    voted,
)


class FinalisesSkippedViews(AuthorityHeight):
    """FINAL(x) and FINAL(⊥) no longer exclude each other."""

    def _may_finalise(self, view: View) -> bool:
        return True


class BelievesUnjustifiedProposals(AuthorityHeight):
    """Skip certificates below a proposal are no longer asked for."""

    def unjustified(self, base: View, view: View) -> tuple[View, ...]:
        return ()


class VotesAgain(AuthorityHeight):
    """More than one VOTE a view."""

    def _may_vote(self, view: View) -> bool:
        return True


class OneSignatureShort(AuthoritySet):
    """Certificates of Q − 1."""

    __slots__ = ()

    def __init__(self, records: tuple[AuthorityRecord, ...]) -> None:
        super().__init__(records)
        self.quorum -= 1


def _pass_on(honest: dict[int, Member], liar: int, to: int, body: VoteBody | FinalBody) -> None:
    """Deliver a ballot of everybody who signed it, and of the liar, to one authority."""
    signers = tuple(number for number, each in honest.items() if number != to and each.signed(body))
    honest[to].ballots((*signers, liar), body, at(5 * DELTA))


def _decisions(honest: dict[int, Member]) -> set[BlockHash | None]:
    return {each.decision.block_hash for each in honest.values() if each.decision is not None}


def _first_view_voted(honest: dict[int, Member]) -> None:
    for each in honest.values():
        each.proposes(proposal(1, X), at(1))


def _second_view_lies(honest: dict[int, Member]) -> None:
    """The leader of view 2 proposes another block from nothing; whoever votes for it is helped to decide it."""
    for number in (1, 3):
        honest[number].proposes(proposal(2, Y), at(5 * DELTA + 1))
    for body in (vote(2, Y), final(2, Y)):
        for number in (1, 3):
            _pass_on(honest, 2, number, body)


def _skip_after_final(machine_type: type[AuthorityHeight]) -> set[BlockHash | None]:
    honest = {number: member(number, machine_type) for number in (0, 1, 3)}
    _first_view_voted(honest)
    honest[0].holds(voted(1, X), at(2))
    for number in (1, 3):
        honest[number].tick(at(4 * DELTA))
        assert honest[number].signed(final(1, None))
        honest[number].holds(voted(1, X), at(4 * DELTA + 1))
    for number in (1, 3):
        _pass_on(honest, 2, number, final(1, None))
    _pass_on(honest, 2, 0, final(1, X))
    _second_view_lies(honest)
    return _decisions(honest)


def test_without_final_exclusivity_a_decided_view_is_skipped_and_two_blocks_are_decided() -> None:
    assert _skip_after_final(FinalisesSkippedViews) == {X, Y}


def test_with_final_exclusivity_one_block_is_decided_at_most() -> None:
    assert len(_skip_after_final(AuthorityHeight)) <= 1


def _proposal_without_skips(machine_type: type[AuthorityHeight]) -> set[BlockHash | None]:
    honest = {number: member(number, machine_type) for number in (0, 1, 3)}
    _first_view_voted(honest)
    for each in honest.values():
        each.holds(voted(1, X), at(5 * DELTA))
    _pass_on(honest, 2, 0, final(1, X))
    _second_view_lies(honest)
    return _decisions(honest)


def test_without_the_skip_check_a_leader_replaces_a_decided_block() -> None:
    assert _proposal_without_skips(BelievesUnjustifiedProposals) == {X, Y}


def test_with_the_skip_check_the_decided_block_stands() -> None:
    assert _proposal_without_skips(AuthorityHeight) == {X}


def _two_faced_leader(set_type: type[AuthoritySet]) -> set[BlockHash | None]:
    authorities = authority_set(4, set_type)
    honest = {number: member(number, authorities=authorities) for number in (0, 3)}
    honest[0].proposes(proposal(1, X), at(1))
    honest[3].proposes(proposal(1, Y), at(1))
    for number, block_hash in ((0, X), (3, Y)):
        for body in (vote(1, block_hash), final(1, block_hash)):
            _pass_on(honest, 1, number, body)
    return _decisions(honest)


def test_with_one_signature_less_a_two_faced_leader_decides_two_blocks() -> None:
    assert _two_faced_leader(OneSignatureShort) == {X, Y}


def test_with_a_full_quorum_a_two_faced_leader_decides_nothing() -> None:
    assert _two_faced_leader(AuthoritySet) == set()


def _vote_after_restart(machine_type: type[AuthorityHeight]) -> tuple[Member, Member]:
    """Authority 3 votes for X, restarts with its guard's rows, and is shown Y in the same view."""
    honest = {number: member(number, machine_type) for number in (0, 2, 3)}
    for number in (0, 3):
        honest[number].proposes(proposal(1, X), at(1))
    _pass_on(honest, 1, 0, vote(1, X))
    honest[3] = member(3, machine_type, guard={(View(1), GuardClass.VOTE): encode(vote(1, X))})
    for number in (2, 3):
        honest[number].proposes(proposal(1, Y), at(2))
    _pass_on(honest, 1, 2, vote(1, Y))
    return honest[0], honest[2]


def test_with_two_votes_a_view_one_view_gets_two_vote_certificates() -> None:
    first, second = _vote_after_restart(VotesAgain)
    assert first.machine.held.voted[View(1)].block_hash == X
    assert second.machine.held.voted[View(1)].block_hash == Y


def test_with_one_vote_a_view_its_vote_certificate_is_unique() -> None:
    first, second = _vote_after_restart(AuthorityHeight)
    assert first.machine.held.voted[View(1)].block_hash == X
    assert not second.machine.held.voted


def test_a_proposal_must_be_the_block_of_its_certificate() -> None:
    made = member(0)
    made.proposes(proposal(2, X, base=1), at(1), (voted(1, Y),))
    assert not made.signed(vote(2, X))
    assert made.signed(final(2, None))


def test_final_needs_the_vote_certificate_however_many_votes_are_short_of_it() -> None:
    made = member(0)
    made.proposes(proposal(1, X), at(1))
    made.ballots((1,), vote(1, X), at(2))
    assert not made.signed(final(1, X))
    made.ballots((2,), vote(1, X), at(3))
    assert made.signed(final(1, X))


def test_final_waits_for_an_executed_and_durable_body() -> None:
    made = member(0)
    made.has_bodies = False
    made.holds(voted(1, X), at(1))
    assert not made.signed(final(1, X))
    made.take(made.machine.body_ready(X, at(2)), at(2))
    assert made.signed(final(1, X))


def test_a_skip_certificate_of_another_view_justifies_nothing() -> None:
    made = member(0)
    made.holds(skipped(2), at(1))
    made.proposes(proposal(3, X), at(2))
    assert not made.signed(vote(3, X))
