"""Who signs twice is noticed wherever the two statements meet: in ballots, in certificates, after a restart."""

import pytest

from protocol.consensus import outputs as out
from protocol.messages.consensus import Certificate, FinalBody, VoteBody
from protocol.messages.envelope import open_envelope
from protocol.messages.kinds import MessageKind
from protocol.primitives.units import Signature, View
from tests.consensus.council import Member, X, Y, at, decided, final, member, proposal, skipped, stand_in, vote, voted


def _accused(made: Member) -> list[int]:
    return [output.authority[0] for output in made.asked if isinstance(output, out.Equivocation)]


@pytest.mark.parametrize(
    ("held", "statement"),
    [(voted(1, X), vote(1, Y)), (skipped(1), final(1, X)), (decided(1, X), final(1, None))],
    ids=["VOTE beside a VC", "FINAL beside an SC", "skip beside a DC"],
)
@pytest.mark.parametrize("first", ["certificate", "ballot"])
def test_a_signer_of_a_certificate_that_says_otherwise_is_accused(
    held: Certificate, statement: VoteBody | FinalBody, first: str
) -> None:
    made = member(0)
    if first == "certificate":
        made.holds(held, at(1))
    made.ballots((2, 3), statement, at(2))
    made.holds(held, at(3))
    assert _accused(made) == [2]
    (evidence,) = (output for output in made.asked if isinstance(output, out.Equivocation))
    said = [open_envelope(each)[1] for each in (evidence.first, evidence.second)]
    assert statement in said
    assert said[0] != said[1]


def test_a_leader_that_proposes_otherwise_after_our_restart_is_accused() -> None:
    before = member(0)
    before.proposes(proposal(1, X), at(1))
    (kept,) = (output for output in before.asked if isinstance(output, out.KeepProposal))
    envelope, body = open_envelope(kept.envelope)
    assert (envelope.kind, body) == (MessageKind.PROPOSAL, proposal(1, X))
    after = member(0)
    after.machine.remember(proposal(1, X), envelope.signature, at(10))
    after.proposes(proposal(1, Y), at(11))
    assert _accused(after) == [1]
    assert View(1) not in after.machine.proposals


def test_a_proposal_seen_before_our_restart_counts_when_it_comes_again() -> None:
    made = member(0)
    made.machine.remember(proposal(1, X), stand_in(proposal(1, X)), at(0))
    made.proposes(proposal(1, X), at(1))
    assert _accused(made) == []
    assert made.machine.proposals[View(1)].body == proposal(1, X)


def test_a_copy_of_a_machine_remembers_proposals_of_its_own() -> None:
    made = member(0)
    twin = made.machine.copy()
    twin.remember(proposal(1, X), Signature(bytes(64)), at(1))
    assert made.machine.remembered == {}
