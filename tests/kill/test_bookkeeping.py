"""The accountant agrees with the ledger, and notices a base unit too many."""

import pytest

from protocol.ledger.state import LedgerState
from protocol.messages.blocks import Block
from protocol.messages.transactions import BondUnlock
from protocol.primitives.codec import decode
from protocol.primitives.units import Amount
from tests.kill.bookkeeping import Books, explained
from tests.ledger.world import Ledger, account_of, make_genesis
from tests.store.chain import transfer


def played() -> tuple[Books, LedgerState]:
    """Books and state after some transfers between accounts."""
    ledger = Ledger(make_genesis(balance=1_000_000))
    executions = [
        ledger.include(ledger.transaction("alice", transfer("bob", 300), 0)),
        ledger.include(ledger.transaction("bob", transfer("stranger", 7), 0)),
    ]
    blocks = [decode(execution.block_bytes, Block) for execution in executions]
    return explained(ledger.genesis, blocks), ledger.state


def test_books_of_transfers_are_the_ledgers() -> None:
    books, state = played()
    books.check(state)
    assert books.balances[bytes(account_of("stranger"))] == 7


@pytest.mark.parametrize("amount", [-1, 1])
def test_a_base_unit_too_many_or_too_few_is_found(amount: int) -> None:
    books, state = played()
    books.balances[bytes(account_of("bob"))] += amount
    with pytest.raises(AssertionError, match="its blocks say"):
        books.check(state)


def test_fees_that_nobody_has_are_found() -> None:
    books, state = played()
    books.pool += 1
    with pytest.raises(AssertionError, match="authorities and fee pool"):
        books.check(state)


def test_action_that_the_load_never_makes_is_not_passed_over() -> None:
    books, _ = played()
    with pytest.raises(AssertionError, match="BondUnlock"):
        books._act(bytes(account_of("alice")), BondUnlock(Amount(1)))
