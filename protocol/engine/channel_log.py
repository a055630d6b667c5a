"""What the ledger did to the channels of this node's account: kept block by block, for people who ask what became of
their money.

Law: derived from decided blocks alone, one row for each transaction. A node that jumped over blocks has no rows
of them.
"""

from collections.abc import Callable

from protocol.ledger.channels import open_voucher
from protocol.market.records import ChannelLine, RedeemedLane, channel_log_key
from protocol.messages.blocks import Block
from protocol.messages.effects import Effect, Put, Table
from protocol.messages.envelope import Envelope, envelope_id, open_as
from protocol.messages.kinds import MessageKind
from protocol.messages.transactions import (
    ChannelClose,
    ChannelFinalise,
    ChannelOpen,
    ChannelRedeem,
    ChannelTopUp,
    Transaction,
)
from protocol.primitives.codec import encode
from protocol.primitives.units import AccountId, Amount, ChannelId
from protocol.settlement.vouchers import channel_id


def channel_lines(block: Block, own: AccountId, is_own: Callable[[ChannelId], bool]) -> list[Effect]:
    """Rows for every transaction of this block on a channel that ``own`` pays or is paid by."""
    header = block.header
    rows: list[Effect] = []
    for place, received in enumerate(block.transactions):
        envelope, transaction = open_as(received, MessageKind.TRANSACTION)
        assert isinstance(transaction, Transaction)
        found = _told(envelope, transaction, own, is_own)
        if found is None:
            continue
        channel, action, amount, lanes = found
        line = ChannelLine(
            header.height, header.timestamp_ms, envelope_id(envelope), AccountId(envelope.sender), action, amount, lanes
        )
        rows.append(Put(Table.CHANNEL_LOG, channel_log_key(channel, header.height, place), encode(line)))
    return rows


_Told = tuple[ChannelId, str, Amount, tuple[RedeemedLane, ...]]


def _told(
    envelope: Envelope, transaction: Transaction, own: AccountId, is_own: Callable[[ChannelId], bool]
) -> _Told | None:
    sender = AccountId(envelope.sender)
    match transaction.action:
        case ChannelOpen(payee, deposit) if own in (sender, payee):
            return channel_id(sender, payee, transaction.nonce), "opened", deposit, ()
        case ChannelTopUp(channel, amount) if sender == own or is_own(channel):
            return channel, "topped up", amount, ()
        case ChannelRedeem(channel, vouchers) if sender == own or is_own(channel):
            return channel, "redeemed", Amount(0), tuple(_redeemed(voucher) for voucher in vouchers)
        case ChannelClose(channel) if sender == own or is_own(channel):
            return channel, "closed", Amount(0), ()
        case ChannelFinalise(channel) if sender == own or is_own(channel):
            return channel, "finalised", Amount(0), ()
        case _:
            return None


def _redeemed(voucher_bytes: bytes) -> RedeemedLane:
    _, voucher = open_voucher(voucher_bytes)
    return RedeemedLane(voucher.lane, voucher.sequence, voucher.cumulative, voucher.receipts_count)
