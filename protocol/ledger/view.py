"""Reading the ledger's rows, and an overlay that collects changes without touching what lies below.

Law: executing anything writes to an overlay only. What is below changes when the overlay is merged or applied as a
whole, so a transaction or block that fails leaves no trace.
"""

from typing import NamedTuple, Protocol

from protocol.ledger.rows import Account, AuthoritySchedule, Bond, Channel
from protocol.messages.genesis import Parameters
from protocol.primitives.units import AccountId, Amount, ChannelId, Height, LedgerTimeMs


class Context(NamedTuple):
    """What a transaction may know of the block that it stands in; never a wall clock."""

    height: Height
    ledger_time_ms: LedgerTimeMs


class View(Protocol):
    """What can be read of a state."""

    @property
    def fee_pool(self) -> Amount:
        """Fees that have been paid and not been handed out, in base units."""

    @property
    def schedule(self) -> AuthoritySchedule:
        """Who decides the tip and the two heights above it."""

    @property
    def parameters(self) -> Parameters:
        """The numbers that the network agrees on."""

    def account(self, account_id: AccountId) -> Account:
        """The account's row; an account nobody paid has balance 0 and nonce 0."""

    def bond(self, account_id: AccountId) -> Bond:
        """The account's bond; all zeros where there is none."""

    def channel(self, channel_id: ChannelId) -> Channel | None:
        """An open channel, or ``None``."""


class Overlay:
    """Changes on top of a view."""

    __slots__ = ("_below", "accounts", "bonds", "channels", "fee_pool", "schedule")

    def __init__(self, below: View) -> None:
        self._below = below
        self.accounts: dict[AccountId, Account] = {}
        self.bonds: dict[AccountId, Bond] = {}
        self.channels: dict[ChannelId, Channel | None] = {}
        self.fee_pool = below.fee_pool
        self.schedule = below.schedule

    @property
    def parameters(self) -> Parameters:
        """See ``View``; no transaction changes them yet."""
        return self._below.parameters

    def account(self, account_id: AccountId) -> Account:
        """See ``View``."""
        found = self.accounts.get(account_id)
        return self._below.account(account_id) if found is None else found

    def bond(self, account_id: AccountId) -> Bond:
        """See ``View``."""
        found = self.bonds.get(account_id)
        return self._below.bond(account_id) if found is None else found

    def channel(self, channel_id: ChannelId) -> Channel | None:
        """See ``View``."""
        if channel_id in self.channels:
            return self.channels[channel_id]
        return self._below.channel(channel_id)

    def take_from(self, above: "Overlay") -> None:
        """Merge the changes of an overlay that was built on this one."""
        assert above._below is self
        self.accounts.update(above.accounts)
        self.bonds.update(above.bonds)
        self.channels.update(above.channels)
        self.fee_pool = above.fee_pool
        self.schedule = above.schedule
