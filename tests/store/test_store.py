"""The store: what one commit holds, what survives a reopening, and what damage or misuse is refused."""

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.store.database import Store
from node.store.errors import (
    BlockOutOfOrder,
    DiskFull,
    StoreCorrupt,
    StoreError,
    StoreForeign,
    StoreLocked,
    StoreTooNew,
    StoreUnusable,
)
from node.store.schema import table_name
from protocol.ledger.state import LedgerState
from protocol.messages.effects import Delete, Put, Table
from protocol.primitives.codec import encode
from protocol.primitives.units import Height
from tests.ledger.world import make_genesis
from tests.store.chain import Chain


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


@pytest.fixture
def chain() -> Chain:
    return Chain()


@pytest.fixture
def store(path: Path, chain: Chain) -> Iterator[Store]:
    opened = Store.open(path, chain.ledger.genesis)
    yield opened
    opened.close()


def test_a_new_store_is_its_owners_alone_also_in_an_open_directory(path: Path, store: Store) -> None:
    """It holds prompts and answers; its directory may be one that somebody made for everybody."""
    found = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert path.name in found
    assert set(found.values()) == {0o600}, found


def test_a_new_store_holds_the_genesis(store: Store, chain: Chain) -> None:
    assert store.height() == 0
    assert store.tip() is None
    assert store.load_state().tip == chain.ledger.state.tip
    assert store.load_rows() == list(chain.ledger.state.rows())


def test_blocks_and_state_survive_a_reopening(path: Path, store: Store, chain: Chain) -> None:
    commits = [chain.next(2) for _ in range(3)]
    store.commit(commits[:2])
    store.commit(commits[2:])
    store.close()
    again = Store.open(path, chain.ledger.genesis)
    assert again.height() == 3
    assert again.tip() == commits[2].decided
    assert again.decided_block(Height(2)) == commits[1].decided
    assert again.decided_block(Height(0)) is None
    assert again.decided_block(Height(4)) is None
    state = again.load_state()
    assert (state.tip_hash, list(state.rows())) == (chain.ledger.state.tip_hash, list(chain.ledger.state.rows()))
    assert again.check().supply() == chain.ledger.state.supply()
    again.close()


def test_blocks_are_handed_out_up_to_a_size_and_a_count(store: Store, chain: Chain) -> None:
    commits = [chain.next() for _ in range(5)]
    store.commit(commits)
    size = len(encode(commits[1].decided))
    assert store.decided_blocks(Height(2), 10**6, 3) == [commit.decided for commit in commits[1:4]]
    assert store.decided_blocks(Height(2), 2 * size + size // 2, 16) == [commit.decided for commit in commits[1:3]]
    assert store.decided_blocks(Height(2), 1, 16) == [commits[1].decided]
    assert store.decided_blocks(Height(6), 10**6, 16) == []


@pytest.mark.parametrize("table", list(Table), ids=lambda table: table.name)
def test_every_table_keeps_replaces_and_forgets_rows(store: Store, table: Table) -> None:
    store.commit([Put(table, b"b", b"1"), Put(table, b"a", b"2"), Put(table, b"c", b"3")])
    store.commit([Put(table, b"b", b"4"), Delete(table, b"c"), Delete(table, b"unknown")])
    assert store.load_table(table) == [(b"a", b"2"), (b"b", b"4")]
    assert store.get(table, b"b") == b"4"
    assert store.get(table, b"c") is None
    assert store.values_between(table, b"aa", b"z", 1) == [b"4"]
    assert store.values_between(table, b"x", b"z", 1) == []


def test_within_one_commit_the_last_write_to_a_key_counts(store: Store) -> None:
    put, delete = Put(Table.JOB, b"k", b"1"), Delete(Table.JOB, b"k")
    store.commit([put, delete])
    assert store.get(Table.JOB, b"k") is None
    store.commit([delete, put, Put(Table.JOB, b"k", b"2")])
    assert store.get(Table.JOB, b"k") == b"2"


def test_a_block_ends_the_journal_of_its_height_and_nothing_written_after_it(store: Store, chain: Chain) -> None:
    store.commit([Put(Table.CONSENSUS_BODY, b"old", b"1"), Put(Table.SELLER_LANE, b"lane", b"kept")])
    store.commit(
        [
            Put(Table.CONSENSUS_CERTIFICATE, b"same batch", b"2"),
            chain.next(),
            Put(Table.CONSENSUS_CERTIFICATE, b"next height", b"3"),
        ]
    )
    assert store.load_table(Table.CONSENSUS_BODY) == []
    assert store.load_table(Table.CONSENSUS_CERTIFICATE) == [(b"next height", b"3")]
    assert store.get(Table.SELLER_LANE, b"lane") == b"kept"


def test_a_block_out_of_order_is_refused_with_everything_beside_it(store: Store, chain: Chain) -> None:
    first, second, third = (chain.next() for _ in range(3))
    store.commit([first])
    for wrong in (first, third):
        with pytest.raises(BlockOutOfOrder) as caught:
            store.commit([Put(Table.JOB, b"k", b"v"), wrong])
        assert (caught.value.expected, caught.value.got) == (2, wrong.height)
    assert store.get(Table.JOB, b"k") is None
    store.commit([second])
    assert store.height() == 2


def test_a_full_disk_is_named_writes_nothing_and_loses_nothing(store: Store, chain: Chain) -> None:
    store.commit([chain.next(), Put(Table.JOB, b"before", b"1")])
    connection = store.database.conn
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")
    block = chain.next(50)
    with pytest.raises(DiskFull, match="Free some space"):
        store.commit([Put(Table.JOB, b"beside", b"2"), block])
    assert (store.height(), store.get(Table.JOB, b"beside"), store.get(Table.JOB, b"before")) == (1, None, b"1")
    store.check()
    connection.execute("PRAGMA max_page_count=1000000")
    store.commit([block])
    assert store.check().height == 2


def damage(path: Path, place: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(content)


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path, chain: Chain) -> None:
    path.write_bytes(b"something else entirely " * 500)
    with pytest.raises(StoreCorrupt, match="damaged"):
        Store.open(path, chain.ledger.genesis)
    assert path.read_bytes().startswith(b"something else")


def test_a_file_with_overwritten_pages_is_refused(path: Path, store: Store, chain: Chain) -> None:
    store.commit([chain.next(20)])
    store.close()
    size = path.stat().st_size
    damage(path, 4096, b"\xa5" * (size - 4096))
    with pytest.raises(StoreCorrupt):
        Store.open(path, chain.ledger.genesis).load_state()


@pytest.mark.parametrize("what", ["block", "certificate"])
def test_a_changed_bit_in_a_stored_block_is_noticed_when_it_is_read(
    path: Path, store: Store, chain: Chain, what: str
) -> None:
    commit = chain.next(5)
    store.commit([commit])
    store.close()
    wanted = commit.decided.block if what == "block" else encode(commit.decided.certificate)
    content = path.read_bytes()
    place = content.index(wanted[100:200]) + 50
    damage(path, place, bytes((content[place] ^ 1,)))
    again = Store.open(path, chain.ledger.genesis)
    with pytest.raises(StoreCorrupt, match="block 1"):
        again.decided_block(Height(1))
    with pytest.raises(StoreCorrupt):
        again.load_state()
    again.close()


def test_a_state_row_that_was_changed_by_hand_is_noticed_at_load(path: Path, store: Store, chain: Chain) -> None:
    store.commit([chain.next()])
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM state WHERE key = (SELECT min(key) FROM state)")
    connection.close()
    again = Store.open(path, chain.ledger.genesis)
    with pytest.raises(StoreCorrupt, match="state root"):
        again.load_state()
    again.close()


def test_the_check_finds_a_missing_block(path: Path, store: Store, chain: Chain) -> None:
    store.commit([chain.next(), chain.next()])
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM blocks WHERE height = 1")
    connection.close()
    again = Store.open(path, chain.ledger.genesis)
    again.load_state()
    with pytest.raises(StoreCorrupt, match="block 1 is missing"):
        again.check()
    again.close()


def test_another_networks_store_is_refused(path: Path, store: Store) -> None:
    store.close()
    with pytest.raises(StoreForeign):
        Store.open(path, make_genesis(balance=7))


def test_a_store_of_a_newer_version_is_refused(path: Path, store: Store, chain: Chain) -> None:
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('store', 'step_99', 'later')"
        )
    connection.close()
    with pytest.raises(StoreTooNew, match="step_99"):
        Store.open(path, chain.ledger.genesis)


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path, chain: Chain) -> None:
    with pytest.raises(StoreUnusable, match="nowhere"):
        Store.open(tmp_path / "nowhere" / "store.sqlite", chain.ledger.genesis)


def test_one_process_cannot_open_the_store_twice(path: Path, store: Store, chain: Chain) -> None:
    with pytest.raises(StoreLocked, match="another process"):
        Store.open(path, chain.ledger.genesis)
    store.commit([chain.next()])


def test_a_second_process_is_kept_out_until_the_first_is_gone(path: Path, store: Store, chain: Chain) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom node.store.database import Store\n"
        "from tests.ledger.world import make_genesis\n"
        "Store.open(Path(sys.argv[1]), make_genesis()).close()\n"
    )

    def attempt() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)

    refused = attempt()
    assert refused.returncode != 0
    assert "StoreLocked" in refused.stderr
    store.close()
    assert attempt().returncode == 0


def test_threads_share_the_store(store: Store, chain: Chain) -> None:
    problems: list[BaseException] = []

    def write(name: bytes) -> None:
        try:
            for number in range(20):
                store.commit([Put(Table.JOB, name + bytes((number,)), name)])
                store.load_table(Table.JOB)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=write, args=(bytes((65 + index,)),)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(store.load_table(Table.JOB)) == 80


def test_every_effect_table_has_a_table_and_every_commit_a_full_sync(store: Store) -> None:
    names = store.database.table_names()
    assert {table_name(table) for table in Table} <= set(names)
    assert store.database.conn.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert store.database.conn.execute("PRAGMA synchronous").fetchone()[0] == 2


def test_every_error_says_what_to_do(path: Path) -> None:
    for error in (DiskFull(path), StoreCorrupt(path, "x"), StoreLocked(path), StoreUnusable(path, "x")):
        assert isinstance(error, StoreError)
        assert str(path) in str(error)
        assert error.remedy in str(error)


def test_rows_rebuild_the_state_from_any_order(store: Store, chain: Chain) -> None:
    store.commit([chain.next(), chain.next()])
    rows = store.load_rows()
    rebuilt = LedgerState.from_rows(chain.ledger.genesis, rows[::-1], chain.ledger.state.tip)
    assert rebuilt.tip_hash == chain.ledger.state.tip_hash
