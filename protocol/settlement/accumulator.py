"""Merkle mountain range over the receipts of one lane.

Law: appending needs only the peaks, and a root over ``count`` receipts commits to each of them in order: the earlier
receipts can be neither changed nor dropped by whoever signs a later root.

Source: Peter Todd's Merkle mountain ranges; peaks are bagged by one hash over the count and all peaks, left to right.
A mountain of height *h* holds 2^h receipts; the mountains follow the binary digits of ``count``, tallest first.
"""

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from protocol.primitives.codec import Message
from protocol.primitives.hashing import Domain, digest
from protocol.primitives.limits import RECEIPT_PROOF_HASHES_MAX
from protocol.primitives.units import Hash, HashField

ACCUMULATOR_COUNT_MAX = 2**32
"""Receipts on one lane: the range of ``Voucher.receipts_count``."""

EMPTY_ROOT = Hash(bytes(32))
"""The root while there is no receipt."""

_Hashes = Annotated[tuple[HashField, ...], Meta(max_length=RECEIPT_PROOF_HASHES_MAX)]
_Count = Annotated[int, Meta(ge=0, le=ACCUMULATOR_COUNT_MAX)]


class MembershipProof(Message, frozen=True):
    """That a leaf stands at ``index`` under a root.

    ``path`` climbs from the leaf to its mountain's peak, nearest sibling first; ``peaks`` are the other mountains'
    peaks, left to right.
    """

    index: _Count
    path: _Hashes
    peaks: _Hashes


class Accumulator(Message, frozen=True):
    """The range after ``count`` receipts: its peaks, tallest mountain first."""

    count: _Count
    peaks: _Hashes

    def append(self, leaf: Hash) -> "Accumulator":
        """The range with one more receipt."""
        return self.append_proved(leaf)[0]

    def append_proved(self, leaf: Hash) -> tuple["Accumulator", MembershipProof]:
        """The range with one more receipt, and the proof that the receipt is in it."""
        assert self.count.bit_count() == len(self.peaks)
        assert self.count < ACCUMULATOR_COUNT_MAX
        peaks = list(self.peaks)
        path: list[Hash] = []
        node = leaf
        rest = self.count
        while rest & 1:
            left = peaks.pop()
            path.append(left)
            node = _parent(left, node)
            rest >>= 1
        proof = MembershipProof(self.count, tuple(path), tuple(peaks))
        return Accumulator(self.count + 1, (*peaks, node)), proof

    def root(self) -> Hash:
        """What a voucher's ``receipts_root`` holds for this range."""
        return _bag(self.count, self.peaks)


EMPTY = Accumulator(0, ())


def receipt_leaf(envelope_bytes: bytes) -> Hash:
    """The leaf of a receipt: the hash of its whole envelope, the provider's signature included."""
    return digest(Domain.RECEIPT_LEAF, envelope_bytes)


def accumulate(leaves: Sequence[Hash]) -> Accumulator:
    """The range over these leaves in order."""
    accumulator = EMPTY
    for leaf in leaves:
        accumulator = accumulator.append(leaf)
    return accumulator


def prove(leaves: Sequence[Hash], index: int) -> MembershipProof:
    """Proof that ``leaves[index]`` is in the range over all ``leaves``.

    Raises ``IndexError`` outside the range.
    """
    if not 0 <= index < len(leaves):
        raise IndexError(f"no receipt {index} among {len(leaves)}")
    path: list[Hash] = []
    peaks: list[Hash] = []
    start = 0
    for height in _mountains(len(leaves)):
        end = start + (1 << height)
        if start <= index < end:
            path = _path(leaves[start:end], index - start)
        else:
            peaks.append(_peak(leaves[start:end]))
        start = end
    return MembershipProof(index, tuple(path), tuple(peaks))


def verify_membership(root: Hash, count: int, leaf: Hash, proof: MembershipProof) -> bool:
    """True if ``proof`` shows that ``leaf`` is receipt number ``proof.index`` among the ``count`` under ``root``."""
    if not 0 <= proof.index < count <= ACCUMULATOR_COUNT_MAX:
        return False
    heights = _mountains(count)
    start = position = 0
    while proof.index >= start + (1 << heights[position]):
        start += 1 << heights[position]
        position += 1
    if len(proof.path) != heights[position] or len(proof.peaks) != len(heights) - 1:
        return False
    node = leaf
    place = proof.index - start
    for sibling in proof.path:
        node = _parent(sibling, node) if place & 1 else _parent(node, sibling)
        place >>= 1
    return _bag(count, (*proof.peaks[:position], node, *proof.peaks[position:])) == root


def _parent(left: Hash, right: Hash) -> Hash:
    return digest(Domain.RECEIPT_NODE, left, right)


def _bag(count: int, peaks: tuple[Hash, ...]) -> Hash:
    return digest(Domain.RECEIPTS_ROOT, count.to_bytes(8, "big"), *peaks) if count else EMPTY_ROOT


def _mountains(count: int) -> list[int]:
    return [height for height in range(count.bit_length() - 1, -1, -1) if count >> height & 1]


def _row_above(row: Sequence[Hash]) -> list[Hash]:
    return [_parent(row[place], row[place + 1]) for place in range(0, len(row), 2)]


def _peak(leaves: Sequence[Hash]) -> Hash:
    row = leaves
    while len(row) > 1:
        row = _row_above(row)
    return row[0]


def _path(leaves: Sequence[Hash], index: int) -> list[Hash]:
    path: list[Hash] = []
    row = leaves
    while len(row) > 1:
        path.append(row[index ^ 1])
        row = _row_above(row)
        index >>= 1
    return path
