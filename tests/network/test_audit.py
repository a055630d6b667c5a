"""The audit of real networks finds what it is for: forks, lost and doubled payments, missing money."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec
import pytest

from node.runtime.control import BlockTransactionView, BlockView, LedgerView, SupplyView
from protocol.primitives.units import format_credits
from tests.network.audit import Chain, check_supply
from tests.network.payments import Answer, Payment

SIGNERS = ("a", "b", "c")
PAID = Payment("mc1alice", 1_000, Answer.DECIDED, "tx0", 1)


def transfer(nonce: int, amount: int, transaction: str) -> BlockTransactionView:
    """One payment of alice's as a block shows it."""
    detail = f"{format_credits(amount)} to mc1bob"
    return BlockTransactionView(transaction, "mc1alice", nonce, 100, "Transfer", detail)


def block(height: int, parent: str, *transactions: BlockTransactionView) -> BlockView:
    """A block that three authorities signed."""
    return BlockView(height, f"hash{height}", parent, 0, 0, "", "", 1, SIGNERS, transactions)


@dataclass(frozen=True)
class Teller:
    """A node with these blocks."""

    blocks: tuple[BlockView, ...]
    supply_total: int = 7
    views: dict[int, BlockView] = field(default_factory=dict)

    def ledger(self) -> LedgerView:
        """Its tip."""
        return LedgerView(len(self.blocks), self.blocks[-1].block_hash, 0, 0, "", (), 3, 0)

    def block(self, height: int) -> BlockView:
        """One of them."""
        return self.blocks[height - 1]

    def supply(self) -> SupplyView:
        """All in balances."""
        return SupplyView(self.supply_total, 0, 0, 0, self.supply_total, 7)


HONEST = Teller((block(1, "genesis", transfer(0, 1_000, "tx0")), block(2, "hash1", transfer(1, 1_001, "tx1"))))


def changed(**changes: object) -> Teller:
    """The honest node, its second block another."""
    return replace(HONEST, blocks=(HONEST.blocks[0], msgspec.structs.replace(HONEST.blocks[1], **changes)))


def test_honest_nodes_pass_and_nothing_is_read_twice() -> None:
    chain = Chain(3)
    assert chain.extend([HONEST, HONEST]) == 2
    assert chain.extend([HONEST, HONEST]) == 0
    chain.check_payments([PAID, Payment("mc1alice", 1_001), Payment("mc1alice", 1_002, Answer.REFUSED)])
    check_supply([HONEST])


@pytest.mark.parametrize(
    ("tellers", "what"),
    [
        ([HONEST, changed(block_hash="other")], "fork at height 2"),
        ([changed(parent="other")], "does not follow"),
        ([changed(signers=("a", "b"))], "height 2"),
        ([changed(signers=("a", "b", "b"))], "height 2"),
        ([changed(transactions=(transfer(1, 1_000, "tx0"),))], "in blocks 1 and 2"),
        ([changed(transactions=(transfer(2, 1_001, "tx1"),))], "expected 1"),
    ],
    ids=["fork", "no link", "no quorum", "one signer twice", "transaction twice", "nonce left out"],
)
def test_chain_that_is_not_one_is_found(tellers: list[Teller], what: str) -> None:
    with pytest.raises(AssertionError, match=what):
        Chain(3).extend(tellers)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda payment: replace(payment, amount=5), "acknowledged, but in blocks"),
        (lambda payment: replace(payment, height=2), "acknowledged, but in blocks"),
        (lambda payment: replace(payment, transaction="tx1"), "another id"),
        (lambda payment: replace(payment, answer=Answer.REFUSED), "refused, but in blocks"),
    ],
    ids=["lost", "in another block", "under another id", "refused and yet made"],
)
def test_payment_that_is_not_what_was_answered_is_found(change: Callable[[Payment], Payment], what: str) -> None:
    chain = Chain(3)
    chain.extend([HONEST])
    with pytest.raises(AssertionError, match=what):
        chain.check_payments([change(PAID)])


def test_payment_of_unknown_outcome_that_was_made_twice_is_found() -> None:
    chain = Chain(3)
    chain.extend([changed(transactions=(transfer(1, 1_000, "tx1"),))])
    with pytest.raises(AssertionError, match="paid twice"):
        chain.check_payments([Payment("mc1alice", 1_000)])


def test_missing_money_is_found() -> None:
    with pytest.raises(AssertionError):
        check_supply([HONEST, replace(HONEST, supply_total=6)])
