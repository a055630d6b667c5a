"""An authority starts again: from its durable certificates and what its guard holds."""

from protocol.consensus import outputs as out
from protocol.messages.consensus import Certificate
from protocol.messages.effects import GuardClass
from protocol.primitives.codec import encode
from protocol.primitives.units import View
from tests.consensus.council import DELTA, Member, X, Y, at, final, member, proposal, skipped, stand_in, vote, voted

VOTE, FINAL, PROPOSAL = GuardClass.VOTE, GuardClass.FINAL, GuardClass.PROPOSAL


def _restarted(
    number: int, certificates: tuple[Certificate, ...], guard: dict[tuple[View, GuardClass], bytes]
) -> Member:
    made = member(number)
    made.machine.own = None
    made.take(made.machine.restore(certificates, at(0)), at(0))
    made.take(made.machine.permit(made.key, guard, at(0)), at(0))
    return made


def test_with_nothing_on_disk_nothing_starts() -> None:
    made = member(0)
    assert not made.machine.opened
    assert made.asked == []


def test_current_is_one_above_the_highest_durable_certificate() -> None:
    made = _restarted(0, (voted(1, X), skipped(3)), {})
    assert made.machine.current == 4


def test_what_the_guard_holds_is_signed_and_sent_again_and_nothing_else_at_its_position() -> None:
    made = _restarted(0, (), {(View(1), VOTE): encode(vote(1, X))})
    assert made.signed(vote(1, X))
    made.proposes(proposal(1, Y), at(1))
    assert not made.signed(vote(1, Y))


def test_a_guarded_skip_forbids_final_after_the_restart() -> None:
    made = _restarted(0, (), {(View(1), FINAL): encode(final(1, None))})
    made.holds(voted(1, X), at(1))
    assert not made.signed(final(1, X))


def test_a_durable_vc_without_a_final_is_finalised_after_the_restart() -> None:
    made = _restarted(0, (voted(1, X),), {(View(1), VOTE): encode(vote(1, X))})
    assert made.signed(final(1, X))


def test_a_leader_repeats_the_proposal_in_its_guard_and_builds_no_other() -> None:
    made = member(1)
    made.machine.own = None
    made.builds = Y
    made.take(made.machine.permit(made.key, {(View(1), PROPOSAL): encode(proposal(1, X))}, at(0)), at(0))
    assert made.signed(proposal(1, X))
    assert not made.signed(proposal(1, Y))
    assert any(isinstance(output, out.SendProposal) and output.block_hash == X for output in made.asked)


def test_timers_are_new_after_a_restart() -> None:
    made = _restarted(0, (skipped(1),), {})
    delta = made.machine.delta(View(2))
    made.tick(at(2 * delta - 1))
    assert not made.signed(final(2, None))
    made.tick(at(2 * delta))
    assert made.signed(final(2, None))


def test_the_guards_answer_overrules_what_was_asked_for() -> None:
    made = member(0)
    made.machine.open(at(0))
    outputs = made.machine.tick(at(3 * DELTA))
    asked = next(output for output in outputs if isinstance(output, out.Sign))
    assert asked.payload == encode(final(1, None))
    made.take(made.machine.own_signed(asked.kind, encode(final(1, X)), stand_in(), at(3 * DELTA)), at(3 * DELTA))
    assert made.machine.final == {1: X}
