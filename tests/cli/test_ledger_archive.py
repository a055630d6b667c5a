"""Exporting, importing and checking ledgers from the command line; proofs against a node and offline."""

import json
import sqlite3
from pathlib import Path

import pytest

from node.config.genesis_file import genesis_to_json
from node.store.database import Store
from protocol.ledger.checkpoints import CHECKPOINT_INTERVAL
from protocol.ledger.proof_file import make_checkpoint_file, make_proof_file, row_keys
from protocol.messages.blocks import Block, DecidedHeader
from protocol.primitives.addresses import AddressKind, format_address
from protocol.primitives.codec import decode
from tests.api.fake_node import FakeNode
from tests.cli.conftest import Mercat
from tests.ledger.world import account_of
from tests.store.chain import Chain

BLOCKS = CHECKPOINT_INTERVAL + 4


class Kept(Chain):
    """A chain with all its blocks at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.commits = [self.next() for _ in range(BLOCKS)]
        self.headers = [decode(commit.decided.block, Block).header for commit in self.commits]


def node_directory(where: Path, chain: Kept) -> Path:
    """A directory with a node's configuration and genesis; gives the configuration."""
    where.mkdir()
    (where / "genesis.json").write_bytes(genesis_to_json(chain.ledger.genesis))
    config = where / "config.toml"
    config.write_text('genesis = "genesis.json"\nstate = "state"\n[keystore]\ndirectory = "keys"\n')
    return config


@pytest.fixture(scope="module")
def chain() -> Kept:
    return Kept()


@pytest.fixture
def full(tmp_path: Path, chain: Kept) -> Path:
    config = node_directory(tmp_path / "full", chain)
    (config.parent / "state").mkdir()
    store = Store.open(config.parent / "state" / "ledger.sqlite", chain.ledger.genesis)
    store.commit(chain.commits)
    store.close()
    return config


@pytest.fixture
def fresh(tmp_path: Path, chain: Kept) -> Path:
    return node_directory(tmp_path / "fresh", chain)


def test_a_ledger_travels_through_a_file_and_checks_at_both_ends(
    mercat: Mercat, full: Path, fresh: Path, tmp_path: Path, chain: Kept
) -> None:
    archive = str(tmp_path / "chain.mercat")
    exported = mercat("ledger", "export", archive, "--config", str(full), "--json")
    assert (exported.code, json.loads(exported.out)["last_height"]) == (0, BLOCKS)
    assert mercat("ledger", "check", archive, "--config", str(fresh)).out.startswith("OK\n")
    imported = mercat("ledger", "import", archive, "--config", str(fresh))
    assert (imported.code, imported.out) == (
        0,
        f"{BLOCKS} blocks verified and executed; the ledger is at height {BLOCKS}\n",
    )
    again = mercat("ledger", "import", archive, "--config", str(fresh), "--json")
    assert json.loads(again.out)["blocks"] == 0
    for config in (full, fresh):
        checked = json.loads(mercat("ledger", "check", "--config", str(config), "--json").out)
        assert checked["tip"] == chain.ledger.state.tip_hash.hex()
        assert checked["rows_compared"] == sum(1 for _ in chain.ledger.state.rows())
        assert checked["issued"] == checked["balances"] + checked["bonds"] + checked["fee_pool"] + checked["deposits"]


def test_an_import_of_a_cut_file_keeps_whole_blocks_and_goes_on_with_the_rest(
    mercat: Mercat, full: Path, fresh: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "chain.mercat"
    mercat("ledger", "export", str(archive), "--config", str(full))
    cut = tmp_path / "cut.mercat"
    cut.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    ended = mercat("ledger", "import", str(cut), "--config", str(fresh))
    assert ended.code == 2
    assert "cut" in ended.err
    rest = json.loads(mercat("ledger", "import", str(archive), "--config", str(fresh), "--json").out)
    assert 1 < rest["first_height"] < BLOCKS
    assert rest["last_height"] == BLOCKS


def test_the_first_account_that_was_tampered_with_is_named(mercat: Mercat, full: Path) -> None:
    connection = sqlite3.connect(full.parent / "state" / "ledger.sqlite")
    with connection:
        connection.execute("UPDATE state SET value = ? WHERE key = ?", (b"\x92\x07\x00", b"a" + account_of("carol")))
    connection.close()
    ended = mercat("ledger", "check", "--config", str(full))
    address = format_address(AddressKind.ACCOUNT, account_of("carol"))
    assert ended.code == 1
    assert f"account {address} has 0.000007 credits at nonce 0 and should have 1.00 credits at nonce 0" in ended.err


def test_a_forged_block_stops_an_import_at_its_name_and_keeps_what_came_before(
    mercat: Mercat, full: Path, fresh: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "chain.mercat"
    mercat("ledger", "export", str(archive), "--config", str(full))
    content = bytearray(archive.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    archive.write_bytes(content)
    ended = mercat("ledger", "import", str(archive), "--config", str(fresh))
    assert ended.code != 0
    assert "block 1" in ended.err
    assert mercat("ledger", "check", "--config", str(fresh)).code == 0


def test_what_cannot_be_done_is_said(mercat: Mercat, full: Path, fresh: Path, tmp_path: Path) -> None:
    assert "no ledger" in mercat("ledger", "check", "--config", str(fresh)).err
    late = str(tmp_path / "late.mercat")
    mercat("ledger", "export", late, "--config", str(full), "--from", "5")
    assert "begins at block 5" in mercat("ledger", "import", late, "--config", str(fresh)).err
    assert "begins at block 5" in mercat("ledger", "check", late, "--config", str(full)).err
    other = tmp_path / "other.mercat"
    other.write_bytes(b"something else")
    assert "not an archive" in mercat("ledger", "check", str(other), "--config", str(full)).err
    assert not list(tmp_path.glob("*.partial"))


def test_a_proof_is_checked_offline_with_and_without_a_checkpoint(
    mercat: Mercat, full: Path, tmp_path: Path, chain: Kept
) -> None:
    state, alice = chain.ledger.state, account_of("alice")
    rows = tuple(row for row in map(state.proven_row, row_keys("account", alice)) if row is not None)
    decided = chain.commits[CHECKPOINT_INTERVAL].decided
    header = chain.headers[CHECKPOINT_INTERVAL]
    proof, checkpoint = tmp_path / "proof.json", tmp_path / "checkpoint.json"
    proof.write_bytes(make_proof_file(chain.ledger.hash, "account", alice, rows, (header, decided.certificate), ()))
    older = DecidedHeader(chain.headers[3], chain.commits[3].decided.certificate, state.authorities.membership())
    checkpoint.write_bytes(make_checkpoint_file(chain.ledger.hash, older))
    genesis = str(full.parent / "genesis.json")
    ended = mercat("verify", str(proof), "--genesis", genesis, "--checkpoint", str(checkpoint), "--json")
    view = json.loads(ended.out)
    assert (ended.code, view["holds"], view["after_block"]) == (0, True, CHECKPOINT_INTERVAL)
    assert view["bond"] == 2_000
    told = mercat("verify", str(proof), "--genesis", genesis)
    assert "bond row" in told.out
    assert "what you trust is" in told.err  # this chain's genesis is of 2023
    proof.write_text(proof.read_text().replace('"page": "', '"page": "00'))
    forged = mercat("verify", str(proof), "--genesis", genesis)
    assert forged.code == 1
    assert "account_row does not hold" in forged.err


def test_proofs_and_checkpoints_of_a_node_are_written_whole_or_not_at_all(
    mercat: Mercat, fake: FakeNode, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.json"
    assert mercat("ledger", "checkpoint", "-o", str(path)).code == 0
    assert json.loads(path.read_text()) == {"format": "mercat-checkpoint-1"}
    missing = tmp_path / "proof.json"
    ended = mercat("ledger", "proof", "account", "mc1qq", "-o", str(missing))
    assert (ended.code, missing.exists()) == (124, False)
    assert mercat("ledger", "proof", "shoe", "mc1qq", "-o", str(missing)).code == 2
