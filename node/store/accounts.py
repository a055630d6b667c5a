"""The ledger's accounts, read from the store when they are needed.

Law: what a block has changed and no commit has written yet is held here until its commit; everything else may be
forgotten at any moment and read again. So an answer never depends on what happens to be in memory.
"""

import sqlite3
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from node.store.connection import open_reader, translated
from node.store.errors import StoreCorrupt
from protocol.ledger.rows import ACCOUNT_PREFIX, NO_ACCOUNT, Account
from protocol.primitives.codec import decode
from protocol.primitives.errors import MalformedMessage
from protocol.primitives.units import AccountId, Height

GENERATION_ACCOUNTS_MAX = 32_768
"""Two generations of so many accounts stay in memory: at most about 20 MB."""

_READ_ROWS = 4096
_AFTER_ACCOUNTS = bytes((ACCOUNT_PREFIX[0] + 1,))


class StoredAccounts:
    """An ``AccountTable`` over the committed rows of a store. For one thread; ``committed`` is told of every commit."""

    def __init__(self, path: Path, generation_max: int = GENERATION_ACCOUNTS_MAX) -> None:
        self._path = path
        self._connection = open_reader(path)
        self._generation_max = generation_max
        self._young: dict[AccountId, Account] = {}
        self._old: dict[AccountId, Account] = {}
        """What was used lately, and before: whatever is used again becomes young again, and a full generation ages."""
        self._pinned: dict[AccountId, tuple[Height, Account]] = {}
        """Changed by the block at that height, whose commit has not been reported yet."""
        self._uncommitted: deque[tuple[Height, tuple[AccountId, ...]]] = deque()

    def close(self) -> None:
        """Release the file; a second call does nothing."""
        self._connection.close()

    def get(self, account_id: AccountId) -> Account:
        """See ``AccountTable``. Raises ``StoreCorrupt`` or ``StoreUnusable``."""
        pinned = self._pinned.get(account_id)
        if pinned is not None:
            return pinned[1]
        found = self._young.get(account_id)
        if found is not None:
            return found
        found = self._old.get(account_id)
        if found is None:
            found = self._read(account_id)
        self._remember(account_id, found)
        return found

    def _read(self, account_id: AccountId) -> Account:
        with translated(self._path):
            # All rows are fetched, so that the statement ends and the next one sees the newest commit.
            found = self._connection.execute(
                "SELECT value FROM state WHERE key = ?", (ACCOUNT_PREFIX + account_id,)
            ).fetchall()
        return self._decoded(found[0][0]) if found else NO_ACCOUNT

    def _decoded(self, value: bytes) -> Account:
        try:
            return decode(value, Account)
        except MalformedMessage as error:
            raise StoreCorrupt(self._path, f"an account's row: {error}") from error

    def _remember(self, account_id: AccountId, account: Account) -> None:
        if len(self._young) >= self._generation_max:
            self._old, self._young = self._young, {}
        self._young[account_id] = account

    def apply(self, height: Height, changes: Mapping[AccountId, Account]) -> None:
        """See ``AccountTable``. The rows stay in memory until ``committed`` has been told of the height."""
        for account_id, account in changes.items():
            self._pinned[account_id] = (height, account)
        self._uncommitted.append((height, tuple(changes)))

    def committed(self, height: Height) -> None:
        """Everything up to this height is on disk."""
        while self._uncommitted and self._uncommitted[0][0] <= height:
            written_at, changed = self._uncommitted.popleft()
            for account_id in changed:
                pinned = self._pinned.get(account_id)
                if pinned is not None and pinned[0] == written_at:
                    del self._pinned[account_id]
                    self._remember(account_id, pinned[1])

    def items(self) -> Iterator[tuple[AccountId, Account]]:
        """See ``AccountTable``: as they are when the iteration begins. Raises ``StoreCorrupt`` or ``StoreUnusable``."""
        pinned = deque(sorted((account_id, account) for account_id, (_, account) in self._pinned.items()))
        # A connection of its own: while a statement stands open its connection keeps seeing the commit of its start.
        with closing(open_reader(self._path)) as connection, translated(self._path):
            for account_id, account in self._stored(connection):
                while pinned and pinned[0][0] < account_id:
                    yield from _existing(*pinned.popleft())
                if pinned and pinned[0][0] == account_id:
                    yield from _existing(*pinned.popleft())
                else:
                    yield account_id, account
        for each in pinned:
            yield from _existing(*each)

    def _stored(self, connection: sqlite3.Connection) -> Iterator[tuple[AccountId, Account]]:
        cursor = connection.execute(
            "SELECT key, value FROM state WHERE key >= ? AND key < ? ORDER BY key", (ACCOUNT_PREFIX, _AFTER_ACCOUNTS)
        )
        while rows := cursor.fetchmany(_READ_ROWS):
            for key, value in rows:
                yield AccountId(key[1:]), self._decoded(value)


def _existing(account_id: AccountId, account: Account) -> Iterator[tuple[AccountId, Account]]:
    if account != NO_ACCOUNT:
        yield account_id, account
