"""Channels are filled up behind use and closed when nobody uses them; no job is begun on one that is being closed."""

import pytest

from protocol.market.buyer_channels import CLOSE_RETRY_MS, LOOK_MS
from protocol.market.events import JobFinished, JobProgressed
from protocol.market.policies import BuyerPolicy
from protocol.messages.transactions import Action, ChannelClose, ChannelOpen, ChannelRedeem, ChannelTopUp
from protocol.primitives.units import Amount, DurationMs
from protocol.settlement.pricing import amount_due
from tests.market.test_funding import watched
from tests.market.town import PRICES, Town, request

CEILING = amount_due(PRICES, 10, 40)
SPENT = amount_due(PRICES, 10, 25)
IDLE_MS = DurationMs(60_000)


def caring(deposit: int, idle_ms: int = IDLE_MS, balance: int = 1_000_000_000) -> tuple[Town, list[Action]]:
    """A town whose buyer has this policy, and what it asks of the ledger."""
    town = Town()
    amount = Amount(deposit)
    town.buyer.buyer_policy = BuyerPolicy(
        channel_deposit=amount, channel_top_up=amount, channel_idle_ms=DurationMs(idle_ms)
    )
    town.ledger.balances[town.buyer.account] = balance
    town.crash(town.buyer)
    return town, watched(town)


def rest(town: Town, duration_ms: int) -> None:
    """Time passes, and whatever it brings about happens."""
    for _ in range(duration_ms // 1_000):
        town.wait(1_000)
        town.run()


def job(town: Town, number: int) -> None:
    """A job from its start to its end, behind offers that are just made."""
    town.wait(500)
    town.publish()
    town.start(request(number))
    town.run()


def test_a_channel_that_runs_dry_is_filled_up_before_a_job_has_to_wait() -> None:
    deposit = 4 * CEILING
    town, asked = caring(deposit)
    for number in range(1, 21):
        job(town, number)
        rest(town, LOOK_MS)
    [channel] = town.ledger.channels
    waited = [told for told in town.buyer.told(JobProgressed) if getattr(told, "state", "") == "opening channel"]
    assert len(waited) == 1, "only the first job has to wait for the ledger"
    assert len(town.buyer.told(JobFinished)) == 20
    topped_up = [action for action in asked if isinstance(action, ChannelTopUp)]
    assert topped_up == [ChannelTopUp(channel, Amount(deposit))] * (20 * SPENT // deposit)


def test_a_channel_with_enough_in_it_is_left_as_it_is() -> None:
    town, asked = caring(8 * CEILING)
    job(town, 1)
    rest(town, 2 * LOOK_MS)
    assert len(asked) == 1


def test_an_account_is_not_emptied_into_a_channel_that_no_job_asked_for() -> None:
    deposit = CEILING + SPENT // 4
    town, asked = caring(deposit, balance=2 * deposit - 1)
    job(town, 1)
    rest(town, 2 * LOOK_MS)
    assert asked == [ChannelOpen(town.seller.account, Amount(deposit))]


def test_a_channel_that_nobody_uses_is_closed_and_its_deposit_comes_back() -> None:
    town, asked = caring(8 * CEILING)
    job(town, 1)
    [channel] = town.ledger.channels
    rest(town, IDLE_MS)
    assert asked[1:] == []
    rest(town, 2 * LOOK_MS)
    assert [type(action) for action in asked[1:]] == [ChannelClose, ChannelRedeem], "and its provider is paid in time"
    assert asked[1] == ChannelClose(channel)


def test_use_begins_the_time_of_rest_anew() -> None:
    town, asked = caring(8 * CEILING)
    for number in range(1, 4):
        job(town, number)
        rest(town, IDLE_MS - LOOK_MS)
    assert len(asked) == 1
    assert len(town.buyer.told(JobFinished)) == 3


def test_never_means_never() -> None:
    town, asked = caring(8 * CEILING, idle_ms=0)
    job(town, 1)
    rest(town, 4 * IDLE_MS)
    assert len(asked) == 1


def test_a_job_that_comes_while_the_close_is_under_way_gets_a_channel_of_its_own() -> None:
    town, asked = caring(8 * CEILING)
    job(town, 1)
    while not any(isinstance(wanted.action, ChannelClose) for _, wanted in town.ledger.waiting):
        town.wait(1_000)
    job(town, 2)
    assert [type(action) for action in asked] == [ChannelOpen, ChannelClose, ChannelOpen, ChannelRedeem]
    assert len(town.buyer.told(JobFinished)) == 2


def test_a_close_that_the_ledger_refuses_leaves_the_channel_usable() -> None:
    town, asked = caring(8 * CEILING)
    job(town, 1)
    while not town.ledger.waiting:
        town.wait(1_000)
    [(_, refused)] = town.ledger.waiting
    town.ledger.waiting.clear()
    town.do(town.buyer, town.buyer.buyer.transaction_rejected(refused.subject, "no", town.now))
    job(town, 2)
    assert [type(action) for action in asked] == [ChannelOpen]
    assert len(town.buyer.told(JobFinished)) == 2


@pytest.mark.parametrize("lost", [True, False])
def test_a_close_that_no_block_shows_is_asked_for_again_only_after_its_time(lost: bool) -> None:
    town, _ = caring(8 * CEILING)
    job(town, 1)
    while not town.ledger.waiting:
        town.wait(1_000)
    if lost:
        town.ledger.waiting.clear()
    town.wait(CLOSE_RETRY_MS - LOOK_MS)
    assert len(town.ledger.waiting) == (0 if lost else 1)
    town.wait(2 * LOOK_MS)
    assert len(town.ledger.waiting) == (1 if lost else 2)
