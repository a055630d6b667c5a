"""How a node keeps up with the others: decided blocks, transactions, and its own standing after a start.

Law: a peer's claim only chooses whom to ask. Blocks are taken with their certificates, one height after the other,
and executed; nothing is signed before the standing of this authority is settled.
"""

from collections.abc import Iterable
from itertools import islice

from protocol.consensus.timing import RESEND_MS
from protocol.engine.catch_up import ANSWER_TIMEOUT_MS
from protocol.engine.replica_door import open_decided
from protocol.engine.replica_height import CATCH_UP, PUSH, STANDING, HeightDriver
from protocol.engine.restored import OBSERVER_KEY
from protocol.engine.standing import SignaturesLost, open_attestation, signatures_of
from protocol.ledger.blocks import PendingTransaction
from protocol.ledger.errors import BlockInvalid, NotATransaction
from protocol.ledger.mempool import TransactionRejected
from protocol.ledger.signatures import open_transaction
from protocol.messages import wire
from protocol.messages.blocks import header_hash
from protocol.messages.consensus import Attestation, Testimony
from protocol.messages.effects import (
    Notify,
    Now,
    Put,
    SendBlocks,
    SetTimer,
    SignAndSend,
    Table,
)
from protocol.messages.kinds import MessageKind
from protocol.primitives.codec import encode
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.limits import BATCH_BYTES_MAX, BATCH_MESSAGES_MAX
from protocol.primitives.units import (
    AuthorityId,
    Height,
    MonotonicMs,
    NodeId,
    PublicKey,
)

ATTESTATIONS_MAX = 64
"""Attestations that are being signed at once."""


class ReplicaSync(HeightDriver):
    """Catch-up, transactions and standing on top of the open height."""

    # Decided blocks

    def _concerns_open_height(self, peer: NodeId, height: Height, now: Now) -> bool:
        """True for height tip + 1 at an authority.

        Lower: the peer lags, so it is given that height's block and certificate, unless its message may just have
        crossed our decision. Higher: we lag, and that is all the message tells.
        """
        if height <= self.tip:
            if not self._answers.recently_committed(height, now.monotonic_ms):
                self._answer_blocks(peer, height, now)
            return False
        if height > self.tip + 1:
            self._hint(peer, Height(height - 1), now)
            return False
        return self._machine is not None

    def _answer_blocks(self, peer: NodeId, height: Height, now: Now) -> None:
        """Send decided blocks from this height on, as often as the peer's bucket allows."""
        if 1 <= height <= self.tip and self._answers.allow(peer, now.monotonic_ms):
            self._effects.append(SendBlocks(peer, height))

    def lags(self) -> bool:
        """True while an authority seems to have decided more than this node has."""
        return self._catch_up.lags(self.tip)

    def _hint(self, peer: NodeId, height: Height, now: Now) -> None:
        """The peer seems to have decided this height. Nothing can be asked of an authority without a link."""
        if height > self.tip and peer in self._links:
            self._catch_up.hint(peer, height)
            self._ask_blocks(now)

    def _ask_blocks(self, now: Now) -> None:
        peer = self._catch_up.next_peer(self.tip, now.monotonic_ms)
        if peer is not None:
            self._send(peer, wire.BlocksRequest(Height(self.tip + 1)))
            self._effects.append(SetTimer(CATCH_UP, MonotonicMs(now.monotonic_ms + ANSWER_TIMEOUT_MS)))

    def _on_blocks(self, peer: NodeId, message: wire.Blocks, now: Now) -> None:
        """Execute and commit consecutive decided blocks from the tip on.

        A certified block that fails here means that this node's ledger differs from the network's: stop.
        """
        before = self.tip
        for decided in message.blocks:
            if decided.certificate.height != self.tip + 1:
                continue
            try:
                block = open_decided(decided)
            except RemoteProtocolError:
                break
            block_hash = header_hash(block.header)
            self._bodies.hold(block_hash, block, decided.block)
            try:
                execution = self._bodies.execute(block_hash, self.state)
            except BlockInvalid as refusal:
                self._halt(f"block {block_hash.hex()} at height {self.tip + 1} is decided but fails here: {refusal}")
                return
            self._commit(execution, decided.certificate, now)
        self._catch_up.answered(peer, message.tip if self.tip > before else None)
        self._ask_blocks(now)

    # Transactions

    def _on_transactions(self, peer: NodeId, message: wire.Transactions, now: Now) -> None:
        """Take what our mempool accepts; what a node that is no authority gave us goes on to all authorities."""
        accepted: list[bytes] = []
        for received in message.envelopes:
            try:
                envelope, transaction = open_transaction(received)
                self.mempool.add(received, envelope, transaction, self.state)
            except (TransactionRejected, NotATransaction):
                continue
            accepted.append(received)
        if not accepted:
            return
        if peer not in self.seats:
            self._push(accepted, tuple(node for node in self._linked_authorities() if node != peer))
        self._work_arrived(now)

    def _work_arrived(self, now: Now) -> None:
        self._plan_opening(now)
        if not self._pushing:
            self._pushing = True
            self._effects.append(SetTimer(PUSH, MonotonicMs(now.monotonic_ms + RESEND_MS)))

    def _push(self, envelopes: Iterable[bytes], peers: tuple[NodeId, ...]) -> None:
        """Send transactions in batches of bounded number and size."""
        batch: list[bytes] = []
        size = 0
        for received in envelopes:
            if batch and (len(batch) == BATCH_MESSAGES_MAX or size + len(received) > BATCH_BYTES_MAX):
                self._send_batch(batch, peers)
                batch, size = [], 0
            batch.append(received)
            size += len(received)
        if batch:
            self._send_batch(batch, peers)

    def _send_batch(self, batch: list[bytes], peers: tuple[NodeId, ...]) -> None:
        message = wire.Transactions(tuple(batch))
        for peer in peers:
            self._send(peer, message)

    def _first_pending(self) -> list[PendingTransaction]:
        return list(islice(self.mempool.pending(), BATCH_MESSAGES_MAX))

    def _push_stuck(self, now: Now) -> None:
        """Transactions that wait for a second or longer may not have reached everybody: push them again.

        Without this a lost push could leave one authority with an open height and the others without a reason to open.
        """
        first = self._first_pending()
        stuck = [pending.envelope_bytes for pending in first if pending.transaction_id in self._stuck]
        self._push(stuck, self._linked_authorities())
        self._stuck = dict.fromkeys(pending.transaction_id for pending in first)
        self._pushing = bool(first)
        if first:
            self._effects.append(SetTimer(PUSH, MonotonicMs(now.monotonic_ms + RESEND_MS)))

    # Standing

    def _repeat_standing(self, now: Now) -> None:
        """Ask those who still owe an answer, until we know whether we may sign or have no seat in sight any more."""
        self._asking = False
        if self.inquiry is None or self.first_signing_height is not None or not self.seats.seated(self.inquiry.own):
            return
        for record in self.inquiry.unanswered(self.authorities):
            if record.node in self._links:
                self._ask_standing(record.node)
        self._asking = True
        self._inquire_by_gossip(now)
        self._effects.append(SetTimer(STANDING, MonotonicMs(now.monotonic_ms + RESEND_MS)))

    def _on_standing_request(self, peer: NodeId, message: wire.StandingRequest, now: Now) -> None:
        """Attest our tip under the nonce; the answer leaves once the attestation is signed."""
        if self.key is None or not self.seats.seated(self.key) or not self.seats.holds(peer, message.authority):
            return
        if not self._answers.allow(peer, now.monotonic_ms):
            return
        if len(self._attesting) >= ATTESTATIONS_MAX:
            del self._attesting[next(iter(self._attesting))]
        certificate = self.last_decided.certificate if self.last_decided is not None else None
        # The nonce alone names nobody: another authority may ask with the one that it heard.
        self._attesting[(message.nonce, message.authority, self.tip)] = (peer, certificate)
        attestation = Attestation(message.nonce, PublicKey(message.authority), self.tip, self.state.tip_hash)
        self._effects.append(SignAndSend(MessageKind.ATTESTATION, encode(attestation)))

    def _on_attested(self, envelope_bytes: bytes, attestation: Attestation) -> None:
        asked = (attestation.nonce, AuthorityId(attestation.asker), attestation.tip)
        peer, certificate = self._attesting.pop(asked, (None, None))
        if peer is None:
            return
        machines = [machine for machine in (self._machine, self._previous) if machine is not None]
        decided_by = self.seats.at(attestation.tip)
        yours = signatures_of(AuthorityId(attestation.asker), decided_by, machines, certificate)
        if peer in self._links:
            self._send(peer, wire.Standing(envelope_bytes, certificate, yours))
        elif self.gossips:
            testimony = Testimony(attestation.asker, envelope_bytes, certificate, yours)
            self._effects.append(SignAndSend(MessageKind.TESTIMONY, encode(testimony)))

    def _on_standing(self, peer: NodeId, message: wire.Standing, now: Now) -> None:
        if self.inquiry is None:
            return
        if self.inquiry.answer(message, self.tip):
            self.first_signing_height = None
            if self._machine is not None:
                self._machine.own = None
            self._asking = True
            self._effects += [
                Put(Table.STANDING, OBSERVER_KEY, b"\x01"),
                Notify(SignaturesLost(self.inquiry.own)),
                SetTimer(STANDING, MonotonicMs(now.monotonic_ms + RESEND_MS)),
            ]
        self._hint(peer, open_attestation(message.attestation).tip, now)
        self._settle_standing(now)

    def _settle_standing(self, now: Now) -> None:
        """Sign from now on, or from T + 3 on, once enough authorities have answered."""
        if self.inquiry is None or self.first_signing_height is not None:
            return
        self.first_signing_height = self.inquiry.first_height(self.tip, self.authorities)
        if self._may_sign():
            self._permit(now)
            self._plan_opening(now)
