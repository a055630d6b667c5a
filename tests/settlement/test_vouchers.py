"""Rules of vouchers as rows: what is taken, and which rule refuses what."""

import pytest
from msgspec.structs import replace

from protocol.messages.market import Voucher
from protocol.primitives.units import AccountId, Amount, ChannelId, Hash, Lane, Nonce, SequenceNumber
from protocol.settlement.accumulator import EMPTY_ROOT
from protocol.settlement.vouchers import (
    CumulativeFell,
    DepositExceeded,
    LanePosition,
    ReceiptsFell,
    SequenceNotRising,
    VoucherInvalid,
    VoucherMisdirected,
    channel_id,
    check_voucher,
    position_after,
    unused_lane,
)

CHANNEL = ChannelId(b"c" * 32)
PAYEE = AccountId(b"p" * 32)
ROOT = Hash(b"r" * 32)
LAST = LanePosition(Lane(2), SequenceNumber(5), Amount(100), ROOT, 3)
GOOD = Voucher(CHANNEL, PAYEE, Lane(2), SequenceNumber(6), Amount(150), ROOT, 3)


def judge(voucher: Voucher, others: int = 50, deposit: int = 200) -> None:
    check_voucher(voucher, channel=CHANNEL, payee=PAYEE, position=LAST, other_lanes_total=others, deposit=deposit)


@pytest.mark.parametrize(
    "voucher",
    [
        GOOD,
        replace(GOOD, cumulative=Amount(100)),  # a set-off debt: nothing new is owed
        replace(GOOD, sequence=SequenceNumber(99)),
        replace(GOOD, receipts_count=4, receipts_root=Hash(b"s" * 32)),
    ],
)
def test_a_voucher_that_keeps_every_rule_is_taken(voucher: Voucher) -> None:
    judge(voucher)
    assert position_after(voucher).sequence == voucher.sequence


@pytest.mark.parametrize(
    ("voucher", "refusal"),
    [
        (replace(GOOD, channel=ChannelId(b"x" * 32)), VoucherMisdirected),
        (replace(GOOD, payee=AccountId(b"x" * 32)), VoucherMisdirected),
        (replace(GOOD, lane=Lane(3)), VoucherMisdirected),
        (replace(GOOD, sequence=SequenceNumber(5)), SequenceNotRising),
        (replace(GOOD, sequence=SequenceNumber(4)), SequenceNotRising),
        (replace(GOOD, cumulative=Amount(99)), CumulativeFell),
        (replace(GOOD, cumulative=Amount(151)), DepositExceeded),
        (replace(GOOD, receipts_count=2), ReceiptsFell),
        (replace(GOOD, receipts_root=Hash(b"s" * 32)), ReceiptsFell),
    ],
)
def test_each_broken_rule_refuses_by_its_name(voucher: Voucher, refusal: type[VoucherInvalid]) -> None:
    with pytest.raises(refusal):
        judge(voucher)


def test_a_lane_begins_without_anything() -> None:
    assert unused_lane(7) == LanePosition(Lane(7), SequenceNumber(0), Amount(0), EMPTY_ROOT, 0)


def test_channel_ids_differ_by_payer_payee_and_nonce() -> None:
    payer = AccountId(b"q" * 32)
    ids = (
        channel_id(payer, PAYEE, Nonce(0)),
        channel_id(PAYEE, payer, Nonce(0)),
        channel_id(payer, PAYEE, Nonce(1)),
    )
    assert len({*ids}) == 3
