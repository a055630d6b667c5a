"""Every run of the shipped machine with three honest authorities and one liar, up to a number of views.

Messages are a growing soup: whatever was signed may arrive at any time, never, or again. The liar's signature is on
everything; as a leader it proposes anything. Timers fire whenever they like. Certificates arrive whole, since a machine
makes the same of Q ballots. Bodies are good and here. Decisions are not delivered: they would only end a height sooner.
"""

from collections.abc import Iterator
from typing import NamedTuple

from protocol.consensus import outputs as out
from protocol.consensus.height import AuthorityHeight
from protocol.consensus.height_state import HeightRules
from protocol.messages.consensus import Certificate, CertificateKind, FinalBody, ProposalBody, VoteBody
from protocol.messages.kinds import MessageKind
from protocol.primitives.codec import decode
from protocol.primitives.units import BlockHash, DurationMs, View
from tests.consensus.council import DELTA, HEIGHT, X, Y, at, authority_set, certificate, proposal, stand_in

Key = tuple[object, ...]
Said = tuple[MessageKind, View, BlockHash]
"""A VOTE or FINAL; ``SKIP`` stands for ⊥."""
SKIP = BlockHash(b"")


class Disagreement(Exception):
    """Two blocks are decided, or a machine holds certificates that exclude each other."""


class Walker(NamedTuple):
    """One honest machine and all that it ever signed as VOTE or FINAL."""

    machine: AuthorityHeight
    signed: frozenset[Said]


class State(NamedTuple):
    """The honest machines, and the view whose steps are being taken."""

    phase: int
    walkers: tuple[Walker, ...]


class Search:
    """Depth first over all states, each visited once.

    Views are taken in order, which loses no run: what a machine does in a later view neither enables nor forbids a
    step of an earlier one. What a machine has left behind is delivered at once where that can't take a choice from it:
    more skip certificates only allow more, and so do vote certificates unless it still has to lead.
    """

    def __init__(
        self, liar: int, views: int, machine_type: type[AuthorityHeight] = AuthorityHeight, short: int = 0
    ) -> None:
        self._authorities = authority_set(4)
        self._quorum = self._authorities.quorum - short
        self._views = views
        self._liar = liar
        self._honest = tuple(number for number in range(4) if number != liar)
        self._rules = HeightRules(self._authorities, HEIGHT, DurationMs(DELTA), DurationMs(10 * DELTA))
        self._machine_type = machine_type
        self.seen: set[Key] = set()

    def run(self) -> int:
        """Number of states, none of which disagrees. Raises ``Disagreement``."""
        walkers: list[Walker] = []
        for number in self._honest:
            machine = self._machine_type(self._rules)
            machine.permit(self._authorities.records[number].authority, {}, at(0))
            walkers.append(self._after(Walker(machine, frozenset()), number, machine.open(at(0))))
        waiting = [State(1, tuple(walkers))]
        while waiting:
            state = self._settled(waiting.pop())
            key = self._canonical(state)
            if key in self.seen:
                continue
            self.seen.add(key)
            self._check(state)
            if state.phase < self._views:
                waiting.append(State(state.phase + 1, state.walkers))
            for position, walker in self._next(state):
                walkers_after = (*state.walkers[:position], walker, *state.walkers[position + 1 :])
                waiting.append(State(state.phase, walkers_after))
        return len(self.seen)

    def _canonical(self, state: State) -> Key:
        """Authorities that lead none of these views may be exchanged for one another."""
        leaders: list[Key] = []
        others: list[Key] = []
        for number, walker in zip(self._honest, state.walkers, strict=True):
            key = _key(walker, state.phase, self._views)
            (leaders if state.phase <= number <= self._views else others).append(key)
        held = tuple((c.kind, c.view, c.block_hash) for c in self._certificates(state))
        return (state.phase, held, *leaders, *sorted(others, key=repr))

    def _check(self, state: State) -> None:
        decided = {
            block_hash
            for view in range(1, self._views + 1)
            for block_hash in (X, Y)
            if self._signers(state, (MessageKind.FINAL, View(view), block_hash)) >= self._quorum
        }
        if len(decided) > 1:
            raise Disagreement(f"two blocks decided after {len(self.seen)} states")

    def _settled(self, state: State) -> State:
        """The state once everything that takes no choice away has been delivered."""
        walkers = list(state.walkers)
        for held in self._certificates(state):
            for position, number in enumerate(self._honest):
                machine = walkers[position].machine
                leads = machine.current <= number <= self._views
                if held.view < machine.current and _news(machine, held) and not (_is_vote(held) and leads):
                    walkers[position] = self._given(walkers[position], number, held)
        return State(state.phase, tuple(walkers))

    def _given(self, walker: Walker, number: int, held: Certificate) -> Walker:
        machine = walker.machine.copy()
        return self._after(Walker(machine, walker.signed), number, machine.certificate(held, at(0)))

    def _signers(self, state: State, said: Said) -> int:
        """Everybody who said it; the liar says everything."""
        return 1 + sum(said in walker.signed for walker in state.walkers)

    def _next(self, state: State) -> Iterator[tuple[int, Walker]]:
        """Every step that an honest machine may take in the present view."""
        for position, walker in enumerate(state.walkers):
            number, view = self._honest[position], walker.machine.current
            if view == state.phase:
                for body in self._proposals(state, walker.machine):
                    machine = walker.machine.copy()
                    outputs = machine.proposal(body, stand_in(body), (), at(0))
                    yield position, self._after(Walker(machine, walker.signed), number, outputs)
                for delay in self._delays(walker.machine):
                    machine = walker.machine.copy()
                    yield position, self._after(Walker(machine, walker.signed), number, machine.tick(at(delay)))
            for held in self._certificates(state):
                leaves_here = view <= held.view == state.phase
                if _news(walker.machine, held) and (leaves_here or held.view < view):
                    yield position, self._given(walker, number, held)

    def _delays(self, machine: AuthorityHeight) -> list[int]:
        """Timers that still matter: giving the view up, and proposing what was voted for before."""
        delta = machine.delta(machine.current)
        skip = [3 * delta] if machine.current not in machine.final else []
        return skip + ([delta // 2] if machine.waits_for_block else [])

    def _proposals(self, state: State, machine: AuthorityHeight) -> list[ProposalBody]:
        view = machine.current
        if view in machine.proposals or view in machine.voted or view in machine.final:
            return []
        leader = self._authorities.index_of(self._authorities.leader(HEIGHT, view))
        if leader == self._liar:
            return [proposal(view, block_hash, base) for block_hash in (X, Y) for base in range(view)]
        assert leader is not None
        signed = state.walkers[self._honest.index(leader)].machine.proposed.get(view)
        return [signed] if signed is not None else []

    def _certificates(self, state: State) -> Iterator[Certificate]:
        for number in range(1, self._views + 1):
            view = View(number)
            for block_hash in (X, Y):
                if self._signers(state, (MessageKind.VOTE, view, block_hash)) >= self._quorum:
                    yield certificate(CertificateKind.VOTED, view, block_hash)
            if self._signers(state, (MessageKind.FINAL, view, SKIP)) >= self._quorum:
                yield certificate(CertificateKind.SKIPPED, view, None)

    def _after(self, walker: Walker, number: int, outputs: list[out.Output]) -> Walker:
        """The machine once its replica has answered everything; own signatures come back at once."""
        machine = walker.machine
        for output in outputs:
            more: list[out.Output] = []
            match output:
                case out.Sign():
                    walker = Walker(machine, walker.signed | _said(output))
                    more = machine.own_signed(output.kind, output.payload, stand_in(number, output.payload), at(0))
                case out.BuildBlock():
                    more = machine.built(output.view, X if output.view % 2 else Y, at(0))
                case out.JudgeBlock():
                    more = machine.judged(output.view, output.block_hash, True, at(0))
                case out.NeedBody():
                    more = machine.body_ready(output.block_hash, at(0))
                case out.SafetyBroken():
                    raise Disagreement(output.reason)
                case _:
                    pass
            walker = self._after(walker, number, more)
        return walker


def _said(signed: out.Sign) -> frozenset[Said]:
    if signed.kind is MessageKind.PROPOSAL:
        return frozenset()
    body = decode(signed.payload, VoteBody) if signed.kind is MessageKind.VOTE else decode(signed.payload, FinalBody)
    return frozenset({(signed.kind, body.view, body.block_hash or SKIP)})


def _is_vote(held: Certificate) -> bool:
    return held.kind is CertificateKind.VOTED


def _news(machine: AuthorityHeight, held: Certificate) -> bool:
    known = machine.held.of(held.kind).get(held.view)
    return known is None or known.block_hash != held.block_hash


def _key(walker: Walker, phase: int, views: int) -> Key:
    """What its future in these views depends on; tallies are left out, since certificates arrive whole.

    Of views that all have left, only what was finalised and what is held still matters.
    """
    machine = walker.machine
    return (
        min(machine.current, views + 1),
        tuple(
            sorted(
                said
                for said in walker.signed
                if said[1] <= views and (said[0] is MessageKind.FINAL or phase <= said[1])
            )
        ),
        tuple((view, machine.held.voted[view].block_hash) for view in sorted(machine.held.voted)),
        tuple(sorted(machine.held.skipped)),
        tuple(
            (view, machine.proposals[view].body.block_hash, machine.proposals[view].body.voted_view)
            for view in sorted(machine.proposals)
            if phase <= view <= views and view not in machine.final and view not in machine.voted
        ),
        tuple(
            (view, machine.proposed[view].block_hash, machine.proposed[view].voted_view)
            for view in sorted(machine.proposed)
            if phase <= view <= views
        ),
    )
