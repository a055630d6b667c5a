"""What the market is told of the ledger."""

from protocol.engine.ledger_facts import LedgerFacts
from protocol.messages.transactions import ChannelOpen
from protocol.primitives.units import Amount
from tests.ledger.world import Ledger, account_of


def test_all_that_can_be_spent_goes_into_a_channel_with_the_fee_beside_it() -> None:
    ledger = Ledger()
    spendable = LedgerFacts(ledger.state).balance(account_of("alice"))
    ledger.act("alice", ChannelOpen(account_of("bob"), spendable))
    assert ledger.balance("alice") == 0


def test_an_account_below_the_fee_can_spend_nothing() -> None:
    ledger = Ledger()
    assert LedgerFacts(ledger.state).balance(account_of("nobody")) == Amount(0)
