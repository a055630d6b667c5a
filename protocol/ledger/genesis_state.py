"""The state that a genesis gives: who decides first, the rows that it allocates, and the header that it starts with.

Law: a pure function of the genesis alone, so that whoever holds the same genesis starts from the same root.
"""

from protocol.ledger.charter import GENESIS_VERSION, charter_rows, genesis_charter
from protocol.ledger.errors import GenesisInvalid
from protocol.ledger.merkle import EMPTY_ROOT
from protocol.ledger.rows import (
    FEE_POOL_KEY,
    Account,
    AuthoritySchedule,
    Bond,
    Row,
    account_row,
    authorities_row,
    bond_row,
    sum_row,
)
from protocol.ledger.state_tree import NO_STATE_TREE
from protocol.messages.blocks import NO_CERTIFICATE_HASH, Header
from protocol.messages.genesis import Genesis, genesis_hash
from protocol.messages.quorum import AuthoritySet
from protocol.primitives.errors import AmountOutOfRange
from protocol.primitives.units import Amount, BlockHash, Hash, Height, LedgerTimeMs, Nonce, checked_sum


def genesis_schedule(genesis: Genesis) -> AuthoritySchedule:
    """The genesis's authorities decide until the ledger says otherwise."""
    membership = AuthoritySet.from_genesis(genesis).membership()
    return AuthoritySchedule(membership, membership, membership)


def genesis_rows(genesis: Genesis) -> tuple[Row, ...]:
    """The rows that a genesis allocates.

    Raises ``GenesisInvalid`` on a repeated account or authority, or more credits than can exist.
    """
    try:
        AuthoritySet.from_genesis(genesis)
        issued = checked_sum(
            amount for allocation in genesis.allocations for amount in (allocation.balance, allocation.bond)
        )
    except (ValueError, AmountOutOfRange) as error:
        raise GenesisInvalid(str(error)) from None
    if len({allocation.account for allocation in genesis.allocations}) != len(genesis.allocations):
        raise GenesisInvalid("an account has two allocations")
    rows: list[tuple[bytes, bytes | None]] = []
    for allocation in genesis.allocations:
        rows.append(account_row(allocation.account, Account(allocation.balance, Nonce(0))))
        rows.append(bond_row(allocation.account, Bond(allocation.bond, Amount(0), LedgerTimeMs(0))))
    rows += [sum_row(FEE_POOL_KEY, 0), authorities_row(genesis_schedule(genesis))]
    rows += charter_rows(genesis_charter(genesis, issued))
    return tuple((key, value) for key, value in rows if value is not None)


def genesis_header(genesis: Genesis, state_root: Hash) -> Header:
    """The header of height 0: never voted on, its parent is the genesis hash."""
    authorities = AuthoritySet.from_genesis(genesis).hash()
    return Header(
        version=GENESIS_VERSION,
        height=Height(0),
        parent=BlockHash(genesis_hash(genesis)),
        timestamp_ms=genesis.created_at,
        ledger_time_ms=LedgerTimeMs(0),
        parent_certificate_hash=NO_CERTIFICATE_HASH,
        transactions_root=EMPTY_ROOT,
        state_root=state_root,
        checkpoint_root=NO_STATE_TREE,
        authorities_hash=authorities,
        next_authorities_hash=authorities,
    )
