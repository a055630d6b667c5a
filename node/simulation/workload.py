"""Users who pay each other, directly and through channels, and who repeat what has not been decided.

Law: whatever stands in ``Client.sent`` is valid in its order, so a network that works decides all of it.
"""

import random
from collections.abc import Sequence

from node.simulation.keys import SimulatedKey
from protocol.ledger.state import LedgerState
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Voucher
from protocol.messages.transactions import Action, ChannelOpen, ChannelRedeem, Output, Transaction, Transfer
from protocol.primitives.codec import encode
from protocol.primitives.units import (
    CREDIT,
    AccountId,
    Amount,
    ChannelId,
    Hash,
    Height,
    Lane,
    Nonce,
    SequenceNumber,
)
from protocol.settlement.accumulator import EMPTY_ROOT
from protocol.settlement.vouchers import channel_id

FEE = Amount(1000)
TRANSFER_MAX = Amount(1000)
"""No user pays more than this in one transfer."""


class Client:
    """One account and its transactions, with rising nonces."""

    def __init__(self, key: SimulatedKey, genesis_hash: Hash, dice: random.Random) -> None:
        self.key = key
        self.account = AccountId(key.public)
        self.sent: list[bytes] = []
        self._genesis_hash = genesis_hash
        self._dice = dice

    def signed(self, action: Action) -> bytes:
        """A transaction under this client's next nonce, made and forgotten."""
        transaction = Transaction(Nonce(len(self.sent)), FEE, Height(1_000_000), action)
        return self.key.seal(self._genesis_hash, MessageKind.TRANSACTION, encode(transaction))

    def next(self, action: Action) -> bytes:
        """Make, sign and remember one more transaction."""
        self.sent.append(self.signed(action))
        return self.sent[-1]

    def next_transfer(self, recipients: Sequence[AccountId]) -> bytes:
        """One more transfer of a small amount to a random recipient."""
        recipient = self._dice.choice([account for account in recipients if account != self.account])
        return self.next(Transfer((Output(recipient, Amount(self._dice.randint(1, TRANSFER_MAX))),)))

    def voucher(self, voucher: Voucher) -> bytes:
        """A promise of this client's, signed."""
        return self.key.seal(self._genesis_hash, MessageKind.VOUCHER, encode(voucher))


class Subscription:
    """One client pays another through a channel, voucher by voucher; the payee also tries to be paid twice."""

    DEPOSIT = Amount(10 * CREDIT)
    STEP = Amount(CREDIT // 100)

    def __init__(self, payer: Client, payee: Client) -> None:
        self.payer, self.payee = payer, payee
        self.channel: ChannelId | None = None
        self._vouchers: list[bytes] = []

    def open(self) -> bytes:
        """The transaction that opens the channel; once."""
        assert self.channel is None
        self.channel = channel_id(self.payer.account, self.payee.account, Nonce(len(self.payer.sent)))
        return self.payer.next(ChannelOpen(self.payee.account, self.DEPOSIT))

    def redeem(self, state: LedgerState) -> bytes | None:
        """The next redeem, once this ledger has the channel."""
        if self.channel is None or state.channel(self.channel) is None:
            return None
        number = len(self._vouchers) + 1
        promised = Voucher(
            self.channel,
            self.payee.account,
            Lane(0),
            SequenceNumber(number),
            Amount(number * self.STEP),
            EMPTY_ROOT,
            0,
        )
        self._vouchers.append(self.payer.voucher(promised))
        return self.payee.next(ChannelRedeem(self.channel, (self._vouchers[-1],)))

    def redeem_again(self, state: LedgerState) -> bytes | None:
        """The last voucher that this ledger has paid, once more: a transaction that must never be decided."""
        channel = state.channel(self.channel) if self.channel is not None else None
        if channel is None or not channel.lanes or state.account(self.payee.account).nonce != len(self.payee.sent):
            return None
        assert self.channel is not None
        paid = self._vouchers[channel.lanes[0].sequence - 1]
        return self.payee.signed(ChannelRedeem(self.channel, (paid,)))
