"""A model that is being pulled from peers, piece by piece, on disk.

Law: nothing of it is visible as a model before every file is complete, hashed as a whole and on disk. A piece is
written only by whoever has checked it, and noted in the journal after it was written; what the journal of an earlier
life claims is hashed again before it is believed. The folder has its full size from the start, so the quota counts what
is to come, and it belongs to one pull at a time.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from node.worker.errors import CorruptModel, StoreFull
from node.worker.limits import MEBIBYTE
from node.worker.models import Manifest, ModelFile, ModelId, ModelStore
from node.worker.pieces import (
    HASH_BYTES,
    PIECE_BYTES,
    disk_room,
    hash_stream,
    list_of,
    piece_root,
    piece_size,
    pieces_of,
)
from node.worker.quota import make_room, pulled_mark, pulling, pulls

SPARE_BYTES = 64 * MEBIBYTE
"""A pull leaves so much of the disk free: the node's own journals live there too."""
_WRITTEN = b"\x01"


@contextlib.contextmanager
def opened_partial(store: ModelStore, manifest: Manifest) -> "Iterator[PartialModel]":
    """The pull's folder, made or taken up again, with room for all that is to come.

    Raises StoreFull, ModelInUse if another process pulls the same model. What is there stays for the next try, unless
    nothing was pulled yet.
    """
    folder = pulls(store) / manifest.model_id()
    with contextlib.ExitStack() as stack:
        with store.changing():
            new = not folder.is_dir()
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(pulling(folder))
                _reserve(store, manifest, folder)
            except BaseException:
                if new:
                    shutil.rmtree(folder)
                raise
        partial = PartialModel(store, manifest, folder)
        stack.callback(partial.close)
        yield partial


def _reserve(store: ModelStore, manifest: Manifest, folder: Path) -> None:
    """Make room for every file and give each its full size. Raises StoreFull."""
    missing = []
    for number, file in enumerate(manifest.files):
        if not _taken_over(store, file, folder, number):
            missing.append((number, file))
    new = sum(file.size for number, file in missing if not _part(folder, number).exists())
    make_room(store, new)
    _check_disk(folder, sum(file.size - _on_disk(_part(folder, number)) for number, file in missing))
    for number, file in missing:
        with contextlib.suppress(FileNotFoundError):
            _part(folder, number).chmod(0o644)  # an earlier life may have been about to put it in place
        with disk_room(file.path), _part(folder, number).open("ab") as part:
            if part.tell() > file.size:
                part.truncate(file.size)
            _allocate(part.fileno(), file.size)
            _journal(folder, number).touch()


def _allocate(descriptor: int, size: int) -> None:
    """Take the disk's blocks now: then the disk can't fill up half-way, and writing costs half as much."""
    try:
        os.posix_fallocate(descriptor, 0, max(size, 1))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    os.ftruncate(descriptor, size)


def _taken_over(store: ModelStore, file: ModelFile, folder: Path, number: int) -> bool:
    """Take a file that a stored model has too, so that it stays whatever happens to that model."""
    if not store.file_path(file).is_file():
        return False
    link = folder / f"{number}.link"
    link.unlink(missing_ok=True)
    try:
        os.link(store.file_path(file), link)
    except OSError:  # somebody else's file, or a file system without links: it is pulled like any other
        return False
    link.replace(_part(folder, number))
    _journal(folder, number).unlink(missing_ok=True)
    return True


def _check_disk(folder: Path, needed: int) -> None:
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if needed + SPARE_BYTES > free:
        raise StoreFull(
            f"{needed / MEBIBYTE:.1f} MiB more do not fit: the disk has {free / MEBIBYTE:.1f} MiB free, of which "
            f"{SPARE_BYTES // MEBIBYTE} MiB are left alone"
        )


def _on_disk(part: Path) -> int:
    try:
        return part.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number}.part"


def _journal(folder: Path, number: int) -> Path:
    return folder / f"{number}.journal"


class PartialModel:
    """The files of one model and which of their pieces are there. ``write`` may be called from several threads."""

    def __init__(self, store: ModelStore, manifest: Manifest, folder: Path) -> None:
        self.manifest = manifest
        self._store = store
        self._folder = folder
        self._lists: dict[int, bytes] = {}
        self._parts: dict[int, int] = {}
        self._journals: dict[int, int] = {}

    def close(self) -> None:
        """Let go of the files."""
        for descriptor in (*self._parts.values(), *self._journals.values()):
            os.close(descriptor)
        self._parts, self._journals = {}, {}

    def kept_list(self, number: int) -> bytes | None:
        """The piece list of a file where it needs no peer: a small file has none, an earlier life may have kept it."""
        file = self.manifest.files[number]
        if not file.pieces:
            return bytes.fromhex(file.blake3) if file.size else b""
        with contextlib.suppress(FileNotFoundError):
            kept = (self._folder / f"{number}.list").read_bytes()
            if piece_root(kept) == file.pieces and len(kept) == HASH_BYTES * pieces_of(file.size):
                return kept
        return None

    def open_file(self, number: int, piece_list: bytes) -> tuple[int, ...]:
        """Take a file's piece list, whose root holds; the pieces that are missing, each claimed one hashed again."""
        file = self.manifest.files[number]
        assert len(piece_list) == HASH_BYTES * pieces_of(file.size)
        self._lists[number] = piece_list
        if not _journal(self._folder, number).exists():
            return ()  # taken over from another model
        with disk_room(file.path):
            if file.pieces:
                (self._folder / f"{number}.list").write_bytes(piece_list)
            part = self._parts[number] = os.open(_part(self._folder, number), os.O_RDWR | os.O_CLOEXEC)
            journal = self._journals[number] = os.open(_journal(self._folder, number), os.O_RDWR | os.O_CLOEXEC)
        claimed = os.pread(journal, pieces_of(file.size), 0)
        buffer = bytearray(PIECE_BYTES)
        missing = []
        for piece in range(pieces_of(file.size)):
            if claimed[piece : piece + 1] == _WRITTEN:
                view = memoryview(buffer)[: piece_size(file.size, piece)]
                if os.preadv(part, [view], piece * PIECE_BYTES) == len(view) and self.is_right(number, piece, view):
                    continue
            missing.append(piece)
        return tuple(missing)

    def size_of(self, number: int, piece: int) -> int:
        """Bytes of a piece."""
        return piece_size(self.manifest.files[number].size, piece)

    def is_right(self, number: int, piece: int, content: bytes | bytearray | memoryview) -> bool:
        """Whether these bytes are the piece."""
        expected = self._lists[number][piece * HASH_BYTES : (piece + 1) * HASH_BYTES]
        return len(content) == self.size_of(number, piece) and blake3(content).digest() == expected

    def write(self, number: int, piece: int, content: bytes | bytearray | memoryview) -> None:
        """Put a piece that ``is_right`` in its place, then note it. Raises StoreFull."""
        with disk_room(self.manifest.files[number].path):
            rest, position = memoryview(content), piece * PIECE_BYTES
            while rest:
                written = os.pwrite(self._parts[number], rest, position)
                rest, position = rest[written:], position + written
            os.pwrite(self._journals[number], _WRITTEN, piece)

    def finish(self) -> ModelId:
        """Hash every file as a whole, put all in place and make the model visible; the folder goes.

        Raises CorruptModel if the pieces are those of the manifest and the file is not: then the manifest contradicts
        itself, and no source can help.
        """
        for number, file in enumerate(self.manifest.files):
            with _part(self._folder, number).open("rb") as part:
                whole = hash_stream(part, file.size) == (file.size, file.blake3)
                if whole and file.pieces and number not in self._parts:  # taken over: no piece of it was looked at
                    part.seek(0)
                    whole = piece_root(list_of(part)) == file.pieces
                if not whole:
                    shutil.rmtree(self._folder)
                    raise CorruptModel(
                        f"{self.manifest.name}: every piece of {file.path} is what the manifest names, the file is "
                        "not; whoever made this manifest is at fault, no source"
                    )
                if number in self._parts:
                    os.fsync(part.fileno())
                    os.fchmod(part.fileno(), 0o444)
        self.close()
        with self._store.changing(), disk_room(self.manifest.name):
            for number, file in enumerate(self.manifest.files):
                _part(self._folder, number).replace(self._store.file_path(file))
                self._store.keep_piece_list(file, self._lists[number])
            mark = pulled_mark(self._store, self.manifest.model_id())
            mark.parent.mkdir(exist_ok=True)
            mark.touch()
            model_id = self._store.add_manifest(self.manifest)
            shutil.rmtree(self._folder)
        return model_id


def was_pulled(store: ModelStore, model_id: str) -> bool:
    """Whether a stored model came from peers: then it may be given on."""
    return pulled_mark(store, model_id).exists()
