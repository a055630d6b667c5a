"""Channels that are closed by either side, bonds that come and go: every credit arrives where it should."""

from dataclasses import dataclass

import pytest

from node.runtime.control import ChannelView
from tests.e2e.network import Network, unused_account, wait_until

FEE = 100
"""Base units: what any transaction costs in a development cluster, and what a redemption costs on top."""


@dataclass(frozen=True, slots=True)
class Deal:
    """A channel on which work has just been paid by voucher, and who had what at that moment."""

    provider: str
    channel: ChannelView
    provider_balance: int
    buyer_balance: int

    @property
    def owed(self) -> int:
        """What the provider can still redeem."""
        return self.channel.promised - self.channel.redeemed

    @property
    def redeem_fees(self) -> int:
        """What that costs the provider; nothing if it has done so already."""
        return 2 * FEE if self.owed else 0

    @property
    def comes_back(self) -> int:
        """What is left for the buyer."""
        return self.channel.deposit - self.channel.promised


def _deal(network: Network) -> Deal:
    facts = network.json("run", "echo", "some work")["facts"]
    provider = network.name_of(facts["provider"])

    def read() -> Deal:
        (channel,) = [view for view in network.channels() if view.channel == facts["channel"]]
        return Deal(provider, channel, network.account(provider).balance, network.account("buyer-1").balance)

    return network.at_one_height(read)


def _channel(network: Network, wanted: ChannelView, node: str = "buyer-1") -> ChannelView | None:
    return next((view for view in network.channels(node) if view.channel == wanted.channel), None)


def test_payer_closes_and_the_provider_redeems_in_time_and_the_rest_comes_back(network: Network) -> None:
    deal = _deal(network)
    channel = deal.channel
    network.mercat("channel", "close", channel.channel[:12], "-y")
    closing = _channel(network, channel)
    assert closing is not None
    assert (closing.state, closing.closes_at_ledger_ms is not None) == ("closing", True)
    again = network.mercat("channel", "close", channel.channel, "-y", expect=4)
    assert "clos" in again.err
    recipient = unused_account(3)

    def finalised() -> bool:
        # Ledger time moves with blocks; a market with work makes them.
        network.mercat("wallet", "send", recipient, "0.0001", "-y")
        return _channel(network, channel) is None

    wait_until(finalised, "the challenge window is over and the channel gone", seconds=40)
    sends = network.balance(recipient) // 100
    assert network.account(deal.provider).balance == deal.provider_balance + deal.owed - deal.redeem_fees
    paid = sends * (100 + FEE) + 2 * FEE
    assert network.account("buyer-1").balance == deal.buyer_balance + deal.comes_back - paid
    assert network.is_conserved()


def test_payee_closes_at_once_and_loses_no_voucher(network: Network) -> None:
    deal = _deal(network)
    network.mercat("channel", "close", deal.channel.channel, "-y", node=deal.provider)
    assert _channel(network, deal.channel, node=deal.provider) is None
    wait_until(lambda: _channel(network, deal.channel) is None, "the buyer sees the channel's end")
    assert network.account(deal.provider).balance == deal.provider_balance + deal.owed - deal.redeem_fees - FEE
    assert network.account("buyer-1").balance == deal.buyer_balance + deal.comes_back
    assert network.is_conserved()
    assert _deal(network).channel.channel != deal.channel.channel


@pytest.mark.long
def test_bond_grows_and_shrinks_after_the_unbonding_time(network: Network) -> None:
    before = network.account("provider-2")
    network.mercat("provider", "bond", "5", "-y", node="provider-2")
    assert network.account("provider-2", seen_by="provider-2").bond == before.bond + 5_000_000
    network.mercat("provider", "unbond", "5", "-y", node="provider-2")
    unlocking = network.account("provider-2", seen_by="provider-2")
    assert (unlocking.bond, unlocking.bond_unlocking) == (before.bond, 5_000_000)

    def released() -> bool:
        network.mercat("wallet", "send", unused_account(4), "0.0001", "-y")
        return network.account("provider-2").bond_unlocking == 0

    wait_until(released, "the unbonding time is over", seconds=40)
    assert network.account("provider-2").bond == before.bond
    assert network.account("provider-2").balance >= before.balance - 3 * FEE
    assert network.is_conserved()


@pytest.mark.parametrize("amount", ["0", "-1", "1e3", "0.0000001", "99999999999999"])
def test_amount_that_is_none_is_refused_before_anything_is_signed(network: Network, amount: str) -> None:
    nonce = network.account("buyer-1").nonce
    refused = network.mercat("wallet", "send", network.record("provider-1").account, amount, "-y", expect=None)
    assert refused.code in (2, 4)
    assert network.account("buyer-1").nonce == nonce


def test_sending_without_a_terminal_needs_a_yes(network: Network) -> None:
    network.mercat("wallet", "send", network.record("provider-1").account, "1", expect=2)
