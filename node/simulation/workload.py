"""Users who pay each other, and who repeat what has not been decided."""

import random
from collections.abc import Sequence

from node.simulation.keys import SimulatedKey
from protocol.messages.kinds import MessageKind
from protocol.messages.transactions import Output, Transaction, Transfer
from protocol.primitives.codec import encode
from protocol.primitives.units import AccountId, Amount, Hash, Height, Nonce

FEE = Amount(1000)


class Client:
    """One account and its transfers, with rising nonces."""

    def __init__(self, key: SimulatedKey, genesis_hash: Hash, dice: random.Random) -> None:
        self.key = key
        self.account = AccountId(key.public)
        self.sent: list[bytes] = []
        self._genesis_hash = genesis_hash
        self._dice = dice

    def next_transfer(self, recipients: Sequence[AccountId]) -> bytes:
        """Make, sign and remember one more transfer of a small amount to a random recipient."""
        recipient = self._dice.choice([account for account in recipients if account != self.account])
        amount = Amount(self._dice.randint(1, 1000))
        transfer = Transfer((Output(recipient, amount),))
        transaction = Transaction(Nonce(len(self.sent)), FEE, Height(1_000_000), transfer)
        self.sent.append(self.key.seal(self._genesis_hash, MessageKind.TRANSACTION, encode(transaction)))
        return self.sent[-1]
