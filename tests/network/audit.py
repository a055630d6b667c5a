"""What must be true of the blocks of a real network, whatever happened to it; asked of running nodes.

Law: everything is read through the control API and judged here anew: one block at each height, each linked to the one
before and signed by a quorum; each payment that was acknowledged in exactly one block, each unknown one in at most
one, each refused one in none; all money there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from node.runtime.control import BlockTransactionView, BlockView, LedgerView, SupplyView
from protocol.primitives.units import format_credits
from tests.network.payments import Answer, Payment
from tests.network.waiting import seconds_until

LEVEL_SECONDS = 30.0


class Teller(Protocol):
    """A node that tells of its ledger."""

    def ledger(self) -> LedgerView: ...
    def block(self, height: int) -> BlockView: ...
    def supply(self) -> SupplyView: ...


@dataclass(slots=True)
class Chain:
    """The blocks that all nodes agreed on so far; grows with each audit, so that nothing is read twice."""

    quorum: int
    hashes: list[str] = field(default_factory=list)
    """By height − 1."""
    nonces: dict[str, int] = field(default_factory=dict)
    """The next nonce of each sender."""
    transactions: dict[str, int] = field(default_factory=dict)
    """Id to height."""
    transfers: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """(sender, amount as text) to heights."""
    views_later: int = 0
    """Blocks that needed more than one view."""

    @property
    def height(self) -> int:
        """Up to which all nodes agree."""
        return len(self.hashes)

    def extend(self, clients: Sequence[Teller]) -> int:
        """Compare the blocks that all nodes have; how many are new."""
        tip = min(client.ledger().height for client in clients)
        before = self.height
        for height in range(before + 1, tip + 1):
            views = [client.block(height) for client in clients]
            found = {view.block_hash for view in views}
            assert len(found) == 1, f"fork at height {height}: {sorted(found)}"
            for view in views:
                assert len(set(view.signers)) == len(view.signers) >= self.quorum, f"height {height}: {view.signers}"
            self._append(views[0])
            self.views_later += any(view.view > 1 for view in views)
        return tip - before

    def _append(self, view: BlockView) -> None:
        if self.hashes:
            assert view.parent == self.hashes[-1], f"block {view.height} does not follow the one before"
        self.hashes.append(view.block_hash)
        for transaction in view.transactions:
            self._count(transaction, view.height)

    def _count(self, transaction: BlockTransactionView, height: int) -> None:
        earlier = self.transactions.setdefault(transaction.transaction, height)
        assert earlier == height, f"transaction {transaction.transaction} in blocks {earlier} and {height}"
        expected = self.nonces.get(transaction.sender, 0)
        assert transaction.nonce == expected, f"{transaction.sender} nonce {transaction.nonce}, expected {expected}"
        self.nonces[transaction.sender] = expected + 1
        if transaction.action == "Transfer":
            amount = transaction.detail.split(" ")[0]
            self.transfers.setdefault((transaction.sender, amount), []).append(height)

    def check_payments(self, payments: Sequence[Payment]) -> None:
        """Each in as many blocks as its answer says."""
        for payment in payments:
            heights = self.transfers.get((payment.payer, format_credits(payment.amount)), [])
            match payment.answer:
                case Answer.DECIDED:
                    assert heights == [payment.height], f"{payment}: acknowledged, but in blocks {heights}"
                    assert self.transactions.get(payment.transaction) == payment.height, f"{payment}: another id"
                case Answer.REFUSED:
                    assert heights == [], f"{payment}: refused, but in blocks {heights}"
                case Answer.UNKNOWN:
                    assert len(heights) <= 1, f"{payment}: paid twice, in blocks {heights}"


def check_supply(clients: Sequence[Teller]) -> None:
    """Every node counts all credits."""
    for client in clients:
        supply = client.supply()
        assert supply.total == supply.genesis_total, f"{client}: {supply}"


def wait_level(clients: Sequence[Teller], within: float = LEVEL_SECONDS) -> None:
    """Until all nodes have the highest tip among them, and no transaction waits; the load must have ended."""

    def level() -> bool:
        views = [client.ledger() for client in clients]
        return len({view.block_hash for view in views}) == 1 and not any(view.pending_transactions for view in views)

    seconds_until(level, within, "all nodes at one tip with nothing pending")
