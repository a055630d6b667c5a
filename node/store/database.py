"""The store: blocks, state, and the durable tables of the engine's rooms, in one SQLite file with a journal of rows.

Law: ``commit`` writes a list of effects all together. A block, its certificate, the state rows that it touched and the
end of its height's journal are never on disk without each other. Rows that come without a block go to the row journal
(``row_journal.py``) and are folded into their tables later; every reader here sees them at once. One caller at a time
commits; everything else is usable from any thread. Calls block.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from blake3 import blake3
from sqlite_utils import Database

from node.store.accounts import StoredTables
from node.store.connection import (
    FileLock,
    change_rows,
    one_commit,
    open_database,
    open_reader,
    transaction,
    translated,
)
from node.store.errors import BlockOutOfOrder, StoreCorrupt, StoreError, StoreForeign
from node.store.history import blocks_from, prune, swap_state, take_in_rows
from node.store.row_journal import RowJournal, Rows
from node.store.schema import ROW_JOURNAL_FACT, SALT_BYTES, STORE_SCHEMA, table_name
from node.store.state_rows import LATTICE_FACT, StateSource, is_small, load_state, recheck
from node.store.table_rows import write_rows
from protocol.engine.decided import succession_key, succession_of
from protocol.ledger.errors import StateInvalid
from protocol.ledger.genesis_state import genesis_rows
from protocol.ledger.lattice import lattice_bytes
from protocol.ledger.rows import Row
from protocol.ledger.state import LedgerState
from protocol.messages.blocks import Block, DecidedBlock, Header, header_hash
from protocol.messages.consensus import Certificate
from protocol.messages.effects import CommitBlock, Delete, Put, Table
from protocol.messages.genesis import Genesis, genesis_hash
from protocol.messages.snapshots import SnapshotManifest
from protocol.primitives.codec import decode, encode
from protocol.primitives.errors import MalformedMessage
from protocol.primitives.units import Height

Durable = Put | Delete | CommitBlock

_JOURNAL_TABLES = (Table.CONSENSUS_BODY, Table.CONSENSUS_CERTIFICATE, Table.CONSENSUS_PROPOSAL)
"""The open height's journal: all of it ends when the height closes."""


class _Batch:
    """The net result of a list of effects: of several writes to one key the last one counts."""

    def __init__(self, tip: Height, waiting: Rows) -> None:
        self.tip = tip
        self.tables = waiting
        self.journal_ended = False
        self.state: dict[bytes, bytes | None] = {}
        self.state_tree: dict[bytes, bytes | None] = {}
        self.lattice = b""
        self.blocks: list[CommitBlock] = []

    def take(self, effect: Durable) -> None:
        match effect:
            case Put(table, key, value):
                self.tables.setdefault(table, {})[key] = value
            case Delete(table, key):
                self.tables.setdefault(table, {})[key] = None
            case CommitBlock():
                if effect.height != self.tip + 1:
                    raise BlockOutOfOrder(self.tip + 1, effect.height)
                self.tip = effect.height
                self.blocks.append(effect)
                self.state.update(effect.rows)
                self.state_tree.update(effect.tree)
                self.lattice = effect.lattice
                self.journal_ended = True
                for table in _JOURNAL_TABLES:
                    self.tables.pop(table, None)


_CHECKPOINT_ROWS = 2_000
"""A row changes one to four pages of 4 KiB: the log stays below what SQLite checkpoints by itself within a commit."""


def _checksum(block: bytes, certificate: bytes) -> bytes:
    return blake3(len(block).to_bytes(8, "big") + block + certificate).digest()


class Store:
    """One node's store. Open with ``Store.open``, close with ``close``."""

    def __init__(self, path: Path, genesis: Genesis, lock: FileLock, database: Database) -> None:
        """Use ``open``."""
        self.path = path
        self.genesis = genesis
        self.database = database
        """For queries by tools; never write through it."""
        self._file_lock = lock
        self._lock = threading.Lock()
        self._reader = open_reader(path)
        """What is only read waits for no commit."""
        self._reader_lock = threading.Lock()
        self._tables: list[StoredTables] = []
        self._journal: RowJournal
        self._opened = False
        """Rows may wait in the journal, which is then there."""
        self._salt = b""
        self._rows_logged = 0
        """Written since the last checkpoint was begun."""
        self.needs_recheck = False
        """A state was loaded whose rows have not all been hashed: ``recheck`` has to follow."""

    @classmethod
    def open(cls, path: Path, genesis: Genesis) -> "Store":
        """Open or create the store of this network, and hold it exclusively.

        A new store starts with the genesis allocations. Raises ``StoreLocked``, ``StoreForeign``, ``StoreCorrupt``,
        ``StoreTooNew``, ``DiskFull``, ``StoreUnusable`` or ``GenesisInvalid``.
        """
        rows = genesis_rows(genesis)
        lock = FileLock(path)
        try:
            store = cls(path, genesis, lock, open_database(path, STORE_SCHEMA, exclusive=False))
        except BaseException:
            lock.release()
            raise
        try:
            store._bind(genesis_hash(genesis), rows)
        except BaseException:
            store.close()
            raise
        return store

    def _bind(self, wanted: bytes, rows: Sequence[tuple[bytes, bytes]]) -> None:
        with self._using() as connection:
            found = connection.execute("SELECT value FROM facts WHERE name = 'genesis_hash'").fetchone()
            if found is None:
                with transaction(connection):
                    connection.execute("INSERT INTO facts VALUES ('genesis_hash', ?)", (wanted,))
                    connection.executemany("INSERT INTO state VALUES (?, ?)", rows)
            elif found[0] != wanted:
                raise StoreForeign(self.path, bytes(found[0]).hex(), wanted.hex())
            query = "SELECT value FROM facts WHERE name = ?"
            fact = bytes(connection.execute(query, (ROW_JOURNAL_FACT,)).fetchone()[0])
        self._salt, folded, left_open = fact[:SALT_BYTES], int.from_bytes(fact[SALT_BYTES:-1], "big"), fact[-1] == 1
        self._journal = RowJournal(self.path, self._salt, folded, expected=left_open)
        self._opened = True
        self._fold()
        with self._using():
            change_rows(self.database, STORE_SCHEMA)

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock, translated(self.path):
            yield self.database.conn

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._reader_lock, translated(self.path):
            yield self._reader

    def close(self) -> None:
        """Fold what waits and release the files; a second call does nothing."""
        try:
            if self._opened:
                self._opened = False
                self._close_journal()
        finally:
            for tables in self._tables:
                tables.close()
            with self._reader_lock:
                self._reader.close()
            with self._lock:
                self.database.close()
            self._file_lock.release()

    def _close_journal(self) -> None:
        try:
            with suppress(StoreError):  # a full disk, say: then the rows stay in the journal until the next start
                self._fold(closing=True)
        finally:
            self._journal.close()

    def commit(self, effects: Sequence[Durable]) -> None:
        """Write all effects in their order in one transaction; when this returns they are on disk.

        Raises ``DiskFull``, ``StoreCorrupt`` or ``StoreUnusable`` with nothing written, ``BlockOutOfOrder`` when a
        block does not follow the last one.
        """
        if not effects:
            return
        rows = [effect for effect in effects if not isinstance(effect, CommitBlock)]
        if len(rows) < len(effects) or not self._journal.append(rows):
            self._fold(effects)

    def _fold(self, effects: Sequence[Durable] = (), *, closing: bool = False) -> None:
        """Write what waits in the journal, and these effects behind it, into their tables."""
        with self._using() as connection:
            with transaction(connection):
                waiting, last = self._journal.outstanding()
                has_block = any(isinstance(effect, CommitBlock) for effect in effects)
                batch = _Batch(_tip(connection) if has_block else Height(0), waiting)
                for effect in effects:
                    batch.take(effect)
                self._rows_logged += _write(connection, batch)
                self._folded(connection, last, left_open=not closing)
            self._journal.forget(last)

    def _folded(self, connection: sqlite3.Connection, last: int, *, left_open: bool) -> None:
        value = self._salt + last.to_bytes(8, "big") + bytes((left_open,))
        connection.execute("UPDATE facts SET value = ? WHERE name = ?", (value, ROW_JOURNAL_FACT))

    def _fold_if_waiting(self, table: Table) -> None:
        if self._journal.holds(table):
            self._fold()

    @property
    def wants_checkpoint(self) -> bool:
        """Enough was committed that the journal should be folded, or SQLite's log go into the file."""
        return self._journal.wants_folding or self._rows_logged >= _CHECKPOINT_ROWS

    def checkpoint(self) -> None:
        """Fold the journal, and copy a long log into the file, beside commits that go on. Takes tens of ms: not on the
        loop."""
        if self._journal.wants_folding:
            self._fold()
        if self._rows_logged < _CHECKPOINT_ROWS:
            return
        self._rows_logged = 0
        with translated(self.path), closing(open_reader(self.path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def load_table(self, table: Table) -> list[tuple[bytes, bytes]]:
        """All rows of a table in order of their keys."""
        self._fold_if_waiting(table)
        with self._reading() as connection:
            return connection.execute(f"SELECT key, value FROM {table_name(table)} ORDER BY key").fetchall()

    def get(self, table: Table, key: bytes) -> bytes | None:
        """One value, or ``None``."""
        waiting = self._journal.find(table, key)
        if waiting is not None:
            return waiting[0]
        with self._reading() as connection:
            found = connection.execute(f"SELECT value FROM {table_name(table)} WHERE key = ?", (key,)).fetchone()
        return None if found is None else bytes(found[0])

    def newest(self, table: Table, count_max: int) -> list[bytes]:
        """The values whose keys were first written last, the latest first."""
        return self._by_age(table, "DESC", count_max)

    def oldest(self, table: Table, count_max: int) -> list[bytes]:
        """The values whose keys were written first, the oldest first."""
        return self._by_age(table, "ASC", count_max)

    def _by_age(self, table: Table, order: str, count_max: int) -> list[bytes]:
        self._fold_if_waiting(table)
        with self._reading() as connection:
            # Row ids rise, and a row that is written again keeps its own.
            query = f"SELECT value FROM {table_name(table)} ORDER BY rowid {order} LIMIT ?"
            found = connection.execute(query, (count_max,)).fetchall()
        return [bytes(value) for (value,) in found]

    def count(self, table: Table) -> int:
        """How many rows a table has."""
        self._fold_if_waiting(table)
        with self._reading() as connection:
            return int(connection.execute(f"SELECT count(*) FROM {table_name(table)}").fetchone()[0])

    def values_between(self, table: Table, first: bytes, last: bytes, count_max: int) -> list[bytes]:
        """The values with the smallest keys from ``first`` to ``last``, in the order of their keys; all of them with a
        ``count_max`` of -1."""
        self._fold_if_waiting(table)
        with self._reading() as connection:
            query = f"SELECT value FROM {table_name(table)} WHERE key BETWEEN ? AND ? ORDER BY key LIMIT ?"
            found = connection.execute(query, (first, last, count_max)).fetchall()
        return [bytes(value) for (value,) in found]

    def load_rows(self) -> list[tuple[bytes, bytes]]:
        """All rows of the ledger's state after the tip, in order of their keys."""
        with self._reading() as connection:
            return connection.execute("SELECT key, value FROM state ORDER BY key").fetchall()

    def load_state(self) -> LedgerState:
        """The ledger's state after the tip, its supply recounted; accounts and track records stay on
        the disk until they are needed.

        The root of a small state is recomputed from its rows, that of a large one from the stored sum: then
        ``recheck`` has to follow. Raises ``StoreCorrupt`` if the rows don't give what the tip's header says.
        """
        tables = StoredTables(self.path)
        self._tables.append(tables)
        with self._reading() as connection, one_commit(connection):
            header = self._tip_header(connection)
            self.needs_recheck = not is_small(connection)
            try:
                return load_state(connection, self.path, self.genesis, header, tables.tables())
            except StateInvalid as error:
                raise StoreCorrupt(self.path, str(error)) from error

    def committed(self, height: Height) -> None:
        """Blocks up to this height are on disk: loaded states may forget them. On the thread that uses the state."""
        for tables in self._tables:
            tables.committed(height)

    def recheck(self, stop: threading.Event) -> None:
        """Recompute the root from every row, slowly, beside a running node.

        Raises ``StoreCorrupt``, or ``CheckStopped`` once ``stop`` is set.
        """
        recheck(self.path, self._tip_header, stop)

    def _tip_header(self, connection: sqlite3.Connection) -> Header:
        tip = self._tip_block(connection)
        return LedgerState.from_genesis(self.genesis).tip if tip is None else _header(tip)

    def height(self) -> Height:
        """Height of the last block; 0 before the first."""
        with self._reading() as connection:
            return _tip(connection)

    def tip(self) -> DecidedBlock | None:
        """The last block with its certificate; ``None`` before the first."""
        return self.decided_block(self.height())

    def decided_block(self, height: Height) -> DecidedBlock | None:
        """A block with the certificate that decided it, or ``None``. Raises ``StoreCorrupt``."""
        found = self._read_blocks(height, 1)
        return found[0] if found and found[0].certificate.height == height else None

    def decided_blocks(self, from_height: Height, bytes_max: int, count_max: int) -> list[DecidedBlock]:
        """Consecutive blocks from a height on: what fits, at least one if there is any. Raises ``StoreCorrupt``.

        The first one lies higher if that height was given up, and a block kept by itself comes alone.
        """
        selected: list[DecidedBlock] = []
        room = bytes_max
        for decided in self._read_blocks(from_height, count_max):
            room -= len(encode(decided))
            if selected and (room < 0 or decided.certificate.height != selected[-1].certificate.height + 1):
                break
            selected.append(decided)
        return selected

    def _read_blocks(self, from_height: int, count: int) -> list[DecidedBlock]:
        with self._reading() as connection:
            return self._blocks_from(connection, from_height, count)

    def _blocks_from(self, connection: sqlite3.Connection, from_height: int, count: int) -> list[DecidedBlock]:
        rows = connection.execute(
            "SELECT height, block, certificate, checksum FROM blocks WHERE height >= ? ORDER BY height LIMIT ?",
            (from_height, count),
        ).fetchall()
        return [self._decided(*row) for row in rows]

    def _decided(self, height: int, block: bytes, certificate: bytes, checksum: bytes) -> DecidedBlock:
        if _checksum(block, certificate) != checksum:
            raise StoreCorrupt(self.path, f"block {height} is not what was written")
        return DecidedBlock(block, decode(certificate, Certificate))

    def blocks_from(self) -> Height:
        """The lowest height from which on every block is here; 1 unless some were given up."""
        with self._reading() as connection:
            return blocks_from(connection)

    def prune(self, below: Height, needed: frozenset[int]) -> int:
        """Give up blocks below a height, but for those needed; returns how many went. Slow: not on the loop."""
        return prune(self._using, below, needed)

    def install(
        self, manifest: SnapshotManifest, decided: DecidedBlock, rows: Iterable[Row], needed: frozenset[int]
    ) -> None:
        """Make these rows the state after ``decided``, once they have been judged. Slow: not on the loop.

        Raises ``StateInvalid`` with everything as it was, unless they are the rows behind the manifest's header.
        """
        header = manifest.header
        state = take_in_rows(self._using, self.genesis, header, rows)
        block_row = _block_row(header.height, header_hash(header), decided)
        # A change that the block itself names is in no manifest: it has no bearing on who decided that block.
        own = succession_of(header, manifest.certificate, state)
        successions = manifest.successions if own is None else (*manifest.successions, own)
        kept: dict[bytes, bytes | None] = {succession_key(each.header.height): encode(each) for each in successions}
        with self._using() as connection:
            with transaction(connection):
                waiting, last = self._journal.outstanding()
                _write(connection, _Batch(Height(0), waiting))
                swap_state(connection, header, block_row, lattice_bytes(state.lattice), needed)
                write_rows(connection, table_name(Table.SUCCESSION), kept)
                for table in _JOURNAL_TABLES:
                    connection.execute(f"DELETE FROM {table_name(table)}")
                self._folded(connection, last, left_open=True)
            self._journal.forget(last)

    def state_source(self) -> "StateSource":
        """The state as of the last commit, to be read at leisure whatever is committed meanwhile."""
        return StateSource(self.path, self._tip_block)

    def _tip_block(self, connection: sqlite3.Connection) -> DecidedBlock | None:
        found = self._blocks_from(connection, _tip(connection), 1)
        return found[0] if found else None

    def check(self) -> LedgerState:
        """Verify everything: the file's structure, every block that is promised and its link to the one before, state
        root, supply.

        Returns the state. Takes time linear in the size of the file. Raises ``StoreCorrupt``.
        """
        with self._using() as connection:
            problem = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if problem != "ok":
            raise StoreCorrupt(self.path, problem)
        first = self.blocks_from()
        parent = LedgerState.from_genesis(self.genesis).tip_hash
        for height in range(first, self.height() + 1):
            decided = self.decided_block(Height(height))
            if decided is None:
                raise StoreCorrupt(self.path, f"block {height} is missing")
            header = _header(decided)
            if header.height != height or (header.parent != parent and height != first > 1):
                raise StoreCorrupt(self.path, f"block {height} does not follow the one before")
            parent = header_hash(header)
        state = self.load_state()
        recheck(self.path, self._tip_header, threading.Event(), pause_s=0)
        return state


def _tip(connection: sqlite3.Connection) -> Height:
    return Height(connection.execute("SELECT coalesce(max(height), 0) FROM blocks").fetchone()[0])


def _header(decided: DecidedBlock) -> Header:
    try:
        return decode(decided.block, Block).header
    except MalformedMessage as error:
        raise AssertionError("a block whose checksum holds was decodable when it was written") from error


def _write(connection: sqlite3.Connection, batch: _Batch) -> int:
    """Write a batch's net result; how many rows that were."""
    if batch.journal_ended:
        for table in _JOURNAL_TABLES:
            connection.execute(f"DELETE FROM {table_name(table)}")
    for table, rows in batch.tables.items():
        write_rows(connection, table_name(table), rows)
    if batch.blocks:
        # Tables without row ids: in the order of their keys neighbours share their pages.
        write_rows(connection, "state", dict(sorted(batch.state.items())))
        write_rows(connection, "state_tree", dict(sorted(batch.state_tree.items())))
        connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (LATTICE_FACT, batch.lattice))
    for block in batch.blocks:
        connection.execute(
            "INSERT INTO blocks (height, block_hash, block, certificate, checksum) VALUES (?, ?, ?, ?, ?)",
            _block_row(block.height, block.block_hash, block.decided),
        )
    return len(batch.state) + len(batch.state_tree) + sum(map(len, batch.tables.values()))


def _block_row(height: Height, block_hash: bytes, decided: DecidedBlock) -> tuple[int, bytes, bytes, bytes, bytes]:
    certificate = encode(decided.certificate)
    return height, block_hash, decided.block, certificate, _checksum(decided.block, certificate)
