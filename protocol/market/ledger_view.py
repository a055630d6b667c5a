"""What the market has to know of the ledger, as facts.

Law: the market never imports the ledger. The engine hands it an object with these methods; they answer from the state
after the last decided block and change nothing.
"""

from typing import Protocol

from msgspec import Struct

from protocol.market.reputation import TrackRecord
from protocol.primitives.units import AccountId, Amount, ChannelId, LedgerTimeMs
from protocol.settlement.vouchers import LanePosition


class ChannelFacts(Struct, frozen=True):
    """One payment channel as the ledger has it.

    ``deposit`` is all that was ever deposited, redeemed amounts included; ``redeemed`` holds the last redeemed voucher
    of each lane that has one.
    """

    channel: ChannelId
    payer: AccountId
    payee: AccountId
    deposit: Amount
    redeemed: tuple[LanePosition, ...]
    closing: bool
    open_since: LedgerTimeMs


class LedgerView(Protocol):
    """The ledger's state, read-only."""

    def channel(self, channel: ChannelId) -> ChannelFacts | None:
        """The channel, or ``None`` when it is unknown or has ended."""

    def channels_between(self, payer: AccountId, payee: AccountId) -> tuple[ChannelFacts, ...]:
        """All channels from payer to payee, closing ones included, in the order of their ids."""

    def channels_paid_by(self, payer: AccountId) -> tuple[ChannelFacts, ...]:
        """All channels of a payer, closing ones included, in the order of their ids."""

    def balance(self, account: AccountId) -> Amount:
        """What the account can put into one transaction, in base units: all but that transaction's fee."""

    def bond(self, account: AccountId) -> Amount:
        """What the account has at stake, in base units."""

    def track_record(self, account: AccountId) -> TrackRecord:
        """What the account has settled so far and what was reported of it, as provider and as buyer."""

    def ledger_time(self) -> LedgerTimeMs:
        """Ledger time after the last decided block."""
