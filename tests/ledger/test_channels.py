"""Channels from opening to payout: every deadline, every party, every way to ask for too much."""

from collections.abc import Callable

import pytest

from protocol.ledger import errors
from protocol.ledger.channels import redeem_fee
from protocol.ledger.signatures import block_checks, nested_checks, transaction_checks
from protocol.messages.envelope import open_as
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Voucher
from protocol.messages.transactions import (
    ChannelClose,
    ChannelFinalise,
    ChannelOpen,
    ChannelRedeem,
    ChannelTopUp,
    Output,
    Transfer,
)
from protocol.primitives.codec import encode
from protocol.primitives.units import AMOUNT_MAX, AccountId, Amount, ChannelId, Hash
from tests.ledger.world import FEE, Ledger, account_of, make_genesis, make_parameters


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def channel(ledger: Ledger) -> ChannelId:
    return ledger.open_channel("alice", "bob", 10_000)


def test_opening_sets_the_deposit_aside(ledger: Ledger, channel: ChannelId) -> None:
    row = ledger.state.channel(channel)
    assert row is not None
    assert (row.payer, row.payee, row.deposit, row.redeemed, row.held) == (
        account_of("alice"),
        account_of("bob"),
        10_000,
        0,
        10_000,
    )
    assert row.opened_height == 1
    assert ledger.balance("alice") == 1_000_000 - 10_000 - FEE
    assert ledger.state.channels_of(account_of("alice")) == ((channel, row),)
    assert ledger.state.channels_of(account_of("bob")) == ((channel, row),)


def test_two_channels_between_the_same_parties_have_different_ids(ledger: Ledger, channel: ChannelId) -> None:
    assert ledger.open_channel("alice", "bob", 1) != channel
    assert len(ledger.state.channels_of(account_of("bob"))) == 2


def test_channels_that_others_open_are_not_among_those_that_an_account_pays(ledger: Ledger, channel: ChannelId) -> None:
    towards = ledger.open_channel("carol", "alice", 1)
    assert [found for found, _ in ledger.state.channels_paid_by(account_of("alice"))] == [channel]
    assert [found for found, _ in ledger.state.channels_of(account_of("alice"))] == [channel, towards]
    ledger.act("bob", ChannelClose(channel))
    assert ledger.state.channels_paid_by(account_of("alice")) == ()


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (ChannelOpen(account_of("bob"), Amount(0)), errors.ZeroAmount),
        (ChannelOpen(account_of("alice"), Amount(5)), errors.SelfPayment),
        (ChannelOpen(account_of("bob"), Amount(1_000_001)), errors.InsufficientBalance),
    ],
)
def test_a_channel_that_makes_no_sense_is_not_opened(
    ledger: Ledger, action: ChannelOpen, error: type[errors.TransactionInvalid]
) -> None:
    with pytest.raises(error):
        ledger.act("alice", action)


def test_a_top_up_adds_to_the_deposit(ledger: Ledger, channel: ChannelId) -> None:
    ledger.act("alice", ChannelTopUp(channel, Amount(500)))
    row = ledger.state.channel(channel)
    assert row is not None
    assert row.deposit == 10_500
    assert ledger.balance("alice") == 1_000_000 - 10_500 - 2 * FEE


@pytest.mark.parametrize(
    ("name", "amount", "error"),
    [
        ("alice", 0, errors.ZeroAmount),
        ("alice", 999_999, errors.InsufficientBalance),
        ("alice", AMOUNT_MAX, errors.InsufficientBalance),
        ("bob", 5, errors.NotAParty),
        ("carol", 5, errors.NotAParty),
    ],
)
def test_a_top_up_needs_the_payer_and_its_money(
    ledger: Ledger, channel: ChannelId, name: str, amount: int, error: type[errors.TransactionInvalid]
) -> None:
    with pytest.raises(error):
        ledger.act(name, ChannelTopUp(channel, Amount(amount)))


def test_money_that_goes_round_cannot_take_a_deposit_out_of_range() -> None:
    ledger = Ledger(make_genesis(balance=AMOUNT_MAX // 4 - 2_000))
    half = AMOUNT_MAX // 4 - 100_000
    channel = ledger.open_channel("alice", "bob", half)
    for sequence in (1, 2, 3):
        voucher = ledger.voucher(channel, "alice", "bob", sequence, half * sequence)
        ledger.act("bob", ChannelRedeem(channel, (voucher,)))
        ledger.act("bob", Transfer((Output(account_of("alice"), Amount(half - half // 50)),)))
        ledger.act("carol", Transfer((Output(account_of("alice"), Amount(half // 50)),)))
        ledger.act("alice", ChannelTopUp(channel, Amount(half)))
    voucher = ledger.voucher(channel, "alice", "bob", 4, half * 4)
    ledger.act("bob", ChannelRedeem(channel, (voucher,)))
    ledger.act("bob", Transfer((Output(account_of("alice"), Amount(half - half // 50)),)))
    with pytest.raises(errors.DepositTooLarge):
        ledger.act("alice", ChannelTopUp(channel, Amount(half // 2)))


def test_a_closing_channel_takes_no_top_up(ledger: Ledger, channel: ChannelId) -> None:
    ledger.act("alice", ChannelClose(channel))
    with pytest.raises(errors.ChannelClosing):
        ledger.act("alice", ChannelTopUp(channel, Amount(5)))


def test_redeeming_pays_what_each_voucher_adds_less_the_fee(ledger: Ledger, channel: ChannelId) -> None:
    ledger.act("bob", ChannelRedeem(channel, (ledger.voucher(channel, "alice", "bob", 3, 2_000),)))
    fee = 20  # 1 % of 2,000
    assert ledger.balance("bob") == 1_000_000 + 2_000 - fee - FEE
    vouchers = (
        ledger.voucher(channel, "alice", "bob", 4, 2_500, receipts_root=b"r" * 32, receipts_count=1),
        ledger.voucher(channel, "alice", "bob", 1, 300, lane=7),
    )
    ledger.act("bob", ChannelRedeem(channel, vouchers))
    fee += 8  # 1 % of the 800 that these add
    assert ledger.balance("bob") == 1_000_000 + 2_800 - fee - 2 * FEE
    row = ledger.state.channel(channel)
    assert row is not None
    assert (row.redeemed, row.held) == (2_800, 7_200)
    assert [position.lane for position in row.lanes] == [0, 7]
    assert row.lane_position(0).receipts_root == b"r" * 32
    assert row.lane_position(0).sequence == 4
    assert row.lane_position(1).sequence == 0
    assert ledger.state.fee_pool == 3 * FEE + fee


def test_the_redeem_fee_is_the_share_rounded_up_and_never_below_the_floor() -> None:
    parameters = make_parameters(redeem_fee_min=5, redeem_fee_share_ppm=10_000)
    assert [redeem_fee(parameters, Amount(amount)) for amount in (0, 1, 499, 500, 501, 600, 601)] == [
        5, 5, 5, 5, 6, 6, 7,
    ]  # fmt: skip


def test_a_payee_without_a_balance_pays_the_redeem_fee_from_what_it_redeems() -> None:
    ledger = Ledger(make_genesis(names=("alice",)))
    channel = ledger.open_channel("alice", "bob", 1_000)
    ledger.act("alice", Transfer((Output(account_of("bob"), Amount(FEE)),)))
    ledger.act("bob", ChannelRedeem(channel, (ledger.voucher(channel, "alice", "bob", 1, 100),)))
    assert ledger.balance("bob") == 95


def test_a_redeem_that_cannot_pay_its_fee_is_refused() -> None:
    ledger = Ledger(make_genesis(names=("alice",)))
    channel = ledger.open_channel("alice", "bob", 1_000)
    ledger.act("alice", Transfer((Output(account_of("bob"), Amount(FEE)),)))
    with pytest.raises(errors.InsufficientBalance) as caught:
        ledger.act("bob", ChannelRedeem(channel, (ledger.voucher(channel, "alice", "bob", 1, 4),)))
    assert caught.value.facts == {"balance": 4, "needed": 5}


VoucherMaker = Callable[[Ledger, ChannelId], bytes]
REFUSED: list[tuple[str, VoucherMaker, type[errors.TransactionInvalid]]] = [
    ("same sequence", lambda x, c: x.voucher(c, "alice", "bob", 5, 2_000), errors.VoucherRefused),
    ("lower sequence", lambda x, c: x.voucher(c, "alice", "bob", 4, 2_000), errors.VoucherRefused),
    ("falling amount", lambda x, c: x.voucher(c, "alice", "bob", 6, 999, receipts_count=3), errors.VoucherRefused),
    ("fewer receipts", lambda x, c: x.voucher(c, "alice", "bob", 6, 2_000, receipts_count=2), errors.VoucherRefused),
    (
        "other receipts of the same number",
        lambda x, c: x.voucher(c, "alice", "bob", 6, 2_000, receipts_root=b"x" * 32, receipts_count=3),
        errors.VoucherRefused,
    ),
    (
        "above the deposit",
        lambda x, c: x.voucher(c, "alice", "bob", 6, 10_001, receipts_count=3),
        errors.VoucherRefused,
    ),
    ("other lane above the rest", lambda x, c: x.voucher(c, "alice", "bob", 1, 9_001, lane=1), errors.VoucherRefused),
    ("another payee", lambda x, c: x.voucher(c, "alice", "carol", 6, 2_000, receipts_count=3), errors.VoucherRefused),
    (
        "another channel",
        lambda x, c: x.voucher(ChannelId(bytes(32)), "alice", "bob", 6, 2_000, receipts_count=3),
        errors.VoucherRefused,
    ),
    ("signed by the payee", lambda x, c: x.voucher(c, "bob", "bob", 6, 2_000, receipts_count=3), errors.VoucherForeign),
    ("no voucher", lambda x, c: b"\x90", errors.NotATransaction),
]


@pytest.mark.parametrize(("make", "error"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_a_voucher_that_breaks_a_rule_is_not_redeemed(
    ledger: Ledger, channel: ChannelId, make: VoucherMaker, error: type[errors.TransactionInvalid]
) -> None:
    first = ledger.voucher(channel, "alice", "bob", 5, 1_000, receipts_root=b"r" * 32, receipts_count=3)
    ledger.act("bob", ChannelRedeem(channel, (first,)))
    before = list(ledger.state.rows())
    with pytest.raises(error):
        ledger.act("bob", ChannelRedeem(channel, (make(ledger, channel),)))
    assert list(ledger.state.rows()) == before


def test_the_last_unit_of_the_deposit_can_be_redeemed(ledger: Ledger, channel: ChannelId) -> None:
    vouchers = tuple(ledger.voucher(channel, "alice", "bob", 1, 5_000, lane=lane) for lane in (1, 0))
    ledger.act("bob", ChannelRedeem(channel, vouchers))
    row = ledger.state.channel(channel)
    assert row is not None
    assert row.held == 0
    before = ledger.balance("alice")
    ledger.act("bob", ChannelClose(channel))
    assert ledger.balance("alice") == before


def test_two_vouchers_for_one_lane_in_one_redeem_are_refused(ledger: Ledger, channel: ChannelId) -> None:
    vouchers = tuple(ledger.voucher(channel, "alice", "bob", sequence, 100 * sequence) for sequence in (1, 2))
    with pytest.raises(errors.LaneRepeated):
        ledger.act("bob", ChannelRedeem(channel, vouchers))


def test_a_stranger_cannot_redeem(ledger: Ledger, channel: ChannelId) -> None:
    with pytest.raises(errors.NotAParty):
        ledger.act("carol", ChannelRedeem(channel, (ledger.voucher(channel, "alice", "bob", 1, 100),)))


def test_a_payer_only_anchors_and_cannot_push_aside_what_the_payee_holds(ledger: Ledger, channel: ChannelId) -> None:
    held = ledger.voucher(channel, "alice", "bob", 5, 6_000)
    row = ledger.state.channel(channel)
    hostile = (
        ledger.voucher(channel, "alice", "bob", 2**48, 1, receipts_root=b"x" * 32, receipts_count=2**32),
        ledger.voucher(channel, "alice", "bob", 1, 9_000, lane=1),
    )
    before = ledger.balance("alice"), ledger.balance("bob")
    ledger.act("alice", ChannelRedeem(channel, hostile))
    assert ledger.state.channel(channel) == row
    assert (ledger.balance("alice"), ledger.balance("bob")) == (before[0] - FEE - 5, before[1])
    ledger.act("bob", ChannelRedeem(channel, (held,)))
    assert ledger.balance("bob") == before[1] + 6_000 - 60 - FEE


def test_the_payees_close_pays_the_rest_back_at_once(ledger: Ledger, channel: ChannelId) -> None:
    ledger.act("bob", ChannelRedeem(channel, (ledger.voucher(channel, "alice", "bob", 1, 4_000),)))
    before = ledger.balance("alice")
    execution = ledger.act("bob", ChannelClose(channel))
    assert ledger.balance("alice") == before + 6_000
    assert ledger.state.channel(channel) is None
    assert ledger.state.channels_of(account_of("alice")) == ()
    assert (b"c" + channel, None) in execution.rows


def test_the_payers_close_opens_the_window_in_which_the_payee_still_redeems(ledger: Ledger, channel: ChannelId) -> None:
    ledger.act("alice", ChannelClose(channel))
    row = ledger.state.channel(channel)
    assert row is not None
    assert row.closing_at == ledger.state.ledger_time_ms + 5_000
    with pytest.raises(errors.WindowOpen) as caught:
        ledger.act("alice", ChannelFinalise(channel), after_ms=4_999)
    assert caught.value.facts == {"closing_at": row.closing_at, "now": row.closing_at - 1}
    ledger.act("bob", ChannelRedeem(channel, (ledger.voucher(channel, "alice", "bob", 1, 4_000),)), after_ms=4_000)
    after = ledger.state.channel(channel)
    assert after is not None
    assert after.closing_at == row.closing_at
    before = ledger.balance("alice")
    ledger.act("carol", ChannelFinalise(channel), after_ms=1_000)
    assert ledger.balance("alice") == before + 6_000
    assert ledger.state.channel(channel) is None


def test_a_payee_may_redeem_after_the_window_until_somebody_finalises(ledger: Ledger, channel: ChannelId) -> None:
    ledger.act("alice", ChannelClose(channel))
    ledger.pass_time(60_000)
    ledger.act("bob", ChannelRedeem(channel, (ledger.voucher(channel, "alice", "bob", 1, 4_000),)))
    assert ledger.balance("bob") == 1_000_000 + 4_000 - 40 - FEE


def test_a_halted_ledger_eats_nobodys_window() -> None:
    ledger = Ledger(make_genesis(challenge_ms=60_000))
    channel = ledger.open_channel("alice", "bob", 100)
    ledger.act("alice", ChannelClose(channel))
    with pytest.raises(errors.WindowOpen):
        ledger.act("alice", ChannelFinalise(channel), after_ms=7 * 24 * 3_600_000)


@pytest.mark.parametrize(
    ("name", "closed", "error"),
    [("carol", False, errors.NotAParty), ("carol", True, errors.NotAParty), ("alice", True, errors.ChannelClosing)],
)
def test_who_may_not_close(
    ledger: Ledger, channel: ChannelId, name: str, closed: bool, error: type[errors.TransactionInvalid]
) -> None:
    if closed:
        ledger.act("alice", ChannelClose(channel))
    with pytest.raises(error):
        ledger.act(name, ChannelClose(channel))


def test_the_payee_may_close_at_once_what_the_payer_is_closing(ledger: Ledger, channel: ChannelId) -> None:
    ledger.act("alice", ChannelClose(channel))
    ledger.act("bob", ChannelClose(channel))
    assert ledger.state.channel(channel) is None


def test_nobody_finalises_what_nobody_closed(ledger: Ledger, channel: ChannelId) -> None:
    with pytest.raises(errors.ChannelNotClosing):
        ledger.act("alice", ChannelFinalise(channel), after_ms=30_000)


def test_a_channel_that_has_ended_is_unknown_and_its_vouchers_are_worth_nothing(
    ledger: Ledger, channel: ChannelId
) -> None:
    voucher = ledger.voucher(channel, "alice", "bob", 1, 4_000)
    ledger.act("bob", ChannelClose(channel))
    again = ledger.open_channel("alice", "bob", 10_000)
    for action in (
        ChannelRedeem(channel, (voucher,)),
        ChannelClose(channel),
        ChannelFinalise(channel),
        ChannelTopUp(channel, Amount(1)),
    ):
        with pytest.raises(errors.ChannelUnknown):
            ledger.act("bob", action)
    with pytest.raises(errors.VoucherRefused):
        ledger.act("bob", ChannelRedeem(again, (voucher,)))


def test_the_door_is_told_of_every_voucher_signature_in_a_redeem(ledger: Ledger, channel: ChannelId) -> None:
    vouchers = tuple(ledger.voucher(channel, "alice", "bob", 1, 100, lane=lane) for lane in (0, 1))
    pending = ledger.transaction("bob", ChannelRedeem(channel, vouchers))
    checks = transaction_checks(ledger.hash, pending.envelope_bytes)
    assert [AccountId(check.key) for check in checks] == [account_of("bob"), account_of("alice"), account_of("alice")]
    assert all(check.holds() for check in checks)
    envelope, _ = open_as(pending.envelope_bytes, MessageKind.TRANSACTION)
    assert len(nested_checks(ledger.hash, envelope, pending.transaction)) == 2
    execution = ledger.include(pending)
    assert len(block_checks(ledger.hash, execution.block)) == 3


def test_a_forged_voucher_is_caught_by_the_check_that_the_door_is_given(ledger: Ledger, channel: ChannelId) -> None:
    voucher, body = open_as(ledger.voucher(channel, "alice", "bob", 1, 100), MessageKind.VOUCHER)
    assert isinstance(body, Voucher)
    raised = Voucher(channel, body.payee, body.lane, body.sequence, Amount(9_000), Hash(bytes(32)), 0)
    forged = encode(type(voucher)(voucher.kind, encode(raised), voucher.sender, voucher.signature))
    pending = ledger.transaction("bob", ChannelRedeem(channel, (forged,)))
    holds = [check.holds() for check in transaction_checks(ledger.hash, pending.envelope_bytes)]
    assert holds == [True, False]
