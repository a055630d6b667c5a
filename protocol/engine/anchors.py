"""Where the ledger has the receipts of this node: found block by block, kept for receipt files.

Law: a redeem of either party anchors the receipts root of each voucher in it; what counts for a receipt is the first
anchored voucher of its lane that commits to more receipts than came before it.
"""

from protocol.ledger.channels import open_voucher
from protocol.messages.blocks import Block
from protocol.messages.effects import Effect, Put, Table
from protocol.messages.envelope import envelope_id, open_as
from protocol.messages.kinds import MessageKind
from protocol.messages.transactions import ChannelRedeem, Transaction
from protocol.primitives.codec import Message, encode
from protocol.primitives.units import AccountId, ChannelId, HeightField, MessageIdField


class AnchorRow(Message, frozen=True):
    """``Table.ANCHOR``: the block and transaction in which ``voucher`` stands."""

    height: HeightField
    transaction: MessageIdField
    voucher: bytes


def anchor_key(channel: ChannelId, lane: int, receipts_count: int) -> bytes:
    """Sorts by lane, then by count."""
    return channel + lane.to_bytes(1, "big") + receipts_count.to_bytes(8, "big")


def anchors_in(block: Block, own: AccountId) -> list[Effect]:
    """Rows for every voucher in this block that ``own`` has signed or is paid by."""
    found: list[Effect] = []
    for received in block.transactions:
        envelope, transaction = open_as(received, MessageKind.TRANSACTION)
        assert isinstance(transaction, Transaction)
        if not isinstance(transaction.action, ChannelRedeem):
            continue
        for voucher_bytes in transaction.action.vouchers:
            signed, voucher = open_voucher(voucher_bytes)
            # A payer can sign anything: its own redeem proves nothing to its payee, whose redeem both sides stand by.
            if own in (signed.sender, voucher.payee) and AccountId(envelope.sender) in (own, voucher.payee):
                row = AnchorRow(block.header.height, envelope_id(envelope), voucher_bytes)
                key = anchor_key(voucher.channel, voucher.lane, voucher.receipts_count)
                found.append(Put(Table.ANCHOR, key, encode(row)))
    return found
