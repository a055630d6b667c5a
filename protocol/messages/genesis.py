"""Genesis: what a whole network must share. Its hash is in every signature, so two networks never mix.

Law: cluster-wide numbers live here and are hashed; numbers of one process live in its configuration file.
"""

from typing import Annotated

from msgspec import Meta

from protocol.primitives.codec import Message, encode
from protocol.primitives.hashing import Domain, digest
from protocol.primitives.limits import AUTHORITIES_MAX, TEXT_BYTES_MAX
from protocol.primitives.units import (
    CREDIT,
    AccountIdField,
    Amount,
    AmountField,
    AuthorityIdField,
    DurationField,
    DurationMs,
    Hash,
    NodeIdField,
    TimestampField,
)

BlockCountField = Annotated[int, Meta(ge=1, le=2**32)]
DAY_MS = 24 * 3600 * 1000


class AuthorityRecord(Message, frozen=True):
    """One authority: its consensus key, the account that its fees go to, and its node."""

    authority: AuthorityIdField
    account: AccountIdField
    node: NodeIdField
    name: Annotated[str, Meta(max_length=TEXT_BYTES_MAX)]


class Membership(Message, frozen=True):
    """Who decides a height. A suspended key keeps its seat in n, f and Q, but neither leads nor counts."""

    records: Annotated[tuple[AuthorityRecord, ...], Meta(min_length=1, max_length=AUTHORITIES_MAX)]
    """In rising order of authority keys, each once."""
    suspended: Annotated[tuple[AuthorityIdField, ...], Meta(max_length=AUTHORITIES_MAX)] = ()
    """Keys of members that were caught signing twice, in rising order."""


class Allocation(Message, frozen=True):
    """Credits that an account holds from the start, in base units."""

    account: AccountIdField
    balance: AmountField
    bond: AmountField


class Parameters(Message, frozen=True):
    """Numbers that all nodes must agree on. Durations in ms, amounts in base units; bounds in ``governance``."""

    heartbeat_ms: DurationField
    """An idle ledger makes an empty block this often."""
    delta_ms: DurationField
    """Δ0: the first view's message delay bound. A view times out after 2Δ and 3Δ."""
    delta_cap_ms: DurationField
    clock_precision_ms: DurationField
    """How far authorities' clocks may differ."""
    challenge_ms: DurationField
    """Ledger time between a payer's close and the payout."""
    unbonding_ms: DurationField
    """Ledger time between unlocking a bond and its payout."""
    provider_bond_min: AmountField
    """An offer counts only from an account with at least this bond."""
    fee_min: AmountField
    """Fee floor of a transaction."""
    redeem_fee_min: AmountField
    redeem_fee_share_ppm: Annotated[int, Meta(ge=0, le=1_000_000)]
    """A redeem costs max(floor, share of the amount): what makes wash trading cost something."""
    epoch_blocks: BlockCountField = 1_000
    """The fee pool is shared among those who signed this many blocks."""
    evidence_blocks: BlockCountField = 100_000
    evidence_ms: DurationField = DurationMs(7 * DAY_MS)
    """Proof of double signing is taken until both, blocks and ledger time, have passed since the height."""
    motion_ms: DurationField = DurationMs(7 * DAY_MS)
    """Ledger time for which a motion can be voted on."""
    motion_timelock_ms: DurationField = DurationMs(DAY_MS)
    """Ledger time between the passing of a motion and its effect."""
    motion_fee_min: AmountField = Amount(CREDIT // 10)
    """Fee floor of a transaction that opens a motion."""
    issuance_cap: AmountField = Amount(10_000 * CREDIT)
    """Most that votes can issue in one period."""
    issuance_period_ms: DurationField = DurationMs(30 * DAY_MS)
    """Ledger time for which the cap holds, counted from the first issuance of the period."""


class Genesis(Message, frozen=True):
    """The first state of a network."""

    network: Annotated[str, Meta(min_length=1, max_length=TEXT_BYTES_MAX)]
    development: bool
    """A development network holds publicly known keys; its nodes refuse to listen off loopback."""
    created_at: TimestampField
    parameters: Parameters
    authorities: Annotated[tuple[AuthorityRecord, ...], Meta(min_length=1, max_length=AUTHORITIES_MAX)]
    allocations: tuple[Allocation, ...]


def genesis_hash(genesis: Genesis) -> Hash:
    """The network's identity."""
    return digest(Domain.GENESIS, encode(genesis))
