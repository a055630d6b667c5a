"""A chain of real blocks to put into a store."""

from protocol.ledger.execution import Execution
from protocol.ledger.lattice import lattice_bytes
from protocol.messages.blocks import DecidedBlock
from protocol.messages.effects import CommitBlock
from protocol.messages.genesis import Genesis
from protocol.messages.transactions import Output, Transfer
from protocol.primitives.units import Amount
from tests.ledger.world import Ledger, account_of, make_genesis


def transfer(recipient: str, amount: int) -> Transfer:
    """One output."""
    return Transfer((Output(account_of(recipient), Amount(amount)),))


def commit_of(ledger: Ledger, execution: Execution) -> CommitBlock:
    """The effect that stores an executed block."""
    return CommitBlock(
        execution.header.height,
        execution.block_hash,
        DecidedBlock(execution.block_bytes, ledger.decided(execution)),
        execution.rows,
        execution.transaction_ids,
        lattice_bytes(execution.lattice),
        ledger.kept,
    )


class Chain:
    """A ledger whose blocks are kept as effects."""

    def __init__(self, genesis: Genesis | None = None) -> None:
        self.ledger = Ledger(genesis if genesis is not None else make_genesis())

    def next(self, transactions: int = 1) -> CommitBlock:
        """One more block of transfers from alice to strangers, each a new account."""
        nonce = self.ledger.state.account(account_of("alice")).nonce
        pending = [
            self.ledger.transaction("alice", transfer(f"stranger {nonce + index}", 3), nonce + index)
            for index in range(transactions)
        ]
        return commit_of(self.ledger, self.ledger.include(*pending))
