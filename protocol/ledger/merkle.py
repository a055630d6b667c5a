"""The Merkle tree over a block's transactions.

Law: leaves and nodes are hashed in domains of their own, so no node passes for a leaf; a level's odd last node rises
unchanged. A path names for each step on which side the sibling stands: no index or count that a forger could vary.

Source: RFC 6962 §2.1 for the separation of leaves and nodes.
"""

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from protocol.primitives.codec import Message
from protocol.primitives.hashing import Domain, digest
from protocol.primitives.units import Hash, HashField

EMPTY_ROOT = Hash(bytes(32))
PATH_STEPS_MAX = 16
"""Blocks hold at most 4,096 transactions: twelve steps."""


class MerkleStep(Message, frozen=True):
    """One sibling on the way up; ``on_left`` if it stands left of the path."""

    sibling: HashField
    on_left: bool


MerklePath = Annotated[tuple[MerkleStep, ...], Meta(max_length=PATH_STEPS_MAX)]


def transaction_leaf(envelope_bytes: bytes) -> Hash:
    """Hash of a transaction's envelope as a leaf; the signature is part of it."""
    return digest(Domain.TRANSACTION_LEAF, envelope_bytes)


def _parents(level: list[Hash]) -> list[Hash]:
    parents = [
        digest(Domain.TRANSACTION_NODE, left, right) for left, right in zip(level[::2], level[1::2], strict=False)
    ]
    if len(level) % 2:
        parents.append(level[-1])
    return parents


def merkle_root(leaves: Sequence[Hash]) -> Hash:
    """Root over leaf hashes in order; 32 zero bytes when there is none."""
    level = list(leaves)
    if not level:
        return EMPTY_ROOT
    while len(level) > 1:
        level = _parents(level)
    return level[0]


def merkle_path(leaves: Sequence[Hash], index: int) -> tuple[MerkleStep, ...]:
    """What leads from leaf ``index`` up to the root; ``IndexError`` outside the leaves."""
    level = list(leaves)
    if not 0 <= index < len(level):
        raise IndexError(index)
    steps: list[MerkleStep] = []
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            steps.append(MerkleStep(level[sibling], sibling < index))
        level = _parents(level)
        index //= 2
    return tuple(steps)


def root_of_path(leaf: Hash, path: Sequence[MerkleStep]) -> Hash:
    """The root to which a leaf and its path lead."""
    reached = leaf
    for step in path:
        left, right = (step.sibling, reached) if step.on_left else (reached, step.sibling)
        reached = digest(Domain.TRANSACTION_NODE, left, right)
    return reached
