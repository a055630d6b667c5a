"""One node's copy of the ledger: opens heights, builds, executes and commits blocks, catches up, restarts.

Law: the state changes only by a block with its DECIDED certificate. Effects stand in the order in which they may leave
the node: what a signature rests on is durable before it. A node without an authority key follows: it asks for decided
blocks and executes them.
"""

from protocol.consensus.outputs import Equivocation
from protocol.engine.bodies import open_body
from protocol.engine.replica_door import MisplacedMessage, open_ballot
from protocol.engine.replica_gossip import ReplicaGossip
from protocol.engine.replica_height import CATCH_UP, OPEN, PULL, PUSH, RESEND, STANDING, WAKE
from protocol.engine.replica_snapshots import SNAPSHOT, ReplicaSnapshots
from protocol.engine.restored import seen_proposal
from protocol.ledger.signatures import open_transaction
from protocol.messages import wire
from protocol.messages.consensus import (
    Attestation,
    Certificate,
    CertificateKind,
    Dispatch,
    FinalBody,
    Inquiry,
    ProposalBody,
    Testimony,
    VoteBody,
)
from protocol.messages.effects import (
    Effect,
    Notify,
    Now,
    TimerKey,
)
from protocol.messages.envelope import open_envelope
from protocol.primitives.units import (
    AuthorityId,
    Hash,
    NodeId,
)


class Replica(ReplicaGossip, ReplicaSnapshots):
    """The replica of one node. Entry points return effects; the state and the mempool may be read by anybody."""

    # Inputs

    def start(self, nonce: Hash, now: Now) -> list[Effect]:
        """First input of this life; ``nonce`` is fresh and makes old answers about our standing worthless."""
        self._committed_at = now.monotonic_ms
        self._nonce = nonce
        if not self._knows_next_rules():
            return self._taken()
        self._machine = self._new_machine()
        if self._machine is not None:
            for block_bytes in self._restored.bodies:
                block, block_hash = open_body(block_bytes)
                self._bodies.restore(block_hash, block, block_bytes)
            for envelope_bytes in self._restored.proposals:
                self._machine.remember(*seen_proposal(envelope_bytes), now)
            self._carry_out(self._machine.restore(self._restored.certificates, now), now)
        self._inquire(now)
        self._settle_standing(now)
        return self._taken()

    def link_up(self, peer: NodeId, now: Now) -> list[Effect]:
        """A peer is linked: tell it our tip, ask an authority about our standing, push it what waits."""
        self._links[peer] = None
        if self.tip:
            self._send(peer, wire.TipNotice(self.tip))
        if peer in self.seats:
            self._ask_standing(peer)
            self._push([pending.envelope_bytes for pending in self._first_pending()], (peer,))
        return self._taken()

    def link_down(self, peer: NodeId, now: Now) -> list[Effect]:
        """A link is gone."""
        self._links.pop(peer, None)
        self._catch_up.forget(peer)
        self.snapshots.forget(peer)
        self._snapshot_answers.forget(peer)
        self._answers.forget(peer)
        self._certificate_answers.forget(peer)
        self._ask_blocks(now)
        return self._taken()

    def expects(self, peer: NodeId, message: wire.WireMessage) -> bool:
        """False for what no honest node sends us over this link: dropped before it costs a signature check.

        Authorities speak of the open height over their own links alone, only ballots travel by gossip as well; decided
        blocks come from authorities or from whom we asked.
        """
        match message:
            case wire.Proposal() | wire.CertificateNotice() | wire.CertificateRequest():
                return peer in self.seats
            case wire.BodyRequest() | wire.Body() | wire.StandingRequest() | wire.Standing():
                return peer in self.seats
            case wire.Blocks():
                return peer in self.seats or self._catch_up.has_asked(peer)
            case wire.SnapshotOffer() | wire.SnapshotChunk():
                return self.snapshots.has_asked(peer)
            case _:
                return True

    def receive(self, peer: NodeId, message: wire.WireMessage, now: Now) -> list[Effect]:
        """A message whose signatures hold. Raises ``RemoteProtocolError`` when it breaks a rule all the same."""
        if self._halted or self.snapshots.installing or not self.expects(peer, message):
            return []
        match message:
            case wire.Proposal():
                self._on_proposal(peer, message, now)
            case wire.Ballot():
                self._on_ballot(peer, message, now)
            case wire.CertificateNotice():
                self._on_certificate(peer, message.certificate, now)
            case wire.CertificateRequest():
                allowed = self._certificate_answers.allow(peer, now.monotonic_ms)
                if allowed and self._concerns_open_height(peer, message.height, now):
                    for certificate in self._open_machine().held.at(message.view):
                        self._send(peer, wire.CertificateNotice(certificate))
            case wire.BodyRequest():
                self._on_body_request(peer, message, now)
            case wire.Body():
                self._on_body(message, now)
            case wire.BlocksRequest():
                self._answer_blocks(peer, message.height, now)
            case wire.Blocks():
                self._on_blocks(peer, message, now)
            case wire.TipNotice():
                self._hint(peer, message.height, now)
            case wire.Transactions():
                self._on_transactions(peer, message, now)
            case wire.StandingRequest():
                self._on_standing_request(peer, message, now)
            case wire.Standing():
                self._on_standing(peer, message, now)
            case _:
                self._on_snapshot_message(peer, message, now)
        return self._taken()

    def overheard(self, author: AuthorityId, payload: Dispatch | Inquiry | Testimony, now: Now) -> list[Effect]:
        """What an authority without a link to us says by gossip; all signatures in it hold.

        Raises ``RemoteProtocolError`` when it breaks a rule all the same.
        """
        if self._halted or self.snapshots.installing:
            return []
        match payload:
            case Dispatch():
                self.dispatched(author, payload, now)
            case Inquiry():
                self.inquired(author, payload, now)
            case Testimony():
                self.testified(author, payload, now)
        return self._taken()

    def signed(self, envelope_bytes: bytes, now: Now) -> list[Effect]:
        """An own envelope, handed back after ``SignAndSend``."""
        if self._halted or self.snapshots.installing:
            return []
        envelope, body = open_envelope(envelope_bytes)
        if isinstance(body, Attestation):
            self._on_attested(envelope_bytes, body)
        elif (
            self._machine is not None
            and isinstance(body, ProposalBody | VoteBody | FinalBody)
            and body.height == self.tip + 1
        ):
            self._carry_out(self._machine.own_signed(envelope.kind, envelope.payload, envelope.signature, now), now)
        return self._taken()

    def submit(self, envelope_bytes: bytes, now: Now) -> list[Effect]:
        """A transaction whose signatures hold, from this node's user or from gossip; it goes to all authorities.

        Raises ``TransactionRejected`` or ``NotATransaction``.
        """
        envelope, transaction = open_transaction(envelope_bytes)
        self.mempool.add(envelope_bytes, envelope, transaction, self.state)
        if self._halted:
            return []
        self._push([envelope_bytes], self._linked_authorities())
        self._work_arrived(now)
        return self._taken()

    def timer(self, key: TimerKey, now: Now) -> list[Effect]:
        """One of our timers has come."""
        if self._halted:
            return []
        if self.snapshots.installing:
            return self._put_off(key, now)
        machine = self._machine
        match key:
            case _ if key == WAKE and machine is not None:
                self._carry_out(machine.tick(now), now)
            case _ if key == RESEND and machine is not None:
                self._resending = False
                again = machine.resend(now)
                self._carry_out(again, now)
                if machine is self._machine:
                    self._spread(again, now)
            case _ if key == PULL:
                self._pulling = False
                self._pull_bodies(now)
            case _ if key == OPEN and machine is not None:
                self._open_at = None
                self._plan_opening(now)
            case _ if key == CATCH_UP:
                self._ask_blocks(now)
            case _ if key == SNAPSHOT:
                self._seek_again(now)
            case _ if key == PUSH:
                self._push_stuck(now)
            case _ if key == STANDING:
                self._repeat_standing(now)
            case _:
                pass
        return self._taken()

    def made_use_of(self, message: wire.WireMessage) -> bool:
        """False for a statement at the open height that does not count, asked for once it was received: what one key
        can sign has no end."""
        if self._machine is None or not isinstance(message, wire.Proposal | wire.Ballot):
            return True
        envelope, body = open_envelope(message.envelope)
        if not isinstance(body, ProposalBody | VoteBody | FinalBody) or body.height != self._machine.rules.height:
            return True
        return self._machine.counted(AuthorityId(envelope.sender), body, envelope.signature)

    # Consensus messages

    def _on_proposal(self, peer: NodeId, message: wire.Proposal, now: Now) -> None:
        envelope, body = open_envelope(message.envelope)
        assert isinstance(body, ProposalBody), "settled at the door"
        if not self._concerns_open_height(peer, body.height, now):
            return
        machine = self._open_machine()
        wanted = body.block_hash in self._bodies.wanted
        if body.block_hash not in self._bodies and (wanted or body.view >= machine.current):
            block, block_hash = open_body(message.block)
            self._bodies.hold(block_hash, block, message.block)
        self._carry_out(machine.proposal(body, envelope.signature, message.certificates, now), now)
        self._use_wanted(body.block_hash, now)
        if machine is self._machine and not machine.considers(body.block_hash):
            self._bodies.drop(body.block_hash)

    def _on_ballot(self, peer: NodeId, message: wire.Ballot, now: Now) -> None:
        """A late one of the height just closed is remembered: its signer may ask for it after losing its disk."""
        envelope, body = open_ballot(message.envelope)
        signer = AuthorityId(envelope.sender)
        authorities = self.seats.at(body.height)
        if authorities is not None and not authorities.counts(signer):
            raise MisplacedMessage("a ballot signed by a key that is no authority")
        if authorities is not None:
            self._heard[signer] = now.monotonic_ms
        if self._previous is not None and body.height == self.tip == self._previous.rules.height:
            late = self._previous.ballot(signer, body, envelope.signature, now)
            self._effects.extend(Notify(output) for output in late if isinstance(output, Equivocation))
        if self._concerns_open_height(peer, body.height, now):
            self._carry_out(self._open_machine().ballot(signer, body, envelope.signature, now), now)

    def _on_certificate(self, peer: NodeId, certificate: Certificate, now: Now) -> None:
        """A DC of a closed height needs no answer: its sender has decided too."""
        if certificate.kind is CertificateKind.DECIDED:
            if certificate.height > self.tip + 1 or self._machine is None:
                self._hint(peer, certificate.height, now)
                return
            if certificate.height <= self.tip:
                return
        if self._concerns_open_height(peer, certificate.height, now):
            self._carry_out(self._open_machine().certificate(certificate, now), now)

    def _on_body_request(self, peer: NodeId, message: wire.BodyRequest, now: Now) -> None:
        if message.height <= self.tip:
            self._answer_blocks(peer, message.height, now)
        elif message.height == self.tip + 1:
            block_bytes = self._bodies.bytes_of(message.block_hash)
            if block_bytes is not None and self._answers.allow(peer, now.monotonic_ms):
                self._send(peer, wire.Body(message.height, block_bytes))

    def _on_body(self, message: wire.Body, now: Now) -> None:
        block, block_hash = open_body(message.block)
        if block.header.height == self.tip + 1 and block_hash in self._bodies.wanted:
            self._bodies.hold(block_hash, block, message.block)
            self._use_wanted(block_hash, now)
