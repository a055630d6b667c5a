"""Accounts by id: the one part of the ledger's state that grows with everybody who was ever paid.

Law: a table says the same whatever holds it. A node with a million accounts reads them from its disk, a simulation has
them in memory; equal changes in equal order give equal tables, and iteration is in the order of the ids.
"""

from collections.abc import Iterator, Mapping
from typing import Protocol

from protocol.ledger.rows import NO_ACCOUNT, Account
from protocol.primitives.units import AccountId, Height


class AccountTable(Protocol):
    """All accounts after the tip. Implemented in memory here and over a file by a node's store."""

    def get(self, account_id: AccountId) -> Account:
        """The account's row; an account nobody paid has balance 0 and nonce 0."""

    def apply(self, height: Height, changes: Mapping[AccountId, Account]) -> None:
        """Take over what the block at ``height`` changed; an account that says nothing any more ends."""

    def items(self) -> Iterator[tuple[AccountId, Account]]:
        """All accounts that say something as they are now, in the order of their ids."""


class AccountDict:
    """An account table in memory."""

    def __init__(self) -> None:
        self._accounts: dict[AccountId, Account] = {}

    def get(self, account_id: AccountId) -> Account:
        """See ``AccountTable``."""
        return self._accounts.get(account_id, NO_ACCOUNT)

    def put(self, account_id: AccountId, account: Account) -> None:
        """Set one account; one that says nothing ends."""
        if account == NO_ACCOUNT:
            self._accounts.pop(account_id, None)
        else:
            self._accounts[account_id] = account

    def apply(self, height: Height, changes: Mapping[AccountId, Account]) -> None:
        """See ``AccountTable``."""
        for account_id, account in changes.items():
            self.put(account_id, account)

    def items(self) -> Iterator[tuple[AccountId, Account]]:
        """See ``AccountTable``."""
        return iter(sorted(self._accounts.items()))
