"""Rows on disk before they are in a table: nothing promised is lost, nothing is applied twice, damage shows."""

import errno
import os
import random
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.store import database, row_journal
from node.store.database import Store
from node.store.errors import DiskFull, StoreCorrupt, StoreUnusable
from node.store.row_journal import RowJournal
from protocol.messages.effects import Delete, Put, Table
from protocol.primitives.codec import encode
from tests.ledger.world import make_genesis
from tests.store.chain import Chain

GENESIS = make_genesis()
LANE = Table.SELLER_LANE


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "live").mkdir()
    opened = Store.open(tmp_path / "live" / "store.sqlite", GENESIS)
    yield opened
    opened.close()


def left_behind(store: Store, name: str = "left") -> Path:
    """The files as a process that is killed now would leave them."""
    folder = store.path.parent.parent / name
    shutil.copytree(store.path.parent, folder)
    return folder / store.path.name


def segment(path: Path, turn: int = 0) -> Path:
    return path.with_name(f"{path.name}.rows-{turn}")


def rows(path: Path, table: Table = LANE) -> dict[bytes, bytes]:
    opened = Store.open(path, GENESIS)
    try:
        return dict(opened.load_table(table))
    finally:
        opened.close()


def put(number: int, size: int = 20) -> Put:
    return Put(LANE, b"key %d" % number, b"%d" % number * size)


def test_rows_are_seen_by_every_reader_before_they_are_folded(store: Store) -> None:
    store.commit([put(2), put(1)])
    store.commit([Delete(LANE, put(2).key), put(3)])
    assert store.get(LANE, put(1).key) == put(1).value
    assert store.get(LANE, put(2).key) is None
    assert store.newest(LANE, 1) == [put(3).value]
    store.commit([put(4)])
    assert store.count(LANE) == 3
    store.commit([Delete(LANE, put(4).key)])
    assert [key for key, _ in store.load_table(LANE)] == [put(1).key, put(3).key]
    assert store.get(LANE, put(4).key) is None


def test_of_two_rows_in_different_segments_the_newer_one_counts(store: Store) -> None:
    for number in (1, 2):  # they fill the first segment
        store.commit([put(number, 5), put(number + 7, row_journal.SEGMENT_BYTES // 3)])
    store.commit([put(1, 6), put(3, row_journal.SEGMENT_BYTES // 3)])
    assert [segment.offset > 0 for segment in store._journal._segments] == [True, True]
    assert store.get(LANE, put(1).key) == put(1, 6).value
    assert rows(left_behind(store))[put(1).key] == put(1, 6).value
    assert dict(store.load_table(LANE))[put(1).key] == put(1, 6).value


def test_rows_keep_the_order_in_which_they_came_whatever_their_keys(store: Store) -> None:
    for number in (5, 1, 9, 3):
        store.commit([put(number)])
    store.commit([put(5, 7)])
    assert store.oldest(LANE, 9) == [put(5, 7).value, put(1).value, put(9).value, put(3).value]


def test_a_commit_of_rows_writes_no_page_of_the_database(store: Store) -> None:
    log = store.path.with_name(store.path.name + "-wal")
    before = (log.stat().st_size, log.read_bytes())
    store.commit([put(1)])
    assert (log.stat().st_size, log.read_bytes()) == before


def test_a_killed_process_leaves_every_committed_row(store: Store) -> None:
    for number in range(100):
        store.commit([put(number)])
    assert rows(left_behind(store)) == {put(number).key: put(number).value for number in range(100)}


def test_a_write_that_was_cut_short_is_gone_and_the_one_before_it_is_there(store: Store) -> None:
    store.commit([put(1)])
    whole = len(segment(store.path).read_bytes().rstrip(b"\0"))
    store.commit([put(2)])
    end = len(segment(store.path).read_bytes().rstrip(b"\0"))
    for kept in range(whole, end, 3):
        path = left_behind(store, f"cut at {kept}")
        content = bytearray(segment(path).read_bytes())
        content[kept:] = bytes(len(content) - kept)
        segment(path).write_bytes(content)
        assert rows(path) == {put(1).key: put(1).value}


@pytest.mark.parametrize("seed", range(8))
def test_of_a_write_that_lost_power_any_sectors_may_have_come_to_the_disk(store: Store, seed: int) -> None:
    dice = random.Random(seed)
    for number in range(40):  # older records, below those to come
        store.commit([put(number, dice.randrange(90))])
    store._fold()
    expected = dict(store.load_table(LANE))
    turn = store._journal._turn
    for number in range(40, 50):
        effect = put(number, dice.randrange(900))
        path = left_behind(store, str(number))
        content = bytearray(segment(path, turn).read_bytes())
        store.commit([effect])
        written = segment(store.path, turn).read_bytes()
        for sector in range(0, len(content), 512):
            if dice.random() < 0.5:
                content[sector : sector + 512] = written[sector : sector + 512]
        whole = content == written
        segment(path, turn).write_bytes(content)
        assert rows(path) == ({**expected, effect.key: effect.value} if whole else expected)
        expected[effect.key] = effect.value


def test_damage_before_the_last_record_is_told_and_not_taken_for_a_write_cut_short(store: Store) -> None:
    for number in range(3):
        store.commit([put(number)])
    end = len(segment(store.path).read_bytes().rstrip(b"\0")) // 3
    for place in range(0, end, 7):
        path = left_behind(store, f"damaged at {place}")
        content = bytearray(segment(path).read_bytes())
        content[place] ^= 1
        segment(path).write_bytes(content)
        with pytest.raises(StoreCorrupt, match="is damaged before record"):
            Store.open(path, GENESIS)


def test_a_missing_journal_is_told_unless_the_store_was_closed_in_order(store: Store) -> None:
    store.commit([put(1)])
    path = left_behind(store)
    os.truncate(segment(path), row_journal.SEGMENT_BYTES // 2)
    with pytest.raises(StoreCorrupt, match="rows-0 is missing or cut"):
        Store.open(path, GENESIS)
    path = left_behind(store, "without")
    segment(path, 1).unlink()
    with pytest.raises(StoreCorrupt, match="rows-1 is missing or cut"):
        Store.open(path, GENESIS)
    store.close()
    closed = left_behind(store, "closed")
    segment(closed).unlink()
    segment(closed, 1).unlink()
    assert rows(closed) == {put(1).key: put(1).value}


def test_a_record_that_went_missing_between_the_segments_is_told(store: Store) -> None:
    big = row_journal.SEGMENT_BYTES // 3
    for number in range(4):
        store.commit([put(number, big)])  # the third does not fit into the first segment
    path = left_behind(store)
    content = bytearray(segment(path).read_bytes())
    content[big + 100] ^= 1
    segment(path).write_bytes(content)
    with pytest.raises(StoreCorrupt, match="record 2 is missing before record 3"):
        Store.open(path, GENESIS)


def test_rows_with_no_room_in_the_journal_go_to_their_tables_with_all_that_waited(store: Store) -> None:
    big = row_journal.SEGMENT_BYTES // 3
    expected = {}
    for number in range(20):
        store.commit([put(number, big)])
        expected[put(number).key] = put(number, big).value
    huge = Put(LANE, b"huge", bytes(2 * row_journal.SEGMENT_BYTES))
    store.commit([huge])
    assert not store._journal.holds(LANE)
    assert rows(left_behind(store)) == {**expected, b"huge": huge.value}


def test_an_older_record_behind_a_new_one_is_never_taken_again(store: Store) -> None:
    for number in range(9):
        store.commit([put(number)])
    store._fold()
    store.commit([Delete(LANE, put(number).key) for number in range(9)])
    path = left_behind(store)
    assert rows(path) == {}
    assert rows(path) == {}, "what was folded at the first start came back at the second"


def test_a_strangers_bytes_that_look_like_a_record_are_none(store: Store) -> None:
    store.commit([put(1)])
    content = segment(store.path).read_bytes()
    forged = row_journal._HEADER.pack(content[:4], 7, 4, b"x" * 16) + b"rows"
    store.commit([Put(LANE, b"stranger", forged + content[:200] + forged)])
    assert set(rows(left_behind(store))) == {put(1).key, b"stranger"}


def test_what_a_stranger_has_put_where_the_next_record_belongs_is_none(store: Store) -> None:
    payload = encode([(int(LANE), b"forged", b"x")])
    checksum = blake2b((4).to_bytes(8, "big") + payload, digest_size=16).digest()
    forged = row_journal._HEADER.pack(store._journal._mark, 4, len(payload), checksum) + payload
    end = row_journal._HEADER.size + len(encode([(int(LANE), put(3, 99).key, put(3, 99).value)]))
    before = row_journal._HEADER.size + len(encode([(int(LANE), b"stranger", bytes(256))])) - 256
    stranger = Put(LANE, b"stranger", bytes(end - before) + forged + bytes(256))
    for effect in (stranger, put(2), put(3, 99)):  # the first and the third in one segment, at the same place
        store._fold()
        store.commit([effect])
    assert segment(store.path).read_bytes()[end:].startswith(forged)
    assert set(rows(left_behind(store))) == {b"stranger", put(2).key, put(3).key}


def test_a_start_looks_at_no_record_of_a_strangers_making(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would cost a hash of up to the whole file."""
    own = RowJournal(store.path.with_name("strangers"), bytes(16), 0, expected=False)
    room = row_journal.SEGMENT_BYTES - 200
    places = range(0, room - row_journal._HEADER.size, row_journal._HEADER.size)
    crafted = [row_journal._HEADER.pack(own._mark, 9**9, room - place - 32, bytes(16)) for place in places]
    own.close()
    store.commit([Put(LANE, b"stranger", b"".join(crafted))])
    looked_at: list[int] = []
    checksum = RowJournal._checksum

    def counted(journal: RowJournal, number: int, payload: bytes) -> bytes:
        looked_at.append(number)
        return checksum(journal, number, payload)

    path = left_behind(store)
    monkeypatch.setattr(RowJournal, "_checksum", counted)
    Store.open(path, GENESIS).close()
    assert set(looked_at) == {1}


def test_a_block_ends_its_heights_journal_though_it_was_never_folded(store: Store) -> None:
    store.commit([Put(Table.CONSENSUS_BODY, b"body", b"x"), put(1)])
    store.commit([Chain(GENESIS).next(1), put(2)])
    assert store.load_table(Table.CONSENSUS_BODY) == []
    path = left_behind(store)
    assert set(rows(path)) == {put(1).key, put(2).key}
    assert rows(path, Table.CONSENSUS_BODY) == {}


@pytest.mark.parametrize(("number", "raised"), [(28, DiskFull), (5, StoreUnusable)])
def test_after_a_failed_sync_nothing_is_promised_any_more(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int, raised: type[Exception]
) -> None:
    store.commit([put(1)])

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        with pytest.raises(raised):
            store.commit([put(2)])
    with pytest.raises(StoreUnusable, match="an earlier write failed"):
        store.commit([put(3)])
    assert store.get(LANE, put(1).key) == put(1).value
    assert store.get(LANE, put(2).key) is None


def test_a_full_disk_at_folding_loses_nothing(store: Store) -> None:
    store.commit([put(number, 2_000) for number in range(100)])
    store.database.execute("PRAGMA max_page_count=1")
    with pytest.raises(DiskFull):
        store.checkpoint() if store.wants_checkpoint else store._fold()
    assert store.get(LANE, put(99).key) == put(99, 2_000).value
    assert len(rows(left_behind(store))) == 100
    store.database.execute("PRAGMA max_page_count=1000000")


def short_writes(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """A disk with so many bytes left: the write that does not fit ends early, and the next one fails."""
    left, write = [room], os.pwrite

    def limited(descriptor: int, content: bytes, offset: int) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(descriptor, content[: left[0]], offset)
        left[0] -= written
        return written

    monkeypatch.setattr(os, "pwrite", limited)


def test_a_write_that_the_disk_cut_short_is_not_taken_for_a_whole_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.commit([put(1)])
    with monkeypatch.context() as full:
        short_writes(full, 60)
        with pytest.raises(DiskFull):
            store.commit([put(2)])
    assert rows(left_behind(store)) == {put(1).key: put(1).value}


def test_a_journal_for_which_there_is_no_room_keeps_the_store_from_opening_and_not_its_next_start_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store.sqlite"
    with monkeypatch.context() as full:
        short_writes(full, row_journal.SEGMENT_BYTES + 1_000)
        with pytest.raises(DiskFull):
            Store.open(path, GENESIS)
    opened = Store.open(path, GENESIS)
    opened.commit([put(1)])
    shutil.copytree(tmp_path, tmp_path.with_name("killed"))
    opened.close()
    assert rows(tmp_path.with_name("killed") / path.name) == {put(1).key: put(1).value}


def test_the_names_of_the_journals_files_are_on_disk_before_rows_are_promised_to_be_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync = os.fsync

    def noted(descriptor: int) -> None:
        sync(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            synced.extend(sorted(name for name in os.listdir(descriptor) if ".rows-" in name))
        else:
            synced.append("content of " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Store, "_fold", lambda *_, **__: synced.append("promised"))
    path = tmp_path / "store.sqlite"
    Store.open(path, GENESIS).close()
    names = [segment(path).name, segment(path, 1).name]
    assert synced[: synced.index("promised")] == [*(f"content of {name}" for name in names), *names]
    assert {stat.S_IMODE(segment(path, turn).stat().st_mode) for turn in (0, 1)} == {0o600}


def while_folding(store: Store, monkeypatch: pytest.MonkeyPatch, effect: Put) -> list[bool]:
    """Append a row in the middle of the next folding; gives whether there was room for it."""
    appended: list[bool] = []
    write = database._write

    def writing(connection: sqlite3.Connection, batch: database._Batch) -> int:
        if not appended:
            appended.append(store._journal.append([effect]))
        return write(connection, batch)

    monkeypatch.setattr(database, "_write", writing)
    return appended


def test_a_row_that_comes_while_an_older_one_of_its_key_is_folded_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.commit([put(1, 5), Put(Table.CONSENSUS_BODY, b"body", b"x")])
    appended = while_folding(store, monkeypatch, put(1, 6))
    store.commit([Chain(GENESIS).next(1)])
    assert appended == [True]
    assert store.get(LANE, put(1).key) == put(1, 6).value
    assert store.load_table(Table.CONSENSUS_BODY) == [], "a row that went with its height came back"
    assert rows(left_behind(store)) == {put(1).key: put(1, 6).value}


def test_nothing_comes_between_the_rows_of_both_segments_while_they_are_folded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.commit([put(1, row_journal.SEGMENT_BYTES // 2)])
    store.commit([put(2, row_journal.SEGMENT_BYTES // 2)])
    store.commit([Put(Table.CONSENSUS_BODY, b"body", b"x")])
    appended = while_folding(store, monkeypatch, put(3))
    store.commit([Chain(GENESIS).next(1)])
    assert appended == [False]
    store.commit([put(3)])
    assert store.load_table(Table.CONSENSUS_BODY) == [], "a row that went with its height came back"
    assert set(rows(left_behind(store))) == {put(1).key, put(2).key, put(3).key}


def test_whoever_writes_to_a_closed_store_is_told_and_writes_into_no_other_file(store: Store, tmp_path: Path) -> None:
    store.commit([put(1)])
    store.close()
    with (tmp_path / "another").open("w+b") as another:
        with pytest.raises(StoreUnusable, match="closed"):
            store.commit([put(2)])
        assert another.read() == b""


def test_a_store_that_did_not_open_leaves_no_file_open(store: Store) -> None:
    store.commit([put(number) for number in range(3)])
    store.commit([put(4)])
    path = left_behind(store)
    content = bytearray(segment(path).read_bytes())
    content[40] ^= 1
    segment(path).write_bytes(content)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreCorrupt, match=r"live|left"):
        Store.open(path, GENESIS)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_row_whose_write_failed_never_comes_back_over_a_newer_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    store.commit([put(1, 5)])
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        with pytest.raises(StoreUnusable):
            store.commit([put(1, 6)])  # its record stands in the file all the same
    store.commit([Chain(GENESIS).next(1), put(1, 7)])
    path = left_behind(store)
    assert rows(path) == {put(1, 7).key: put(1, 7).value}


Step = tuple[str, int, int]
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "delete", "fold", "reopen", "kill"]), st.integers(0, 5), st.integers(1, 4)
    ),
    max_size=40,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_STEPS)
def test_whatever_is_written_folded_closed_and_killed_the_rows_are_those_of_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Step]
) -> None:
    folder = tmp_path_factory.mktemp("property")
    path, model = folder / "0" / "store.sqlite", dict[bytes, bytes]()
    path.parent.mkdir()
    store = Store.open(path, GENESIS)
    for turn, (step, key, size) in enumerate(steps):
        match step:
            case "put":
                effect = put(key, size * 40_000)
                store.commit([effect])
                model[effect.key] = effect.value
            case "delete":
                store.commit([Delete(LANE, put(key).key)])
                model.pop(put(key).key, None)
            case "fold":
                store._fold()
            case "reopen":
                store.close()
                store = Store.open(store.path, GENESIS)
            case _:
                left = folder / str(turn + 1)
                shutil.copytree(store.path.parent, left)
                store.close()
                store = Store.open(left / "store.sqlite", GENESIS)
        assert {put(key).key: store.get(LANE, put(key).key) for key in range(6)} == {
            put(key).key: model.get(put(key).key) for key in range(6)
        }
    assert dict(store.load_table(LANE)) == model
    store.close()
