"""What the market wants from the ledger.

Law: the market names the action; the engine adds nonce, fee and validity, signs and submits it, and tells the machine
that asked through ``transaction_rejected(subject, reason, now, code)`` when the ledger will not take it. A decided
action shows in ``LedgerView`` at the next ``block_decided``.
"""

from msgspec import Struct

from protocol.messages.effects import Effect
from protocol.messages.transactions import Action


class WantTransaction(Struct, frozen=True):
    """Send this action from the node's own account.

    ``subject`` is what a rejection is reported for: the provider's account for a channel that is opened or topped up,
    the channel's id for a redemption.
    """

    action: Action
    subject: bytes


MarketEffect = Effect | WantTransaction
"""What a market step returns, in the order in which it must be carried out."""
