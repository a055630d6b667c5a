"""The three statements of an authority, ready for the guard, and the proof that a key made two of a kind."""

from protocol.consensus.outputs import Equivocation, Sign
from protocol.consensus.tally import Statement
from protocol.messages.consensus import Certificate, CertificateKind, FinalBody, ProposalBody, VoteBody
from protocol.messages.effects import GuardClass, GuardPosition
from protocol.messages.envelope import seal
from protocol.messages.kinds import MessageKind
from protocol.primitives.codec import encode
from protocol.primitives.units import AuthorityId, BlockHash, Height, PublicKey, Signature, View

GUARD_CLASSES = {
    MessageKind.PROPOSAL: GuardClass.PROPOSAL,
    MessageKind.VOTE: GuardClass.VOTE,
    MessageKind.FINAL: GuardClass.FINAL,
}


def proposal_to_sign(body: ProposalBody) -> Sign:
    """PROPOSAL(x, w) of its view."""
    position = GuardPosition(body.height, body.view, GuardClass.PROPOSAL)
    return Sign(position, MessageKind.PROPOSAL, encode(body))


def vote_to_sign(height: Height, view: View, block_hash: BlockHash) -> Sign:
    """VOTE(x)."""
    body = VoteBody(height, view, block_hash)
    return Sign(GuardPosition(height, view, GuardClass.VOTE), MessageKind.VOTE, encode(body))


def final_to_sign(height: Height, view: View, decision: BlockHash | None) -> Sign:
    """FINAL(x), or FINAL(⊥) for ``None``: one guard class for both."""
    body = FinalBody(height, view, decision)
    return Sign(GuardPosition(height, view, GuardClass.FINAL), MessageKind.FINAL, encode(body))


def proposal_envelope(leader: AuthorityId, body: ProposalBody, signature: Signature) -> bytes:
    """The envelope of a PROPOSAL from its parts."""
    return seal(MessageKind.PROPOSAL, encode(body), PublicKey(leader), signature)


def certified_body(certificate: Certificate) -> VoteBody | FinalBody:
    """What each signer of a certificate has signed."""
    if certificate.kind is CertificateKind.VOTED:
        assert certificate.block_hash is not None
        return VoteBody(certificate.height, certificate.view, certificate.block_hash)
    return FinalBody(certificate.height, certificate.view, certificate.block_hash)


def proposal_equivocation(
    leader: AuthorityId, first: tuple[ProposalBody, Signature], second: tuple[ProposalBody, Signature]
) -> Equivocation:
    """Two PROPOSALs of one view with different (x, w)."""
    envelopes = [proposal_envelope(leader, *each) for each in (first, second)]
    return Equivocation(leader, envelopes[0], envelopes[1])


def ballot_equivocation(
    signer: AuthorityId, first: Statement, body: VoteBody | FinalBody, signature: Signature
) -> Equivocation:
    """Two VOTEs or two FINALs of one view: the one counted first, and ``body``."""
    key, kind = PublicKey(signer), MessageKind.VOTE if isinstance(body, VoteBody) else MessageKind.FINAL
    earlier: VoteBody | FinalBody
    if isinstance(body, VoteBody):
        assert first[0] is not None
        earlier = VoteBody(body.height, body.view, first[0])
    else:
        earlier = FinalBody(body.height, body.view, first[0])
    return Equivocation(signer, seal(kind, encode(earlier), key, first[1]), seal(kind, encode(body), key, signature))
