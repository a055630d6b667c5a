"""Channels are opened when they must be, reused when they can be, and never cost more than there is."""

import pytest
from msgspec.structs import replace

from protocol.market.events import JobFailed, JobFinished
from protocol.market.policies import BuyerPolicy
from protocol.messages.market import FaultKind
from protocol.messages.transactions import Action, ChannelOpen, ChannelTopUp
from protocol.primitives.units import CREDIT, Amount
from protocol.settlement.pricing import amount_due
from tests.market.town import PRICES, Town, request

CEILING = amount_due(PRICES, 10, 40)


def watched(town: Town) -> list[Action]:
    """Every action that the buyer asks of the ledger, in order."""
    asked: list[Action] = []
    decide = town.ledger.decide

    def listening() -> None:
        asked.extend(wanted.action for _, wanted in town.ledger.waiting)
        decide()

    town.ledger.decide = listening  # type: ignore[method-assign]
    return asked


def town_with(policy: BuyerPolicy, balance: int = 1_000_000_000, sellers: int = 1) -> Town:
    town = Town(sellers=sellers)
    town.buyer.buyer_policy = policy
    town.ledger.balances[town.buyer.account] = balance
    town.crash(town.buyer)
    return town


def test_first_job_opens_a_channel_and_later_ones_reuse_it() -> None:
    town = Town()
    asked = watched(town)
    for number in range(1, 6):
        town.start(request(number))
        town.run()
    assert asked == [ChannelOpen(town.seller.account, Amount(10 * CREDIT))]
    assert len(town.buyer.told(JobFinished)) == 5


def test_jobs_that_begin_together_wait_for_one_channel() -> None:
    town = Town()
    asked = watched(town)
    for number in range(1, 5):
        town.start(request(number))
    town.run()
    assert len(asked) == 1
    assert len(town.buyer.told(JobFinished)) == 4


def test_channel_is_topped_up_when_what_is_left_does_not_cover_the_ceiling() -> None:
    town = town_with(BuyerPolicy(channel_deposit=Amount(CEILING), channel_top_up=Amount(5)))
    asked = watched(town)
    for number in (1, 2):
        town.start(request(number))
        town.run()
    spent = amount_due(PRICES, 10, 25)
    [channel] = town.ledger.channels
    assert asked == [ChannelOpen(town.seller.account, Amount(CEILING)), ChannelTopUp(channel, Amount(spent))]
    assert len(town.buyer.told(JobFinished)) == 2
    assert town.ledger.channels[channel].deposit == CEILING + spent


def test_several_jobs_that_one_deposit_does_not_cover_are_funded_one_after_the_other() -> None:
    town = town_with(BuyerPolicy(channel_deposit=Amount(CEILING), channel_top_up=Amount(CEILING)))
    for number in (1, 2, 3):
        town.start(request(number))
    town.run()
    assert len(town.buyer.told(JobFinished)) == 3


@pytest.mark.parametrize(("balance", "finishes"), [(CEILING, True), (CEILING - 1, False), (0, False)])
def test_deposit_is_what_the_balance_allows_down_to_the_ceiling(balance: int, finishes: bool) -> None:
    town = town_with(BuyerPolicy(), balance)
    town.start(request())
    town.run()
    assert bool(town.buyer.told(JobFinished)) is finishes
    for lost in town.buyer.events:
        if isinstance(lost, JobFailed):
            assert lost.fault is FaultKind.USER
            assert f"balance of {balance} base units does not cover" in lost.reason
            assert lost.paid == 0


def test_without_balance_a_channel_that_is_funded_already_still_buys() -> None:
    town = Town(sellers=2)
    town.start(request(1, provider=town.sellers[1].account))
    town.run()
    town.ledger.balances[town.buyer.account] = 0
    for number in range(2, 5):
        town.start(request(number))
        town.run()
    assert len(town.buyer.told(JobFinished)) == 4
    assert town.buyer.told(JobFailed) == []


def test_channel_that_is_closing_is_not_used() -> None:
    town = Town()
    town.start(request(1))
    town.run()
    [channel] = town.ledger.channels
    town.ledger.channels[channel] = replace(town.ledger.channels[channel], closing=True)
    town.start(request(2))
    town.run()
    assert len(town.ledger.channels) == 2
    assert len(town.buyer.told(JobFinished)) == 2


def test_rejected_funding_ends_the_jobs_that_wait_for_it_with_the_reason() -> None:
    town = Town()
    for number in (1, 2):
        town.start(request(number))
    while not town.ledger.waiting:
        town.busy()[0]()
    town.ledger.waiting.clear()
    rejected = town.buyer.buyer.transaction_rejected(town.seller.account, "nonce taken", town.now)
    town.do(town.buyer, rejected)
    reasons = [event.reason for event in town.buyer.events if isinstance(event, JobFailed)]
    assert reasons == ["channel not funded: nonce taken; no other provider would do"] * 2
    assert town.buyer.buyer.transaction_rejected(town.seller.account, "again", town.now) == []


def test_provider_whose_ledger_lags_waits_for_the_block_instead_of_refusing() -> None:
    town = Town()
    town.start(request())
    while not town.ledger.waiting:
        town.busy()[0]()
    town.ledger.decide()
    # The buyer's node has the block, the seller's has not.
    known = dict(town.ledger.channels)
    lagging = type(town.ledger)()
    town.seller.seller._core.ledger = lagging
    town.do(town.buyer, town.buyer.buyer.block_decided(town.now))
    town.run()
    assert town.watch.agreements
    assert town.buyer.told(JobFailed) == []
    lagging.channels.update(known)
    town.do(town.seller, town.seller.seller.block_decided(town.now))
    town.run()
    assert len(town.buyer.told(JobFinished)) == 1


def test_provider_whose_ledger_never_catches_up_refuses_in_the_end() -> None:
    town = Town()
    lagging = type(town.ledger)()
    town.seller.seller._core.ledger = lagging
    town.start(request())
    town.run()
    town.wait(5_000)
    town.run()
    [lost] = [event for event in town.buyer.events if isinstance(event, JobFailed)]
    assert lost.fault is FaultKind.NETWORK
    assert lost.reason.startswith("channel is not on this node's ledger")
