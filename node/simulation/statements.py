"""Statements of four authorities at one height, for machines that are run without a network.

Law: the machine never checks signatures (they are settled at the door), so a stand-in derived from the statement does.
"""

from functools import cache
from hashlib import blake2b

from protocol.messages.consensus import Certificate, CertificateKind, ProposalBody
from protocol.messages.effects import Now
from protocol.messages.genesis import AuthorityRecord
from protocol.messages.quorum import AuthoritySet
from protocol.primitives.units import (
    AccountId,
    AuthorityId,
    BlockHash,
    Height,
    MonotonicMs,
    NodeId,
    Signature,
    TimestampMs,
    View,
)

HEIGHT = Height(8)
"""8 mod 4 = 0, so view v is led by authority v mod 4."""
DELTA_MS = 100
X, Y = BlockHash(b"x" * 32), BlockHash(b"y" * 32)


def authority_set(n: int, kind: type[AuthoritySet] = AuthoritySet) -> AuthoritySet:
    """Members whose keys sort by their number."""
    return kind(
        tuple(
            AuthorityRecord(
                AuthorityId(bytes((number,)) * 32), AccountId(bytes(32)), NodeId(bytes((number,)) * 32), str(number)
            )
            for number in range(n)
        )
    )


def at(milliseconds: int) -> Now:
    """A moment on both clocks."""
    return Now(MonotonicMs(milliseconds), TimestampMs(1_000_000 + milliseconds))


def stand_in(*parts: object) -> Signature:
    """64 bytes that differ for each statement."""
    return Signature(blake2b(repr(parts).encode(), digest_size=64).digest())


@cache
def proposal(view: int, block_hash: BlockHash, base: int = 0) -> ProposalBody:
    """PROPOSAL(x, w)."""
    return ProposalBody(HEIGHT, View(view), block_hash, View(base))


@cache
def certificate(
    kind: CertificateKind, view: int, block_hash: BlockHash | None, signers: tuple[int, ...] = (0, 1, 2)
) -> Certificate:
    """A certificate of these signers."""
    signatures = tuple(stand_in(kind, view, block_hash, signer) for signer in signers)
    return Certificate(kind, HEIGHT, View(view), block_hash, signers, signatures)
