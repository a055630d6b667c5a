"""Which signatures a message of the replica's carries, settled before the replica sees it.

Law: a check may be left out only where the message will be ignored *whenever* it is handled: heights that are closed
(ballots: below the tip, whose late ones are remembered), certificates and statements that are held already. All that
stays so, however late the message comes through the door. Checks are made against the set of the message's own height,
which never changes; what is of a height whose set is not known yet passes as a hint and as nothing else.
"""

from protocol.consensus.height import AuthorityHeight
from protocol.engine.bodies import open_body
from protocol.engine.seats import HEIGHTS_KNOWN_AHEAD, Seats
from protocol.ledger.blocks import decode_block
from protocol.ledger.errors import NotATransaction
from protocol.ledger.signatures import block_checks, transaction_checks
from protocol.messages import wire
from protocol.messages.blocks import Block, DecidedBlock
from protocol.messages.consensus import (
    Attestation,
    Certificate,
    CertificateKind,
    FinalBody,
    ProposalBody,
    VoteBody,
)
from protocol.messages.envelope import Envelope, open_envelope, signature_check
from protocol.messages.quorum import AuthoritySet, certificate_checks
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.signing import SignatureCheck
from protocol.primitives.units import AuthorityId, Hash, Height


class MisplacedMessage(RemoteProtocolError):
    """A message that is well formed but can't be what it claims to be."""


class BeyondReach(RemoteProtocolError):
    """A message of a height whose authorities are not known here yet; ``readable`` makes a hint of it."""


def open_ballot(received: bytes) -> tuple[Envelope, VoteBody | FinalBody]:
    """A VOTE or FINAL of whoever. Checks neither signature nor membership."""
    envelope, body = open_envelope(received)
    if not isinstance(body, VoteBody | FinalBody):
        raise MisplacedMessage(f"a ballot holds a {type(body).__name__}")
    return envelope, body


def open_decided(decided: DecidedBlock) -> Block:
    """A decided block whose body belongs to its certificate. Raises ``RemoteProtocolError``."""
    block, block_hash = open_body(decided.block)
    certificate = decided.certificate
    if certificate.kind is not CertificateKind.DECIDED:
        raise MisplacedMessage("a decided block without a decided certificate")
    if (certificate.height, certificate.block_hash) != (block.header.height, block_hash):
        raise MisplacedMessage("a decided block beside the certificate of another one")
    return block


class ReplicaDoor:
    """Checks for one replica; reads its machine and tip, changes nothing."""

    def __init__(self, genesis_hash: Hash, seats: Seats) -> None:
        self._genesis_hash = genesis_hash
        self._seats = seats

    # What is within reach

    def readable(self, message: wire.WireMessage, tip: Height) -> wire.WireMessage:
        """The message, or what of it can be checked: a hint of its sender's tip, the first of its blocks, an answer
        about our standing without the proof of its tip.

        Raises ``MalformedMessage``.
        """
        match message:
            case wire.Proposal() | wire.Ballot():
                _, body = open_envelope(message.envelope)
                if not isinstance(body, ProposalBody | VoteBody | FinalBody):
                    return message
                return message if _within_reach(body.height, tip) else wire.TipNotice(Height(body.height - 1))
            case wire.CertificateNotice(certificate):
                if _within_reach(certificate.height, tip):
                    return message
                decided = certificate.kind is CertificateKind.DECIDED
                return wire.TipNotice(Height(certificate.height if decided else certificate.height - 1))
            case wire.Standing():
                envelope, attestation = open_envelope(message.attestation)
                if not isinstance(attestation, Attestation):
                    return message
                if not self._seats.seated(AuthorityId(envelope.sender)):
                    # In office where its own ledger stands, not around our tip: one of the two lags.
                    return wire.TipNotice(attestation.tip)
                if _within_reach(attestation.tip, tip):
                    return message
                return wire.Standing(message.attestation, None, message.yours)
            case wire.Blocks():
                count = len(self._sets_of(message, tip))
                return message if count == len(message.blocks) else wire.Blocks(message.blocks[:count], message.tip)
            case _:
                return message

    def _sets_of(self, message: wire.Blocks, tip: Height) -> list[AuthoritySet | None]:
        """The set that each block is decided by, up to the first one whose set nothing tells; ``None`` where the block
        will be ignored.

        A decided header names the next height's set, so blocks can be followed as far as no new set comes in, and over
        a recovery that this node was told of.
        """
        sets: list[AuthoritySet | None] = []
        named: dict[Height, AuthoritySet | None] = {}
        for decided in message.blocks:
            height = decided.certificate.height
            if height <= tip:
                sets.append(None)
                continue
            found = named.get(height) or self._seats.at(height)
            if found is None:
                break
            sets.append(found)
            header = decode_block(decided.block).header
            named[Height(header.height + 1)] = self._seats.after(header)
        return sets

    def _set(self, height: Height) -> AuthoritySet:
        found = self._seats.at(height)
        if found is None:
            raise BeyondReach(f"the authorities of height {height} are not known yet")
        return found

    # Checks

    def checks(self, message: wire.WireMessage, tip: Height, machine: AuthorityHeight | None) -> list[SignatureCheck]:
        """What must hold before the replica may be given the message. Raises ``RemoteProtocolError``."""
        match message:
            case wire.Proposal():
                return self._proposal(message, tip, machine)
            case wire.Ballot():
                return self._ballot(message, tip, machine)
            case wire.CertificateNotice():
                return self._certificate(message.certificate, tip, machine)
            case wire.Body():
                block, _ = open_body(message.block)
                return self._block(block) if block.header.height > tip else []
            case wire.Blocks():
                return self._blocks(message, tip)
            case wire.Transactions():
                return [check for received in message.envelopes for check in self._transaction(received)]
            case wire.Standing():
                return self._standing(message, tip)
            case _:
                return []

    def _proposal(self, message: wire.Proposal, tip: Height, machine: AuthorityHeight | None) -> list[SignatureCheck]:
        envelope, body = open_envelope(message.envelope)
        if not isinstance(body, ProposalBody):
            raise MisplacedMessage(f"a proposal holds a {type(body).__name__}")
        if body.height <= tip:
            return []
        authorities = self._set(body.height)
        if body.view < authorities.first_view:
            raise MisplacedMessage("a proposal from before this ledger's recovery: its node was not given the document")
        if authorities.leader(body.height, body.view) != AuthorityId(envelope.sender):
            raise MisplacedMessage("a proposal of another authority than the view's leader")
        block, block_hash = open_body(message.block)
        if (block.header.height, block_hash) != (body.height, body.block_hash):
            raise MisplacedMessage("a proposal beside another block")
        checks = [signature_check(self._genesis_hash, envelope)]
        for certificate in message.certificates:
            if certificate.height != body.height or certificate.view >= body.view:
                raise MisplacedMessage("a justification of another height or of later views")
            if certificate.kind is CertificateKind.DECIDED:
                raise MisplacedMessage("a decided certificate justifies no proposal")
            checks += self._certificate(certificate, tip, machine)
        return checks + self._parent(block) + self._block(block)

    def _parent(self, block: Block) -> list[SignatureCheck]:
        """The signatures of the certificate that a new block carries of its parent: signers are paid by it.

        A leader makes the block alone, so its word is checked; a block that a quorum has certified needs no more.
        """
        certificate, header = block.parent_certificate, block.header
        if certificate is None:
            return []  # right for block 1 alone; executing tells
        if certificate.kind is not CertificateKind.DECIDED:
            raise MisplacedMessage("a block beside a parent certificate that decides nothing")
        if (certificate.height + 1, certificate.block_hash) != (header.height, header.parent):
            raise MisplacedMessage("a block beside the certificate of another parent")
        return certificate_checks(self._genesis_hash, self._set(certificate.height), certificate)

    def _ballot(self, message: wire.Ballot, tip: Height, machine: AuthorityHeight | None) -> list[SignatureCheck]:
        envelope, body = open_ballot(message.envelope)
        if body.height < tip:
            return []
        authorities, signer = self._set(body.height), AuthorityId(envelope.sender)
        if not authorities.counts(signer):
            raise MisplacedMessage("a ballot signed by a key that is no authority")
        if machine is not None and body.height == machine.rules.height:
            tally = machine.votes if isinstance(body, VoteBody) else machine.finals
            index = authorities.index_of(signer)
            said = tally.said(body.view, index) if index is not None else None
            if said == (body.block_hash, envelope.signature):
                return []
        return [signature_check(self._genesis_hash, envelope)]

    def _certificate(
        self, certificate: Certificate, tip: Height, machine: AuthorityHeight | None
    ) -> list[SignatureCheck]:
        if certificate.height <= tip:
            return []
        checks = certificate_checks(self._genesis_hash, self._set(certificate.height), certificate)
        if (
            machine is not None
            and certificate.height == machine.rules.height
            and certificate.kind is not CertificateKind.DECIDED
        ):
            held = machine.held.of(certificate.kind).get(certificate.view)
            if held is not None and held.block_hash == certificate.block_hash:
                return []
        return checks

    def _blocks(self, message: wire.Blocks, tip: Height) -> list[SignatureCheck]:
        sets = self._sets_of(message, tip)
        if len(sets) < len(message.blocks):
            raise BeyondReach("decided blocks of heights whose authorities are not known yet")
        checks: list[SignatureCheck] = []
        for decided, authorities in zip(message.blocks, sets, strict=True):
            if authorities is None:
                continue
            block = open_decided(decided)
            if block.header.authorities_hash != authorities.hash():
                raise MisplacedMessage(
                    f"block {block.header.height} is decided by other authorities than this ledger names: "
                    "another network, or one that was recovered out of band"
                )
            checks += certificate_checks(self._genesis_hash, authorities, decided.certificate)
            checks += self._block(block)
        return checks

    def _standing(self, message: wire.Standing, tip: Height) -> list[SignatureCheck]:
        envelope, attestation = open_envelope(message.attestation)
        if not isinstance(attestation, Attestation) or not self._seats.seated(AuthorityId(envelope.sender)):
            raise MisplacedMessage("an answer about our standing that no authority gave")
        checks = [signature_check(self._genesis_hash, envelope)]
        certificate = message.certificate
        if certificate is not None and attestation.tip > tip:
            if certificate.kind is not CertificateKind.DECIDED:
                raise MisplacedMessage("a tip beside a certificate that decides nothing")
            checks += certificate_checks(self._genesis_hash, self._set(certificate.height), certificate)
        for received in message.yours:
            statement, body = open_envelope(received)
            if not isinstance(body, ProposalBody | VoteBody | FinalBody) or statement.sender != attestation.asker:
                raise MisplacedMessage("signatures of somebody else in an answer about the asker's")
            checks.append(signature_check(self._genesis_hash, statement))
        return checks

    def _transaction(self, received: bytes) -> list[SignatureCheck]:
        try:
            return transaction_checks(self._genesis_hash, received)
        except NotATransaction as error:
            raise MisplacedMessage(str(error)) from None

    def _block(self, block: Block) -> list[SignatureCheck]:
        try:
            return block_checks(self._genesis_hash, block)
        except NotATransaction as error:
            raise MisplacedMessage(str(error)) from None


def _within_reach(height: Height, tip: Height) -> bool:
    return height <= tip + HEIGHTS_KNOWN_AHEAD
