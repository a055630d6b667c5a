"""The rows of the ledger's state: what the state root commits to and the store keeps.

Law: a row's key is a one-byte prefix and the id, its value the canonical bytes of one struct. A row that says nothing
(no balance and no nonce, an empty bond) does not exist, so equal states have equal rows.
"""

from typing import Annotated

from msgspec import Meta

from protocol.messages.genesis import Membership
from protocol.messages.transactions import MANIFEST_BYTES_MAX
from protocol.primitives.codec import Message, decode, encode
from protocol.primitives.limits import LANES_PER_CHANNEL
from protocol.primitives.units import (
    AccountId,
    AccountIdField,
    Amount,
    AmountField,
    ChannelId,
    HeightField,
    LedgerTimeField,
    LedgerTimeMs,
    ModelId,
    Nonce,
    NonceField,
)
from protocol.settlement.vouchers import LanePosition, unused_lane

ACCOUNT_PREFIX = b"a"
BOND_PREFIX = b"b"
CHANNEL_PREFIX = b"c"
META_PREFIX = b"m"
MODEL_PREFIX = b"r"
FEE_POOL_KEY = META_PREFIX + b"fee_pool"
ISSUED_KEY = META_PREFIX + b"issued"
PARAMETERS_KEY = META_PREFIX + b"parameters"
AUTHORITIES_KEY = META_PREFIX + b"authorities"


class Account(Message, frozen=True):
    """Spendable credits in base units, and the nonce that the account's next transaction must have."""

    balance: AmountField
    nonce: NonceField

    def with_balance(self, balance: Amount) -> "Account":
        """The account with another balance."""
        return Account(balance, self.nonce)


class Bond(Message, frozen=True):
    """What an account can lose, in base units: ``amount`` gives standing, ``unlocking`` is on its way out."""

    amount: AmountField
    unlocking: AmountField
    unlock_at: LedgerTimeField
    """Ledger time from which ``unlocking`` may be paid out; 0 while nothing is unlocking."""

    @property
    def total(self) -> int:
        """All that is locked; both parts can be lost."""
        return self.amount + self.unlocking


class Channel(Message, frozen=True):
    """A deposit that one payer has set aside for one payee."""

    payer: AccountIdField
    payee: AccountIdField
    deposit: AmountField
    """All that was ever put in; what is left of it is ``held``."""
    lanes: Annotated[tuple[LanePosition, ...], Meta(max_length=LANES_PER_CHANNEL)]
    """Lanes on which a voucher was redeemed, in rising order."""
    opened_height: HeightField
    opened_at: LedgerTimeField
    closing_at: LedgerTimeField | None
    """Ledger time from which anyone may finalise; ``None`` while the payer has not closed."""

    @property
    def redeemed(self) -> Amount:
        """All that the payee has been paid."""
        return Amount(sum(lane.cumulative for lane in self.lanes))

    @property
    def receipts_count(self) -> int:
        """Receipts that the redeemed vouchers of all lanes committed to."""
        return sum(lane.receipts_count for lane in self.lanes)

    @property
    def held(self) -> Amount:
        """What the deposit still holds."""
        return Amount(self.deposit - self.redeemed)

    def lane_position(self, lane: int) -> LanePosition:
        """What the last redeemed voucher of a lane said; zeros before the first."""
        return next((position for position in self.lanes if position.lane == lane), unused_lane(lane))


class Registration(Message, frozen=True):
    """Who published a model first. It never changes and never ends: what a receipt names can be traced to somebody."""

    publisher: AccountIdField
    height: HeightField
    """Of the block that registered it."""
    manifest_size: Annotated[int, Meta(ge=1, le=MANIFEST_BYTES_MAX)]
    """Bytes of the manifest whose BLAKE3 hash is the model's id."""


class AuthoritySchedule(Message, frozen=True):
    """The sets of three heights around the tip; what a block at h changes is active from h + 2 on."""

    previous: Membership
    """Decided the tip: its certificate stands in the next block."""
    current: Membership
    """Decides the next block."""
    following: Membership
    """Decides the block after that; the next block's header names it."""

    def advanced(self) -> "AuthoritySchedule":
        """The schedule one block on, before that block's transactions change what follows."""
        return AuthoritySchedule(self.current, self.following, self.following)


class Sum(Message, frozen=True):
    """One amount of the whole ledger, such as the fee pool."""

    amount: AmountField


NO_ACCOUNT = Account(Amount(0), Nonce(0))
NO_BOND = Bond(Amount(0), Amount(0), LedgerTimeMs(0))

Row = tuple[bytes, bytes]
"""Key and value of a row that exists."""


def account_row(account_id: AccountId, account: Account) -> tuple[bytes, bytes | None]:
    """Key and value; the value is ``None`` for an account that says nothing."""
    return ACCOUNT_PREFIX + account_id, None if account == NO_ACCOUNT else encode(account)


def bond_row(account_id: AccountId, bond: Bond) -> tuple[bytes, bytes | None]:
    """Key and value; the value is ``None`` for an empty bond."""
    return BOND_PREFIX + account_id, None if bond == NO_BOND else encode(bond)


def channel_row(channel_id: ChannelId, channel: Channel | None) -> tuple[bytes, bytes | None]:
    """Key and value; the value is ``None`` for a channel that has ended."""
    return CHANNEL_PREFIX + channel_id, None if channel is None else encode(channel)


def registration_row(model_id: ModelId, registration: Registration | None) -> tuple[bytes, bytes | None]:
    """Key and value; the value is ``None`` for a model that nobody has registered."""
    return MODEL_PREFIX + model_id, None if registration is None else encode(registration)


def sum_row(key: bytes, amount: int) -> Row:
    """Fee pool or issued supply."""
    return key, encode(Sum(Amount(amount)))


def authorities_row(schedule: AuthoritySchedule) -> Row:
    """Who decides is part of the state, so that a snapshot tells it and the state root covers it."""
    return AUTHORITIES_KEY, encode(schedule)


def decode_sum(value: bytes) -> Amount:
    """Inverse of ``sum_row``'s value."""
    return decode(value, Sum).amount
