"""Checkpoints: the state tree every ``CHECKPOINT_INTERVAL`` blocks, and what keeps it over a restart.

Law: a header names the root of the state tree as it was after the last checkpoint block at or below its parent; height
0 is one. Between checkpoints nothing is hashed: what blocks touch is noted, with what was there before, so that a row
can still be proven as it was at the checkpoint. Too many noted rows are taken into the tree before their time, so that
no checkpoint takes much longer than the blocks that led to it.

What is stored is derived from the rows: a store that lost it costs the time to hash all rows, and the proofs until the
next checkpoint. A record that does not give the root that the tip's header names is not used.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, Protocol

from protocol.ledger.execution import Execution
from protocol.ledger.state_tree import NO_STATE_TREE, RowProof, StateTree
from protocol.messages.blocks import Header
from protocol.primitives.codec import decode, encode
from protocol.primitives.errors import MalformedMessage
from protocol.primitives.units import Hash, Height

CHECKPOINT_INTERVAL = 16
"""Blocks between checkpoints. On an idle ledger a block comes every 15 s: a proof is at most four minutes old."""

NOTED_ROWS_MAX = 4096
"""Rows that wait for the next checkpoint before they are taken into the tree: about 50 ms of hashing."""

PROVABLE_ROWS_MAX = 100_000
"""Rows whose earlier value is kept for proofs, 30 MB: more than any honest interval touches."""

_CHUNK_ROWS = 65_536
"""Rows taken into a new tree at once: their hashes are sorted in memory."""

_PAGE_PREFIX = b"p"
_ROOT_KEY = b"r"
_UNDO_PREFIX = b"u"

StoredChange = tuple[bytes, bytes | None]
"""A row of what is stored beside the state; ``None`` deletes it."""


class Rows(Protocol):
    """The state that the tree is over, as it is after the tip."""

    def rows(self) -> Iterator[tuple[bytes, bytes]]:
        """All rows."""

    def row(self, key: bytes) -> bytes | None:
        """One row's value, or ``None``."""


class ProvenRow(NamedTuple):
    """A row as it was at a checkpoint, and the proof for it."""

    checkpoint: Height
    value: bytes | None
    proof: RowProof


def checkpoint_below(height: int) -> Height:
    """The last checkpoint at or below a height."""
    return Height(height - height % CHECKPOINT_INTERVAL)


class Checkpoints:
    """The state tree of one state, hashed when a checkpoint is reached."""

    def __init__(self, tip: Header, rows: Rows, stored: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Behind ``tip``, over ``rows``; ``stored`` is what a store kept of ``record``'s results, if it did.

        Hashes nothing yet: that is done when it is first needed, before the rows change.
        """
        self._tip = tip
        self._rows = rows
        self._stored = tuple(stored)
        self._tree: StateTree | None = None
        self._height = checkpoint_below(tip.height)
        self._at_checkpoint: StateTree | None = None
        self._after: dict[bytes, bytes | None] = {}
        """New values that the tree does not have yet."""
        self._before: dict[bytes, bytes | None] = {}
        """Values at the checkpoint of rows that changed since."""
        self._pages: dict[bytes, bytes | None] = {}
        """Pages that differ from what is stored."""

    def rebase(self, rows: Rows) -> None:
        """The same state is another object from now on."""
        self._rows = rows

    def open(self) -> None:
        """Do now what would be done at first need: take up the stored tree, or hash all rows."""
        self._opened()

    @property
    def root(self) -> Hash:
        """What the header of the next block says."""
        if self._tip.height > self._height:
            return self._tip.checkpoint_root
        return self._opened().root

    def record(self, execution: Execution) -> tuple[StoredChange, ...]:
        """Note what a block changes, before the state takes it over; gives what a store has to keep of it."""
        tree = self._opened()
        header = execution.header
        for key, before in execution.undo:
            self._before.setdefault(key, before)
        self._after.update(execution.rows)
        self._tip = header
        at_checkpoint = header.height == checkpoint_below(header.height)
        if at_checkpoint or len(self._after) > NOTED_ROWS_MAX:
            self._tree = tree = tree.updated(self._after, self._pages)
            self._after.clear()
        if not at_checkpoint:
            if len(self._before) > PROVABLE_ROWS_MAX:
                self._before.clear()
                self._at_checkpoint = None
            return ((_undo_key(header.height), encode(execution.undo)),)
        ended = range(self._height + 1, header.height)
        self._height, self._at_checkpoint, self._before = header.height, tree, {}
        pages, self._pages = self._pages, {}
        return (
            *((_undo_key(height), None) for height in ended),
            *((_PAGE_PREFIX + key, entries) for key, entries in pages.items()),
            (_ROOT_KEY, encode((header.height, tree.root))),
        )

    def prove(self, key: bytes) -> ProvenRow | None:
        """A row as it was at the last checkpoint, which headers above it name the root of.

        ``None`` while that tree is not known: after a start without a record of the blocks since, or after blocks that
        changed more than ``PROVABLE_ROWS_MAX`` rows. The next checkpoint ends that.
        """
        self._opened()
        tree = self._at_checkpoint
        if tree is None:
            return None
        value = self._before[key] if key in self._before else self._rows.row(key)
        return ProvenRow(self._height, value, tree.prove(key))

    def _opened(self) -> StateTree:
        if self._tree is None:
            stored, self._stored = _Stored(self._stored), ()
            undone = stored.before(self._height, self._tip.height)
            self._tree = self._from_pages(stored, undone) or self._from_rows(stored, undone)
        return self._tree

    def _from_pages(self, stored: "_Stored", undone: dict[bytes, bytes | None] | None) -> StateTree | None:
        if undone is None or stored.height != self._height:
            return None
        tree = StateTree.from_pages(stored.pages)
        if tree.root != stored.root or (self._tip.height > self._height and tree.root != self._tip.checkpoint_root):
            return None
        self._at_checkpoint, self._before = tree, undone
        self._after = {key: self._rows.row(key) for key in undone}
        return tree

    def _from_rows(self, stored: "_Stored", undone: dict[bytes, bytes | None] | None) -> StateTree:
        tree = tree_of(self._rows.rows())
        if undone is not None:
            before = tree.updated(undone)
            if self._tip.height == self._height or before.root == self._tip.checkpoint_root:
                self._at_checkpoint, self._before = before, undone
        self._pages = dict.fromkeys(stored.pages)
        self._pages.update(tree.pages())
        return tree


class _Stored:
    """What a store kept, taken apart; bytes that make no sense count as absent."""

    def __init__(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        self.pages: dict[bytes, bytes] = {}
        self.height: Height | None = None
        self.root = NO_STATE_TREE
        self._undo: dict[bytes, bytes] = {}
        for key, value in rows:
            if key[:1] == _PAGE_PREFIX:
                self.pages[key[1:]] = value
            elif key[:1] == _UNDO_PREFIX:
                self._undo[key] = value
            elif key == _ROOT_KEY:
                self.height, self.root = _decoded_root(value)

    def before(self, checkpoint: Height, tip: Height) -> dict[bytes, bytes | None] | None:
        """Values at the checkpoint of the rows that changed from it to the tip; ``None`` if a block's are missing."""
        before: dict[bytes, bytes | None] = {}
        for height in range(checkpoint + 1, tip + 1):
            record = self._undo.get(_undo_key(height))
            if record is None:
                return None
            try:
                changes = decode(record, tuple[tuple[bytes, bytes | None], ...])
            except MalformedMessage:
                return None
            for key, value in changes:
                before.setdefault(key, value)
        return before


def _decoded_root(value: bytes) -> tuple[Height | None, Hash]:
    try:
        height, root = decode(value, tuple[int, bytes])
    except MalformedMessage:
        return None, NO_STATE_TREE
    return Height(height), Hash(root)


def _undo_key(height: int) -> bytes:
    return _UNDO_PREFIX + height.to_bytes(8, "big")


def tree_of(rows: Iterable[tuple[bytes, bytes]]) -> StateTree:
    """The tree over all of a state's rows: the work of hashing each of them."""
    tree, remaining = StateTree(), iter(rows)
    while chunk := dict(islice(remaining, _CHUNK_ROWS)):
        tree = tree.updated(chunk)
    return tree


def stored_tree(checkpoint: Height, rows: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    """What a store keeps of a state's tree at a checkpoint: for who makes a store from a snapshot."""
    tree = tree_of(rows)
    pages = ((_PAGE_PREFIX + key, entries) for key, entries in tree.pages())
    return (*pages, (_ROOT_KEY, encode((checkpoint, tree.root))))
