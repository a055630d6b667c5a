"""The sign guard: at one (height, view, class) an authority's key signs one statement, whatever crashes.

Law: a position is on disk before its signature exists; a position that is taken gives back the bytes it holds. Rows of
closed heights go only after a durable watermark has risen, and at or below it nothing is reserved. The file is locked
for as long as it is open: a second process with the same key and file does not start.
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlite_utils import Database

from node.store.connection import open_database, transaction, translated
from node.store.errors import GuardRefused
from node.store.schema import GUARD_SCHEMA
from protocol.messages.effects import GuardClass, GuardPosition
from protocol.primitives.units import Height, View


class SignGuard:
    """One authority's guard file. Usable from any thread; calls block."""

    def __init__(self, path: Path, database: Database) -> None:
        """Use ``open``."""
        self.path = path
        self._database = database
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> "SignGuard":
        """Open or create the guard and lock it.

        Raises ``StoreLocked``, ``StoreCorrupt``, ``StoreTooNew``, ``DiskFull`` or ``StoreUnusable``.
        """
        return cls(path, open_database(path, GUARD_SCHEMA))

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock, translated(self.path):
            yield self._database.conn

    def close(self) -> None:
        """Release the file; a second call does nothing."""
        with self._lock:
            self._database.close()

    def reserve(self, positions: Sequence[tuple[GuardPosition, bytes]]) -> list[bytes]:
        """For each position the bytes that may be signed there: those given, or those that it held already.

        One commit for all; when this returns it is on disk. Raises ``GuardRefused``, with nothing reserved, if one of
        the heights is closed; ``DiskFull`` and the like with nothing reserved.
        """
        held: list[bytes] = []
        with self._using() as connection, transaction(connection):
            watermark = _watermark(connection)
            for position, payload in positions:
                if position.height <= watermark:
                    raise GuardRefused(position.height, watermark)
                key = (position.height, position.view, position.guard_class)
                connection.execute("INSERT OR IGNORE INTO signatures VALUES (?, ?, ?, ?)", (*key, payload))
                found = connection.execute(
                    "SELECT payload FROM signatures WHERE height = ? AND view = ? AND class = ?", key
                ).fetchone()
                held.append(bytes(found[0]))
        return held

    def held(self) -> list[tuple[GuardPosition, bytes]]:
        """All that the guard remembers, in order of height, view and class: what a restart sends again."""
        with self._using() as connection:
            rows = connection.execute(
                "SELECT height, view, class, payload FROM signatures ORDER BY height, view, class"
            ).fetchall()
        return [
            (GuardPosition(Height(height), View(view), GuardClass(guard_class)), bytes(payload))
            for height, view, guard_class, payload in rows
        ]

    def watermark(self) -> Height:
        """The highest closed height; 0 at first."""
        with self._using() as connection:
            return _watermark(connection)

    def raise_watermark(self, height: Height) -> None:
        """Close all heights up to this one for good, then forget their rows. Never falls."""
        with self._using() as connection:
            with transaction(connection):
                connection.execute("UPDATE watermark SET height = max(height, ?)", (height,))
            with transaction(connection):
                connection.execute("DELETE FROM signatures WHERE height <= ?", (_watermark(connection),))


def _watermark(connection: sqlite3.Connection) -> Height:
    return Height(connection.execute("SELECT height FROM watermark").fetchone()[0])
