"""Snapshots as files: those that were made here and are served, and the one that is being fetched.

Law: a finished snapshot appears under its name at once and whole, or not at all. Of what was fetched only that counts
which has the hash that the manifest says, whatever happened to the process or the disk meanwhile.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from node.store.connection import sync_directory
from node.store.errors import DiskFull, StoreUnusable
from protocol.engine.snapshots import Fetched
from protocol.ledger.snapshots import joined_rows
from protocol.messages.snapshots import SnapshotManifest
from protocol.primitives.codec import decode, encode
from protocol.primitives.errors import MalformedMessage
from protocol.primitives.hashing import content_hash
from protocol.primitives.units import Hash, Height

KEPT = 2
"""Finished snapshots: whoever has begun to fetch one may go on when a newer one is made."""
_MANIFEST = "manifest"
_FETCHING = "fetching"
_DRAFT = "draft"


class SnapshotFiles:
    """The folder of one node's snapshots. Calls block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._served: dict[Height, SnapshotManifest] = {}

    def open(self) -> None:
        """Make the folder, forget drafts, and find the finished ones."""
        with _translated(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            shutil.rmtree(self.folder / _DRAFT, ignore_errors=True)
            for found in sorted(self.folder.iterdir()):
                manifest = _read_manifest(found) if found.name.isdecimal() else None
                if manifest is not None:
                    self._served[manifest.header.height] = manifest

    # Made here

    @property
    def heights(self) -> tuple[Height, ...]:
        """Finished snapshots, oldest first."""
        return tuple(sorted(self._served))

    def make(self, chunks: Iterable[bytes], manifest_of: Callable[[tuple[Hash, ...]], SnapshotManifest]) -> None:
        """Write a snapshot; afterwards the newest ``KEPT`` are here."""
        draft = self.folder / _DRAFT
        with _translated(draft):
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(mode=0o700)
            hashes = []
            for index, chunk in enumerate(chunks):
                _write(draft / _chunk_name(index), chunk)
                hashes.append(content_hash(chunk))
            manifest = manifest_of(tuple(hashes))
            _write(draft / _MANIFEST, encode(manifest))
            sync_directory(draft)
            finished = self.folder / str(manifest.header.height)
            shutil.rmtree(finished, ignore_errors=True)
            draft.rename(finished)
            sync_directory(self.folder)
        self._served[manifest.header.height] = manifest
        for height in self.heights[:-KEPT]:
            del self._served[height]
            shutil.rmtree(self.folder / str(height), ignore_errors=True)

    def newest(self, above: Height) -> SnapshotManifest | None:
        """The newest finished snapshot, if it is of a height above this one."""
        heights = self.heights
        return self._served[heights[-1]] if heights and heights[-1] > above else None

    def chunk(self, height: Height, index: int) -> bytes:
        """A chunk of a finished snapshot; empty if there is none."""
        if height not in self._served:
            return b""
        with suppress(OSError):
            return (self.folder / str(height) / _chunk_name(index)).read_bytes()
        return b""

    # Fetched from peers

    def begin(self, manifest: SnapshotManifest) -> None:
        """Fetch this snapshot: chunks of another one go."""
        folder = self.folder / _FETCHING
        with _translated(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            _write(folder / _MANIFEST, encode(manifest))

    def keep_chunk(self, index: int, payload: bytes) -> None:
        """Keep a chunk of the snapshot that is being fetched."""
        with _translated(self.folder):
            _write(self.folder / _FETCHING / _chunk_name(index), payload)

    def fetched(self) -> Fetched | None:
        """What an earlier life has fetched: the manifest, and the chunks that have their hashes."""
        manifest = _read_manifest(self.folder / _FETCHING)
        if manifest is None:
            return None
        whole = tuple(
            index for index, wanted in enumerate(manifest.chunks) if content_hash(self._fetched_chunk(index)) == wanted
        )
        return Fetched(manifest, whole)

    def _fetched_chunk(self, index: int) -> bytes:
        with suppress(OSError):
            return (self.folder / _FETCHING / _chunk_name(index)).read_bytes()
        return b""

    def fetched_block(self) -> bytes:
        """The first chunk of the fetched snapshot: the block at its height."""
        return self._fetched_chunk(0)

    def fetched_rows(self, manifest: SnapshotManifest) -> Iterator[tuple[bytes, bytes]]:
        """All rows of the fetched snapshot. Raises ``StateInvalid``."""
        return joined_rows(self._fetched_chunk(index) for index in range(1, len(manifest.chunks)))

    def end(self) -> None:
        """Forget what was fetched."""
        shutil.rmtree(self.folder / _FETCHING, ignore_errors=True)


def _chunk_name(index: int) -> str:
    return f"{index:05}"


def _read_manifest(folder: Path) -> SnapshotManifest | None:
    try:
        return decode((folder / _MANIFEST).read_bytes(), SnapshotManifest)
    except (OSError, MalformedMessage):
        return None


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn the system's errors into ours, which say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFull(path) from error
        raise StoreUnusable(path, error.strerror or str(error)) from error
