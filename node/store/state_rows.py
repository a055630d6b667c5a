"""The state's rows in a store: how a start takes them up, and how it is made sure that they are what was written.

Law: a small state is hashed whole before anything is built on it. A large one starts from the sum that was stored with
its last block, with all money recounted, and is hashed behind the start; a difference ends the node.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from node.store.connection import one_commit, open_reader, translated
from node.store.errors import StoreCorrupt
from protocol.ledger.accounts import Tables
from protocol.ledger.lattice import EMPTY_LATTICE, SUM_BYTES, LatticeSum, lattice_from_bytes, lattice_root, updated
from protocol.ledger.rows import ACCOUNT_PREFIX, Row
from protocol.ledger.state import LedgerState
from protocol.ledger.track_rows import TRACK_PREFIX
from protocol.messages.blocks import DecidedBlock, Header
from protocol.messages.genesis import Genesis

SMALL_STATE_ROWS_MAX = 50_000
"""So many rows are hashed at every start: it takes a quarter of a second."""

LATTICE_FACT = "lattice"
_CHUNK_ROWS = 64
"""Hashed in one go, below a millisecond: a check behind the start must not keep the node's own thread waiting."""
_CHUNK_PAUSE_S = 0.001


class CheckStopped(Exception):
    """The node ended before its state had been checked."""


def load_state(
    connection: sqlite3.Connection, path: Path, genesis: Genesis, header: Header, tables: Tables
) -> LedgerState:
    """The state behind ``header``. Raises ``StateInvalid`` or ``StoreCorrupt``."""
    lattice = stored_lattice(connection, path)
    if lattice is None or is_small(connection):
        lattice = updated(EMPTY_LATTICE, (), all_rows(connection))
    others = connection.execute(
        "SELECT key, value FROM state WHERE key < ? OR (key >= ? AND key < ?) OR key >= ? ORDER BY key",
        (ACCOUNT_PREFIX, _above(ACCOUNT_PREFIX), TRACK_PREFIX, _above(TRACK_PREFIX)),
    ).fetchall()
    tree = connection.execute("SELECT key, value FROM state_tree").fetchall()
    return LedgerState.resumed(genesis, tables, others, header, lattice, tree)


def _above(prefix: bytes) -> bytes:
    return bytes((prefix[0] + 1,))


def is_small(connection: sqlite3.Connection) -> bool:
    """True if the state's rows are hashed at once."""
    return connection.execute(f"SELECT 1 FROM state LIMIT 1 OFFSET {SMALL_STATE_ROWS_MAX}").fetchone() is None


def stored_lattice(connection: sqlite3.Connection, path: Path) -> LatticeSum | None:
    """The sum after the last block; ``None`` before the first, and in a file of an earlier version."""
    found = connection.execute("SELECT value FROM facts WHERE name = ?", (LATTICE_FACT,)).fetchone()
    if found is None:
        return None
    if len(found[0]) != SUM_BYTES:
        raise StoreCorrupt(path, "the sum of the state's rows has another size")
    return lattice_from_bytes(found[0])


def all_rows(connection: sqlite3.Connection, chunk_rows: int = 1024) -> Iterator[Row]:
    """All rows of the state in the order of their keys, as of one commit."""
    cursor = connection.execute("SELECT key, value FROM state ORDER BY key")
    while rows := cursor.fetchmany(chunk_rows):
        yield from rows


class StateSource:
    """The rows and the last block as of one commit, over a connection of its own. Close it."""

    def __init__(self, path: Path, tip: Callable[[sqlite3.Connection], DecidedBlock | None]) -> None:
        self._path = path
        self._connection = open_reader(path)
        with translated(path):
            self._connection.execute("BEGIN DEFERRED")
            self.tip = tip(self._connection)

    def rows(self) -> Iterator[Row]:
        """All rows in the order of their keys."""
        with translated(self._path):
            yield from all_rows(self._connection)

    def close(self) -> None:
        """Let the store forget that commit."""
        self._connection.close()


def recheck(
    path: Path,
    header_at: Callable[[sqlite3.Connection], Header],
    stop: threading.Event,
    pause_s: float = _CHUNK_PAUSE_S,
) -> None:
    """Hash every row as of one commit and compare with that commit's header; slowly, beside a running node.

    Raises ``StoreCorrupt``, or ``CheckStopped`` once ``stop`` is set.
    """
    with closing(open_reader(path)) as connection, translated(path), one_commit(connection):
        header = header_at(connection)
        lattice = EMPTY_LATTICE
        cursor = connection.execute("SELECT key, value FROM state ORDER BY key")
        while rows := cursor.fetchmany(_CHUNK_ROWS):
            lattice = updated(lattice, (), rows)
            if stop.wait(pause_s):
                raise CheckStopped
    root = lattice_root(lattice)
    if root != header.state_root:
        raise StoreCorrupt(
            path, f"rows give state root {root.hex()}, block {header.height} has {header.state_root.hex()}"
        )
