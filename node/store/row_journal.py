"""Rows on disk before they are in SQLite: one append and one sync for a commit, whatever tables its rows are in.

A transaction of SQLite's writes whole pages, two or three for each row. The rows of a job are small and their commits
many, so they go into a journal first and are folded into the tables later, many jobs at a time.

Law: when ``append`` returns, the rows are on disk and every reader of the store sees them. Records are numbered without
a gap; the number of the last one folded is written in the transaction that folds it, so a record is applied once,
however often the process dies in between. Two segments take turns: one is written while the other is folded.
"""

import errno
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Final

from node.store.connection import sync_directory
from node.store.errors import DiskFull, StoreCorrupt, StoreUnusable
from protocol.messages.effects import Delete, Put, Table
from protocol.primitives.codec import decode, encode
from protocol.primitives.errors import MalformedMessage

SEGMENT_BYTES: Final = 512 * 1024
"""About eighty jobs: what is folded at once costs the disk a few ms, and a start no more than that either."""
_MARK_BYTES: Final = 4
_HEADER = struct.Struct(f">{_MARK_BYTES}sQI16s")
"""Mark, number, bytes of the rows, checksum. Mark and checksum are keyed by the store's own random salt: rows hold what
strangers sent, and nobody shall be able to send something that reads as a record, or only has to be hashed as one."""
_OUT_OF_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT))

Rows = dict[Table, dict[bytes, bytes | None]]
"""Of several writes to one key the last one; ``None`` for a deleted row. In the order in which keys came."""

_Entry = tuple[int, bytes, bytes | None]


class _Segment:
    """One file of fixed size, written from its beginning again whenever its rows have been folded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.offset = 0
        self.last = 0
        """Number of its last record; means something while it has rows."""
        self.rows: Rows = {}

    def fill(self) -> None:
        """Give a new file all its blocks, written: a sync then changes no more than the data. Raises ``OSError``."""
        if os.fstat(self.descriptor).st_size != SEGMENT_BYTES:
            os.truncate(self.descriptor, 0)
            _write_whole(self.descriptor, bytes(SEGMENT_BYTES), 0)
            os.fsync(self.descriptor)

    def take(self, number: int, entries: Sequence[_Entry], end: int) -> None:
        for table, key, value in entries:
            rows = self.rows.get(table)  # type: ignore[call-overload]  # an IntEnum's member is found by its number
            if rows is None:
                rows = self.rows[Table(table)] = {}
            rows[key] = value
        self.last, self.offset = number, end


class RowJournal:
    """The two segments beside a store's file. ``append`` has one caller at a time; folding may go on beside it."""

    def __init__(self, store: Path, salt: bytes, folded: int, *, expected: bool) -> None:
        """Read what was not folded. ``expected`` when the store was not closed in order: both files must be there.

        When this returns both files are on disk with their names. Raises ``StoreCorrupt``, ``DiskFull`` or
        ``StoreUnusable``.
        """
        paths = [store.with_name(f"{store.name}.rows-{turn}") for turn in (0, 1)]
        for path in paths:
            if expected and (not path.exists() or path.stat().st_size != SEGMENT_BYTES):
                raise StoreCorrupt(store, f"{path.name} is missing or cut, and with it rows that were promised")
        self._store = store
        self._salt = salt
        self._mark = blake2b(b"mark", digest_size=_MARK_BYTES, key=salt).digest()
        self._lock = threading.Lock()
        self._unusable = ""
        """Why nothing can be appended any more."""
        self._sealed = False
        """True while all rows there are are being folded and no segment is free: nothing may come between."""
        self._turn = 0
        self._last = folded
        """Number of the last record there is."""
        self._segments: list[_Segment] = []
        try:
            for path in paths:
                self._segments.append(_Segment(path))
            self._read(folded)
            for segment in self._segments:
                segment.fill()
            sync_directory(store.parent)
        except OSError as error:
            self.close()
            raise self._translated(error) from error
        except StoreCorrupt:
            self.close()
            raise

    def close(self) -> None:
        """Release the files; a second call does nothing."""
        with self._lock:  # a write under way has its descriptor: its number must not become another file's meanwhile
            self._unusable = self._unusable or "the store is closed"
            while self._segments:
                os.close(self._segments.pop().descriptor)

    # Writing

    def append(self, effects: Sequence[Put | Delete]) -> bool:
        """Put rows on disk; False, with nothing written, when there is no room: then the store has to fold.

        Raises ``DiskFull`` or ``StoreUnusable``; after that nothing can be appended any more, because nobody knows what
        the disk holds.
        """
        entries = [(int(e.table), e.key, e.value if isinstance(e, Put) else None) for e in effects]
        payload = encode(entries)
        with self._lock:
            if self._unusable:
                raise StoreUnusable(self._store, self._unusable)
            segment = self._with_room(_HEADER.size + len(payload))
            if segment is None:
                return False
            number = self._last + 1
            record = _HEADER.pack(self._mark, number, len(payload), self._checksum(number, payload)) + payload
            # Taken whatever happens: rows that failed and yet came to the disk must not come back over newer ones.
            self._last = number
            try:
                _write_whole(segment.descriptor, record, segment.offset)
                os.fdatasync(segment.descriptor)
            except OSError as error:
                self._unusable = "an earlier write failed"
                raise self._translated(error) from error
            segment.take(number, entries, segment.offset + len(record))
        return True

    def _with_room(self, size: int) -> _Segment | None:
        current, other = self._segments[self._turn], self._segments[1 - self._turn]
        if self._sealed or size > SEGMENT_BYTES:
            return None
        if current.offset + size <= SEGMENT_BYTES:
            return current
        if other.rows:
            return None
        self._turn = 1 - self._turn
        return other

    # Reading and folding

    @property
    def wants_folding(self) -> bool:
        """A segment is full, or half full with the other one free: to be folded before there is no room."""
        current, other = self._segments[self._turn], self._segments[1 - self._turn]
        return bool(other.rows) or current.offset > SEGMENT_BYTES // 2

    def holds(self, table: Table) -> bool:
        """Whether rows of a table wait to be folded."""
        return any(table in segment.rows for segment in self._segments)

    def find(self, table: Table, key: bytes) -> tuple[bytes | None] | None:
        """The value of a row that waits to be folded, in a tuple (of ``None``: deleted), or ``None``: ask SQLite."""
        # No lock: whoever asks must not wait for a disk. A row leaves the journal after it is in the table.
        current = self._turn
        for segment in (self._segments[current], self._segments[1 - current]):
            rows = segment.rows.get(table)
            if rows is not None and key in rows:
                return (rows[key],)
        return None

    def outstanding(self) -> tuple[Rows, int]:
        """All rows that wait, and the number of the last record; what is appended from now on is in neither."""
        with self._lock:
            merged: Rows = {}
            for segment in sorted(self._segments, key=lambda segment: segment.last):
                for table, rows in segment.rows.items():
                    merged.setdefault(table, {}).update(rows)
            current, other = self._segments[self._turn], self._segments[1 - self._turn]
            if current.rows and other.rows:
                self._sealed = True
            elif current.rows:
                self._turn = 1 - self._turn  # what comes now goes where nothing is being folded
            return merged, self._last

    def forget(self, number: int) -> None:
        """Rows up to this record are in their tables for good."""
        with self._lock:
            for segment in self._segments:
                if segment.last <= number:
                    segment.rows, segment.offset = {}, 0
            self._sealed = False

    def _read(self, folded: int) -> None:
        found = [list(self._records(segment)) for segment in self._segments]
        order = sorted((0, 1), key=lambda turn: found[turn][0][0] if found[turn] else 0)
        for turn in order:
            segment = self._segments[turn]
            for number, payload, end in found[turn]:
                if number <= folded:
                    continue
                if number != self._last + 1:
                    raise self._damaged(segment, f"record {self._last + 1} is missing before record {number}")
                try:
                    entries = decode(payload, list[_Entry])
                    segment.take(number, entries, end)
                except (MalformedMessage, ValueError) as error:
                    raise self._damaged(segment, f"record {number}: {error}") from error
                self._last = number
        for segment in self._segments:
            later = self._later_record(segment)
            if later:
                raise self._damaged(segment, f"record {self._last + 1} is damaged before record {later}")

    def _records(self, segment: _Segment) -> Iterator[tuple[int, bytes, int]]:
        """Number, rows and end of each record from the beginning on, up to what is older or was never finished."""
        content = os.pread(segment.descriptor, SEGMENT_BYTES, 0)
        offset, last = 0, 0
        while (record := self._record_at(content, offset)) is not None:
            number, payload = record
            if last and number != last + 1:
                return
            offset, last = offset + _HEADER.size + len(payload), number
            yield number, payload, offset

    def _record_at(self, content: bytes, offset: int) -> tuple[int, bytes] | None:
        if offset + _HEADER.size > len(content):
            return None
        mark, number, size, checksum = _HEADER.unpack_from(content, offset)
        payload = content[offset + _HEADER.size : offset + _HEADER.size + size]
        if mark != self._mark or len(payload) != size or self._checksum(number, payload) != checksum:
            return None
        return number, payload

    def _later_record(self, segment: _Segment) -> int:
        """Number of a whole record that stands behind the last one taken, in the middle of a file: 0 if none does. A
        write that a crash cut short is the last of all, so this one's forerunner was on disk once."""
        content = os.pread(segment.descriptor, SEGMENT_BYTES, 0)
        offset = content.find(self._mark)
        while offset >= 0:
            record = self._record_at(content, offset)
            if record is not None and record[0] > self._last:
                return record[0]
            offset = content.find(self._mark, offset + 1)
        return 0

    def _checksum(self, number: int, payload: bytes) -> bytes:
        return blake2b(number.to_bytes(8, "big") + payload, digest_size=16, key=self._salt).digest()

    def _damaged(self, segment: _Segment, problem: str) -> StoreCorrupt:
        """Told of the store: without its journal it does not open either, they can only be moved away together."""
        return StoreCorrupt(self._store, f"in {segment.path.name} {problem}")

    def _translated(self, error: OSError) -> DiskFull | StoreUnusable:
        if error.errno in _OUT_OF_SPACE:
            return DiskFull(self._store)
        return StoreUnusable(self._store, error.strerror or str(error))


def _write_whole(descriptor: int, content: bytes, offset: int) -> None:
    """A write may end early, at the last free block for one; what keeps the rest out is raised as ``OSError``."""
    rest = memoryview(content)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
