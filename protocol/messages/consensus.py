"""What authorities sign, and quorums of it.

Law: PROPOSAL signs ``(x, w)`` alone; block and justification travel beside it. A certificate's signatures are the
signatures of VOTE or FINAL envelopes: their payload bytes are rebuilt from the certificate's fields, which works
because each value has one spelling.

Source: Simplex consensus (Chan and Pass), closed at each height.
"""

from enum import IntEnum
from typing import Annotated

from msgspec import Meta

from protocol.primitives.codec import Message
from protocol.primitives.limits import (
    AUTHORITIES_MAX,
    BLOCK_BYTES_MAX,
    DISPATCH_BALLOTS_MAX,
    JUSTIFICATION_CERTIFICATES_MAX,
    OWN_STATEMENTS_MAX,
)
from protocol.primitives.units import (
    BlockHashField,
    HashField,
    HeightField,
    PublicKeyField,
    SignatureField,
    TimestampField,
    ViewField,
)

StatementBytes = Annotated[bytes, Meta(max_length=512)]
"""The envelope of a small statement."""


class ProposalBody(Message, frozen=True):
    """Leader of ``view``: let the block be ``block_hash``, carried over from ``voted_view`` (0: a new block)."""

    height: HeightField
    view: ViewField
    block_hash: BlockHashField
    voted_view: ViewField


class VoteBody(Message, frozen=True):
    """This block is valid and was proposed first in this view."""

    height: HeightField
    view: ViewField
    block_hash: BlockHashField


class FinalBody(Message, frozen=True):
    """Decide ``block_hash`` in this view; ``None`` (⊥) skips the view. One key signs one of the two, never both."""

    height: HeightField
    view: ViewField
    block_hash: BlockHashField | None


class Attestation(Message, frozen=True):
    """An authority's answer to a fresh nonce: the highest tip it holds with a decided certificate."""

    nonce: HashField
    asker: PublicKeyField
    tip: HeightField
    tip_hash: BlockHashField


class CertificateKind(IntEnum):
    """VC from VOTE(x), SC from FINAL(⊥), DC from FINAL(x)."""

    VOTED = 1
    SKIPPED = 2
    DECIDED = 3


class Certificate(Message, frozen=True):
    """Q distinct authorities signed the same statement in one view.

    ``signers`` are positions in the height's sorted authority set, strictly rising; ``signatures`` run parallel.
    """

    kind: CertificateKind
    height: HeightField
    view: ViewField
    block_hash: BlockHashField | None
    signers: Annotated[
        tuple[Annotated[int, Meta(ge=0, lt=AUTHORITIES_MAX)], ...], Meta(min_length=1, max_length=AUTHORITIES_MAX)
    ]
    signatures: Annotated[tuple[SignatureField, ...], Meta(min_length=1, max_length=AUTHORITIES_MAX)]


class Dispatch(Message, frozen=True):
    """What an authority says at an open height to those that it has no link to; it travels by gossip.

    Its parts carry their own signatures and mean what they mean on a link. Repeated with a new ``sent_at``, because
    gossip takes each statement once.
    """

    height: HeightField
    sent_at: TimestampField
    proposal: StatementBytes
    """Envelope of the own PROPOSAL; empty for none."""
    block: Annotated[bytes, Meta(max_length=BLOCK_BYTES_MAX)]
    """Its block; empty without a proposal."""
    certificates: Annotated[tuple[Certificate, ...], Meta(max_length=JUSTIFICATION_CERTIFICATES_MAX)]
    """What justifies the proposal, or the view that the sender stands in."""
    ballots: Annotated[tuple[StatementBytes, ...], Meta(max_length=DISPATCH_BALLOTS_MAX)]
    """Envelopes of the sender's own VOTE and FINAL."""


class Inquiry(Message, frozen=True):
    """``StandingRequest`` of an authority to those that it has no link to; it travels by gossip."""

    nonce: HashField
    sent_at: TimestampField


class Testimony(Message, frozen=True):
    """The answer to an ``Inquiry``, by gossip as well: what ``Standing`` holds."""

    asker: PublicKeyField
    attestation: StatementBytes
    certificate: Certificate | None
    yours: Annotated[tuple[StatementBytes, ...], Meta(max_length=OWN_STATEMENTS_MAX)]
