"""Archives of the ledger: a file with all decided blocks, and the links between sets of authorities in a store.

Law: an archive is a stream of MessagePack values: a head that names format and network, each decided block as a byte
string, and an end with the number of blocks and the last one's hash. Lengths are checked before anything is read, and
no more than one block is in memory. A file without its end was cut, and is read up to its last whole block.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from node.store.database import Store
from protocol.messages.blocks import Block, DecidedBlock, Succession, header_hash
from protocol.messages.effects import Table
from protocol.primitives.codec import Message, decode, encode
from protocol.primitives.errors import MalformedMessage, UserError
from protocol.primitives.limits import BLOCK_BYTES_MAX, FRAME_BYTES_MAX
from protocol.primitives.units import BlockHash, BlockHashField, Hash, HashField, Height, HeightField

FORMAT = "mercat-archive-1"
_DECIDED_BYTES_MAX = BLOCK_BYTES_MAX + 16 * 1024
"""A block and its certificate: thirty signatures are 2 KiB."""
_HEAD_BYTES_MAX = 1024
_BLOCKS_AT_ONCE_MAX = 32
_LENGTH_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
"""MessagePack's three kinds of byte strings, by how many bytes their length takes."""


class ArchiveInvalid(UserError):
    """A file that is no archive, or one that is damaged. The text says where."""


class ArchiveCut(ArchiveInvalid):
    """The file ends before its end; what came before it is whole."""


class ArchiveHead(Message, frozen=True):
    """What the file is."""

    format: str
    genesis: HashField
    first_height: HeightField


class ArchiveEnd(Message, frozen=True):
    """What the file held, as its last value."""

    blocks: HeightField
    tip_hash: BlockHashField


def write_archive(file: BinaryIO, genesis: Hash, first_height: int, blocks: Iterable[DecidedBlock]) -> ArchiveEnd:
    """Write blocks in their order; the caller moves the file to its name when this has returned."""
    file.write(encode(encode(ArchiveHead(FORMAT, genesis, Height(first_height)))))
    count, tip_hash = 0, BlockHash(bytes(32))
    for decided in blocks:
        file.write(encode(encode(decided)))
        assert decided.certificate.block_hash is not None
        count, tip_hash = count + 1, decided.certificate.block_hash
    end = ArchiveEnd(Height(count), tip_hash)
    file.write(encode(encode(end)))
    return end


class ArchiveReader:
    """Reads one archive once, from its beginning."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """Reads the head. Raises ``ArchiveInvalid``."""
        self._path = path
        self._file = file
        self._place = "its head"
        try:
            self.head = decode(self._value(), ArchiveHead)
        except ArchiveCut:
            raise
        except (ArchiveInvalid, MalformedMessage):
            raise ArchiveInvalid(f"{path} is not an archive of a ledger") from None
        if self.head.format != FORMAT:
            raise ArchiveInvalid(f"{path} has format {self.head.format!r}, this version reads {FORMAT!r}")

    def blocks(self) -> Iterator[DecidedBlock]:
        """All blocks in their order. Raises ``ArchiveInvalid``, or ``ArchiveCut`` after the last whole block."""
        count, tip_hash = 0, BlockHash(bytes(32))
        while True:
            height = self.head.first_height + count
            self._place = f"block {height}"
            value = self._value()
            if len(value) <= _HEAD_BYTES_MAX and _is_end(value, count, tip_hash):
                if self._file.read(1):
                    raise ArchiveInvalid(f"{self._path} goes on after its end")
                return
            try:
                decided = decode(value, DecidedBlock)
                header = decode(decided.block, Block).header
            except MalformedMessage as error:
                raise ArchiveInvalid(f"{self._path}: block {height} is damaged: {error}") from None
            if header.height != height:
                raise ArchiveInvalid(f"{self._path}: block {header.height} stands where block {height} belongs")
            count, tip_hash = count + 1, header_hash(header)
            yield decided

    def _value(self) -> bytes:
        """The next byte string; its length is judged before it is read."""
        marker = self._exactly(1)[0]
        if marker not in _LENGTH_BYTES:
            raise ArchiveInvalid(f"{self._path}: {self._place} is damaged: not a byte string")
        length = int.from_bytes(self._exactly(_LENGTH_BYTES[marker]), "big")
        if length > _DECIDED_BYTES_MAX:
            raise ArchiveInvalid(f"{self._path}: {self._place} is damaged: {length} bytes are no block")
        return self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        piece = self._file.read(count)
        if len(piece) < count:
            raise ArchiveCut(f"{self._path} ends inside {self._place}, or before it: it was cut")
        return piece


def _is_end(value: bytes, count: int, tip_hash: BlockHash) -> bool:
    try:
        return decode(value, ArchiveEnd) == ArchiveEnd(Height(count), tip_hash)
    except MalformedMessage:
        return False


def stored_blocks(store: Store, first_height: int) -> Iterator[DecidedBlock]:
    """A store's blocks from a height on, a few at a time."""
    height = Height(first_height)
    while blocks := store.decided_blocks(height, FRAME_BYTES_MAX, _BLOCKS_AT_ONCE_MAX):
        yield from blocks
        height = Height(height + len(blocks))


def succession_rows(store: Store, below: int) -> tuple[Succession, ...]:
    """Every change of who decides that headers below a height name, oldest first."""
    rows = (decode(value, Succession) for _, value in store.load_table(Table.SUCCESSION))
    return tuple(each for each in rows if each.header.height < below)
