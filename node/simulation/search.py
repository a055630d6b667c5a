"""Every run of the shipped machine of one height: three honest authorities and one liar, up to a number of views.

Messages are a growing soup: whatever was signed may arrive at any time, never, or again. The liar's signature is on
everything; as a leader it proposes anything. Timers fire whenever they like, and machines restart on what their disks
hold. Certificates arrive whole, since a machine makes the same of Q ballots. Bodies are good and here. Decisions are
not delivered: they would only end a height sooner.

Law: no state may hold two decisions (``Disagreement``). From every state, once the liar says nothing more and what the
honest ones say arrives in time, a block is decided (``Stuck``).
"""

from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import NamedTuple

from node.simulation.statements import DELTA_MS, HEIGHT, X, Y, at, authority_set, certificate, proposal, stand_in
from protocol.consensus import outputs as out
from protocol.consensus.height import AuthorityHeight
from protocol.consensus.height_state import HeightRules
from protocol.messages.consensus import Certificate, CertificateKind, FinalBody, ProposalBody, VoteBody
from protocol.messages.effects import GuardClass
from protocol.messages.kinds import MessageKind
from protocol.primitives.codec import decode, encode
from protocol.primitives.units import BlockHash, DurationMs, View

AUTHORITIES = 4
RECOVERY_ROUNDS_MAX = 60
"""Rounds of timely delivery within which a block has to be decided; a handful do."""
REPORT_EVERY = 1000
"""States from one call of ``progress`` to the next."""

Key = tuple[object, ...]
Said = tuple[MessageKind, View, BlockHash]
"""A VOTE or FINAL; ``SKIP`` stands for ⊥."""
SKIP = BlockHash(b"")


class Disagreement(Exception):
    """Two blocks are decided, or a machine holds certificates that exclude each other."""


class Stuck(Exception):
    """A state from which the honest authorities decide nothing by themselves."""


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
        self,
        liar: int,
        views: int,
        machine_type: type[AuthorityHeight] = AuthorityHeight,
        short: int = 0,
        progress: Callable[[int], None] = lambda states: None,
    ) -> None:
        """``short`` is taken from the quorum; ``progress`` hears of the number of states now and then."""
        self._authorities = authority_set(AUTHORITIES)
        self._quorum = self._authorities.quorum - short
        self._views = views
        self._liar = liar
        self._honest = tuple(number for number in range(AUTHORITIES) if number != liar)
        self._rules = HeightRules(self._authorities, HEIGHT, DurationMs(DELTA_MS), DurationMs(10 * DELTA_MS))
        self._machine_type = machine_type
        self._progress = progress
        self.seen: set[Key] = set()
        self._recovers: set[bytes] = set()
        self.endings = 0
        """States of the last view in which nothing is left to happen."""

    def run(self) -> int:
        """Number of states, none of which disagrees or is stuck. Raises ``Disagreement`` or ``Stuck``."""
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
            if len(self.seen) % REPORT_EVERY == 0:
                self._progress(len(self.seen))
            self._check(state)
            self._check_recovery(state)
            if state.phase < self._views:
                waiting.append(State(state.phase + 1, state.walkers))
            moved = False
            for position, walker in self._next(state):
                moved = True
                waiting.append(_with(state, position, walker))
            self.endings += not moved and state.phase == self._views
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

    def _check_recovery(self, state: State) -> None:
        """Let the liar fall silent and everything else arrive in time, until a block is decided."""
        passed: list[bytes] = []
        for _ in range(RECOVERY_ROUNDS_MAX):
            key = _whole_key(state)
            if key in self._recovers or self._honestly_decided(state):
                self._recovers.update(passed)
                return
            passed.append(key)
            further = self._delivered(state)
            if further is None:
                further = self._timed_out(state)
            state = further
        views = [walker.machine.current for walker in state.walkers]
        raise Stuck(f"nothing is decided by views {views}, found after {len(self.seen)} states")

    def _honestly_decided(self, state: State) -> bool:
        return any(
            held.kind is CertificateKind.DECIDED for held in self._honest_certificates(state, CertificateKind.DECIDED)
        )

    def _honest_certificates(self, state: State, *kinds: CertificateKind) -> Iterator[Certificate]:
        """Certificates that the honest can make without the liar."""
        said = [statement for walker in state.walkers for statement in walker.signed]
        for statement in sorted(set(said)):
            if said.count(statement) < self._quorum:
                continue
            message, view, block_hash = statement
            kind = CertificateKind.VOTED if message is MessageKind.VOTE else CertificateKind.DECIDED
            if block_hash == SKIP:
                kind = CertificateKind.SKIPPED
            if kind in kinds:
                yield certificate(kind, view, block_hash or None)

    def _delivered(self, state: State) -> State | None:
        """The first thing that an honest authority holds or says and another one lacks, delivered; ``None``: none."""
        held = dict.fromkeys(
            (each.kind, each.view, each.block_hash) for walker in state.walkers for each in walker.machine.held.all()
        )
        made = self._honest_certificates(state, CertificateKind.VOTED, CertificateKind.SKIPPED)
        held |= dict.fromkeys((each.kind, each.view, each.block_hash) for each in made)
        for position, walker in enumerate(state.walkers):
            number = self._honest[position]
            for kind, view, block_hash in held:
                each = certificate(kind, view, block_hash)
                if _news(walker.machine, each):
                    return _with(state, position, self._given(walker, number, each))
            if self._leader(walker.machine.current) != self._liar:
                for body in self._proposals(state, walker.machine):
                    machine = walker.machine.copy()
                    outputs = machine.proposal(body, stand_in(body), (), at(0))
                    return _with(state, position, self._after(Walker(machine, walker.signed), number, outputs))
        return None

    def _timed_out(self, state: State) -> State:
        """Nothing is under way: delayed leaders propose, or those in the lowest view give it up."""
        for position, walker in enumerate(state.walkers):
            if walker.machine.waits_for_block:
                machine = walker.machine.copy()
                outputs = machine.tick(at(machine.delta(machine.current) // 2))
                return _with(
                    state, position, self._after(Walker(machine, walker.signed), self._honest[position], outputs)
                )
        lowest = min(walker.machine.current for walker in state.walkers)
        for position, walker in enumerate(state.walkers):
            if walker.machine.current == lowest:
                machine = walker.machine.copy()
                outputs = machine.tick(at(3 * machine.delta(lowest)))
                after = self._after(Walker(machine, walker.signed), self._honest[position], outputs)
                state = _with(state, position, after)
        return state

    def _leader(self, view: View) -> int:
        leader = self._authorities.index_of(self._authorities.leader(HEIGHT, view))
        assert leader is not None
        return leader

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

    def _restarted(self, walker: Walker, number: int) -> Walker:
        """The machine after a crash: with its certificates and its guard, and without the proposals that it saw."""
        old, machine = walker.machine, self._machine_type(self._rules)
        machine.restore(old.held.all(), at(0))
        guard = {(body.view, GuardClass.PROPOSAL): encode(body) for body in old.proposed.values()}
        for view, block_hash in old.voted.items():
            guard[(view, GuardClass.VOTE)] = encode(VoteBody(HEIGHT, view, block_hash))
        for view, decision in old.final.items():
            guard[(view, GuardClass.FINAL)] = encode(FinalBody(HEIGHT, view, decision))
        own = self._authorities.records[number].authority
        return self._after(Walker(machine, walker.signed), number, machine.permit(own, guard, at(0)))

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
                if view in walker.machine.proposals and _undecided(walker.machine, view):
                    yield position, self._restarted(walker, number)
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
        if view in machine.proposals or not _undecided(machine, view):
            return []
        leader = self._leader(view)
        if leader == self._liar:
            return [proposal(view, block_hash, base) for block_hash in (X, Y) for base in range(view)]
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


def _with(state: State, position: int, walker: Walker) -> State:
    return State(state.phase, (*state.walkers[:position], walker, *state.walkers[position + 1 :]))


def _said(signed: out.Sign) -> frozenset[Said]:
    if signed.kind is MessageKind.PROPOSAL:
        return frozenset()
    body = decode(signed.payload, VoteBody) if signed.kind is MessageKind.VOTE else decode(signed.payload, FinalBody)
    return frozenset({(signed.kind, body.view, body.block_hash or SKIP)})


def _undecided(machine: AuthorityHeight, view: View) -> bool:
    """True while the machine might still vote in this view, by the rule that it ships with."""
    return view not in machine.final and machine._may_vote(view)


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
            if phase <= view <= views and _undecided(machine, view)
        ),
        tuple(
            (view, machine.proposed[view].block_hash, machine.proposed[view].voted_view)
            for view in sorted(machine.proposed)
            if phase <= view <= views
        ),
    )


def _whole_key(state: State) -> bytes:
    """All that a timely future depends on, as a hash."""
    whole = [
        (
            walker.machine.current,
            sorted(walker.signed),
            [(each.kind, each.view, each.block_hash) for each in walker.machine.held.all()],
            sorted((view, seen.body) for view, seen in walker.machine.proposals.items()),
            sorted(walker.machine.proposed.items()),
        )
        for walker in state.walkers
    ]
    return blake2b(repr(whole).encode(), digest_size=16).digest()
