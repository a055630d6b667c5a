"""The ledger's accounts and track records, read from the store when they are needed.

Law: what a block has changed and no commit has written yet is held here until its commit; everything else may be
forgotten at any moment and read again. So an answer never depends on what happens to be in memory.
"""

import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Generic, NamedTuple

from node.store.connection import open_reader, translated
from node.store.errors import StoreCorrupt
from protocol.ledger.accounts import Id, Tables, Value
from protocol.ledger.rows import ACCOUNT_PREFIX, NO_ACCOUNT, Account
from protocol.ledger.track_rows import NO_TRACK, TRACK_PREFIX, Track, TrackId
from protocol.primitives.codec import decode
from protocol.primitives.errors import MalformedMessage
from protocol.primitives.units import AccountId, Height

GENERATION_ACCOUNTS_MAX = 32_768
"""Two generations of so many accounts stay in memory: at most about 20 MB."""
GENERATION_TRACKS_MAX = 2_048
"""Two generations of so many track records: a full one is some 10 KB as an object, so at most about 40 MB."""

_READ_ROWS = 4096


class RowKind(NamedTuple, Generic[Id, Value]):
    """The rows of one kind: what their keys begin with, how one decodes, and the value that says nothing."""

    name: str
    prefix: bytes
    identity: Callable[[bytes], Id]
    type: type[Value]
    nothing: Value

    @property
    def end(self) -> bytes:
        """Above all keys of the kind."""
        return bytes((self.prefix[0] + 1,))


class StoredTable(Generic[Id, Value]):
    """A ``RowTable`` over the committed rows of a store. For one thread; ``committed`` is told of every commit."""

    def __init__(self, path: Path, kind: RowKind[Id, Value], generation_max: int) -> None:
        self._path = path
        self._kind = kind
        self._connection = open_reader(path)
        self._generation_max = generation_max
        self._young: dict[Id, Value] = {}
        self._old: dict[Id, Value] = {}
        """What was used lately, and before: whatever is used again becomes young again, and a full generation ages."""
        self._pinned: dict[Id, tuple[Height, Value]] = {}
        """Changed by the block at that height, whose commit has not been reported yet."""
        self._uncommitted: deque[tuple[Height, tuple[Id, ...]]] = deque()

    def close(self) -> None:
        """Release the file; a second call does nothing."""
        self._connection.close()

    def get(self, identity: Id) -> Value:
        """See ``RowTable``. Raises ``StoreCorrupt`` or ``StoreUnusable``."""
        pinned = self._pinned.get(identity)
        if pinned is not None:
            return pinned[1]
        found = self._young.get(identity)
        if found is not None:
            return found
        found = self._old.get(identity)
        if found is None:
            found = self._read(identity)
        self._remember(identity, found)
        return found

    def _read(self, identity: Id) -> Value:
        with translated(self._path):
            # All rows are fetched, so that the statement ends and the next one sees the newest commit.
            found = self._connection.execute(
                "SELECT value FROM state WHERE key = ?", (self._kind.prefix + identity,)
            ).fetchall()
        return self._decoded(found[0][0]) if found else self._kind.nothing

    def _decoded(self, value: bytes) -> Value:
        try:
            return decode(value, self._kind.type)
        except MalformedMessage as error:
            raise StoreCorrupt(self._path, f"{self._kind.name}'s row: {error}") from error

    def _remember(self, identity: Id, value: Value) -> None:
        if len(self._young) >= self._generation_max:
            self._old, self._young = self._young, {}
        self._young[identity] = value

    def apply(self, height: Height, changes: Mapping[Id, Value]) -> None:
        """See ``RowTable``. The rows stay in memory until ``committed`` has been told of the height."""
        for identity, value in changes.items():
            self._pinned[identity] = (height, value)
        self._uncommitted.append((height, tuple(changes)))

    def committed(self, height: Height) -> None:
        """Everything up to this height is on disk."""
        while self._uncommitted and self._uncommitted[0][0] <= height:
            written_at, changed = self._uncommitted.popleft()
            for identity in changed:
                pinned = self._pinned.get(identity)
                if pinned is not None and pinned[0] == written_at:
                    del self._pinned[identity]
                    self._remember(identity, pinned[1])

    def items(self) -> Iterator[tuple[Id, Value]]:
        """See ``RowTable``: as they are when the iteration begins. Raises ``StoreCorrupt`` or ``StoreUnusable``."""
        pinned = deque(sorted(((key, value) for key, (_, value) in self._pinned.items()), key=lambda row: row[0]))
        # A connection of its own: while a statement stands open its connection keeps seeing the commit of its start.
        with closing(open_reader(self._path)) as connection, translated(self._path):
            for identity, value in self._stored(connection):
                while pinned and pinned[0][0] < identity:
                    yield from self._existing(*pinned.popleft())
                if pinned and pinned[0][0] == identity:
                    yield from self._existing(*pinned.popleft())
                else:
                    yield identity, value
        for each in pinned:
            yield from self._existing(*each)

    def _stored(self, connection: sqlite3.Connection) -> Iterator[tuple[Id, Value]]:
        cursor = connection.execute(
            "SELECT key, value FROM state WHERE key >= ? AND key < ? ORDER BY key", (self._kind.prefix, self._kind.end)
        )
        while rows := cursor.fetchmany(_READ_ROWS):
            for key, value in rows:
                yield self._kind.identity(key[1:]), self._decoded(value)

    def _existing(self, identity: Id, value: Value) -> Iterator[tuple[Id, Value]]:
        if value != self._kind.nothing:
            yield identity, value


ACCOUNTS = RowKind("an account", ACCOUNT_PREFIX, AccountId, Account, NO_ACCOUNT)
TRACKS = RowKind("a track record", TRACK_PREFIX, TrackId, Track, NO_TRACK)


class StoredAccounts(StoredTable[AccountId, Account]):
    """Accounts over a store."""

    def __init__(self, path: Path, generation_max: int = GENERATION_ACCOUNTS_MAX) -> None:
        super().__init__(path, ACCOUNTS, generation_max)


class StoredTracks(StoredTable[TrackId, Track]):
    """Track records over a store."""

    def __init__(self, path: Path, generation_max: int = GENERATION_TRACKS_MAX) -> None:
        super().__init__(path, TRACKS, generation_max)


class StoredTables:
    """The tables of one loaded state."""

    def __init__(self, path: Path) -> None:
        self._accounts, self._tracks = StoredAccounts(path), StoredTracks(path)

    def tables(self) -> Tables:
        """What a ledger's state is built over."""
        return Tables(self._accounts, self._tracks)

    def committed(self, height: Height) -> None:
        """Everything up to this height is on disk."""
        self._accounts.committed(height)
        self._tracks.committed(height)

    def close(self) -> None:
        """Release the file; a second call does nothing."""
        self._accounts.close()
        self._tracks.close()
