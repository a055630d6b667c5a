"""Files by the piece: hashes of the whole, of each piece, and of the list of pieces.

Law: a file is the row of its pieces of ``PIECE_BYTES``, the last one shorter. Its piece list is the BLAKE3 hash of
each, in order; a file's *piece root* is the hash of that list in BLAKE3's derive-key mode, under a context of its own,
so that no list can be taken for a file or a piece. The manifest names the root of every file of more than one piece; of
any other, the list is the file's own hash, or nothing. So the manifest's hash alone fixes what every piece must be, and
a wrong one is known for what it is by whoever holds that hash, before a byte of it is used.

BLAKE3's own tree would give the same from the file's hash alone, as Bao does, but the Python package does not reveal
the values inside the tree, and Python itself is far too slow for them.
"""

import contextlib
import errno
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from blake3 import blake3

from node.worker.errors import BadDescription, StoreFull
from node.worker.limits import MEBIBYTE

PIECE_BYTES = MEBIBYTE
"""What travels and is checked at a time: a corrupt byte costs a megabyte, and the list of a 64 GiB file stays 2 MiB."""
HASH_BYTES = 32
READ_BYTES = 4 * MEBIBYTE
_LIST_CONTEXT = "mercat model files: the list of a file's piece hashes"


def pieces_of(size: int) -> int:
    """How many pieces a file of so many bytes has."""
    return -(-size // PIECE_BYTES)


def piece_size(size: int, piece: int) -> int:
    """Bytes of one piece of a file of `size` bytes; `piece` is below ``pieces_of(size)``."""
    return min(PIECE_BYTES, size - piece * PIECE_BYTES)


def piece_root(piece_list: bytes) -> str:
    """What a manifest names a piece list by, in hexadecimal."""
    return blake3(piece_list, derive_key_context=_LIST_CONTEXT).hexdigest()


class PieceHasher:
    """Takes a stream in blocks of any size and makes its hash and its piece list in one pass."""

    def __init__(self) -> None:
        self.size = 0
        self._whole = blake3()
        self._piece = blake3()
        self._room = PIECE_BYTES
        self._list: list[bytes] = []

    def update(self, block: bytes) -> None:
        """The next bytes of the stream."""
        self._whole.update(block)
        self.size += len(block)
        rest = memoryview(block)
        while rest:
            part, rest = rest[: self._room], rest[self._room :]
            self._piece.update(part)
            self._room -= len(part)
            if self._room == 0:
                self._list.append(self._piece.digest())
                self._piece, self._room = blake3(), PIECE_BYTES

    def hexdigest(self) -> str:
        """Hash of the whole."""
        return self._whole.hexdigest()

    def piece_list(self) -> bytes:
        """Hashes of all pieces so far, one after the other."""
        last = [self._piece.digest()] if self._room < PIECE_BYTES else []
        return b"".join(self._list + last)


def hash_stream(stream: IO[bytes], size_max: int) -> tuple[int, str]:
    """Size and BLAKE3 hash of a stream. Raises BadDescription over `size_max` bytes."""
    hasher, size = blake3(), 0
    while block := stream.read(READ_BYTES):
        size += len(block)
        _check_size(size, size_max)
        hasher.update(block)
    return size, hasher.hexdigest()


def copy_stream(stream: IO[bytes], copy: IO[bytes], size_max: int) -> PieceHasher:
    """Copy a stream and hash it on the way. Raises BadDescription over `size_max` bytes."""
    hasher = PieceHasher()
    while block := stream.read(READ_BYTES):
        hasher.update(block)
        _check_size(hasher.size, size_max)
        copy.write(block)
    return hasher


def list_of(stream: IO[bytes]) -> bytes:
    """The piece list of a file."""
    hasher = PieceHasher()
    while block := stream.read(READ_BYTES):
        hasher.update(block)
    return hasher.piece_list()


def _check_size(size: int, size_max: int) -> None:
    if size > size_max:
        raise BadDescription(f"a file is larger than the {size_max} bytes it may have")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal: what package indexes pin."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def disk_room(what: str) -> Iterator[None]:
    """Turns what the system says when nothing more can be written into StoreFull."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreFull(f"{what} can't be stored: {error.strerror}") from None
        raise
