"""Giving up old blocks, and taking a whole state over from a snapshot.

Law: from ``blocks_from`` on the store has every block; that number is on disk before a block below it goes. Blocks that
this node needs for proofs of its own stay, wherever they are. A snapshot becomes the state in one transaction, and only
after all of its rows have been judged.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice

from node.store.connection import transaction
from node.store.state_rows import LATTICE_FACT
from protocol.ledger.checkpoints import stored_tree
from protocol.ledger.errors import StateInvalid
from protocol.ledger.rows import Row
from protocol.ledger.snapshots import check_root, judge_rows
from protocol.ledger.state import LedgerState
from protocol.messages.blocks import Header
from protocol.messages.genesis import Genesis
from protocol.primitives.units import Height

BLOCKS_FROM_FACT = "blocks_from"
_BLOCKS_AT_ONCE = 256
_ROWS_AT_ONCE = 8192
"""Written in one transaction: others wait for it no longer than for a large block."""

Using = Callable[[], AbstractContextManager[sqlite3.Connection]]
"""Takes the writing connection for as long as one transaction needs it."""


def blocks_from(connection: sqlite3.Connection) -> Height:
    """The lowest height from which on every block is here."""
    found = connection.execute("SELECT value FROM facts WHERE name = ?", (BLOCKS_FROM_FACT,)).fetchone()
    return Height(1) if found is None else Height(int.from_bytes(found[0], "big"))


def set_blocks_from(connection: sqlite3.Connection, height: Height) -> None:
    """Within a transaction: blocks below this height are no longer promised."""
    value = height.to_bytes(8, "big")
    connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (BLOCKS_FROM_FACT, value))


def prune(using: Using, below: Height, needed: frozenset[int]) -> int:
    """Give up blocks below a height but for those ``needed``; returns how many went."""
    with using() as connection, transaction(connection):
        if below <= blocks_from(connection):
            return 0
        set_blocks_from(connection, below)
        # What a killed process had still to delete is among them, and what is needed no more.
        found = connection.execute("SELECT height FROM blocks WHERE height < ?", (below,)).fetchall()
    heights = [(height,) for (height,) in found if height not in needed]
    for start in range(0, len(heights), _BLOCKS_AT_ONCE):
        with using() as connection, transaction(connection):
            connection.executemany("DELETE FROM blocks WHERE height = ?", heights[start : start + _BLOCKS_AT_ONCE])
    return len(heights)


def take_in_rows(using: Using, genesis: Genesis, header: Header, rows: Iterable[Row]) -> LedgerState:
    """Write rows beside the state and judge them; gives the state behind them without its accounts.

    Raises ``StateInvalid`` with the state as it was.
    """
    with using() as connection, transaction(connection):
        connection.execute("DROP TABLE IF EXISTS incoming")
        connection.execute("CREATE TABLE incoming (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")

    def written() -> Iterator[Row]:
        source = iter(rows)
        while batch := list(islice(source, _ROWS_AT_ONCE)):
            with using() as connection, transaction(connection):
                connection.executemany("INSERT INTO incoming VALUES (?, ?)", batch)
            yield from batch

    try:
        check_root(header, written())
        return judge_rows(genesis, header, _incoming(using))
    except StateInvalid:
        with using() as connection, transaction(connection):
            connection.execute("DROP TABLE incoming")
        raise


def _incoming(using: Using) -> Iterator[Row]:
    last = b""
    while True:
        with using() as connection:
            batch = connection.execute(
                "SELECT key, value FROM incoming WHERE key > ? ORDER BY key LIMIT ?", (last, _ROWS_AT_ONCE)
            ).fetchall()
        if not batch:
            return
        yield from batch
        last = batch[-1][0]


def swap_state(
    connection: sqlite3.Connection,
    header: Header,
    block_row: tuple[object, ...],
    lattice: bytes,
    needed: frozenset[int],
) -> None:
    """Within a transaction: the rows taken in are the state, and the block at their height is the first one here."""
    connection.execute("DROP TABLE state")
    connection.execute("ALTER TABLE incoming RENAME TO state")
    connection.execute("DELETE FROM state_tree")
    tree = stored_tree(header.height, connection.execute("SELECT key, value FROM state ORDER BY key"))
    connection.executemany("INSERT INTO state_tree VALUES (?, ?)", tree)
    heights = [
        (height,)
        for (height,) in connection.execute("SELECT height FROM blocks WHERE height <= ?", (header.height,)).fetchall()
        if height not in needed
    ]
    connection.executemany("DELETE FROM blocks WHERE height = ?", heights)
    connection.execute(
        "INSERT OR REPLACE INTO blocks (height, block_hash, block, certificate, checksum) VALUES (?, ?, ?, ?, ?)",
        block_row,
    )
    set_blocks_from(connection, header.height)
    connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (LATTICE_FACT, lattice))
