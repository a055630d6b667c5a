"""A buyer closes its channel while the provider is dead: who is back within the challenge window is paid in full."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

import pytest

from node.cli.cluster_layout import default_model_store
from node.runtime.control import ChannelView, RunRequest
from tests.kill.doomed_node import MOMENTS
from tests.kill.market import MODEL, Market, Node, make_market
from tests.kill.steps import SECONDS, ask, bury, check_promises, start_doomed, wait_paused
from tests.network.waiting import seconds_until

FEES = 200
"""Base units: what a redemption costs the provider, as a transaction and as a redemption."""
CLOSE_FEE = 100


@pytest.fixture
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    """One authority, one provider, one buyer."""
    made = make_market(tmp_path_factory.mktemp("w"), default_model_store(), authorities=1)
    try:
        made.start()
        yield made
    finally:
        made.abandon()


@dataclass(frozen=True, slots=True)
class Deal:
    """A closing channel of a dead provider, and what its account has beside it."""

    provider: Node
    channel: ChannelView
    balance: int

    @property
    def owed(self) -> int:
        """What its vouchers are worth."""
        return self.channel.promised - self.channel.redeemed


def _channel(node: Node) -> ChannelView | None:
    return next(iter(node.client.channels()), None)


def _is_redeemed(market: Market) -> bool:
    channel = _channel(market.buyer)
    return channel is None or channel.redeemed == channel.promised


def _closed_behind(market: Market, moment: str) -> Deal:
    """A job is paid; its provider dies when it wants to redeem; the buyer closes."""
    (provider,) = market.role("provider")
    provider.end(signal.SIGKILL)
    start_doomed(provider, f"TRANSACTION:1:{moment}:KILL")
    market.start()
    events = [event.event for event in market.buyer.client.run(RunRequest(MODEL, "text", b"some work"), SECONDS)]
    assert events[-1] == "finished"
    bury(provider)
    if moment == "sent":
        seconds_until(lambda: _is_redeemed(market), SECONDS, "a redemption that got out needs nobody any more")
    open_channel = _channel(market.buyer)
    assert open_channel is not None
    market.buyer.client.close_channel(open_channel.channel, 10_000)
    channel = _channel(market.buyer)
    assert channel is not None
    return Deal(provider, channel, market.buyer.client.account(provider.account).balance)


@pytest.mark.long
@pytest.mark.timeout(120)
@pytest.mark.parametrize("moment", MOMENTS)
def test_provider_that_returns_within_the_window_redeems_everything_once(market: Market, moment: str) -> None:
    deal = _closed_behind(market, moment)
    assert deal.channel.state == "closing"
    assert (deal.owed > 0) is (moment != "sent")
    market.start()
    buyer = market.buyer.client
    seconds_until(lambda: _is_redeemed(market), SECONDS, "the provider redeems")
    if _channel(market.buyer) is not None:
        check_promises(market)
    fees = FEES if deal.owed else 0
    assert buyer.account(deal.provider.account).balance == deal.balance + deal.owed - fees
    supply = buyer.supply()
    assert supply.total == supply.genesis_total


@pytest.mark.long
@pytest.mark.timeout(120)
def test_provider_that_is_away_for_the_whole_window_loses_what_it_had_not_redeemed_and_goes_on(market: Market) -> None:
    deal = _closed_behind(market, "unwritten")
    buyer = market.buyer.client
    seconds_until(lambda: _channel(market.buyer) is None, 60.0, "the window is over and the channel gone")
    assert buyer.account(market.buyer.account).in_channels == 0
    assert buyer.account(deal.provider.account).balance == deal.balance
    market.start()
    seconds_until(lambda: _channel(deal.provider) is None, SECONDS, "the provider knows it")
    events = [event.event for event in buyer.run(RunRequest(MODEL, "text", b"more work"), SECONDS)]
    assert events[-1] == "finished"
    check_promises(market)
    assert buyer.supply().total == buyer.supply().genesis_total


@pytest.mark.long
@pytest.mark.timeout(120)
def test_payee_that_closes_while_its_redemption_is_on_its_way_waits_for_it_and_is_paid_once(market: Market) -> None:
    (provider,), (authority,) = market.role("provider"), market.role("authority")
    assert ask(market).end == "finished"
    seconds_until(lambda: _is_redeemed(market), SECONDS, "the first job's work is redeemed")
    provider.end(signal.SIGKILL)
    doomed = start_doomed(provider, "TRANSACTION:1:sent:STOP")
    market.start()
    channel = _channel(market.buyer)
    assert channel is not None
    before = market.buyer.client.account(provider.account).balance
    assert authority.started is not None
    authority.started.process.send_signal(signal.SIGSTOP)
    told = ask(market)
    assert told.end == "finished"
    wait_paused(provider)
    doomed.send_signal(signal.SIGCONT)
    with ThreadPoolExecutor(1) as threads:
        closing = threads.submit(provider.client.close_channel, channel.channel, 20_000)
        done, _ = wait([closing], timeout=1.0)
        authority.started.process.send_signal(signal.SIGCONT)
        assert not done, "nothing can be decided while the authority stands still"
        assert closing.result(SECONDS).height > 0
    seconds_until(lambda: _channel(market.buyer) is None, SECONDS, "the buyer sees the channel's end")
    assert market.buyer.client.account(provider.account).balance == before + told.paid - FEES - CLOSE_FEE
