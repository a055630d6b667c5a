"""An accountant who reads the blocks: what each account must have, by arithmetic of its own.

Law: it shares no rule with the ledger but the formats and the price of a redeem. What it can't know by transactions
alone is who is paid the fees; so authorities and the fee pool are added up to one sum, everybody else is exact.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from protocol.ledger.state import LedgerState
from protocol.messages import transactions
from protocol.messages.blocks import Block
from protocol.messages.envelope import open_as
from protocol.messages.genesis import Genesis
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Voucher
from protocol.primitives.units import AccountId, ChannelId


@dataclass(slots=True)
class Books:
    """Balances and what was redeemed, from genesis on."""

    genesis: Genesis
    balances: dict[bytes, int] = field(default_factory=dict)
    pool: int = 0
    deposited: dict[bytes, int] = field(default_factory=dict)
    """By payer: what all its channels took."""
    redeemed: dict[tuple[bytes, int], int] = field(default_factory=dict)
    """By channel and lane."""

    def __post_init__(self) -> None:
        for allocation in self.genesis.allocations:
            self.balances[bytes(allocation.account)] = allocation.balance

    def read(self, block: Block) -> None:
        """One more block."""
        for received in block.transactions:
            envelope, transaction = open_as(received, MessageKind.TRANSACTION)
            assert isinstance(transaction, transactions.Transaction)
            self._give(bytes(envelope.sender), -transaction.fee)
            self.pool += transaction.fee
            self._act(bytes(envelope.sender), transaction.action)

    def _give(self, account: bytes, amount: int) -> None:
        self.balances[account] = self.balances.get(account, 0) + amount

    def _act(self, sender: bytes, action: transactions.Action) -> None:
        match action:
            case transactions.Transfer():
                for output in action.outputs:
                    self._give(sender, -output.amount)
                    self._give(bytes(output.recipient), output.amount)
            case transactions.ChannelOpen(deposit=amount) | transactions.ChannelTopUp(amount=amount):
                self._give(sender, -amount)
                self.deposited[sender] = self.deposited.get(sender, 0) + amount
            case transactions.ChannelRedeem():
                self._redeem(sender, action)
            case transactions.BondDeposit():
                self._give(sender, -action.amount)
            case _:
                raise AssertionError(f"a load of transfers and jobs brought a {type(action).__name__}")

    def _redeem(self, sender: bytes, action: transactions.ChannelRedeem) -> None:
        paid = 0
        for received in action.vouchers:
            _, voucher = open_as(received, MessageKind.VOUCHER)
            assert isinstance(voucher, Voucher)
            assert bytes(voucher.payee) == sender, "only payees redeem here"
            lane = (bytes(action.channel), int(voucher.lane))
            paid += voucher.cumulative - self.redeemed.get(lane, 0)
            self.redeemed[lane] = voucher.cumulative
        parameters = self.genesis.parameters
        fee = max(parameters.redeem_fee_min, -(-paid * parameters.redeem_fee_share_ppm // 1_000_000))
        self._give(sender, paid - fee)
        self.pool += fee

    def check(self, state: LedgerState) -> None:
        """Every balance and channel is what the blocks explain."""
        paid_fees = {bytes(record.account) for record in self.genesis.authorities}
        for account, expected in self.balances.items():
            if account not in paid_fees:
                found = state.account(AccountId(account)).balance
                assert found == expected, f"account {account.hex()[:16]} has {found}, its blocks say {expected}"
        kept = sum(state.account(AccountId(account)).balance for account in paid_fees) + state.fee_pool
        explained_sum = sum(self.balances.get(account, 0) for account in paid_fees) + self.pool
        assert kept == explained_sum, f"authorities and fee pool have {kept}, the blocks say {explained_sum}"
        for channel, lanes in self._lanes().items():
            held = state.channel(ChannelId(channel))
            assert held is not None, f"channel {channel.hex()[:16]} is gone"
            positions = {int(position.lane): position.cumulative for position in held.lanes}
            assert positions == lanes, f"channel {channel.hex()[:16]} redeemed {positions}, its blocks say {lanes}"

    def _lanes(self) -> dict[bytes, dict[int, int]]:
        channels: dict[bytes, dict[int, int]] = {}
        for (channel, lane), amount in self.redeemed.items():
            channels.setdefault(channel, {})[lane] = amount
        return channels


def explained(genesis: Genesis, blocks: Iterable[Block]) -> Books:
    """The books after so many blocks."""
    books = Books(genesis)
    for block in blocks:
        books.read(block)
    return books
