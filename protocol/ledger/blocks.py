"""Building and executing blocks.

Law: executing never changes the state; ``LedgerState.apply`` takes over a whole execution or nothing. A block is valid
only if every rule of its header holds, every transaction executes, the supply is conserved and the state root is what
the header says. An empty block is valid only once a heartbeat is due, or a motion that takes effect.
"""

from collections.abc import Sequence
from typing import NamedTuple

from protocol.ledger.charter import changed_charter_rows, evidence_row, motion_row
from protocol.ledger.epochs import close_epoch_if_over, count_signers, enter_version, mark_time
from protocol.ledger.errors import BlockInvalid, NotATransaction, TransactionInvalid
from protocol.ledger.execution import Execution as Execution
from protocol.ledger.genesis_state import genesis_header as _genesis_header
from protocol.ledger.genesis_state import genesis_rows
from protocol.ledger.lattice import EMPTY_LATTICE, LatticeSum, lattice_root, updated
from protocol.ledger.merkle import merkle_root, transaction_leaf
from protocol.ledger.motions import motion_due, settle_due
from protocol.ledger.recovery import recovered_schedule, recovered_seats
from protocol.ledger.rows import (
    AUTHORITIES_KEY,
    FEE_POOL_KEY,
    Row,
    account_row,
    authorities_row,
    bond_row,
    channel_row,
    registration_row,
    sum_row,
)
from protocol.ledger.signatures import open_transaction
from protocol.ledger.state import LedgerState
from protocol.ledger.track_rows import track_row
from protocol.ledger.transition import apply_transaction
from protocol.ledger.view import Context, Overlay
from protocol.messages.blocks import Block, Header, certificate_hash, header_hash
from protocol.messages.consensus import Certificate, CertificateKind
from protocol.messages.envelope import envelope_id
from protocol.messages.genesis import Genesis
from protocol.messages.quorum import AuthoritySet, CertificateInvalid, certificate_checks
from protocol.messages.transactions import Transaction
from protocol.primitives.codec import decode, encode
from protocol.primitives.limits import BLOCK_BYTES_MAX, BLOCK_TRANSACTIONS_MAX
from protocol.primitives.units import AccountId, BlockHash, Hash, Height, LedgerTimeMs, MessageId, TimestampMs

LEDGER_TIME_STEP_MS_MAX = 30_000
"""Ledger time grows by at most this in one block, so that a halted ledger eats nobody's window."""

BLOCK_OVERHEAD_BYTES_MAX = 4096
"""Room that a block keeps for its header, its parent's certificate (thirty signatures: 2 KiB) and lengths."""


class PendingTransaction(NamedTuple):
    """A transaction whose signatures have been checked, decoded once."""

    transaction_id: MessageId
    envelope_bytes: bytes
    sender: AccountId
    transaction: Transaction

    @classmethod
    def from_bytes(cls, received: bytes) -> "PendingTransaction":
        """Decode; ``NotATransaction`` on anything else than a transaction's envelope. Checks no signature."""
        envelope, transaction = open_transaction(received)
        return cls(envelope_id(envelope), received, AccountId(envelope.sender), transaction)

    @property
    def block_bytes_max(self) -> int:
        """What it takes up in a block at most: its bytes and their length."""
        return len(self.envelope_bytes) + 5


def genesis_header(genesis: Genesis) -> Header:
    """The header of height 0, which all nodes start from. Raises ``GenesisInvalid``."""
    return _genesis_header(genesis, lattice_root(updated(EMPTY_LATTICE, (), genesis_rows(genesis))))


def ledger_time_after(parent: Header, timestamp_ms: TimestampMs) -> LedgerTimeMs:
    """Ledger time of a block with this timestamp on top of ``parent``."""
    return LedgerTimeMs(parent.ledger_time_ms + min(timestamp_ms - parent.timestamp_ms, LEDGER_TIME_STEP_MS_MAX))


def heartbeat_due(state: LedgerState, timestamp_ms: TimestampMs) -> bool:
    """True if a block with this timestamp may be empty: an idle ledger says that it lives, or a motion is due."""
    return (
        motion_due(state, state.ledger_time_ms)
        or timestamp_ms >= state.tip.timestamp_ms + state.parameters.heartbeat_ms
    )


def _touched_rows(state: LedgerState, changes: Overlay) -> list[tuple[bytes, bytes | None, bytes | None]]:
    """Rows that differ from the state's, in order of their keys: (key, value before, value after)."""
    rows: list[tuple[bytes, bytes | None, bytes | None]] = []
    for account_id, account in changes.accounts.items():
        key, after = account_row(account_id, account)
        rows.append((key, account_row(account_id, state.account(account_id))[1], after))
    for account_id, bond in changes.bonds.items():
        key, after = bond_row(account_id, bond)
        rows.append((key, bond_row(account_id, state.bond(account_id))[1], after))
    for channel_id, channel in changes.channels.items():
        key, after = channel_row(channel_id, channel)
        rows.append((key, channel_row(channel_id, state.channel(channel_id))[1], after))
    rows.append((FEE_POOL_KEY, sum_row(FEE_POOL_KEY, state.fee_pool)[1], sum_row(FEE_POOL_KEY, changes.fee_pool)[1]))
    rows.append((AUTHORITIES_KEY, authorities_row(state.schedule)[1], authorities_row(changes.schedule)[1]))
    for number, motion in changes.motions.items():
        key, after = motion_row(number, motion)
        rows.append((key, motion_row(number, state.motion(number))[1], after))
    for authority, evidence in changes.accused.items():
        key, after = evidence_row(authority, evidence)
        rows.append((key, evidence_row(authority, state.evidence(authority))[1], after))
    for model_id, registration in changes.registrations.items():
        key, after = registration_row(model_id, registration)
        rows.append((key, registration_row(model_id, state.registration(model_id))[1], after))
    for identity, track in changes.tracks.items():
        key, after = track_row(identity, track)
        rows.append((key, track_row(identity, state.track(identity))[1], after))
    rows += changed_charter_rows(state.charter, changes.charter)
    return sorted(row for row in rows if row[1] != row[2])


def supply_difference(state: LedgerState, changes: Overlay) -> int:
    """Base units that the changes make or lose, from the stored values of the touched rows; must be 0."""
    difference = changes.fee_pool - state.fee_pool
    for account_id, account in changes.accounts.items():
        difference += account.balance - state.account(account_id).balance
    for account_id, bond in changes.bonds.items():
        difference += bond.total - state.bond(account_id).total
    for channel_id, channel in changes.channels.items():
        before = state.channel(channel_id)
        difference += (channel.held if channel is not None else 0) - (before.held if before is not None else 0)
    return difference


class _Outcome(NamedTuple):
    rows: tuple[tuple[bytes, bytes | None], ...]
    undo: tuple[tuple[bytes, bytes | None], ...]
    lattice: LatticeSum


def _outcome(state: LedgerState, changes: Overlay) -> _Outcome:
    difference = supply_difference(state, changes)
    issued = changes.charter.issued.amount - state.issued
    if difference != issued:
        raise BlockInvalid("supply", f"the block makes {difference} base units where motions issued {issued}")
    touched = _touched_rows(state, changes)
    removed: list[Row] = [(key, before) for key, before, _ in touched if before is not None]
    added: list[Row] = [(key, after) for key, _, after in touched if after is not None]
    rows = tuple((key, after) for key, _, after in touched)
    undo = tuple((key, before) for key, before, _ in touched)
    return _Outcome(rows, undo, updated(state.lattice, removed, added))


def _opened(state: LedgerState, context: Context, parent_certificate: Certificate | None) -> Overlay:
    """What every block does before its transactions.

    The schedule of authorities moves on by one height, who signed the parent is counted, an epoch may end, the time is
    noted, and what voters decided takes effect if it is due. After that no block makes or burns a credit.
    """
    changes = Overlay(state)
    schedule, recovery = state.schedule, state.recovery
    if recovery is not None:
        schedule = recovered_schedule(schedule, recovery)
        changes.with_charter(seats=recovered_seats(changes.charter.seats, recovery))
    changes.schedule = schedule.advanced()
    if parent_certificate is not None:
        members = state.schedule.previous.records
        count_signers(changes, [members[signer] for signer in parent_certificate.signers if signer < len(members)])
    close_epoch_if_over(changes, context)
    mark_time(changes, context)
    enter_version(changes, context)
    settle_due(changes, context)
    return changes


def build_block(
    state: LedgerState,
    candidates: Sequence[PendingTransaction],
    timestamp_ms: TimestampMs,
    parent_certificate: Certificate | None,
) -> Execution:
    """A block on top of the state from as many candidates as execute and fit, in their order.

    ``parent_certificate`` is the one that decided the tip, ``None`` on top of the genesis alone.
    A timestamp below the parent's is raised to it. The result may be empty, and is then valid only if
    ``heartbeat_due``; candidates that do not execute are listed in ``refused``.
    """
    timestamp_ms = max(timestamp_ms, state.tip.timestamp_ms)
    context = Context(Height(state.height + 1), ledger_time_after(state.tip, timestamp_ms), timestamp_ms)
    changes = _opened(state, context, parent_certificate)
    included: list[PendingTransaction] = []
    refused: list[tuple[MessageId, TransactionInvalid]] = []
    room = BLOCK_BYTES_MAX - BLOCK_OVERHEAD_BYTES_MAX
    for candidate in candidates:
        size = candidate.block_bytes_max
        if size > room or len(included) == BLOCK_TRANSACTIONS_MAX:
            continue
        attempt = Overlay(changes)
        try:
            apply_transaction(attempt, context, candidate.sender, candidate.transaction)
        except TransactionInvalid as error:
            refused.append((candidate.transaction_id, error))
            continue
        changes.take_from(attempt)
        included.append(candidate)
        room -= size
    outcome = _outcome(state, changes)
    transactions = tuple(candidate.envelope_bytes for candidate in included)
    header = Header(
        version=state.charter.versions.at(context.height),
        height=context.height,
        parent=state.tip_hash,
        timestamp_ms=timestamp_ms,
        ledger_time_ms=context.ledger_time_ms,
        parent_certificate_hash=certificate_hash(parent_certificate),
        transactions_root=merkle_root([transaction_leaf(received) for received in transactions]),
        state_root=lattice_root(outcome.lattice),
        checkpoint_root=state.checkpoint_root,
        authorities_hash=state.authorities.hash(),
        next_authorities_hash=_set_at(state, context.height + 1).hash(),
    )
    block = Block(header, parent_certificate, transactions)
    block_bytes = encode(block)
    assert len(block_bytes) <= BLOCK_BYTES_MAX
    ids = tuple(candidate.transaction_id for candidate in included)
    return Execution(
        block,
        block_bytes,
        header_hash(header),
        outcome.rows,
        ids,
        tuple(refused),
        changes,
        outcome.lattice,
        outcome.undo,
    )


def decode_block(received: bytes) -> Block:
    """The block in these bytes; ``MalformedMessage`` on anything else, too large a block included."""
    return decode(received, Block)


def _check_header(state: LedgerState, block: Block) -> None:
    header, parent = block.header, state.tip
    expected: tuple[tuple[str, int | Hash | BlockHash, int | Hash | BlockHash], ...] = (
        ("version", state.charter.versions.at(parent.height + 1), header.version),
        ("height", parent.height + 1, header.height),
        ("parent", state.tip_hash, header.parent),
        ("checkpoint root", state.checkpoint_root, header.checkpoint_root),
        ("authorities", state.authorities.hash(), header.authorities_hash),
        ("next authorities", _set_at(state, parent.height + 2).hash(), header.next_authorities_hash),
        ("parent certificate hash", certificate_hash(block.parent_certificate), header.parent_certificate_hash),
    )
    for reason, wanted, got in expected:
        if wanted != got:
            raise BlockInvalid(reason, f"expected {_shown(wanted)}, got {_shown(got)}")
    if header.timestamp_ms < parent.timestamp_ms:
        raise BlockInvalid("timestamp", f"{header.timestamp_ms} lies before the parent's {parent.timestamp_ms}")
    ledger_time = ledger_time_after(parent, header.timestamp_ms)
    if header.ledger_time_ms != ledger_time:
        raise BlockInvalid("ledger time", f"expected {ledger_time}, got {header.ledger_time_ms}")
    if not block.transactions and not heartbeat_due(state, header.timestamp_ms):
        raise BlockInvalid("empty", "no transactions and no heartbeat due")
    if header.transactions_root != merkle_root([transaction_leaf(received) for received in block.transactions]):
        raise BlockInvalid("transactions root")


def _check_parent_certificate(state: LedgerState, certificate: Certificate | None) -> None:
    """The certificate beside the header decided the tip. Its signatures are settled at the door."""
    if certificate is None or state.height == 0:
        if certificate is not None or state.height != 0:
            raise BlockInvalid("parent certificate", "missing, or one for the genesis, which nobody signed")
        return
    if certificate.kind is not CertificateKind.DECIDED:
        raise BlockInvalid("parent certificate", f"a {certificate.kind.name} one")
    if (certificate.height, certificate.block_hash) != (state.height, state.tip_hash):
        raise BlockInvalid("parent certificate", "for another block than the tip")
    try:
        certificate_checks(state.genesis_hash, _set_at(state, state.height), certificate)
    except CertificateInvalid as error:
        raise BlockInvalid("parent certificate", str(error)) from None


def _set_at(state: LedgerState, height: int) -> AuthoritySet:
    found = state.authorities_at(Height(height))
    assert found is not None
    return found


def _shown(value: int | bytes) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def execute_block(state: LedgerState, block: Block) -> Execution:
    """Judge and execute a block whose signatures have been checked. Never changes the state.

    Raises ``BlockInvalid``.
    """
    block_bytes = encode(block)
    if len(block_bytes) > BLOCK_BYTES_MAX:
        raise BlockInvalid("size", f"{len(block_bytes)} bytes")
    _check_header(state, block)
    _check_parent_certificate(state, block.parent_certificate)
    header = block.header
    context = Context(header.height, header.ledger_time_ms, header.timestamp_ms)
    changes = _opened(state, context, block.parent_certificate)
    ids: list[MessageId] = []
    for position, received in enumerate(block.transactions):
        try:
            pending = PendingTransaction.from_bytes(received)
            apply_transaction(changes, context, pending.sender, pending.transaction)
        except NotATransaction as error:
            raise BlockInvalid("malformed transaction", f"number {position}: {error}") from None
        except TransactionInvalid as error:
            raise BlockInvalid("transaction", f"number {position}: {error}") from error
        ids.append(pending.transaction_id)
    outcome = _outcome(state, changes)
    root = lattice_root(outcome.lattice)
    if root != header.state_root:
        raise BlockInvalid("state root", f"execution gives {root.hex()}, the header has {header.state_root.hex()}")
    return Execution(
        block, block_bytes, header_hash(header), outcome.rows, tuple(ids), (), changes, outcome.lattice, outcome.undo
    )
