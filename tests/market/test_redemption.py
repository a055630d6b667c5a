"""Vouchers become money once, when it is due, without stopping work."""

import pytest
from msgspec.structs import replace

from protocol.market.events import JobFinished
from protocol.market.policies import SellerPolicy
from protocol.market.requests import WantTransaction
from protocol.messages.effects import Put, Table
from protocol.messages.envelope import open_envelope
from protocol.messages.market import Voucher
from protocol.messages.transactions import ChannelRedeem
from protocol.primitives.units import Amount, ChannelId, DurationMs
from protocol.settlement.pricing import amount_due
from tests.market.town import PRICES, Town, Worker, request

PRICE = amount_due(PRICES, 10, 25)


def town_with(**policy: object) -> Town:
    town = Town()
    town.seller.seller_policy = replace(SellerPolicy(slots=4), **policy)
    town.crash(town.seller)
    return town


def sell(town: Town, *numbers: int) -> ChannelId:
    for number in numbers:
        town.start(request(number))
        town.run()
    [channel] = town.ledger.channels
    return channel


def asked(town: Town) -> list[WantTransaction]:
    return [wanted for sender, wanted in town.ledger.waiting if sender == town.seller.account]


def look(town: Town) -> list[WantTransaction]:
    """What the seller asks for when a block comes a second later."""
    town.wait(1_000)
    town.do(town.seller, town.seller.seller.block_decided(town.now))
    return asked(town)


@pytest.mark.parametrize(("redeem_amount", "due"), [(PRICE, True), (PRICE + 1, False)])
def test_redeemed_once_enough_waits(redeem_amount: int, due: bool) -> None:
    town = town_with(redeem_amount=Amount(redeem_amount))
    sell(town, 1)
    assert bool(look(town)) is due
    town.run()
    assert town.ledger.balances.get(town.seller.account, 0) == (PRICE if due else 0)


def test_redeemed_once_the_oldest_voucher_is_old_enough() -> None:
    town = town_with(redeem_age_ms=DurationMs(60_000))
    sell(town, 1)
    town.wait(58_000)
    assert look(town) == []
    assert len(look(town)) == 1


def test_less_than_the_fee_is_worth_is_left_even_when_the_channel_closes() -> None:
    town = town_with(redeem_worth_min=Amount(PRICE + 1), redeem_amount=Amount(1))
    channel = sell(town, 1)
    assert look(town) == []
    town.ledger.channels[channel] = replace(town.ledger.channels[channel], closing=True)
    assert look(town) == [], "a buyer that opens, pays little and closes must not cost the provider a fee each time"


def test_what_a_closing_channel_holds_is_redeemed_although_it_is_not_much() -> None:
    town = town_with(redeem_worth_min=Amount(PRICE))
    channel = sell(town, 1)
    assert look(town) == []
    town.ledger.channels[channel] = replace(town.ledger.channels[channel], closing=True)
    [wanted] = look(town)
    assert isinstance(wanted.action, ChannelRedeem)


def test_provider_that_was_down_when_the_channel_closed_redeems_with_the_first_block_that_it_sees() -> None:
    town = town_with()
    channel = sell(town, 1)
    assert look(town) == [], "too little and too young to be redeemed by itself"
    town.ledger.channels[channel] = replace(town.ledger.channels[channel], closing=True)
    town.crash(town.seller)
    town.do(town.seller, town.seller.seller.block_decided(town.now))
    [wanted] = asked(town)
    assert isinstance(wanted.action, ChannelRedeem)
    town.run()
    assert town.ledger.balances[town.seller.account] == PRICE


def test_redemption_that_was_lost_with_the_process_is_asked_for_again_and_pays_once() -> None:
    town = town_with(redeem_amount=Amount(1))
    channel = sell(town, 1)
    assert len(look(town)) == 1
    town.ledger.waiting.clear()
    town.ledger.channels[channel] = replace(town.ledger.channels[channel], closing=True)
    town.crash(town.seller)
    assert len(look(town)) == 1
    town.run()
    town.crash(town.seller)
    assert look(town) == []
    assert town.ledger.balances[town.seller.account] == PRICE


def test_nothing_is_asked_for_twice_and_work_goes_on_meanwhile() -> None:
    town = town_with(redeem_amount=Amount(1))
    channel = sell(town, 1)
    assert len(look(town)) == 1
    waiting = town.ledger.waiting
    town.ledger.waiting = []
    town.start(request(2))
    town.run()
    assert len(town.buyer.told(JobFinished)) == 2
    assert look(town) == []
    assert town.seller.seller.redeem_now(channel, town.now) == []
    town.ledger.waiting = waiting
    town.run()
    # Once the ledger shows the first, what came since is asked for, and every voucher goes in once.
    assert len(look(town)) == 1
    town.run()
    assert town.ledger.balances[town.seller.account] == 2 * PRICE
    assert len(town.ledger.redeemed) == len({*town.ledger.redeemed}) == 2
    assert look(town) == []


def rejected(town: Town, channel: ChannelId, code: str) -> list[WantTransaction]:
    """The mempool refuses the redemption under way; what is asked for then, at once."""
    town.ledger.waiting.clear()
    town.do(town.seller, town.seller.seller.transaction_rejected(channel, "no", town.now, code))
    return asked(town)


def test_redemption_that_only_time_can_cure_is_asked_for_again_later_and_not_at_once() -> None:
    town = town_with(redeem_amount=Amount(1), redeem_retry_ms=DurationMs(10_000))
    channel = sell(town, 1)
    assert len(look(town)) == 1
    assert rejected(town, channel, "insufficient_balance") == []
    assert look(town) == []
    town.wait(8_000)
    assert len(look(town)) == 1


@pytest.mark.parametrize("code", ["nonce_used", "nonce_mismatch", "state_moved", "voucher_refused"])
def test_redemption_that_a_block_has_overtaken_is_made_anew_at_once_and_not_for_ever(code: str) -> None:
    town = town_with(redeem_amount=Amount(1), redeem_retry_ms=DurationMs(600_000))
    channel = sell(town, 1)
    assert len(look(town)) == 1
    for _ in range(3):
        assert len(rejected(town, channel, code)) == 1
    assert rejected(town, channel, code) == []
    assert look(town) == []


def test_redemption_without_room_is_asked_for_after_pauses_that_double_though_no_block_comes() -> None:
    town = town_with(redeem_amount=Amount(1), redeem_retry_ms=DurationMs(60_000))
    channel = sell(town, 1)
    assert len(look(town)) == 1
    for pause_ms in (1_000, 2_000, 4_000, 8_000):
        assert rejected(town, channel, "mempool_full") == []
        town.wait(pause_ms - 1)
        assert asked(town) == []
        town.wait(1)
        assert len(asked(town)) == 1
    town.run()
    assert town.ledger.balances[town.seller.account] == PRICE
    sell(town, 2)
    assert len(look(town)) == 1
    assert rejected(town, channel, "mempool_full") == []
    town.wait(1_000)
    assert len(asked(town)) == 1, "the pauses begin anew with the next redemption"


def test_overtaken_redemption_names_only_what_the_ledger_does_not_have_yet() -> None:
    town = town_with(redeem_amount=Amount(1))
    channel = sell(town, 1)
    assert len(look(town)) == 1
    facts = town.ledger.channels[channel]
    town.run()
    assert town.ledger.channels[channel] != facts
    assert rejected(town, channel, "voucher_refused") == []
    assert look(town) == []


def test_lanes_of_a_channel_are_redeemed_together_by_their_best_vouchers() -> None:
    town = town_with(redeem_amount=Amount(3 * PRICE))
    for number in (1, 2, 3):
        town.start(request(number))
    town.run()
    [wanted] = look(town)
    assert isinstance(wanted.action, ChannelRedeem)
    vouchers = [open_envelope(envelope_bytes)[1] for envelope_bytes in wanted.action.vouchers]
    assert [voucher.cumulative for voucher in vouchers if isinstance(voucher, Voucher)] == [PRICE] * 3
    town.run()
    assert town.ledger.balances[town.seller.account] == 3 * PRICE


def test_closing_channels_come_first() -> None:
    town = Town(buyers=2)
    town.seller.seller_policy = replace(SellerPolicy(slots=4), redeem_amount=Amount(1))
    town.crash(town.seller)
    town.start(request(1), town.buyers[0])
    town.run()
    town.start(request(2), town.buyers[1])
    town.seller.worker = Worker(pieces=(5,))
    town.run()
    for closing in town.ledger.channels:
        before = town.ledger.channels[closing]
        town.ledger.channels[closing] = replace(before, closing=True)
        facts = tuple(town.ledger.channels.values())
        fresh = type(town.seller.seller._redemption)(town.seller.seller.books, town.seller.seller_policy)
        wanted = [effect for effect in fresh.due(town.now, facts) if isinstance(effect, WantTransaction)]
        assert wanted[0].subject == closing
        assert len(wanted) == 2
        town.ledger.channels[closing] = before


def test_redeem_now_takes_whatever_waits_and_forgets_it_once_it_is_on_the_ledger() -> None:
    town = town_with()
    channel = sell(town, 1)
    found = town.seller.seller.redeemable(channel)
    assert found is not None
    assert found.worth == PRICE
    town.do(town.seller, town.seller.seller.redeem_now(channel, town.now))
    town.run()
    found = town.seller.seller.redeemable(channel)
    assert found is not None
    assert found.worth == 0
    settled = town.seller.seller._due_redemptions(town.now)
    assert all(isinstance(effect, Put) for effect in settled)
    [lane] = town.seller.seller.books.lanes_of(channel)
    assert lane.unredeemed_since == 0


def test_timer_looks_after_old_vouchers_without_any_block() -> None:
    town = town_with(redeem_age_ms=DurationMs(8_000))
    town.do(town.seller, town.seller.seller.start(town.now))
    sell(town, 1)
    town.wait(12_000)
    assert len(asked(town)) == 1


def test_voucher_that_the_ledger_would_refuse_is_worth_nothing() -> None:
    town = town_with(redeem_amount=Amount(1))
    channel = sell(town, 1)
    [lane] = town.seller.seller.books.lanes_of(channel)
    # The payer had another voucher of the same or a higher sequence redeemed, for less.
    for sequence in (lane.position.sequence, lane.position.sequence + 1):
        other = replace(lane.position, sequence=sequence, cumulative=Amount(1))
        town.ledger.channels[channel] = replace(town.ledger.channels[channel], redeemed=(other,))
        found = town.seller.seller.redeemable(channel)
        assert found is not None
        assert (found.lanes, found.worth) == ((), 0)


def test_a_channel_that_closes_under_a_job_ends_it_with_the_next_voucher_and_is_redeemed_once() -> None:
    town = town_with(redeem_amount=Amount(1))
    town.seller.worker = Worker(pieces=(10, 10, 10, 5))
    town.start(request())
    while not town.watch.vouchers:
        town.busy()[0]()
    [channel] = town.ledger.channels
    town.ledger.channels[channel] = replace(town.ledger.channels[channel], closing=True)
    town.run()
    [chunks] = town.watch.chunks.values()
    assert max(chunks) <= 1, "nothing is released against a channel that is about to end"
    assert town.seller.seller.jobs() == ()
    assert town.buyer.buyer.jobs() == ()
    look(town)
    town.run()
    [vouchers] = town.watch.vouchers.values()
    assert town.ledger.balances[town.seller.account] == vouchers[max(vouchers)].cumulative


def test_lanes_of_a_channel_that_is_no_more_are_forgotten_with_their_rows() -> None:
    town = town_with(redeem_amount=Amount(1))
    channel = sell(town, 1)
    look(town)
    town.run()
    assert town.seller.seller.books.channels() == (channel,)
    del town.ledger.channels[channel]
    look(town)
    assert town.seller.seller.books.channels() == ()
    assert town.seller.rows(Table.SELLER_LANE) == []


def test_lane_with_a_live_job_outlives_its_channel() -> None:
    town = town_with()
    channel = sell(town, 1)
    books = town.seller.seller.books
    [lane] = books.lanes_of(channel)
    books._keep(replace(lane, job=request(2).request))
    del town.ledger.channels[channel]
    look(town)
    assert books.channels() == (channel,)
