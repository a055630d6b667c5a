"""Track records on disk: they say what records in memory would say, over restarts, snapshots and replays."""

import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from node.store.accounts import StoredTracks
from node.store.database import Store
from node.store.errors import StoreCorrupt
from protocol.engine.replay import Replay, RowDifference, first_difference
from protocol.ledger.accounts import TrackDict
from protocol.ledger.blocks import PendingTransaction
from protocol.ledger.execution import Execution
from protocol.ledger.snapshots import cut_rows, joined_rows
from protocol.ledger.state import LedgerState
from protocol.ledger.track_rows import NO_TRACK, TRACK_PREFIX, Role, Track, track_id, track_row
from protocol.ledger.tracks import settled
from protocol.messages.effects import CommitBlock
from protocol.messages.snapshots import SnapshotManifest
from protocol.messages.transactions import ChannelClose, ChannelRedeem
from protocol.primitives.hashing import content_hash
from protocol.primitives.units import Amount, Height, LedgerTimeMs
from tests.ledger.world import Ledger, account_of, make_genesis
from tests.store.chain import commit_of

SEED = 20_260_131
BOB = track_id(Role.PROVIDER, account_of("bob"))


class KeepingLedger(Ledger):
    """A ledger that keeps every block: two buyers have settled with bob, and nothing else happened."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[CommitBlock] = []
        for name, amount in (("alice", 700), ("carol", 300)):
            channel = self.open_channel(name, "bob", 5_000)
            voucher = self.voucher(channel, name, "bob", 1, amount, receipts_root=b"r" * 32, receipts_count=2)
            self.act("bob", ChannelRedeem(channel, (voucher,)))
            self.act("bob", ChannelClose(channel))

    def include(self, *transactions: PendingTransaction, after_ms: int = 20) -> Execution:
        """See ``Ledger``."""
        execution = super().include(*transactions, after_ms=after_ms)
        self.commits.append(commit_of(self, execution))
        return execution


@pytest.fixture
def ledger() -> KeepingLedger:
    return KeepingLedger()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store.sqlite", make_genesis())


def put(store: Store, name: str, track: Track) -> None:
    key, value = track_row(track_id(Role.PROVIDER, account_of(name)), track)
    with store.database.conn as connection:
        connection.execute("DELETE FROM state WHERE key = ?", (key,))
        if value is not None:
            connection.execute("INSERT INTO state VALUES (?, ?)", (key, value))


def test_records_on_disk_say_what_records_in_memory_say_however_commits_lag(store: Store) -> None:
    dice = random.Random(SEED)
    stored, expected = StoredTracks(store.path, generation_max=2), TrackDict()
    names = [f"provider {number}" for number in range(8)]
    blocks: list[dict[str, Track]] = []
    written = 0
    for step in range(200):
        match dice.randrange(3):
            case 0:
                name = dice.choice(names)
                before = expected.get(track_id(Role.PROVIDER, account_of(name)))
                after = settled(before, account_of(dice.choice(names)), Amount(step), 1, LedgerTimeMs(step))
                changes = {name: dice.choice((after, after, NO_TRACK))}
                blocks.append(changes)
                rows = {track_id(Role.PROVIDER, account_of(each)): track for each, track in changes.items()}
                stored.apply(Height(len(blocks)), rows)
                expected.apply(Height(len(blocks)), rows)
            case 1 if written < len(blocks):
                for name, track in blocks[written].items():
                    put(store, name, track)
                written += 1
                stored.committed(Height(written))
            case _:
                identity = track_id(Role.PROVIDER, account_of(dice.choice(names)))
                assert stored.get(identity) == expected.get(identity), f"seed {SEED}"
        assert list(stored.items()) == list(expected.items()), f"seed {SEED}"
    assert len(blocks) > 40
    stored.close()
    store.close()


def test_a_restart_carries_the_records_and_blocks_go_on_from_them(store: Store, ledger: KeepingLedger) -> None:
    half = len(ledger.commits) // 2
    store.commit(ledger.commits[:half])
    store.close()
    again = Store.open(store.path, make_genesis())
    early = again.load_state()
    assert early.track(BOB).jobs == 2
    again.commit(ledger.commits[half:])
    again.close()
    whole = Store.open(store.path, make_genesis())
    state = whole.check()
    assert state.track(BOB) == ledger.state.track(BOB)
    assert (state.track(BOB).jobs, state.track(BOB).volume) == (4, 1_000)
    assert list(state.rows()) == list(ledger.state.rows())
    whole.close()


def test_a_snapshot_carries_the_records(store: Store, ledger: KeepingLedger) -> None:
    last = ledger.commits[-1]
    rows = list(joined_rows(cut_rows(ledger.state.rows())))
    hashes = tuple(content_hash(chunk) for chunk in cut_rows(rows))
    header, certificate = ledger.state.tip, last.decided.certificate
    store.install(SnapshotManifest(header, certificate, (), hashes), last.decided, rows, frozenset())
    assert store.load_state().track(BOB) == ledger.state.track(BOB) != NO_TRACK
    store.close()


def test_a_replay_derives_the_records_and_names_one_that_claims_more(ledger: KeepingLedger) -> None:
    replay = Replay(LedgerState.from_genesis(ledger.genesis))
    for commit in ledger.commits:
        replay.take(commit.decided)
    assert first_difference(replay.state.rows(), ledger.state.rows()) is None
    key, better = track_row(BOB, replace(ledger.state.track(BOB), volume=2_000_000))
    claimed = iter([(found, better if found == key and better else value) for found, value in replay.state.rows()])
    difference = first_difference(claimed, replay.state.rows())
    assert isinstance(difference, RowDifference)
    assert "as provider has 4 jobs for 2.00 credits, 0 failures and should have 4 jobs for 0.001" in str(difference)


def test_a_row_that_is_no_record_is_refused_when_it_is_read(store: Store) -> None:
    with store.database.conn as connection:
        connection.execute("INSERT INTO state VALUES (?, ?)", (TRACK_PREFIX + BOB, b"\xc0"))
    tracks = StoredTracks(store.path)
    with pytest.raises(StoreCorrupt, match="a track record's row"):
        tracks.get(BOB)
    tracks.close()
    store.close()
