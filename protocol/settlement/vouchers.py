"""The rules of vouchers, shared by the payee that takes them and the ledger that redeems them.

Law: on one lane sequences strictly rise, cumulative amounts and receipt counts never fall, and the cumulative amounts
of all lanes together stay within the channel's deposit. Signatures are settled before these rules are asked: whoever
calls them has checked that the voucher's envelope was signed by the channel's payer.
"""

from protocol.messages.market import Count, Voucher
from protocol.primitives.codec import Message
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.hashing import Domain, digest
from protocol.primitives.units import (
    AccountId,
    Amount,
    AmountField,
    ChannelId,
    HashField,
    Lane,
    LaneField,
    Nonce,
    SequenceField,
    SequenceNumber,
)
from protocol.settlement.accumulator import EMPTY_ROOT


class LanePosition(Message, frozen=True):
    """What the last voucher on a lane said: the paid total of the lane and the receipts it committed to."""

    lane: LaneField
    sequence: SequenceField
    cumulative: AmountField
    receipts_root: HashField
    receipts_count: Count


def unused_lane(lane: int) -> LanePosition:
    """The position of a lane before its first voucher."""
    return LanePosition(Lane(lane), SequenceNumber(0), Amount(0), EMPTY_ROOT, 0)


def position_after(voucher: Voucher) -> LanePosition:
    """The lane's position once ``voucher`` holds."""
    return LanePosition(
        voucher.lane, voucher.sequence, voucher.cumulative, voucher.receipts_root, voucher.receipts_count
    )


class VoucherInvalid(RemoteProtocolError):
    """A voucher that breaks a rule of its channel; the payer's fault."""


class VoucherMisdirected(VoucherInvalid):
    """Made for another channel, payee or lane."""

    def __init__(self, field: str) -> None:
        super().__init__(f"voucher is for another {field}")
        self.field = field


class SequenceNotRising(VoucherInvalid):
    """A sequence number at or below the lane's last one."""

    def __init__(self, last: int, got: int) -> None:
        super().__init__(f"voucher sequence must rise above {last}, got {got}")
        self.last = last
        self.got = got


class CumulativeFell(VoucherInvalid):
    """Less than what the lane had been paid before."""

    def __init__(self, last: int, got: int) -> None:
        super().__init__(f"voucher amount fell from {last} to {got}")
        self.last = last
        self.got = got


class DepositExceeded(VoucherInvalid):
    """More than the channel's deposit, all lanes together."""

    def __init__(self, deposit: int, promised: int) -> None:
        super().__init__(f"vouchers promise {promised} of a deposit of {deposit}")
        self.deposit = deposit
        self.promised = promised


class ReceiptsFell(VoucherInvalid):
    """Commits to fewer receipts than before, or to other ones: a receipt would be lost."""

    def __init__(self, last: int, got: int) -> None:
        super().__init__(f"voucher commits to {got} receipts after {last}, or to others")
        self.last = last
        self.got = got


def check_voucher(
    voucher: Voucher,
    *,
    channel: ChannelId,
    payee: AccountId,
    position: LanePosition,
    other_lanes_total: int,
    deposit: int,
) -> None:
    """Judge a voucher against the lane's last ``position``; cheapest first. Raises a ``VoucherInvalid``.

    ``other_lanes_total`` is the sum of the cumulative amounts of the channel's other lanes; ``deposit`` is all that was
    ever deposited, amounts already redeemed included (cumulative amounts count from the channel's opening, too).
    """
    # [channel] made for this channel, this payee and this lane
    if voucher.channel != channel:
        raise VoucherMisdirected("channel")
    if voucher.payee != payee:
        raise VoucherMisdirected("payee")
    if voucher.lane != position.lane:
        raise VoucherMisdirected("lane")
    # [sequence] strictly above the last one
    if voucher.sequence <= position.sequence:
        raise SequenceNotRising(position.sequence, voucher.sequence)
    # [amount] never falls
    if voucher.cumulative < position.cumulative:
        raise CumulativeFell(position.cumulative, voucher.cumulative)
    # [deposit] all lanes together stay within it
    if other_lanes_total + voucher.cumulative > deposit:
        raise DepositExceeded(deposit, other_lanes_total + voucher.cumulative)
    # [receipts] the count never falls; the same count means the same receipts
    if voucher.receipts_count < position.receipts_count or (
        voucher.receipts_count == position.receipts_count and voucher.receipts_root != position.receipts_root
    ):
        raise ReceiptsFell(position.receipts_count, voucher.receipts_count)


def channel_id(payer: AccountId, payee: AccountId, open_nonce: Nonce) -> ChannelId:
    """The id of the channel that ``payer``'s transaction with ``open_nonce`` opens for ``payee``."""
    return ChannelId(digest(Domain.CHANNEL_ID, payer, payee, open_nonce.to_bytes(8, "big")))
