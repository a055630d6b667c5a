"""Closed channels and unlocked bonds are paid out without anybody having to remember."""

from protocol.engine.payouts import RETRY_MS, Payouts
from protocol.messages.effects import Now
from protocol.messages.transactions import BondRelease, BondUnlock, ChannelClose, ChannelFinalise, ChannelOpen
from protocol.primitives.units import Amount, ChannelId, MonotonicMs, TimestampMs
from protocol.settlement.vouchers import channel_id
from tests.ledger.world import START_MS, Ledger, account_of

ALICE, BOB = account_of("alice"), account_of("bob")


def at(time_ms: int) -> Now:
    return Now(MonotonicMs(time_ms), TimestampMs(START_MS + time_ms))


def closing_ledger() -> tuple[Ledger, ChannelId]:
    ledger = Ledger()
    channel = channel_id(ALICE, BOB, ledger.state.account(ALICE).nonce)
    ledger.act("alice", ChannelOpen(BOB, Amount(5_000)))
    ledger.act("alice", ChannelClose(channel))
    return ledger, channel


def test_a_closed_channel_is_finalised_once_its_window_has_passed_and_asked_for_once() -> None:
    ledger, channel = closing_ledger()
    payouts = Payouts(ALICE)
    assert payouts.due(ledger.state, at(0)) == []
    ledger.pass_time(ledger.state.parameters.challenge_ms)
    assert payouts.due(ledger.state, at(1)) == [ChannelFinalise(channel)]
    assert payouts.due(ledger.state, at(2)) == []
    assert payouts.due(ledger.state, at(1 + RETRY_MS)) == [ChannelFinalise(channel)]
    ledger.act("alice", ChannelFinalise(channel))
    assert payouts.due(ledger.state, at(3 * RETRY_MS)) == []


def test_only_the_payer_asks() -> None:
    ledger, _ = closing_ledger()
    ledger.pass_time(ledger.state.parameters.challenge_ms)
    assert Payouts(BOB).due(ledger.state, at(1)) == []


def test_an_unlocked_bond_is_released_once_its_time_has_passed() -> None:
    ledger = Ledger()
    ledger.act("alice", BondUnlock(Amount(500)))
    payouts = Payouts(ALICE)
    assert payouts.due(ledger.state, at(0)) == []
    ledger.pass_time(ledger.state.parameters.unbonding_ms)
    assert payouts.due(ledger.state, at(1)) == [BondRelease(ALICE)]
    ledger.act("alice", BondRelease(ALICE))
    assert payouts.due(ledger.state, at(2)) == []
