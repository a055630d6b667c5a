"""Tables by id: the parts of the ledger's state that grow with everybody who was ever paid.

Law: a table says the same whatever holds it. A node with a million accounts reads them from its disk, a simulation has
them in memory; equal changes in equal order give equal tables, and iteration is in the order of the ids.
"""

from collections.abc import Iterator, Mapping
from typing import Generic, NamedTuple, Protocol, TypeVar

from protocol.ledger.rows import NO_ACCOUNT, Account
from protocol.ledger.track_rows import NO_TRACK, Track, TrackId
from protocol.primitives.units import AccountId, Height

Id = TypeVar("Id", bound=bytes)
Value = TypeVar("Value")


class RowTable(Protocol[Id, Value]):
    """All rows of one kind after the tip. Implemented in memory here and over a file by a node's store."""

    def get(self, identity: Id) -> Value:
        """The row; where there is none the value that says nothing."""

    def apply(self, height: Height, changes: Mapping[Id, Value]) -> None:
        """Take over what the block at ``height`` changed; a row that says nothing any more ends."""

    def items(self) -> Iterator[tuple[Id, Value]]:
        """All rows that say something as they are now, in the order of their ids."""


class RowDict(Generic[Id, Value]):
    """A table in memory."""

    def __init__(self, nothing: Value) -> None:
        """``nothing`` is the value that says nothing."""
        self._nothing = nothing
        self._rows: dict[Id, Value] = {}

    def get(self, identity: Id) -> Value:
        """See ``RowTable``."""
        return self._rows.get(identity, self._nothing)

    def put(self, identity: Id, value: Value) -> None:
        """Set one row; one that says nothing ends."""
        if value == self._nothing:
            self._rows.pop(identity, None)
        else:
            self._rows[identity] = value

    def apply(self, height: Height, changes: Mapping[Id, Value]) -> None:
        """See ``RowTable``."""
        for identity, value in changes.items():
            self.put(identity, value)

    def items(self) -> Iterator[tuple[Id, Value]]:
        """See ``RowTable``."""
        return iter(sorted(self._rows.items(), key=lambda row: row[0]))


AccountTable = RowTable[AccountId, Account]
"""An account nobody paid has balance 0 and nonce 0."""
TrackTable = RowTable[TrackId, Track]
"""Track records, one for each account and role."""


class AccountDict(RowDict[AccountId, Account]):
    """An account table in memory."""

    def __init__(self) -> None:
        super().__init__(NO_ACCOUNT)


class TrackDict(RowDict[TrackId, Track]):
    """Track records in memory."""

    def __init__(self) -> None:
        super().__init__(NO_TRACK)


class Tables(NamedTuple):
    """The tables of one state."""

    accounts: AccountTable
    tracks: TrackTable


def tables_in_memory() -> Tables:
    """Empty tables for a state that is small, or that is thrown away."""
    return Tables(AccountDict(), TrackDict())
