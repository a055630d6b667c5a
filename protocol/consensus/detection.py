"""What certificates tell of keys that signed twice: a certificate holds its signers' own statements.

Law: pure questions about what is held; each answer carries both envelopes, so that it proves itself.
"""

from collections.abc import Iterator

from protocol.consensus.height_state import HeightState
from protocol.consensus.outputs import Equivocation
from protocol.consensus.statements import ballot_equivocation, certified_body
from protocol.messages.consensus import Certificate, CertificateKind, FinalBody, VoteBody
from protocol.primitives.units import AuthorityId, Signature


def against_certificates(
    state: HeightState, index: int, signer: AuthorityId, body: VoteBody | FinalBody, signature: Signature
) -> Iterator[Equivocation]:
    """The signer of this statement signed another one that stands in a certificate."""
    for certificate in state.certified(body):
        if index in certificate.signers and certificate.block_hash != body.block_hash:
            said = certificate.block_hash, certificate.signatures[certificate.signers.index(index)]
            yield ballot_equivocation(signer, said, body, signature)


def among_signers(state: HeightState, certificate: Certificate) -> Iterator[Equivocation]:
    """Signers of this certificate have said otherwise in statements that came by themselves."""
    tally = state.votes if certificate.kind is CertificateKind.VOTED else state.finals
    body = certified_body(certificate)
    for index, signature in zip(certificate.signers, certificate.signatures, strict=True):
        said = tally.said(certificate.view, index)
        if said is not None and said[0] != certificate.block_hash:
            signer = state.rules.authorities.records[index].authority
            yield ballot_equivocation(signer, said, body, signature)
