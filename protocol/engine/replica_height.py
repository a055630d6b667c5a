"""Driving one height after the other at one node: opening, building, judging, committing.

Law: what the machine of the open height asks for becomes effects in the same order; a block changes the state only
with its DECIDED certificate, in one commit with it.
"""

from abc import ABC, abstractmethod
from typing import assert_never

from protocol.consensus import outputs as out
from protocol.consensus.height import AuthorityHeight
from protocol.consensus.height_state import HeightRules
from protocol.consensus.timing import PULL_RETRY_MS, RESEND_MS, is_timely
from protocol.engine.bodies import Bodies
from protocol.engine.catch_up import AnswerLimits, CatchUp
from protocol.engine.decided import take_over
from protocol.engine.replica_door import ReplicaDoor
from protocol.engine.restored import OBSERVER_KEY, RestoredConsensus, certificate_key, proposal_key
from protocol.engine.seats import Seats
from protocol.engine.snapshots import SnapshotSync
from protocol.engine.standing import StandingInquiry
from protocol.ledger.blocks import BLOCK_OVERHEAD_BYTES_MAX, build_block, heartbeat_due
from protocol.ledger.charter import SUPPORTED_VERSIONS, unsupported_version
from protocol.ledger.errors import BlockInvalid
from protocol.ledger.execution import Execution
from protocol.ledger.mempool import Mempool
from protocol.ledger.state import LedgerState
from protocol.messages import wire
from protocol.messages.blocks import DecidedBlock
from protocol.messages.consensus import Certificate
from protocol.messages.effects import (
    BlockDecided,
    CancelTimer,
    Delete,
    Effect,
    GuardClass,
    Halt,
    Notify,
    Now,
    Put,
    Send,
    SetTimer,
    SignAndSend,
    Table,
    TimerKey,
)
from protocol.messages.genesis import Genesis
from protocol.messages.quorum import AuthoritySet
from protocol.primitives.codec import encode
from protocol.primitives.hashing import Domain, digest
from protocol.primitives.limits import BLOCK_BYTES_MAX, BLOCK_TRANSACTIONS_MAX
from protocol.primitives.signing import SignatureCheck
from protocol.primitives.units import (
    AuthorityId,
    BlockHash,
    Hash,
    Height,
    MessageId,
    MonotonicMs,
    NodeId,
    TimestampMs,
    View,
)

ROOM = "consensus"
WAKE, RESEND, PULL, OPEN = (TimerKey(ROOM, name) for name in ("wake", "resend", "pull", "open"))
CATCH_UP, PUSH, STANDING = (TimerKey(ROOM, name) for name in ("catch-up", "push", "standing"))

BATCHING_MS = 10
"""After a commit the next height waits so long for more transactions; an idle ledger opens at once."""
BLOCK_ROOM_BYTES = BLOCK_BYTES_MAX - BLOCK_OVERHEAD_BYTES_MAX
"""What transactions may take up in a block that we build."""


class HeightDriver(ABC):
    """The open height of one node and the effects of the step under way."""

    machine_type: type[AuthorityHeight] = AuthorityHeight
    """The rules of a height; tests take one away to show that it is needed."""

    def __init__(
        self,
        genesis: Genesis,
        state: LedgerState,
        mempool: Mempool,
        own: AuthorityId | None,
        own_node: NodeId,
        restored: RestoredConsensus,
        last_decided: DecidedBlock | None,
    ) -> None:
        """``own`` is ``None`` on a node that is no authority; ``last_decided`` is the stored block at the tip."""
        self.genesis = genesis
        self.state = state
        self.mempool = mempool
        self.own_node = own_node
        self.seats = self._make_seats()
        self.key = own
        """The authority key that this node holds, seated or not; ``None`` on a node that has none."""
        self.last_decided = last_decided
        self.door = ReplicaDoor(state.genesis_hash, self.seats)
        self.inquiry: StandingInquiry | None = None
        self.first_signing_height: Height | None = None
        """From where on this authority signs; ``None`` until its standing is known."""
        self._restored = restored
        self._links: dict[NodeId, None] = {}
        self._effects: list[Effect] = []
        self._halted = False
        self._machine: AuthorityHeight | None = None
        self._previous: AuthorityHeight | None = None
        self._bodies = Bodies()
        self._catch_up = CatchUp(self.seats)
        self._answers = AnswerLimits()
        self._certificate_answers = AnswerLimits()
        self._attesting: dict[tuple[Hash, AuthorityId, Height], tuple[NodeId, Certificate | None]] = {}
        self._snapshot_answers = AnswerLimits()
        self.snapshots = SnapshotSync()
        self._seeking = False
        self._pulled: dict[View, MonotonicMs] = {}
        self._pull_turn = 0
        self._resending = self._pulling = self._pushing = self._asking = False
        self._nonce = Hash(bytes(32))
        self.gossips = False
        """Whether somebody carries by gossip what we sign for authorities without a link."""
        self._spread_at: tuple[View, MonotonicMs] | None = None
        self._heard: dict[AuthorityId, MonotonicMs] = {}
        """When a ballot of each authority came last."""
        self._inquired_at = MonotonicMs(-(2**40))
        self._stuck: dict[MessageId, None] = {}
        self._open_at: MonotonicMs | None = None
        self._committed_at = MonotonicMs(0)

    def _make_seats(self) -> Seats:
        return Seats(self.state, self.own_node)

    # What other rooms may ask

    @property
    def authorities(self) -> AuthoritySet:
        """The set that decides the open height."""
        return self.seats.deciding

    @property
    def own(self) -> AuthorityId | None:
        """Our authority key, if it has a seat at the open height; a suspended one has."""
        return self.key if self.key is not None and self.key in self.authorities else None

    @property
    def tip(self) -> Height:
        """Height of the last committed block."""
        return self.state.height

    @property
    def view(self) -> View:
        """View of the open height, 0 while none is open."""
        return self._machine.current if self._machine is not None else View(0)

    @property
    def observing(self) -> bool:
        """True while this authority has lost signatures of its own and only watches."""
        return self.inquiry is not None and self.inquiry.observer and not self._may_sign()

    def unlinked_authorities(self) -> tuple[NodeId, ...]:
        """Nodes of other authorities that there is no link to: gossip has to reach them."""
        return tuple(node for node in self.seats.deciding_nodes() if node not in self._links)

    def readable(self, message: wire.WireMessage) -> wire.WireMessage:
        """What of a message the door can check by what is known here now: ask ``checks`` about it at once."""
        return self.door.readable(message, self.tip)

    def checks(self, message: wire.WireMessage) -> list[SignatureCheck]:
        """What the door must verify before ``receive``. Raises ``RemoteProtocolError`` on a wrong structure."""
        return self.door.checks(message, self.tip, self._machine)

    def relayed_checks(self, message: wire.WireMessage) -> list[SignatureCheck]:
        """``checks`` of what goes on to others: they don't hold what this node holds, so nothing is left out for it."""
        return self.door.checks(message, self.tip, None)

    def _open_machine(self) -> AuthorityHeight:
        assert self._machine is not None
        return self._machine

    # What the machine of the open height asks for

    def _carry_out(self, asked: list[out.Output], now: Now) -> None:
        """Turn outputs into effects, in order; what the machine asks for is answered where it stands."""
        machine = self._machine
        for output in asked:
            if self._machine is not machine or self._halted:
                return
            self._carry_out_one(output, now)
        if machine is not None and machine is self._machine and machine.opened and not self._resending:
            self._resending = True
            self._effects.append(SetTimer(RESEND, MonotonicMs(now.monotonic_ms + RESEND_MS)))

    def _carry_out_one(self, output: out.Output, now: Now) -> None:
        match output:
            case out.Keep():
                certificate = output.certificate
                self._effects.append(
                    Put(Table.CONSENSUS_CERTIFICATE, certificate_key(certificate), encode(certificate))
                )
            case out.Forward():
                self._send_authorities(wire.CertificateNotice(output.certificate))
            case out.KeepBody():
                block_bytes = self._bodies.claim_durable(output.block_hash)
                if block_bytes is not None:
                    self._effects.append(Put(Table.CONSENSUS_BODY, output.block_hash, block_bytes))
            case out.KeepProposal():
                key = proposal_key(Height(self.tip + 1), output.view)
                self._effects.append(Put(Table.CONSENSUS_PROPOSAL, key, output.envelope))
            case out.Sign():
                self._sign(output)
            case out.SendBallot():
                self._send_authorities(wire.Ballot(output.envelope))
            case out.SendProposal():
                block_bytes = self._bodies.bytes_of(output.block_hash)
                if block_bytes is not None:
                    self._send_authorities(wire.Proposal(output.envelope, block_bytes, output.certificates))
                    self._spread([output], now)
            case out.BuildBlock():
                self._build(output.view, now)
            case out.JudgeBlock():
                good = self._is_good(output.view, output.block_hash, output.received)
                self._carry_out(self._open_machine().judged(output.view, output.block_hash, good, now), now)
            case out.NeedBody():
                self._bodies.wanted.setdefault(output.block_hash, output.signers)
                self._use_wanted(output.block_hash, now)
                self._pull_bodies(now)
            case out.PullCertificate():
                asked_at = self._pulled.get(output.view)
                if asked_at is None or now.monotonic_ms - asked_at >= PULL_RETRY_MS:
                    self._pulled[output.view] = now.monotonic_ms
                    self._send_authorities(wire.CertificateRequest(Height(self.tip + 1), output.view))
            case out.WakeAt():
                self._effects.append(SetTimer(WAKE, output.at))
            case out.Decided():
                self._on_decided(output.certificate, now)
            case out.SafetyBroken():
                self._halt(output.reason)
            case out.Equivocation():
                self._effects.append(Notify(output))
            case _:
                assert_never(output)

    @abstractmethod
    def _spread(self, asked: list[out.Output], now: Now) -> None:
        """Say by gossip what those without a link have missed of these outputs."""

    def _sign(self, output: out.Sign) -> None:
        """Sign under the guard. VOTE and FINAL go to all linked authorities; a PROPOSAL waits for its block."""
        assert self.inquiry is not None
        self.inquiry.signs(output.position)
        to = () if output.position.guard_class is GuardClass.PROPOSAL else self._linked_authorities()
        self._effects.append(SignAndSend(output.kind, output.payload, to, output.position))

    def _is_good(self, view: View, block_hash: BlockHash, received: TimestampMs) -> bool:
        """Full validation and execution of a newly proposed block, and whether its timestamp fits our clock."""
        block = self._bodies.block_of(block_hash)
        if block is None:
            return False
        parameters = self.state.parameters
        if not is_timely(
            block.header.timestamp_ms,
            received,
            View(view - self.authorities.view_base),
            parameters.delta_ms,
            parameters.delta_cap_ms,
            parameters.clock_precision_ms,
        ):
            return False
        try:
            self._bodies.execute(block_hash, self.state)
        except BlockInvalid:
            return False
        return True

    def _build(self, view: View, now: Now) -> None:
        """Build a block from what waits; an empty one only if a heartbeat is due, or will be in half a clock precision:
        others' clocks may be behind ours and would find a later timestamp untimely. If what we build ourselves breaks a
        rule, this node's ledger is at fault and not the peer whose message let us build: stop."""
        state = self.state
        timestamp = TimestampMs(max(now.wall_ms, state.tip.timestamp_ms))
        candidates = self.mempool.select(state, BLOCK_ROOM_BYTES, BLOCK_TRANSACTIONS_MAX)
        if not candidates and not self.mempool.has_work(state):
            due = TimestampMs(max(timestamp, state.tip.timestamp_ms + state.parameters.heartbeat_ms))
            early = due - now.wall_ms - state.parameters.clock_precision_ms // 2
            if early > 0:
                self._schedule_opening(MonotonicMs(now.monotonic_ms + early))
                return
            timestamp = due
        certificate = self.last_decided.certificate if self.last_decided is not None else None
        try:
            execution = build_block(state, candidates, timestamp, certificate)
        except BlockInvalid as refusal:
            self._halt(f"the block that was built here at height {self.tip + 1} fails: {refusal}")
            return
        if not execution.transaction_ids and not heartbeat_due(state, timestamp):
            return
        self._bodies.hold_execution(execution)
        self._carry_out(self._open_machine().built(view, execution.block_hash, now), now)

    def _use_wanted(self, block_hash: BlockHash, now: Now) -> None:
        """A certified body that is here is executed and used. If it fails, this node's ledger differs: stop."""
        if block_hash not in self._bodies.wanted or block_hash not in self._bodies:
            return
        del self._bodies.wanted[block_hash]
        try:
            execution = self._bodies.execute(block_hash, self.state)
        except BlockInvalid as refusal:
            self._halt(f"block {block_hash.hex()} at height {self.tip + 1} is certified but fails here: {refusal}")
            return
        machine = self._open_machine()
        if machine.decided is not None and machine.decided.block_hash == block_hash:
            self._commit(execution, machine.decided, now)
        else:
            self._carry_out(machine.body_ready(block_hash, now), now)

    def _pull_bodies(self, now: Now) -> None:
        """Ask one signer for each missing body, another one at each try."""
        if self._pulling or not self._bodies.wanted:
            return
        self._pull_turn += 1
        records = self.authorities.records
        for block_hash, signers in self._bodies.wanted.items():
            nodes = [records[signer].node for signer in signers]
            linked = [node for node in nodes if node in self._links] or list(self._linked_authorities())
            if linked:
                peer = linked[self._pull_turn % len(linked)]
                self._send(peer, wire.BodyRequest(Height(self.tip + 1), block_hash))
        self._pulling = True
        self._effects.append(SetTimer(PULL, MonotonicMs(now.monotonic_ms + PULL_RETRY_MS)))

    def _on_decided(self, certificate: Certificate, now: Now) -> None:
        """DC_v(x): fetch the body if it is missing, then commit."""
        assert certificate.block_hash is not None
        self._bodies.wanted[certificate.block_hash] = certificate.signers
        self._use_wanted(certificate.block_hash, now)
        self._pull_bodies(now)

    def _commit(self, execution: Execution, certificate: Certificate, now: Now) -> None:
        """Block, state and certificate in one transaction; the next height may open."""
        header = execution.header
        ids = execution.transaction_ids
        commit, *changes = take_over(self.state, execution, certificate)
        decided = commit.decided
        self._effects += [
            *changes,  # before the block: a crash between two commits may cost the block, never what it changed
            commit,
            Notify(BlockDecided(header.height, execution.block_hash, header.timestamp_ms, tuple(map(Hash, ids)))),
        ]
        self.mempool.block_applied(self.state, ids)
        self.last_decided = decided
        self._committed_at = now.monotonic_ms
        self._answers.committed(header.height, now.monotonic_ms)
        self._tell_tip(header.height)
        if self._machine is not None:
            self._machine.decided = certificate
        if self._knows_next_rules():
            self._next_height(now)

    def _tell_tip(self, height: Height) -> None:
        """Who decides learns by certificates; everybody else is told, and nodes that only follow tell all."""
        deciders = dict.fromkeys(record.node for record in (self.seats.at(height) or self.authorities).records)
        took_part = self._machine is not None
        for peer in self._links:
            if not took_part or peer not in deciders:
                self._send(peer, wire.TipNotice(height))

    def _next_height(self, now: Now) -> None:
        self._previous, self._machine = self._machine, self._new_machine()
        self._bodies = Bodies()
        self._pulled.clear()
        self._spread_at = None
        self._heard = {key: at for key, at in self._heard.items() if self.seats.seated(key)}
        self._resending = self._pulling = False
        self._open_at = None
        self._effects += [CancelTimer(WAKE), CancelTimer(RESEND), CancelTimer(PULL)]
        self._inquire(now)
        if self.inquiry is not None:
            if self.first_signing_height is None:
                self.first_signing_height = self.inquiry.first_height(self.tip, self.authorities)
            else:
                self.inquiry.closed(Height(self.tip - 1))
        if self._may_sign():
            self._permit(now)
        self._plan_opening(now)

    def _new_machine(self) -> AuthorityHeight | None:
        """The machine of the open height; ``None`` where our key has no seat and this node follows."""
        if self.own is None:
            return None
        parameters = self.state.parameters
        rules = HeightRules(self.authorities, Height(self.tip + 1), parameters.delta_ms, parameters.delta_cap_ms)
        return self.machine_type(rules)

    # Signing and opening

    def _may_sign(self) -> bool:
        """Our key has a seat at the open height, is not suspended, and its standing is settled."""
        settled = self.first_signing_height is not None and self.tip + 1 >= self.first_signing_height
        return settled and self.key is not None and self.authorities.counts(self.key)

    def _inquire(self, now: Now) -> None:
        """Ask about our standing as soon as our key has a seat in sight: before its first height, and at a start."""
        if self.key is None or not self.seats.seated(self.key) or self.first_signing_height is not None:
            return
        if self.inquiry is None:
            restored = self._restored
            nonce = digest(Domain.STANDING_NONCE, self._nonce, self.tip.to_bytes(8, "big"))
            positions = (position for position, _ in restored.guard_rows)
            self.inquiry = StandingInquiry(nonce, self.key, positions, restored.guard_watermark, restored.observer)
        if not self._asking:
            self._asking = True
            for peer in self._links:
                self._ask_standing(peer)
            self._inquire_by_gossip(now)
            self._effects.append(SetTimer(STANDING, MonotonicMs(now.monotonic_ms + RESEND_MS)))

    @abstractmethod
    def _inquire_by_gossip(self, now: Now) -> None:
        """Ask about our standing where no link leads."""

    def _ask_standing(self, peer: NodeId) -> None:
        if self.inquiry is not None and self.first_signing_height is None and peer in self.seats:
            self._send(peer, wire.StandingRequest(self.inquiry.nonce, self.inquiry.own))

    def _permit(self, now: Now) -> None:
        """Let the machine of the open height sign, given what the guard held at that height when we started."""
        own = self.own
        assert own is not None
        assert self.inquiry is not None
        if self.inquiry.observer:
            self.inquiry.recovered(self.tip)
            self._effects.append(Delete(Table.STANDING, OBSERVER_KEY))
        guard = {
            (position.view, position.guard_class): payload
            for position, payload in self._restored.guard_rows
            if position.height == self.tip + 1
        }
        self._carry_out(self._open_machine().permit(own, guard, now), now)

    def _plan_opening(self, now: Now) -> None:
        """Open the next height when there is work, after a short wait for more of it, or when a heartbeat is due."""
        machine = self._machine
        if machine is None or not self._may_sign():
            return
        if machine.opened:
            if machine.waits_for_block:
                self._carry_out(machine.work_arrived(now), now)
            return
        wait = BATCHING_MS if self.mempool.has_work(self.state) else self.state.parameters.heartbeat_ms
        at = MonotonicMs(self._committed_at + wait)
        if now.monotonic_ms >= at:
            self._carry_out(machine.open(now), now)
        else:
            self._schedule_opening(at)

    def _schedule_opening(self, at: MonotonicMs) -> None:
        if self._open_at is None or at < self._open_at:
            self._open_at = at
            self._effects.append(SetTimer(OPEN, at))

    # Sending

    def _taken(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    def _knows_next_rules(self) -> bool:
        """False, and the node halts, if the next block follows a voted version that this software does not know."""
        version = unsupported_version(self.state.charter.versions, self.tip + 1)
        if version is not None:
            self._halt(
                f"block {self.tip + 1} follows protocol version {version}, which authorities have voted and this "
                f"software does not know (it knows up to {SUPPORTED_VERSIONS[-1]}): install a newer one and start again"
            )
        return version is None

    def _halt(self, reason: str) -> None:
        self._halted = True
        self._effects.append(Halt(reason))

    def _send(self, peer: NodeId, message: wire.WireMessage) -> None:
        self._effects.append(Send(peer, message))

    def _linked_authorities(self) -> tuple[NodeId, ...]:
        deciders = dict.fromkeys(self.seats.deciding_nodes())
        return tuple(node for node in self._links if node in deciders)

    def _send_authorities(self, message: wire.WireMessage) -> None:
        self._effects.extend(Send(peer, message) for peer in self._linked_authorities())
