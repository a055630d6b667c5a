"""Blocks that are given up, and states that are taken over from snapshots."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from node.store import history
from node.store.archive import succession_rows
from node.store.connection import transaction
from node.store.database import Store
from node.store.history import set_blocks_from
from node.store.snapshot_files import KEPT, SnapshotFiles
from protocol.ledger.errors import StateInvalid
from protocol.ledger.light_chain import follow, trusted_genesis
from protocol.ledger.rows import BOND_PREFIX, Row
from protocol.ledger.snapshots import cut_rows, judge_rows
from protocol.ledger.state import LedgerState
from protocol.messages.blocks import Block, Header
from protocol.messages.effects import CommitBlock, Put, Table
from protocol.messages.genesis import Genesis
from protocol.messages.snapshots import SnapshotManifest
from protocol.primitives.codec import decode
from protocol.primitives.hashing import content_hash
from protocol.primitives.limits import FRAME_BYTES_MAX
from protocol.primitives.units import Hash, Height
from tests.ledger.assembly import Assembly, change
from tests.ledger.world import make_genesis
from tests.store.chain import Chain, commit_of

NOTHING: frozenset[int] = frozenset()


@pytest.fixture
def chain() -> Chain:
    return Chain()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store.sqlite", make_genesis())


def manifest_of(commit: CommitBlock, hashes: tuple[Hash, ...] = (Hash(bytes(32)),) * 2) -> SnapshotManifest:
    header = decode(commit.decided.block, Block).header
    return SnapshotManifest(header, commit.decided.certificate, (), hashes)


# Pruning


def test_pruned_blocks_are_gone_but_for_those_that_are_needed_and_the_rest_is_whole(store: Store, chain: Chain) -> None:
    store.commit([chain.next() for _ in range(10)])
    assert store.blocks_from() == 1
    assert store.prune(Height(7), frozenset({3, 5})) == 4
    assert store.blocks_from() == 7
    assert [height for height in range(1, 11) if store.decided_block(Height(height))] == [3, 5, 7, 8, 9, 10]
    for first, found in ((1, [3]), (3, [3]), (4, [5]), (6, [7, 8, 9, 10])):
        blocks = store.decided_blocks(Height(first), FRAME_BYTES_MAX, 10)
        assert [block.certificate.height for block in blocks] == found
    assert store.check().height == 10
    assert store.prune(Height(5), NOTHING) == 0, "what was promised no more does not come back"
    assert store.blocks_from() == 7
    store.commit([chain.next()])
    assert store.load_state().height == 11
    store.close()


def test_blocks_that_a_killed_process_had_still_to_give_up_go_with_the_next_ones(store: Store, chain: Chain) -> None:
    store.commit([chain.next() for _ in range(10)])
    connection = store.database.conn
    with transaction(connection):
        set_blocks_from(connection, Height(5))  # killed here, before any block went
    assert store.prune(Height(8), frozenset({2})) == 6
    assert [height for height in range(1, 11) if store.decided_block(Height(height))] == [2, 8, 9, 10]
    assert store.prune(Height(9), NOTHING) == 2, "and what is needed no more"
    store.close()


# Taking over a snapshot


def test_a_snapshot_becomes_the_state_and_blocks_go_on_from_it(store: Store, chain: Chain, tmp_path: Path) -> None:
    commits = [chain.next(3) for _ in range(5)]
    rows = list(chain.ledger.state.rows())
    store.commit([commits[0], Put(Table.CONSENSUS_BODY, b"open height", b"1"), Put(Table.JOB, b"job", b"kept")])
    store.install(manifest_of(commits[4]), commits[4].decided, rows, frozenset({1}))
    assert (store.height(), store.blocks_from(), store.tip()) == (5, 5, commits[4].decided)
    assert store.load_rows() == rows
    assert store.decided_block(Height(1)) is not None, "a receipt of ours may need it"
    assert store.load_table(Table.CONSENSUS_BODY) == []
    assert store.get(Table.JOB, b"job") == b"kept"
    state = store.load_state()
    assert (state.tip_hash, state.lattice) == (chain.ledger.state.tip_hash, chain.ledger.state.lattice)
    store.commit([chain.next()])
    store.close()
    again = Store.open(store.path, make_genesis())
    assert again.check().height == 6
    assert again.load_state().checkpoint_root == chain.ledger.state.checkpoint_root
    again.close()


def test_rows_that_waited_when_a_snapshot_was_installed_are_kept_and_the_open_heights_are_gone_for_good(
    store: Store, chain: Chain, tmp_path: Path
) -> None:
    commits = [chain.next(3) for _ in range(2)]
    rows = list(chain.ledger.state.rows())
    store.commit([Put(Table.CONSENSUS_BODY, b"open height", b"1"), Put(Table.JOB, b"job", b"older")])
    store.install(manifest_of(commits[1]), commits[1].decided, rows, NOTHING)
    killed = tmp_path / "killed"
    shutil.copytree(store.path.parent, killed, ignore=shutil.ignore_patterns("killed"))
    assert store.load_table(Table.CONSENSUS_BODY) == []
    store.commit([chain.next(), Put(Table.JOB, b"job", b"newer")])
    store.close()
    for path, job in ((killed / store.path.name, b"older"), (store.path, b"newer")):
        again = Store.open(path, make_genesis())
        assert again.load_table(Table.CONSENSUS_BODY) == []
        assert again.load_table(Table.JOB) == [(b"job", job)]
        again.close()


def test_rows_that_do_not_hold_leave_everything_as_it_was(store: Store, chain: Chain) -> None:
    store.commit([chain.next()])
    before, tip = store.load_rows(), store.tip()
    commits = [chain.next() for _ in range(3)]
    rows = list(chain.ledger.state.rows())
    for wrong in (rows[1:], [*rows, (b"z", b"\xc0")], []):
        with pytest.raises(StateInvalid):
            store.install(manifest_of(commits[2]), commits[2].decided, wrong, NOTHING)
        assert (store.load_rows(), store.tip(), store.blocks_from()) == (before, tip, 1)
        assert "incoming" not in store.database.table_names(), "a lie takes no room"
    store.install(manifest_of(commits[2]), commits[2].decided, rows, NOTHING)
    assert store.check().height == 4
    store.close()


def test_a_snapshot_of_a_block_that_changes_who_decides_keeps_the_change(tmp_path: Path) -> None:
    assembly = Assembly()
    assembly.decide(change(remove=(3,), add=(4,)))
    execution = assembly.include(after_ms=assembly.state.parameters.heartbeat_ms)
    assert execution.header.next_authorities_hash != execution.header.authorities_hash
    commit, rows = commit_of(assembly, execution), list(assembly.state.rows())
    store = Store.open(tmp_path / "store.sqlite", assembly.genesis)
    store.install(manifest_of(commit), commit.decided, rows, NOTHING)
    (link,) = succession_rows(store, execution.header.height + 1)
    trusted = follow(trusted_genesis(assembly.genesis), link)
    assert trusted.following is not None
    assert sorted(record.name for record in trusted.following.records) == assembly.members()
    store.close()


def test_rows_are_not_looked_at_before_their_root_holds(
    store: Store, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = chain.next()
    seen: list[str] = []

    def judge(genesis: Genesis, header: Header, rows: Iterable[Row]) -> LedgerState:
        seen.append("judged")
        return judge_rows(genesis, header, rows)

    monkeypatch.setattr(history, "judge_rows", judge)
    bonds = ((BOND_PREFIX + number.to_bytes(32, "big"), b"bond") for number in range(20_000))
    with pytest.raises(StateInvalid, match="state root"):
        store.install(manifest_of(commit), commit.decided, bonds, NOTHING)
    assert seen == []
    store.install(manifest_of(commit), commit.decided, chain.ledger.state.rows(), NOTHING)
    assert seen == ["judged"]
    store.close()


def test_a_source_shows_the_commit_of_its_beginning_whatever_comes_after(store: Store, chain: Chain) -> None:
    first = chain.next()
    store.commit([first])
    rows = list(chain.ledger.state.rows())
    source = store.state_source()
    store.commit([chain.next(5) for _ in range(3)])
    assert source.tip == first.decided
    assert list(source.rows()) == rows
    source.close()
    store.close()


# Files


@pytest.fixture
def files(tmp_path: Path) -> SnapshotFiles:
    found = SnapshotFiles(tmp_path / "snapshots")
    found.open()
    return found


def write(files: SnapshotFiles, chain: Chain) -> SnapshotManifest:
    commit = chain.next()
    chunks = [commit.decided.block, *cut_rows(chain.ledger.state.rows())]
    files.make(chunks, lambda hashes: manifest_of(commit, hashes))
    made = files.newest(Height(0))
    assert made is not None
    return made


def test_the_newest_snapshots_are_kept_and_served_also_after_a_restart(files: SnapshotFiles, chain: Chain) -> None:
    manifests = [write(files, chain) for _ in range(KEPT + 2)]
    for served in (files, SnapshotFiles(files.folder)):
        served.open()
        assert served.heights == tuple(manifest.header.height for manifest in manifests[-KEPT:])
        assert served.newest(Height(0)) == manifests[-1]
        assert served.newest(manifests[-1].header.height) is None
        newest = manifests[-1]
        for index, wanted in enumerate(newest.chunks):
            assert content_hash(served.chunk(newest.header.height, index)) == wanted
        assert served.chunk(newest.header.height, len(newest.chunks)) == b""
        assert served.chunk(manifests[0].header.height, 0) == b""


def test_a_snapshot_that_was_not_finished_is_not_there_after_a_restart(files: SnapshotFiles, chain: Chain) -> None:
    commit = chain.next()

    def broken(hashes: tuple[Hash, ...]) -> SnapshotManifest:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.make([commit.decided.block, b"rows"], broken)
    again = SnapshotFiles(files.folder)
    again.open()
    assert again.heights == ()
    assert list(files.folder.iterdir()) == []


def test_of_what_was_fetched_only_whole_chunks_count_after_a_restart(files: SnapshotFiles) -> None:
    chunks = [b"block", b"rows 1", b"rows 2", b"rows 3"]
    manifest = manifest_of(Chain().next(), tuple(content_hash(chunk) for chunk in chunks))
    files.begin(manifest)
    for index in (0, 1, 3):
        files.keep_chunk(index, chunks[index])
    (torn,) = files.folder.glob("fetching/*1")
    os.truncate(torn, 3)
    again = SnapshotFiles(files.folder)
    again.open()
    fetched = again.fetched()
    assert fetched is not None
    assert (fetched.manifest, fetched.chunks) == (manifest, (0, 3))
    assert again.fetched_block() == b"block"
    again.end()
    assert again.fetched() is None
