"""Archives: what was written comes back, and a damaged or cut file is named where it is damaged."""

import io
from pathlib import Path

import pytest

from node.store.archive import (
    ArchiveCut,
    ArchiveEnd,
    ArchiveHead,
    ArchiveInvalid,
    ArchiveReader,
    stored_blocks,
    write_archive,
)
from node.store.database import Store
from protocol.messages.blocks import DecidedBlock
from protocol.primitives.codec import encode
from protocol.primitives.units import Hash, Height
from tests.store.chain import Chain

PATH = Path("ledger.mercat")


@pytest.fixture(scope="module")
def chain() -> Chain:
    return Chain()


@pytest.fixture(scope="module")
def blocks(chain: Chain) -> tuple[DecidedBlock, ...]:
    return tuple(chain.next(2).decided for _ in range(5))


@pytest.fixture(scope="module")
def content(chain: Chain, blocks: tuple[DecidedBlock, ...]) -> bytes:
    file = io.BytesIO()
    end = write_archive(file, chain.ledger.hash, 1, blocks)
    assert end == ArchiveEnd(Height(5), chain.ledger.state.tip_hash)
    return file.getvalue()


def read(content: bytes) -> list[DecidedBlock]:
    """All blocks of an archive, or its error."""
    return list(ArchiveReader(PATH, io.BytesIO(content)).blocks())


def test_an_archive_gives_its_blocks_back(chain: Chain, blocks: tuple[DecidedBlock, ...], content: bytes) -> None:
    reader = ArchiveReader(PATH, io.BytesIO(content))
    assert reader.head.genesis == chain.ledger.hash
    assert tuple(reader.blocks()) == blocks


def test_a_store_is_written_a_few_blocks_at_a_time_from_any_height(tmp_path: Path) -> None:
    chain = Chain()
    store = Store.open(tmp_path / "ledger.sqlite", chain.ledger.genesis)
    commits = [chain.next() for _ in range(70)]
    store.commit(commits)
    assert [each.certificate.height for each in stored_blocks(store, 3)] == list(range(3, 71))
    assert list(stored_blocks(store, 71)) == []
    store.close()


def test_a_file_cut_anywhere_gives_its_whole_blocks_and_says_that_it_was_cut(
    blocks: tuple[DecidedBlock, ...], content: bytes
) -> None:
    for length in range(0, len(content), 7):
        came: list[DecidedBlock] = []
        with pytest.raises(ArchiveCut, match="cut"):
            came.extend(ArchiveReader(PATH, io.BytesIO(content[:length])).blocks())
        assert tuple(came) == blocks[: len(came)]


def test_a_changed_byte_is_an_error_or_changes_a_block_that_is_checked_later(
    chain: Chain, blocks: tuple[DecidedBlock, ...], content: bytes
) -> None:
    for place in range(0, len(content), 3):
        forged = bytearray(content)
        forged[place] ^= 0x55
        try:
            reader = ArchiveReader(PATH, io.BytesIO(forged))
            came = tuple(reader.blocks())
        except ArchiveInvalid:
            continue
        assert came != blocks or reader.head.genesis != chain.ledger.hash


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"SQLite format 3\0",
        b"\xc6\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff" + b"\x90" * 100,
        b"\xc1",
        encode([1, 2]),
        encode(b"a"),
        encode(encode(ArchiveHead("mercat-archive-9", Hash(bytes(32)), Height(1)))),
    ],
)
def test_another_file_is_refused_at_its_head(value: bytes) -> None:
    with pytest.raises(ArchiveInvalid):
        ArchiveReader(PATH, io.BytesIO(value))


def test_a_length_beyond_a_block_is_refused_before_it_is_read(content: bytes) -> None:
    head = content[: 2 + content[1]]  # a byte string of less than 256 bytes
    huge = b"\xc6" + (64 * 2**20).to_bytes(4, "big")

    class Endless(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            piece = super().read(size)
            if piece:
                return piece
            assert size is not None
            self.taken += size
            return bytes(size)

    file = Endless(head + huge)
    reader = ArchiveReader(PATH, file)
    with pytest.raises(ArchiveInvalid, match="block 1 is damaged"):
        next(reader.blocks())
    assert file.taken < 2**20


def test_blocks_out_of_order_and_values_after_the_end_are_refused(
    chain: Chain, blocks: tuple[DecidedBlock, ...], content: bytes
) -> None:
    file = io.BytesIO()
    write_archive(file, chain.ledger.hash, 1, (blocks[0], blocks[2]))
    with pytest.raises(ArchiveInvalid, match="block 3 stands where block 2 belongs"):
        read(file.getvalue())
    with pytest.raises(ArchiveInvalid, match="after its end"):
        read(content + b"\xc0")
