"""Accounts on disk: they say what accounts in memory would say, and damage to them is found."""

import random
import sqlite3
import threading
from pathlib import Path

import pytest

from node.store import state_rows
from node.store.accounts import StoredAccounts
from node.store.database import Store
from node.store.errors import StoreCorrupt
from node.store.state_rows import CheckStopped
from protocol.ledger.accounts import AccountDict
from protocol.ledger.rows import ACCOUNT_PREFIX, NO_ACCOUNT, Account, account_row
from protocol.ledger.state import recount
from protocol.primitives.codec import decode, encode
from protocol.primitives.units import AccountId, Amount, Height, Nonce
from tests.ledger.world import account_of, make_genesis
from tests.store.chain import Chain, commit_of, transfer

SEED = 20_260_131


def put(connection: sqlite3.Connection, account_id: AccountId, account: Account) -> None:
    key, value = account_row(account_id, account)
    connection.execute("DELETE FROM state WHERE key = ?", (key,))
    if value is not None:
        connection.execute("INSERT INTO state VALUES (?, ?)", (key, value))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store.sqlite", make_genesis())


def test_accounts_on_disk_say_what_accounts_in_memory_say_however_commits_and_reports_lag(store: Store) -> None:
    """Blocks are applied, committed and reported in three paces; two accounts fit into memory."""
    dice = random.Random(SEED)
    stored, expected = StoredAccounts(store.path, generation_max=2), AccountDict()
    expected.apply(Height(0), dict(stored.items()))
    ids = [account_of(f"somebody {number}") for number in range(12)]
    blocks: list[dict[AccountId, Account]] = []
    written = reported = 0
    for _ in range(400):
        match dice.randrange(4):
            case 0:
                changes = {
                    dice.choice(ids): Account(Amount(dice.randrange(3)), Nonce(dice.randrange(2)))
                    for _ in range(dice.randrange(5))
                }
                blocks.append(changes)
                stored.apply(Height(len(blocks)), changes)
                expected.apply(Height(len(blocks)), changes)
            case 1 if written < len(blocks):
                with store.database.conn as connection:
                    for account_id, account in blocks[written].items():
                        put(connection, account_id, account)
                written += 1
            case 2 if reported < written:
                reported = dice.randrange(reported, written) + 1
                stored.committed(Height(reported))
            case _:
                account_id = dice.choice(ids)
                assert stored.get(account_id) == expected.get(account_id), f"seed {SEED}"
        assert list(stored.items()) == list(expected.items()), f"seed {SEED}"
    assert len(blocks) > 50
    assert len(stored._young) + len(stored._old) <= 4
    stored.close()
    store.close()


def test_an_iteration_that_began_before_a_commit_keeps_nobody_from_reading_the_commit(store: Store) -> None:
    accounts = StoredAccounts(store.path, generation_max=1)
    walk = accounts.items()
    next(walk)
    with store.database.conn as connection:
        put(connection, account_of("late"), Account(Amount(5), Nonce(0)))
    assert accounts.get(account_of("late")).balance == 5
    assert account_of("late") not in dict(walk)
    accounts.close()
    store.close()


def test_what_no_commit_has_written_is_never_forgotten(store: Store) -> None:
    accounts = StoredAccounts(store.path, generation_max=1)
    accounts.apply(Height(1), {account_of("new"): Account(Amount(1), Nonce(0))})
    accounts.apply(Height(2), {account_of("new"): Account(Amount(2), Nonce(0)), account_of("alice"): NO_ACCOUNT})
    accounts.committed(Height(1))
    for number in range(10):
        assert accounts.get(account_of(f"somebody {number}")) == NO_ACCOUNT
    assert accounts.get(account_of("new")).balance == 2
    assert accounts.get(account_of("alice")) == NO_ACCOUNT
    assert account_of("alice") not in dict(accounts.items())
    accounts.close()
    store.close()


def test_a_row_that_is_no_account_is_refused_when_it_is_read(store: Store) -> None:
    with store.database.conn as connection:
        connection.execute("INSERT INTO state VALUES (?, ?)", (ACCOUNT_PREFIX + account_of("eve"), b"\xc0"))
    accounts = StoredAccounts(store.path)
    with pytest.raises(StoreCorrupt, match="an account's row"):
        accounts.get(account_of("eve"))
    with pytest.raises(StoreCorrupt, match="an account's row"):
        list(accounts.items())
    accounts.close()
    store.close()


def test_blocks_built_on_a_loaded_state_are_those_of_the_state_in_memory(store: Store) -> None:
    """Commits lag behind by two blocks, as under load."""
    chain = Chain()
    chain.ledger.state = store.load_state()
    memory = Chain()
    commits = []
    for _ in range(8):
        commits.append(chain.next(3))
        assert commits[-1].block_hash == memory.next(3).block_hash
        if len(commits) > 2:
            done = commits[len(commits) - 3]
            store.commit([done])
            store.committed(done.height)
    assert list(chain.ledger.state.rows()) == list(memory.ledger.state.rows())
    assert chain.ledger.state.supply() == chain.ledger.state.supply_kept() == memory.ledger.state.supply()
    store.close()


# Damage


def move_money(path: Path, amount: int) -> None:
    """Take from alice, and give as much to bob."""
    with sqlite3.connect(path) as connection:
        for name, change in (("alice", -1), ("bob", amount)):
            key = ACCOUNT_PREFIX + account_of(name)
            value = connection.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()[0]
            held = decode(value, Account)
            richer = held.with_balance(Amount(held.balance + change))
            connection.execute("UPDATE state SET value = ? WHERE key = ?", (encode(richer), key))
    connection.close()


@pytest.fixture
def damaged(store: Store, request: pytest.FixtureRequest) -> Store:
    chain = Chain()
    store.commit([commit_of(chain.ledger, chain.ledger.include(chain.ledger.transaction("alice", transfer("bob", 9))))])
    store.close()
    move_money(store.path, request.param)
    return Store.open(store.path, make_genesis())


@pytest.mark.parametrize("damaged", [1], indirect=True)
def test_a_small_state_whose_money_was_moved_does_not_start(damaged: Store) -> None:
    with pytest.raises(StoreCorrupt, match="state root"):
        damaged.load_state()
    damaged.close()


@pytest.mark.parametrize("damaged", [1], indirect=True)
def test_a_large_state_whose_money_was_moved_is_found_behind_its_start(
    damaged: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_rows, "SMALL_STATE_ROWS_MAX", 2)
    damaged.load_state()
    assert damaged.needs_recheck
    with pytest.raises(StoreCorrupt, match="state root"):
        damaged.recheck(threading.Event())
    damaged.close()


@pytest.mark.parametrize("damaged", [2], indirect=True)
def test_a_large_state_with_money_too_much_does_not_start(damaged: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_rows, "SMALL_STATE_ROWS_MAX", 2)
    with pytest.raises(StoreCorrupt, match="supply"):
        damaged.load_state()
    damaged.close()


def test_a_large_state_that_is_whole_passes_the_check_while_blocks_go_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_rows, "SMALL_STATE_ROWS_MAX", 2)
    chain = Chain()
    store.commit([chain.next(100)])
    state = store.load_state()
    assert recount(state) == chain.ledger.state.supply()
    checker = threading.Thread(target=store.recheck, args=(threading.Event(),))
    checker.start()
    for _ in range(5):
        store.commit([chain.next(10)])
    checker.join()
    assert store.needs_recheck
    store.recheck(threading.Event())
    store.close()


def test_a_stored_sum_that_is_not_the_rows_does_not_start(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_rows, "SMALL_STATE_ROWS_MAX", 2)
    store.commit([Chain().next()])
    with store.database.conn as connection:
        connection.execute("UPDATE facts SET value = zeroblob(2048) WHERE name = 'lattice'")
    with pytest.raises(StoreCorrupt, match="state root"):
        store.load_state()
    with store.database.conn as connection:
        connection.execute("DELETE FROM facts WHERE name = 'lattice'")
    store.load_state()
    store.close()


def test_a_check_ends_when_the_node_does(store: Store) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(CheckStopped):
        store.recheck(stop)
    store.close()
