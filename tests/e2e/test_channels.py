"""Channels that are closed by either side, bonds that come and go: every credit arrives where it should."""

import pytest

from node.runtime.control import ChannelView
from tests.e2e.network import Network, wait_until

REDEEM_FEE = 100
"""Base units: the least that a redemption costs, and what any transaction costs, in a development cluster."""
FEE = 100


def _job_and_its_channel(network: Network) -> tuple[str, ChannelView]:
    """A provider that has just been paid by voucher, and the channel."""
    facts = network.json("run", "echo", "some work")["facts"]
    (channel,) = [view for view in network.channels() if view.channel == facts["channel"]]
    assert channel.promised > channel.redeemed
    return network.name_of(facts["provider"]), channel


def _channel(network: Network, wanted: ChannelView, node: str = "buyer-1") -> ChannelView | None:
    return next((view for view in network.channels(node) if view.channel == wanted.channel), None)


def test_payer_closes_and_the_provider_redeems_in_time_and_the_rest_comes_back(network: Network) -> None:
    provider, channel = _job_and_its_channel(network)
    buyer_before, provider_before = network.account("buyer-1").balance, network.account(provider).balance
    network.mercat("channel", "close", channel.channel[:12], "-y")
    closing = _channel(network, channel)
    assert closing is not None
    assert (closing.state, closing.closes_at_ledger_ms is not None) == ("closing", True)
    again = network.mercat("channel", "close", channel.channel, "-y", expect=4)
    assert "clos" in again.err
    owed = channel.promised - channel.redeemed

    def finalised() -> bool:
        # Ledger time moves with blocks; a market with work makes them.
        network.mercat("wallet", "send", network.record("authority-1").account, "0.0001", "-y")
        return _channel(network, channel) is None

    sends_before = network.account("authority-1").balance
    wait_until(finalised, "the challenge window is over and the channel gone", seconds=40)
    sends = (network.account("authority-1").balance - sends_before) // 100
    assert network.account(provider).balance == provider_before + owed - 2 * FEE
    paid_for_fees = (sends + 2) * FEE
    back = channel.deposit - channel.redeemed - owed
    assert network.account("buyer-1").balance == buyer_before + back - sends * 100 - paid_for_fees
    assert network.is_conserved()


def test_payee_closes_at_once_and_loses_no_voucher(network: Network) -> None:
    provider, channel = _job_and_its_channel(network)
    buyer_before, provider_before = network.account("buyer-1").balance, network.account(provider).balance
    network.mercat("channel", "close", channel.channel, "-y", node=provider)
    assert _channel(network, channel, node=provider) is None
    wait_until(lambda: _channel(network, channel) is None, "the buyer sees the channel's end")
    owed = channel.promised - channel.redeemed
    assert network.account(provider).balance == provider_before + owed - REDEEM_FEE - 2 * FEE
    assert network.account("buyer-1").balance == buyer_before + channel.deposit - channel.redeemed - owed
    assert network.is_conserved()
    after, opened = _job_and_its_channel(network)
    assert opened.channel != channel.channel
    assert after in ("provider-1", "provider-2")


def test_bond_grows_and_shrinks_after_the_unbonding_time(network: Network) -> None:
    before = network.account("provider-2")
    network.mercat("provider", "bond", "5", "-y", node="provider-2")
    assert network.account("provider-2", seen_by="provider-2").bond == before.bond + 5_000_000
    network.mercat("provider", "unbond", "5", "-y", node="provider-2")
    unlocking = network.account("provider-2", seen_by="provider-2")
    assert (unlocking.bond, unlocking.bond_unlocking) == (before.bond, 5_000_000)

    def released() -> bool:
        network.mercat("wallet", "send", network.record("authority-1").account, "0.0001", "-y")
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
