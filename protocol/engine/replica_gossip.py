"""What authorities say to each other by gossip, where there is no link between them.

Law: gossip carries the same signed statements that a link would, and they mean the same. An open height's proposals
leave at once, everything that the sender stands on follows each second while nothing is decided; certificates on the
way there are rebuilt from ballots. Blocks that are decided already come from whoever is linked.
"""

from abc import abstractmethod

from msgspec.structs import replace

from protocol.consensus import outputs as out
from protocol.engine.replica_door import MisplacedMessage
from protocol.engine.replica_sync import ReplicaSync
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
from protocol.messages.effects import Now, SignAndSend
from protocol.messages.envelope import open_envelope
from protocol.messages.kinds import MessageKind
from protocol.messages.quorum import CertificateInvalid, certificate_checks
from protocol.primitives.codec import encode
from protocol.primitives.limits import DISPATCH_BALLOTS_MAX, JUSTIFICATION_CERTIFICATES_MAX
from protocol.primitives.units import AuthorityId, DurationMs, NodeId

BLOCK_BYTES_ALWAYS = 48 * 1024
"""A block up to this size is always gossiped to those without a link; larger ones only if they are needed."""
PROPOSAL_REPEAT_MS = DurationMs(5_000)
"""A proposal is gossiped again after so long: as long as a dispatch lives."""
HEARD_MS = DurationMs(30_000)
"""An authority whose ballots came within this time is alive, although there is no link to it."""
INQUIRY_REPEAT_MS = DurationMs(3_000)


def parts_of(dispatch: Dispatch) -> list[wire.WireMessage]:
    """The messages that a link would have carried."""
    parts: list[wire.WireMessage] = []
    if dispatch.proposal:
        parts.append(wire.Proposal(dispatch.proposal, dispatch.block, dispatch.certificates))
    else:
        parts += [wire.CertificateNotice(certificate) for certificate in dispatch.certificates]
    return parts + [wire.Ballot(ballot) for ballot in dispatch.ballots]


def check_parts(dispatch: Dispatch, author: AuthorityId) -> None:
    """Everything in it is of its height, and statements are the author's own. Raises ``MisplacedMessage``."""
    for received in (*((dispatch.proposal,) if dispatch.proposal else ()), *dispatch.ballots):
        envelope, body = open_envelope(received)
        if not isinstance(body, ProposalBody | VoteBody | FinalBody):
            raise MisplacedMessage(f"a dispatch holds a {envelope.kind.name}")
        if body.height != dispatch.height or AuthorityId(envelope.sender) != author:
            raise MisplacedMessage("a dispatch holds a statement of another height or authority")
    if any(certificate.height != dispatch.height for certificate in dispatch.certificates):
        raise MisplacedMessage("a dispatch holds a certificate of another height")


def standing_of(testimony: Testimony) -> wire.Standing:
    """The answer that a link would have carried."""
    return wire.Standing(testimony.attestation, testimony.certificate, testimony.yours)


class ReplicaGossip(ReplicaSync):
    """Speaks to authorities without a link, and hears them."""

    # Speaking

    def _spread(self, asked: list[out.Output], now: Now) -> None:
        """Gossip what of these outputs went to linked authorities alone."""
        if not self.gossips or not self.unlinked_authorities():
            return
        proposal, block = b"", b""
        certificates: tuple[Certificate, ...] = ()
        ballots: list[bytes] = []
        for output in asked:
            match output:
                case out.SendProposal():
                    body = self._bodies.bytes_of(output.block_hash)
                    if body is not None and self._gossips_block(len(body), now):
                        proposal, block, certificates = output.envelope, body, output.certificates
                case out.SendBallot():
                    ballots.append(output.envelope)
                case out.Forward() if not proposal and len(certificates) < JUSTIFICATION_CERTIFICATES_MAX:
                    certificates += (output.certificate,)
                case _:
                    pass
        if proposal or certificates or ballots:
            dispatch = Dispatch(
                self._open_machine().rules.height,
                now.wall_ms,
                proposal,
                block,
                certificates,
                tuple(ballots[:DISPATCH_BALLOTS_MAX]),
            )
            self._effects.append(SignAndSend(MessageKind.DISPATCH, encode(dispatch)))

    def _gossips_block(self, size: int, now: Now) -> bool:
        """Small blocks always; large ones if the linked authorities can't decide alone, have failed to, or another one
        was heard lately. Not again before the last dispatch has ended."""
        view = self._open_machine().current
        last = self._spread_at
        if last is not None and last[0] == view and now.monotonic_ms - last[1] < PROPOSAL_REPEAT_MS:
            return False
        linked = len(self._linked_authorities()) + 1
        needed = linked < self.authorities.quorum or view > self.authorities.first_view or self._hears_unlinked(now)
        if size > BLOCK_BYTES_ALWAYS and not needed:
            return False
        self._spread_at = (view, now.monotonic_ms)
        return True

    def _hears_unlinked(self, now: Now) -> bool:
        unlinked = dict.fromkeys(self.unlinked_authorities())
        return any(
            record.node in unlinked and now.monotonic_ms - self._heard[record.authority] < HEARD_MS
            for record in self.authorities.records
            if record.authority in self._heard
        )

    def _inquire_by_gossip(self, now: Now) -> None:
        """Ask those without a link about our standing."""
        assert self.inquiry is not None
        if not self.gossips or not self.unlinked_authorities():
            return
        if now.monotonic_ms - self._inquired_at >= INQUIRY_REPEAT_MS:
            self._inquired_at = now.monotonic_ms
            self._effects.append(SignAndSend(MessageKind.INQUIRY, encode(Inquiry(self.inquiry.nonce, now.wall_ms))))

    # Hearing

    def _node_of(self, authority: AuthorityId) -> NodeId | None:
        return next(
            (record.node for found in self.seats.around() for record in found.records if record.authority == authority),
            None,
        )

    def dispatched(self, author: AuthorityId, dispatch: Dispatch, now: Now) -> None:
        """Take the parts of a dispatch of the open height whose signatures hold. Raises ``RemoteProtocolError``."""
        node = self._node_of(author)
        if self._machine is None or node is None:
            return
        for part in parts_of(dispatch):
            if dispatch.height != self.tip + 1:
                return
            match part:
                case wire.Proposal():
                    self._on_proposal(node, part, now)
                case wire.CertificateNotice():
                    self._on_certificate(node, part.certificate, now)
                case wire.Ballot():
                    self._on_ballot(node, part, now)

    def inquired(self, author: AuthorityId, inquiry: Inquiry, now: Now) -> None:
        """An authority asks about its standing; whom there is a link to has asked over it, and what an earlier life of
        ours asked comes back to us from those who relay it."""
        node = self._node_of(author)
        if node is not None and node != self.own_node and node not in self._links:
            self._on_standing_request(node, wire.StandingRequest(inquiry.nonce, author), now)

    def testified(self, author: AuthorityId, testimony: Testimony, now: Now) -> None:
        """An answer about our own standing; without the proof of its tip, if that does not hold: who relayed it could
        not tell."""
        node, inquiry = self._node_of(author), self.inquiry
        envelope, attestation = open_envelope(testimony.attestation)
        assert isinstance(attestation, Attestation), "settled at the door"
        if node is None or inquiry is None or author == inquiry.own or AuthorityId(envelope.sender) != author:
            return
        if attestation.nonce == inquiry.nonce and AuthorityId(attestation.asker) == inquiry.own:
            proof = testimony.certificate if self._proves(testimony.certificate, attestation) else None
            self._on_standing(node, standing_of(replace(testimony, certificate=proof)), now)

    def _proves(self, certificate: Certificate | None, attestation: Attestation) -> bool:
        authorities = self.seats.at(attestation.tip)
        if certificate is None or authorities is None or attestation.tip <= self.tip:
            return False
        claimed = (certificate.kind, certificate.height, certificate.block_hash)
        if claimed != (CertificateKind.DECIDED, attestation.tip, attestation.tip_hash):
            return False
        try:
            checks = certificate_checks(self.state.genesis_hash, authorities, certificate)
        except CertificateInvalid:
            return False
        return all(check.holds() for check in checks)

    # What messages do is in the replica

    @abstractmethod
    def _on_proposal(self, peer: NodeId, message: wire.Proposal, now: Now) -> None: ...

    @abstractmethod
    def _on_certificate(self, peer: NodeId, certificate: Certificate, now: Now) -> None: ...

    @abstractmethod
    def _on_ballot(self, peer: NodeId, message: wire.Ballot, now: Now) -> None: ...
