"""One SQLite file of one process: write-ahead log, a full sync at every commit, migrations by name.

Law: a commit that has returned is on disk (``synchronous=FULL``). The kernel keeps a second process out for as long as
the file is open, so no stale lock can outlive its holder: by SQLite's own lock where one connection is enough, by a
lock on a file beside it where the same process also reads over connections of their own.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlite_utils import Database, Migrations

from node.store.errors import DiskFull, StoreCorrupt, StoreLocked, StoreTooNew, StoreUnusable
from node.store.schema import Schema, Step

_LOG_BYTES_KEPT = 64 * 1024 * 1024
"""A log that grew while somebody read an old commit shrinks to this once it is empty."""
_LOG_PAGES_MAX = 8_000
"""A log of so many pages, half of the above, is copied into the file by the commit that finds it: tens of ms. Whoever
commits often asks for that before, in a thread."""
_PRIMARY_CODE = 0xFF
"""SQLite's extended result codes keep the primary code in the lowest byte."""


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours, which say what to do."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY_CODE
        if code == sqlite3.SQLITE_FULL:
            raise DiskFull(path) from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise StoreCorrupt(path, str(error)) from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StoreLocked(path) from error
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            raise StoreUnusable(path, str(error)) from error
        raise


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing. The caller holds the lock that keeps other threads off the connection."""
    with _between(connection, "BEGIN IMMEDIATE"):
        yield


@contextmanager
def one_commit(connection: sqlite3.Connection) -> Iterator[None]:
    """All that a reader reads within this is of one and the same commit."""
    with _between(connection, "BEGIN DEFERRED"):
        yield


@contextmanager
def _between(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


class FileLock:
    """Holds ``PATH.lock`` until it is released or the process ends."""

    def __init__(self, path: Path) -> None:
        """Raises ``StoreLocked`` or ``StoreUnusable``."""
        beside = path.with_name(path.name + ".lock")
        try:
            self._descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnusable(path, error.strerror or str(error)) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise StoreLocked(path) from error

    def release(self) -> None:
        """Let others in; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def open_reader(path: Path) -> sqlite3.Connection:
    """One more connection to a file that ``open_database`` has opened, for reading alone: it waits for no writer and
    keeps none waiting. Sees the last commit, or within a transaction always the same one."""
    with translated(path):
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA query_only=1")
        return connection


def open_database(path: Path, schema: Schema, *, exclusive: bool = True) -> Database:
    """Open or create the file and bring its schema up to date.

    Exclusive: locked by SQLite against every other connection. Otherwise the caller holds a ``FileLock``.
    Raises ``StoreLocked``, ``StoreCorrupt``, ``StoreTooNew``, ``DiskFull`` or ``StoreUnusable``.
    """
    is_new = not path.exists() or path.stat().st_size == 0
    with translated(path):
        if is_new:
            _create_private(path)
        connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            if exclusive:
                connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(f"PRAGMA journal_size_limit={_LOG_BYTES_KEPT}")
            if not exclusive:
                connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES_MAX}")
            # A lock is taken by the first write, not by the pragma.
            with transaction(connection):
                connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            database = Database(connection, execute_plugins=False)
            _migrate(path, database, schema)
        except BaseException:
            connection.close()
            raise
    if is_new:
        sync_directory(path.parent)
    return database


def _create_private(path: Path) -> None:
    """An empty file of its owner's alone; SQLite gives its log the same mode. Prompts and answers come into it."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreUnusable(path, error.strerror or str(error)) from error


def change_rows(database: Database, schema: Schema) -> None:
    """Give rows their form of this version; once no row waits outside the file."""
    _take(database, schema.name, (*schema.steps, *schema.row_steps))


def _migrate(path: Path, database: Database, schema: Schema) -> None:
    migrations = Migrations(schema.name)
    known = [step.__name__ for step in (*schema.steps, *schema.row_steps)]
    unknown = [applied.name for applied in migrations.applied(database) if applied.name not in known]
    if unknown:
        raise StoreTooNew(path, ", ".join(unknown))
    _take(database, schema.name, schema.steps)


def _take(database: Database, name: str, steps: Sequence[Step]) -> None:
    migrations = Migrations(name)
    for step in steps:
        migrations(name=step.__name__)(step)
    migrations.apply(database)


def sync_directory(directory: Path) -> None:
    """Make the names of new files in it durable, too."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
