"""Reading the ledger's rows, and an overlay that collects changes without touching what lies below.

Law: executing anything writes to an overlay only. What is below changes when the overlay is merged or applied as a
whole, so a transaction or block that fails leaves no trace.
"""

from typing import NamedTuple, Protocol

import msgspec

from protocol.ledger.charter import Charter, Evidence, Motion
from protocol.ledger.rows import Account, AuthoritySchedule, Bond, Channel, Registration
from protocol.ledger.track_rows import Track, TrackId
from protocol.messages.genesis import Parameters
from protocol.messages.governance import MotionNumber
from protocol.primitives.codec import Message
from protocol.primitives.units import (
    AccountId,
    Amount,
    AuthorityId,
    ChannelId,
    Height,
    LedgerTimeMs,
    ModelId,
    TimestampMs,
)


class Context(NamedTuple):
    """What a transaction may know of the block that it stands in; never a wall clock."""

    height: Height
    ledger_time_ms: LedgerTimeMs
    timestamp_ms: TimestampMs
    """The header's. For what was signed with a wall clock; money's deadlines count ledger time."""


class View(Protocol):
    """What can be read of a state."""

    @property
    def fee_pool(self) -> Amount:
        """Fees that have been paid and not been handed out, in base units."""

    @property
    def schedule(self) -> AuthoritySchedule:
        """Who decides the tip and the two heights above it."""

    @property
    def charter(self) -> Charter:
        """Everything of governance that exists once."""

    @property
    def development(self) -> bool:
        """True where keys are publicly known and small numbers will do."""

    def account(self, account_id: AccountId) -> Account:
        """The account's row; an account nobody paid has balance 0 and nonce 0."""

    def bond(self, account_id: AccountId) -> Bond:
        """The account's bond; all zeros where there is none."""

    def channel(self, channel_id: ChannelId) -> Channel | None:
        """An open channel, or ``None``."""

    def motion(self, number: MotionNumber) -> Motion | None:
        """A motion on the agenda or among the last outcomes, or ``None``."""

    def evidence(self, authority: AuthorityId) -> Evidence | None:
        """What proved that a key signed twice, or ``None``."""

    def registration(self, model_id: ModelId) -> Registration | None:
        """Who published a model, or ``None`` if nobody has registered it."""

    def track(self, identity: TrackId) -> Track:
        """One account's track record in one role; ``NO_TRACK`` where there is none."""


class Overlay:
    """Changes on top of a view."""

    __slots__ = (
        "_below",
        "accounts",
        "accused",
        "bonds",
        "channels",
        "charter",
        "development",
        "fee_pool",
        "motions",
        "registrations",
        "schedule",
        "tracks",
    )

    def __init__(self, below: View) -> None:
        self._below = below
        self.accounts: dict[AccountId, Account] = {}
        self.bonds: dict[AccountId, Bond] = {}
        self.channels: dict[ChannelId, Channel | None] = {}
        self.motions: dict[MotionNumber, Motion | None] = {}
        self.accused: dict[AuthorityId, Evidence] = {}
        """Keys against which there is new evidence."""
        self.registrations: dict[ModelId, Registration] = {}
        self.tracks: dict[TrackId, Track] = {}
        self.charter = below.charter
        self.development = below.development
        self.fee_pool = below.fee_pool
        self.schedule = below.schedule

    @property
    def parameters(self) -> Parameters:
        """The numbers that the network agrees on."""
        return self.charter.parameters

    def with_charter(self, **fields: Message) -> None:
        """Replace fields of the charter."""
        self.charter = msgspec.structs.replace(self.charter, **fields)

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

    def motion(self, number: MotionNumber) -> Motion | None:
        """See ``View``."""
        return self.motions[number] if number in self.motions else self._below.motion(number)

    def evidence(self, authority: AuthorityId) -> Evidence | None:
        """See ``View``."""
        found = self.accused.get(authority)
        return self._below.evidence(authority) if found is None else found

    def registration(self, model_id: ModelId) -> Registration | None:
        """See ``View``."""
        found = self.registrations.get(model_id)
        return self._below.registration(model_id) if found is None else found

    def track(self, identity: TrackId) -> Track:
        """See ``View``."""
        found = self.tracks.get(identity)
        return self._below.track(identity) if found is None else found

    def take_from(self, above: "Overlay") -> None:
        """Merge the changes of an overlay that was built on this one."""
        assert above._below is self
        self.accounts.update(above.accounts)
        self.bonds.update(above.bonds)
        self.channels.update(above.channels)
        self.motions.update(above.motions)
        self.accused.update(above.accused)
        self.registrations.update(above.registrations)
        self.tracks.update(above.tracks)
        self.charter = above.charter
        self.fee_pool = above.fee_pool
        self.schedule = above.schedule
