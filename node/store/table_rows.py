"""Writing rows of a key-value table, many in one statement.

Law: rows come into a table in the order given; a row that is written again keeps its place.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

_AT_ONCE = (256, 32, 4, 1)
"""Rows of one statement. Between two statements the interpreter's lock is given up and has to be had back: in a thread
beside a busy loop that can take ms each time. Few sizes, so that each is compiled once."""

_Kept = tuple[bytes, bytes]


def write_rows(connection: sqlite3.Connection, table: str, rows: Mapping[bytes, bytes | None]) -> None:
    """Insert or update the rows with a value, delete those without; within a transaction."""
    kept = [(key, value) for key, value in rows.items() if value is not None]
    for part in _parts(kept):
        # An update in place: a replacement would remove and add the row and its entry in the index, twice the pages.
        connection.execute(
            f"INSERT INTO {table} (key, value) VALUES {', '.join(['(?, ?)'] * len(part))} "
            "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            tuple(chain.from_iterable(part)),
        )
    if len(kept) < len(rows):
        gone = [(key,) for key, value in rows.items() if value is None]
        connection.executemany(f"DELETE FROM {table} WHERE key = ?", gone)


def _parts(rows: Sequence[_Kept]) -> Iterator[Sequence[_Kept]]:
    begin = 0
    for size in _AT_ONCE:
        while len(rows) - begin >= size:
            yield rows[begin : begin + size]
            begin += size
