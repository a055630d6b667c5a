"""The state tree over a restart: what the store keeps gives the proofs that the node gave before."""

from pathlib import Path

import pytest

from node.store.database import Store
from protocol.ledger.checkpoints import CHECKPOINT_INTERVAL
from protocol.ledger.rows import FEE_POOL_KEY, Row
from tests.store.chain import Chain


def test_a_restart_takes_the_tree_up_and_proves_what_was_provable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, path = Chain(), tmp_path / "ledger.db"
    store = Store.open(path, chain.ledger.genesis)
    for number in range(2 * CHECKPOINT_INTERVAL + 3):
        store.commit([chain.next(3)])
        if number % 5 == 0:
            store.close()
            store = Store.open(path, chain.ledger.genesis)
            chain.ledger.state = store.load_state()
    expected = chain.ledger.state.proven_row(FEE_POOL_KEY)
    assert expected is not None
    store.close()
    store = Store.open(path, chain.ledger.genesis)

    def unexpected(rows: Row) -> None:
        raise AssertionError("all rows were hashed although the tree was stored")

    monkeypatch.setattr("protocol.ledger.checkpoints.tree_of", unexpected)
    state = store.load_state()
    assert state.proven_row(FEE_POOL_KEY) == expected
    assert state.checkpoint_root == chain.ledger.state.checkpoint_root
    store.close()
