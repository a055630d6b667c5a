"""Which signatures a message of the replica's carries, settled before the replica sees it.

Law: a check may be left out only where the message will be ignored *whenever* it is handled: heights that are closed
(ballots: below the tip, whose late ones are remembered), certificates and statements that are held already. All that
stays so, however late the message comes through the door.
"""

from typing import TypeVar

from protocol.consensus.height import AuthorityHeight
from protocol.engine.bodies import open_body
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
from protocol.primitives.codec import Message
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.signing import SignatureCheck
from protocol.primitives.units import AuthorityId, Hash, Height

Statement = TypeVar("Statement", bound=Message)


class MisplacedMessage(RemoteProtocolError):
    """A message that is well formed but can't be what it claims to be."""


def open_statement(received: bytes, kind: type[Statement], authorities: AuthoritySet) -> tuple[Envelope, Statement]:
    """An envelope with this payload from a member of the set. Does not check the signature."""
    envelope, body = open_envelope(received)
    if not isinstance(body, kind):
        raise MisplacedMessage(f"expected {kind.__name__}, got {type(body).__name__}")
    if AuthorityId(envelope.sender) not in authorities:
        raise MisplacedMessage(f"{kind.__name__} signed by a key that is no authority")
    return envelope, body


def open_ballot(received: bytes, authorities: AuthoritySet) -> tuple[Envelope, VoteBody | FinalBody]:
    """A VOTE or FINAL of a member of the set. Does not check the signature."""
    envelope, body = open_envelope(received)
    if not isinstance(body, VoteBody | FinalBody):
        raise MisplacedMessage(f"a ballot holds a {type(body).__name__}")
    if AuthorityId(envelope.sender) not in authorities:
        raise MisplacedMessage("a ballot signed by a key that is no authority")
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

    def __init__(self, genesis_hash: Hash, authorities: AuthoritySet) -> None:
        self._genesis_hash = genesis_hash
        self._authorities = authorities

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
                return [check for decided in message.blocks for check in self._decided(decided, tip)]
            case wire.Transactions():
                return [check for received in message.envelopes for check in self._transaction(received)]
            case wire.Standing():
                return self._standing(message)
            case _:
                return []

    def _proposal(self, message: wire.Proposal, tip: Height, machine: AuthorityHeight | None) -> list[SignatureCheck]:
        envelope, body = open_statement(message.envelope, ProposalBody, self._authorities)
        if body.view < 1 or self._authorities.leader(body.height, body.view) != AuthorityId(envelope.sender):
            raise MisplacedMessage("a proposal of another authority than the view's leader")
        if body.height <= tip:
            return []
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
        return checks + self._block(block)

    def _ballot(self, message: wire.Ballot, tip: Height, machine: AuthorityHeight | None) -> list[SignatureCheck]:
        envelope, body = open_ballot(message.envelope, self._authorities)
        if body.height < tip:
            return []
        if machine is not None and body.height == machine.rules.height:
            tally = machine.votes if isinstance(body, VoteBody) else machine.finals
            index = self._authorities.index_of(AuthorityId(envelope.sender))
            said = tally.said(body.view, index) if index is not None else None
            if said == (body.block_hash, envelope.signature):
                return []
        return [signature_check(self._genesis_hash, envelope)]

    def _certificate(
        self, certificate: Certificate, tip: Height, machine: AuthorityHeight | None
    ) -> list[SignatureCheck]:
        checks = certificate_checks(self._genesis_hash, self._authorities, certificate)
        if certificate.height <= tip:
            return []
        if (
            machine is not None
            and certificate.height == machine.rules.height
            and certificate.kind is not CertificateKind.DECIDED
        ):
            held = machine.held.of(certificate.kind).get(certificate.view)
            if held is not None and held.block_hash == certificate.block_hash:
                return []
        return checks

    def _decided(self, decided: DecidedBlock, tip: Height) -> list[SignatureCheck]:
        if decided.certificate.height <= tip:
            return []
        block = open_decided(decided)
        checks = certificate_checks(self._genesis_hash, self._authorities, decided.certificate)
        return checks + self._block(block)

    def _standing(self, message: wire.Standing) -> list[SignatureCheck]:
        envelope, attestation = open_statement(message.attestation, Attestation, self._authorities)
        checks = [signature_check(self._genesis_hash, envelope)]
        if message.decided is not None:
            open_decided(message.decided)
            checks += certificate_checks(self._genesis_hash, self._authorities, message.decided.certificate)
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
