"""Snapshots of the ledger's state: what a node that can't have all blocks starts from.

Law: a snapshot's content follows from the state at its height alone, so equal states give equal chunks, whoever cuts
them. A manifest binds every chunk by its hash; only the rows together show that they are what the header says.
"""

from typing import Annotated

from msgspec import Meta

from protocol.messages.blocks import Header, Succession
from protocol.messages.consensus import Certificate
from protocol.primitives.codec import Message
from protocol.primitives.limits import SNAPSHOT_CHUNKS_MAX, SUCCESSIONS_MAX
from protocol.primitives.units import HashField


class SnapshotManifest(Message, frozen=True):
    """What a snapshot consists of."""

    header: Header
    """The block after which the state was as the rows say."""
    certificate: Certificate
    """Decided it. Nodes may hold different ones: it is no part of the content."""
    successions: Annotated[tuple[Succession, ...], Meta(max_length=SUCCESSIONS_MAX)]
    """Every change of the authorities from the genesis to the header: who decided it follows from them."""
    chunks: Annotated[tuple[HashField, ...], Meta(min_length=2, max_length=SNAPSHOT_CHUNKS_MAX)]
    """Content hashes. The first chunk is the block itself, the others are the rows in order of their keys."""

    @property
    def content(self) -> tuple[bytes, ...]:
        """Equal for two manifests of the same content, whatever certificates they carry."""
        assert self.certificate.block_hash is not None
        return (self.certificate.block_hash, *self.chunks)
