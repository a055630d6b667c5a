"""What a transaction does to payment channels.

Law: a channel holds ``deposit − redeemed``; redeeming moves it to the payee, ending the channel gives the rest back to
the payer. Only the payee's redeem moves money or lane rows: a payer could otherwise spend its own side of a channel on
vouchers that the payee never saw and so push aside those that the payee holds. A payer's redeem anchors its vouchers
in a block and changes no channel. Every state has a deadline in ledger time and a default payout.
"""

from protocol.ledger.errors import (
    ChannelClosing,
    ChannelNotClosing,
    ChannelUnknown,
    DepositTooLarge,
    InsufficientBalance,
    LaneRepeated,
    NotAParty,
    NotATransaction,
    SelfPayment,
    VoucherForeign,
    VoucherRefused,
    WindowOpen,
    ZeroAmount,
)
from protocol.ledger.rows import Channel
from protocol.ledger.tracks import settle
from protocol.ledger.view import Context, Overlay
from protocol.messages.envelope import Envelope, open_as
from protocol.messages.genesis import Parameters
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Voucher
from protocol.messages.transactions import ChannelClose, ChannelFinalise, ChannelOpen, ChannelRedeem, ChannelTopUp
from protocol.primitives.errors import MalformedMessage
from protocol.primitives.units import (
    AMOUNT_MAX,
    AccountId,
    Amount,
    ChannelId,
    LedgerTimeMs,
    Nonce,
    checked_add,
    checked_subtract,
)
from protocol.settlement.vouchers import (
    LanePosition,
    VoucherInvalid,
    channel_id,
    check_voucher,
    position_after,
    unused_lane,
)

SHARE_DENOMINATOR = 1_000_000
"""Shares are in parts per million."""


def _channel(overlay: Overlay, identity: ChannelId) -> Channel:
    channel = overlay.channel(identity)
    if channel is None:
        raise ChannelUnknown(channel=identity.hex())
    return channel


def _spend(overlay: Overlay, sender: AccountId, amount: Amount) -> None:
    account = overlay.account(sender)
    if amount > account.balance:
        raise InsufficientBalance(balance=account.balance, needed=amount)
    overlay.accounts[sender] = account.with_balance(checked_subtract(account.balance, amount))


def _receive(overlay: Overlay, recipient: AccountId, amount: Amount) -> None:
    account = overlay.account(recipient)
    overlay.accounts[recipient] = account.with_balance(checked_add(account.balance, amount))


def open_channel(overlay: Overlay, context: Context, sender: AccountId, nonce: Nonce, action: ChannelOpen) -> None:
    """Move the deposit from the payer's balance into a new channel."""
    if action.deposit == 0:
        raise ZeroAmount(action="channel open")
    if action.payee == sender:
        raise SelfPayment(account=sender.hex())
    identity = channel_id(sender, action.payee, nonce)
    assert overlay.channel(identity) is None  # a nonce is used once, so the id is new
    _spend(overlay, sender, action.deposit)
    overlay.channels[identity] = Channel(
        sender, action.payee, action.deposit, (), context.height, context.ledger_time_ms, None
    )


def top_up(overlay: Overlay, sender: AccountId, action: ChannelTopUp) -> None:
    """The payer adds to the deposit of a channel that nobody has closed."""
    if action.amount == 0:
        raise ZeroAmount(action="channel top-up")
    channel = _channel(overlay, action.channel)
    if sender != channel.payer:
        raise NotAParty(action="channel top-up", sender=sender.hex())
    if channel.closing_at is not None:
        raise ChannelClosing(closing_at=channel.closing_at)
    _spend(overlay, sender, action.amount)
    # The deposit counts redeemed amounts too, so money that goes round can take it past all money there is.
    if channel.deposit + action.amount > AMOUNT_MAX:
        raise DepositTooLarge(deposit=channel.deposit, amount=action.amount)
    deposit = checked_add(channel.deposit, action.amount)
    overlay.channels[action.channel] = _changed(channel, deposit=deposit)


def _changed(
    channel: Channel,
    *,
    deposit: Amount | None = None,
    lanes: tuple[LanePosition, ...] | None = None,
    closing_at: LedgerTimeMs | None = None,
) -> Channel:
    return Channel(
        channel.payer,
        channel.payee,
        channel.deposit if deposit is None else deposit,
        channel.lanes if lanes is None else lanes,
        channel.opened_height,
        channel.opened_at,
        channel.closing_at if closing_at is None else closing_at,
    )


def redeem_fee(parameters: Parameters, amount: Amount) -> Amount:
    """What redeeming ``amount`` base units costs: max(floor, share of it rounded up)."""
    share = -(-amount * parameters.redeem_fee_share_ppm // SHARE_DENOMINATOR)
    return Amount(max(parameters.redeem_fee_min, share))


def open_voucher(received: bytes) -> tuple[Envelope, Voucher]:
    """A voucher's envelope and content; ``NotATransaction`` on anything else."""
    try:
        envelope, voucher = open_as(received, MessageKind.VOUCHER)
    except MalformedMessage as error:
        raise NotATransaction(reason=str(error)) from None
    assert isinstance(voucher, Voucher)
    return envelope, voucher


def _redeemed_lanes(channel: Channel, identity: ChannelId, action: ChannelRedeem) -> tuple[LanePosition, ...]:
    """All lanes of the channel after the vouchers of a redeem."""
    lanes = {position.lane: position for position in channel.lanes}
    seen: dict[int, None] = {}
    for received in action.vouchers:
        envelope, voucher = open_voucher(received)
        lane = voucher.lane
        if AccountId(envelope.sender) != channel.payer:
            raise VoucherForeign(lane=lane, signer=envelope.sender.hex())
        if lane in seen:
            raise LaneRepeated(lane=lane)
        seen[lane] = None
        position = lanes.get(lane, unused_lane(lane))
        others = sum(other.cumulative for other in lanes.values()) - position.cumulative
        try:
            check_voucher(
                voucher,
                channel=identity,
                payee=channel.payee,
                position=position,
                other_lanes_total=others,
                deposit=channel.deposit,
            )
        except VoucherInvalid as error:
            raise VoucherRefused(lane=lane, reason=str(error)) from error
        lanes[lane] = position_after(voucher)
    return tuple(lanes[lane] for lane in sorted(lanes))


def redeem(overlay: Overlay, context: Context, sender: AccountId, action: ChannelRedeem) -> None:
    """The payee is paid what its vouchers add and pays the redeem fee; a payer only anchors and pays the floor.

    Only the payee's redeem counts in both parties' track records.

    Allowed for as long as the channel exists, its challenge window and the time until it is finalised included.
    """
    channel = _channel(overlay, action.channel)
    if sender not in (channel.payer, channel.payee):
        raise NotAParty(action="channel redeem", sender=sender.hex())
    lanes = _redeemed_lanes(channel, action.channel, action)
    if sender == channel.payer:
        fee = redeem_fee(overlay.parameters, Amount(0))
    else:
        after = _changed(channel, lanes=lanes)
        paid = checked_subtract(after.redeemed, channel.redeemed)
        fee = redeem_fee(overlay.parameters, paid)
        _receive(overlay, sender, paid)
        overlay.channels[action.channel] = after
        receipts = after.receipts_count - channel.receipts_count
        if paid or receipts:
            settle(overlay, context, channel.payer, sender, paid, receipts)
    _spend(overlay, sender, fee)
    overlay.fee_pool = checked_add(overlay.fee_pool, fee)


def close(overlay: Overlay, context: Context, sender: AccountId, action: ChannelClose) -> None:
    """The payee's close pays the rest back at once; the payer's opens the challenge window."""
    channel = _channel(overlay, action.channel)
    if sender == channel.payee:
        _end(overlay, action.channel, channel)
    elif sender != channel.payer:
        raise NotAParty(action="channel close", sender=sender.hex())
    elif channel.closing_at is not None:
        raise ChannelClosing(closing_at=channel.closing_at)
    else:
        closing_at = LedgerTimeMs(context.ledger_time_ms + overlay.parameters.challenge_ms)
        overlay.channels[action.channel] = _changed(channel, closing_at=closing_at)


def finalise(overlay: Overlay, context: Context, action: ChannelFinalise) -> None:
    """Anyone may end a channel whose challenge window has passed."""
    channel = _channel(overlay, action.channel)
    if channel.closing_at is None:
        raise ChannelNotClosing(channel=action.channel.hex())
    if context.ledger_time_ms < channel.closing_at:
        raise WindowOpen(closing_at=channel.closing_at, now=context.ledger_time_ms)
    _end(overlay, action.channel, channel)


def _end(overlay: Overlay, identity: ChannelId, channel: Channel) -> None:
    if channel.held:
        _receive(overlay, channel.payer, channel.held)
    overlay.channels[identity] = None
