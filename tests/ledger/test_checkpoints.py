"""Checkpoints: what headers name, what is provable between them, and what a restart takes up."""

from collections.abc import Iterable

import msgspec
import pytest

from protocol.ledger import checkpoints
from protocol.ledger.blocks import execute_block
from protocol.ledger.checkpoints import CHECKPOINT_INTERVAL, checkpoint_below, stored_tree, tree_of
from protocol.ledger.errors import BlockInvalid
from protocol.ledger.rows import FEE_POOL_KEY
from protocol.ledger.state import LedgerState
from protocol.ledger.state_tree import verify_row
from protocol.messages.blocks import Block
from protocol.messages.transactions import Output, Transfer
from protocol.primitives.units import Amount, Hash
from tests.ledger.world import NAMES, Ledger, account_of

Rows = dict[bytes, bytes]


class Watched(Ledger):
    """A ledger of which everything is kept that a store would keep."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: Rows = dict(self.state.rows())
        self.tree: Rows = {}
        self.rows_at: dict[int, Rows] = {0: dict(self.rows)}

    def step(self, number: int) -> None:
        """One block with a transfer to an account of its own."""
        payer, payee = NAMES[number % 4], account_of(f"payee{number % 29}")
        transfer = Transfer((Output(payee, Amount(100 + number)),))
        execution = self.build([self.transaction(payer, transfer)], self.state.tip.timestamp_ms)
        kept = self.state.apply(execute_block(self.state, execution.block))
        for table, changes in ((self.rows, execution.rows), (self.tree, kept)):
            for key, value in changes:
                table.pop(key, None)
                if value is not None:
                    table[key] = value
        self.rows_at[self.state.height] = dict(self.rows)

    def restarted(self, tree: Iterable[tuple[bytes, bytes]]) -> LedgerState:
        """The state as a start loads it from what was kept."""
        return LedgerState(self.genesis, self.rows.items(), self.state.tip, tree=tree)


@pytest.fixture(scope="module")
def watched() -> Watched:
    ledger = Watched()
    for number in range(2 * CHECKPOINT_INTERVAL + 5):
        ledger.step(number)
    return ledger


def test_each_header_names_the_tree_of_the_last_checkpoint_below_it() -> None:
    ledger = Watched()
    for number in range(2 * CHECKPOINT_INTERVAL + 2):
        ledger.step(number)
        checkpoint = checkpoint_below(ledger.state.tip.height - 1)
        assert ledger.state.tip.checkpoint_root == tree_of(ledger.rows_at[checkpoint].items()).root


def test_a_block_with_another_checkpoint_root_is_refused(watched: Watched) -> None:
    execution = watched.build([], watched.state.tip.timestamp_ms)
    header = msgspec.structs.replace(execution.header, checkpoint_root=Hash(bytes(32)))
    with pytest.raises(BlockInvalid, match="checkpoint root"):
        execute_block(watched.state, Block(header, execution.block.parent_certificate, ()))


def test_rows_are_proven_as_they_were_at_the_checkpoint_although_they_changed_since(watched: Watched) -> None:
    checkpoint = checkpoint_below(watched.state.height)
    then = watched.rows_at[checkpoint]
    absent = {key for key in watched.rows if key not in then}
    assert any(watched.rows[key] != value for key, value in then.items())
    for key in {**watched.rows, **then, b"a" + bytes(32): b""}:
        proven = watched.state.proven_row(key)
        assert proven is not None
        assert (proven.checkpoint, proven.value) == (checkpoint, then.get(key))
        verify_row(watched.state.checkpoint_root, key, then.get(key), proven.proof)
    assert absent or FEE_POOL_KEY in then


@pytest.mark.parametrize("kept", ["everything", "no pages", "nothing"])
def test_a_restart_goes_on_with_the_same_roots_whatever_was_kept(kept: str) -> None:
    ledger = Watched()
    for number in range(2 * CHECKPOINT_INTERVAL + 3):
        ledger.step(number)
        tree = {
            "everything": ledger.tree,
            "no pages": {key: value for key, value in ledger.tree.items() if key[:1] == b"u"},
            "nothing": {},
        }[kept]
        started = ledger.restarted(tree.items())
        assert started.checkpoint_root == ledger.state.checkpoint_root
        proven = started.proven_row(FEE_POOL_KEY)
        if kept != "nothing" or started.height % CHECKPOINT_INTERVAL == 0:
            assert proven == ledger.state.proven_row(FEE_POOL_KEY)
        else:
            assert proven is None
        ledger.state = started


def test_what_a_restart_keeps_on_writing_is_what_a_node_without_one_writes(watched: Watched) -> None:
    ledger = Watched()
    for number in range(2 * CHECKPOINT_INTERVAL + 5):
        ledger.step(number)
        if number % 7 == 3:
            ledger.state = ledger.restarted(ledger.tree.items())
    assert ledger.state.tip_hash == watched.state.tip_hash
    assert {key: value for key, value in ledger.tree.items() if key[:1] == b"p"} == {
        key: value for key, value in watched.tree.items() if key[:1] == b"p"
    }


def test_damaged_pages_are_not_used(watched: Watched) -> None:
    for key in watched.tree:
        if key[:1] in (b"p", b"r"):
            damaged = {**watched.tree, key: watched.tree[key][:-1] + bytes((watched.tree[key][-1] ^ 1,))}
            started = watched.restarted(damaged.items())
            assert started.proven_row(FEE_POOL_KEY) == watched.state.proven_row(FEE_POOL_KEY)


def test_a_snapshots_tree_is_taken_up_at_its_checkpoint() -> None:
    ledger = Watched()
    for number in range(CHECKPOINT_INTERVAL):
        ledger.step(number)
    started = ledger.restarted(stored_tree(ledger.state.height, ledger.rows.items()))
    assert started.proven_row(FEE_POOL_KEY) == ledger.state.proven_row(FEE_POOL_KEY)
    ledger.state = started
    ledger.step(CHECKPOINT_INTERVAL)


def test_rows_noted_beyond_the_bound_are_hashed_early_and_nothing_else_changes(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "NOTED_ROWS_MAX", 5)
    ledger = Watched()
    for number in range(2 * CHECKPOINT_INTERVAL + 5):
        ledger.step(number)
    assert ledger.state.tip_hash == watched.state.tip_hash
    assert ledger.tree == watched.tree
    assert ledger.state.proven_row(FEE_POOL_KEY) == watched.state.proven_row(FEE_POOL_KEY)


def test_a_flood_of_changed_rows_ends_the_proofs_until_the_next_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "PROVABLE_ROWS_MAX", 2)
    ledger = Watched()
    ledger.step(0)
    assert ledger.state.proven_row(FEE_POOL_KEY) is None
    for number in range(1, CHECKPOINT_INTERVAL):
        ledger.step(number)
    assert ledger.state.proven_row(FEE_POOL_KEY) is not None
