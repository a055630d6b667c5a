"""The state tree: a Merkle tree over all rows of the state, for proofs of single rows.

Law: the root is a function of the rows alone, whatever way led to them. A row's place is the hash of its key. A subtree
of at most ``PAGE_ROWS_MAX`` rows is a page, the sorted list of its rows' places and leaf hashes; one of more rows is a
branch over its two halves, by the next bit of the place. So every row has exactly one page in which it can stand: the
page with its siblings up to the root proves that a row is there with its value, or that there is no such row.

Grinding: to push rows one level deeper takes ``PAGE_ROWS_MAX`` keys that share one more bit of their places: twice the
work for each level, and no choice of keys makes a page larger. Places and leaves are 192 bits: 2^96 work to let two
keys or two values collide, 2^192 for a given one.

Source: sparse Merkle trees (Dahlberg, Pulls and Peeters 2016) with collapsed subtrees, where a collapsed one is a page
of rows instead of a single one: that keeps a million rows in memory and most hashes out of the way.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Annotated

import msgspec
from msgspec import Meta

from protocol.primitives.codec import Message
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.hashing import Domain
from protocol.primitives.units import Hash, HashField

PLACE_BYTES = 24
LEAF_BYTES = 24
ENTRY_BYTES = PLACE_BYTES + LEAF_BYTES
DEPTH_MAX = 8 * PLACE_BYTES
PAGE_ROWS_MAX = 16
"""See ``scripts/benchmarks/state_tree.py``: more makes proofs longer, less takes more memory."""

NO_STATE_TREE = Hash(bytes(32))
"""What a header says where there is no checkpoint yet."""

_PAGE = Domain.STATE_PAGE.value
_BRANCH = Domain.STATE_BRANCH.value
_PLACE = Domain.STATE_PLACE.value
_LEAF = Domain.STATE_LEAF.value


class RowProofInvalid(RemoteProtocolError):
    """A proof that does not lead to the root, or does not show what it claims."""


class RowProof(Message, frozen=True):
    """What leads from a row, or from its absence, to the root of a state tree."""

    page: Annotated[bytes, Meta(max_length=PAGE_ROWS_MAX * ENTRY_BYTES)]
    """The entries of the one page in which the row can stand."""
    siblings: Annotated[tuple[HashField, ...], Meta(max_length=DEPTH_MAX)]
    """Digests beside the way, from the root down."""


def row_place(key: bytes) -> bytes:
    """Where a row stands: its bits, from the first, choose the way down."""
    return blake2b(_PLACE + key, digest_size=PLACE_BYTES).digest()


def row_leaf(key: bytes, value: bytes) -> bytes:
    """What a page says of a row."""
    return blake2b(_LEAF + len(key).to_bytes(2, "big") + key + value, digest_size=LEAF_BYTES).digest()


def _page_digest(entries: bytes) -> Hash:
    return Hash(blake2b(_PAGE + entries, digest_size=32).digest())


def _branch_digest(left: Hash, right: Hash) -> Hash:
    return Hash(blake2b(_BRANCH + left + right, digest_size=32).digest())


class _Page(msgspec.Struct, gc=False):
    """Never changed once made. Nodes form no cycles: the collector need not walk through hundreds of thousands."""

    entries: bytes
    digest: Hash

    @property
    def rows(self) -> int:
        return len(self.entries) // ENTRY_BYTES


class _Branch(msgspec.Struct, gc=False):
    """Never changed once made: the tree of an earlier time stands while a later one shares most of its nodes."""

    left: "_Page | _Branch"
    right: "_Page | _Branch"
    rows: int
    digest: Hash


_Node = _Page | _Branch


def _page(entries: bytes) -> _Page:
    return _Page(entries, _page_digest(entries))


def _branch(left: _Node, right: _Node) -> _Branch:
    return _Branch(left, right, left.rows + right.rows, _branch_digest(left.digest, right.digest))


_EMPTY = _page(b"")


class StateTree:
    """The tree over some rows; immutable."""

    __slots__ = ("_top",)

    def __init__(self, top: _Node = _EMPTY) -> None:
        """The tree over no rows; others come from ``updated`` and ``from_pages``."""
        self._top = top

    @property
    def root(self) -> Hash:
        """What proofs lead to."""
        return self._top.digest

    def __len__(self) -> int:
        """The number of rows."""
        return self._top.rows

    def updated(
        self, changes: Mapping[bytes, bytes | None], touched: dict[bytes, bytes | None] | None = None
    ) -> "StateTree":
        """The tree after rows took new values; ``None`` ends a row.

        The pages that differ are noted in ``touched``: page key to entries, ``None`` for a page that is no more.
        """
        ordered = sorted(
            (row_place(key), b"" if value is None else row_leaf(key, value)) for key, value in changes.items()
        )
        update = _Update(ordered, {} if touched is None else touched)
        return StateTree(update.of(self._top, 0, 0, 0, len(ordered)))

    def pages(self) -> Iterator[tuple[bytes, bytes]]:
        """All pages that hold rows, by rising page keys: what a store keeps."""
        yield from _pages(self._top, 0, 0)

    @classmethod
    def from_pages(cls, pages: Mapping[bytes, bytes]) -> "StateTree":
        """Inverse of ``pages``. Compare the root: nothing else tells whether the pages are what they were.

        Keys that belong to no page are left out.
        """
        keys = sorted(pages)
        return cls(_from_pages(pages, keys, 0, len(keys), 0, 0))

    def prove(self, key: bytes) -> RowProof:
        """The proof for a row, whether there is one or not."""
        way = int.from_bytes(row_place(key), "big")
        siblings: list[Hash] = []
        node, bit = self._top, DEPTH_MAX
        while isinstance(node, _Branch):
            bit -= 1
            node, beside = (node.right, node.left) if way >> bit & 1 else (node.left, node.right)
            siblings.append(beside.digest)
        return RowProof(node.entries, tuple(siblings))


def verify_row(root: Hash, key: bytes, value: bytes | None, proof: RowProof) -> None:
    """Check that the row ``key`` had this value under ``root``; ``None``: that there was no such row.

    Raises ``RowProofInvalid``.
    """
    entries, place = proof.page, row_place(key)
    if len(entries) % ENTRY_BYTES:
        raise RowProofInvalid("the page is cut inside an entry")
    way = int.from_bytes(place, "big")
    reached = _page_digest(entries)
    for depth in range(len(proof.siblings) - 1, -1, -1):
        sibling = proof.siblings[depth]
        if way >> DEPTH_MAX - 1 - depth & 1:
            reached = _branch_digest(sibling, reached)
        else:
            reached = _branch_digest(reached, sibling)
    if reached != root:
        raise RowProofInvalid("the proof does not lead to the root")
    found = next((leaf for entry, leaf in _entries(entries) if entry == place), None)
    if value is None:
        if found is not None:
            raise RowProofInvalid("the page holds the row that is said not to exist")
    elif found is None:
        raise RowProofInvalid("the page does not hold the row")
    elif found != row_leaf(key, value):
        raise RowProofInvalid("the row has another value")


def _entries(page: bytes) -> Iterator[tuple[bytes, bytes]]:
    for start in range(0, len(page), ENTRY_BYTES):
        yield page[start : start + PLACE_BYTES], page[start + PLACE_BYTES : start + ENTRY_BYTES]


def _page_key(prefix: int, depth: int) -> bytes:
    """First place under a page, and the number of bits that all places under it share."""
    return prefix.to_bytes(PLACE_BYTES, "big") + bytes((depth,))


class _Update:
    """One batch of changes on its way down a tree."""

    __slots__ = ("_changes", "_touched")

    def __init__(self, changes: list[tuple[bytes, bytes]], touched: dict[bytes, bytes | None]) -> None:
        self._changes = changes
        self._touched = touched

    def of(self, node: _Node, depth: int, prefix: int, first: int, last: int) -> _Node:
        """The node with ``changes[first:last]``, all of which lie under it."""
        if first == last:
            return node
        if isinstance(node, _Page):
            return self._page(node, depth, prefix, first, last)
        right_prefix = prefix | 1 << DEPTH_MAX - 1 - depth
        middle = bisect_left(self._changes, (right_prefix.to_bytes(PLACE_BYTES, "big"),), first, last)
        left = self.of(node.left, depth + 1, prefix, first, middle)
        right = self.of(node.right, depth + 1, right_prefix, middle, last)
        if left is node.left and right is node.right:
            return node
        if left.rows + right.rows > PAGE_ROWS_MAX:
            return _branch(left, right)
        assert isinstance(left, _Page)
        assert isinstance(right, _Page)
        self._touched[_page_key(prefix, depth + 1)] = None
        self._touched[_page_key(right_prefix, depth + 1)] = None
        return self._noted(left.entries + right.entries, depth, prefix)

    def _page(self, page: _Page, depth: int, prefix: int, first: int, last: int) -> _Node:
        rows = dict(_entries(page.entries))
        for place, leaf in self._changes[first:last]:
            if leaf:
                rows[place] = leaf
            else:
                rows.pop(place, None)
        entries = b"".join([place + leaf for place, leaf in sorted(rows.items())])
        if entries == page.entries:
            return page
        if len(rows) > PAGE_ROWS_MAX:
            self._touched[_page_key(prefix, depth)] = None
        return self._built(entries, depth, prefix)

    def _built(self, entries: bytes, depth: int, prefix: int) -> _Node:
        if len(entries) <= PAGE_ROWS_MAX * ENTRY_BYTES:
            return self._noted(entries, depth, prefix)
        right_prefix = prefix | 1 << DEPTH_MAX - 1 - depth
        boundary = right_prefix.to_bytes(PLACE_BYTES, "big")
        rows = range(len(entries) // ENTRY_BYTES)
        middle = ENTRY_BYTES * bisect_left(
            rows, boundary, key=lambda row: entries[row * ENTRY_BYTES : row * ENTRY_BYTES + PLACE_BYTES]
        )
        left = self._built(entries[:middle], depth + 1, prefix)
        return _branch(left, self._built(entries[middle:], depth + 1, right_prefix))

    def _noted(self, entries: bytes, depth: int, prefix: int) -> _Page:
        self._touched[_page_key(prefix, depth)] = entries or None
        return _page(entries)


def _pages(node: _Node, depth: int, prefix: int) -> Iterator[tuple[bytes, bytes]]:
    if isinstance(node, _Branch):
        yield from _pages(node.left, depth + 1, prefix)
        yield from _pages(node.right, depth + 1, prefix | 1 << DEPTH_MAX - 1 - depth)
    elif node.entries:
        yield _page_key(prefix, depth), node.entries


def _from_pages(
    pages: Mapping[bytes, bytes], keys: list[bytes], first: int, last: int, depth: int, prefix: int
) -> _Node:
    if first == last or depth == DEPTH_MAX:  # there is nothing below: a key that stands nowhere is no page
        return _EMPTY
    if last - first == 1 and keys[first] == _page_key(prefix, depth):
        return _page(pages[keys[first]])
    right_prefix = prefix | 1 << DEPTH_MAX - 1 - depth
    middle = bisect_left(keys, right_prefix.to_bytes(PLACE_BYTES, "big"), first, last)
    left = _from_pages(pages, keys, first, middle, depth + 1, prefix)
    return _branch(left, _from_pages(pages, keys, middle, last, depth + 1, right_prefix))
