"""Blocks and headers.

Law: a block's hash is the hash of its header; header and body never depend on the view in which they are decided, so a
block proposed again in a later view is the same block. A block carries one certificate of its parent, the one that
its builder held: that is how the ledger knows who signed, although nodes may hold different ones.
"""

from typing import Annotated

from msgspec import Meta

from protocol.messages.consensus import Certificate
from protocol.messages.genesis import Membership
from protocol.primitives.codec import Message, encode
from protocol.primitives.hashing import Domain, digest
from protocol.primitives.limits import BLOCK_BYTES_MAX, BLOCK_TRANSACTIONS_MAX, TRANSACTION_BYTES_MAX
from protocol.primitives.units import (
    BlockHash,
    BlockHashField,
    Hash,
    HashField,
    HeightField,
    LedgerTimeField,
    TimestampField,
)


class Header(Message, frozen=True):
    """What authorities sign the hash of."""

    version: Annotated[int, Meta(ge=0, le=2**16)]
    height: HeightField
    parent: BlockHashField
    timestamp_ms: TimestampField
    ledger_time_ms: LedgerTimeField
    parent_certificate_hash: HashField
    """Hash of the certificate beside it; zeros where there is none."""
    transactions_root: HashField
    """Merkle root over the transaction envelopes in order."""
    state_root: HashField
    """History-independent root of the state after this block."""
    checkpoint_root: HashField
    """Root of the state tree after the last checkpoint block at or below the parent: what single rows are proven by."""
    authorities_hash: HashField
    """The set that decides this height."""
    next_authorities_hash: HashField
    """The set that decides the next height."""


class Block(Message, frozen=True):
    """A header, the certificate that decided its parent, and its transactions, each a ``TRANSACTION`` envelope."""

    header: Header
    parent_certificate: Certificate | None
    """A DECIDED certificate of the parent; ``None`` on top of the genesis alone, which nobody signed."""
    transactions: Annotated[
        tuple[Annotated[bytes, Meta(max_length=TRANSACTION_BYTES_MAX)], ...], Meta(max_length=BLOCK_TRANSACTIONS_MAX)
    ]


class DecidedBlock(Message, frozen=True):
    """A block with the certificate that decided it: what catch-up and light clients are given."""

    block: Annotated[bytes, Meta(max_length=BLOCK_BYTES_MAX)]
    certificate: Certificate


class Succession(Message, frozen=True):
    """A header that names another set for the next height than for its own: one link of a light client's chain."""

    header: Header
    certificate: Certificate
    """By the set that decided the header's own height."""
    following: Membership
    """The set that the header's ``next_authorities_hash`` stands for."""


class DecidedHeader(Message, frozen=True):
    """A header, the certificate that decided it, and the set that did: what a light client can skip to."""

    header: Header
    certificate: Certificate
    authorities: Membership


NO_CERTIFICATE_HASH = Hash(bytes(32))


def certificate_hash(certificate: Certificate | None) -> Hash:
    """What a header says of the certificate beside it."""
    return NO_CERTIFICATE_HASH if certificate is None else digest(Domain.CERTIFICATE, encode(certificate))


def header_hash(header: Header) -> BlockHash:
    """The hash that authorities vote on."""
    return BlockHash(digest(Domain.BLOCK_HEADER, encode(header)))
