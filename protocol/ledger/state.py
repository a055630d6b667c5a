"""The whole state of the ledger, and its recount. Accounts and track records may lie on a disk, all else is in memory.

Law: ``issued = balances + channel deposits + bonds + fee pool`` after every block: by difference over the touched rows
in each block, by a full recount whenever a state is loaded. The root over all rows stands in the tip's header.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from protocol.ledger.accounts import Tables, tables_in_memory
from protocol.ledger.channel_table import ChannelTable
from protocol.ledger.charter import (
    CHARTER_KEYS,
    EVIDENCE_PREFIX,
    MOTION_PREFIX,
    Charter,
    Evidence,
    Motion,
    charter_rows,
    charter_with_row,
    evidence_key_of,
    evidence_row,
    genesis_charter,
    motion_row,
)
from protocol.ledger.checkpoints import Checkpoints, ProvenRow, StoredChange
from protocol.ledger.errors import StateInvalid
from protocol.ledger.execution import Execution
from protocol.ledger.genesis_state import genesis_header, genesis_rows, genesis_schedule
from protocol.ledger.lattice import EMPTY_LATTICE, LatticeSum, lattice_root, updated
from protocol.ledger.recovery import RecoveryRefused, check_named, signed_by_member
from protocol.ledger.rows import (
    ACCOUNT_PREFIX,
    AUTHORITIES_KEY,
    BOND_PREFIX,
    CHANNEL_PREFIX,
    FEE_POOL_KEY,
    MODEL_PREFIX,
    NO_BOND,
    Account,
    AuthoritySchedule,
    Bond,
    Channel,
    Registration,
    Row,
    account_row,
    authorities_row,
    bond_row,
    channel_row,
    decode_sum,
    registration_row,
    sum_row,
)
from protocol.ledger.track_rows import TRACK_PREFIX, Track, TrackId, track_row
from protocol.messages.blocks import Header, header_hash
from protocol.messages.genesis import Genesis, Parameters, genesis_hash
from protocol.messages.governance import MotionNumber
from protocol.messages.quorum import AuthoritySet
from protocol.messages.recovery import Recovery
from protocol.primitives.codec import decode
from protocol.primitives.errors import LocalProtocolError, MalformedMessage
from protocol.primitives.units import (
    AccountId,
    Amount,
    AuthorityId,
    BlockHash,
    ChannelId,
    Hash,
    Height,
    LedgerTimeMs,
    ModelId,
)


class Supply(NamedTuple):
    """Where all credits are, in base units. ``total`` is their sum, ``issued`` what it has to be."""

    balances: int
    deposits: int
    bonds: int
    fee_pool: int
    issued: int

    @property
    def total(self) -> int:
        """Sum over all places; equals ``issued`` or money was made or lost."""
        return self.balances + self.deposits + self.bonds + self.fee_pool


class LedgerState:
    """Accounts, bonds, channels and sums after the block ``tip``. Changed by ``apply`` alone."""

    def __init__(
        self,
        genesis: Genesis,
        rows: Iterable[Row],
        tip: Header,
        tables: Tables | None = None,
        tree: Iterable[Row] = (),
    ) -> None:
        """Decode rows; use ``from_genesis``, ``from_rows`` or ``resumed``, which also check them.

        Rows of accounts and track records are added to what ``tables`` hold already; without them they are kept in
        memory. ``tree`` is what a store kept of what ``apply`` gave it.
        """
        self.genesis = genesis
        self.genesis_hash: Hash = genesis_hash(genesis)
        self.schedule = genesis_schedule(genesis)
        self.tip = tip
        self.tip_hash: BlockHash = header_hash(tip)
        self.charter: Charter = genesis_charter(genesis, Amount(0))
        self.fee_pool = Amount(0)
        self.lattice: LatticeSum = EMPTY_LATTICE
        self._balances = 0
        """Sum of all balances: counted when the state was loaded, kept by difference since."""
        self._accounts, self._tracks = tables if tables is not None else tables_in_memory()
        self._bonds: dict[AccountId, Bond] = {}
        self._channels = ChannelTable()
        self._motions: dict[MotionNumber, Motion] = {}
        self._evidence: dict[AuthorityId, Evidence] = {}
        self._registrations: dict[ModelId, Registration] = {}
        self._load(rows)
        self._checkpoints = Checkpoints(tip, self, tree)
        self._recoveries: dict[BlockHash, tuple[Recovery, tuple[AuthorityId, ...]]] = {}
        try:
            self._sets = sets_of(self.schedule)
        except ValueError as error:  # rows come from a disk or a stranger, and nothing has compared their root yet
            raise StateInvalid(f"a row of authorities that are no set: {error}") from None

    def _load(self, rows: Iterable[Row]) -> None:
        def kept() -> Iterator[Row]:
            for key, value in rows:
                self._load_row(key, value)
                yield key, value

        self.lattice = updated(EMPTY_LATTICE, (), kept())

    def _load_row(self, key: bytes, value: bytes) -> None:
        prefix, identity = key[:1], key[1:]
        if prefix == ACCOUNT_PREFIX:
            account = decode(value, Account)
            self._accounts.apply(self.tip.height, {AccountId(identity): account})
            self._balances += account.balance
        elif prefix == BOND_PREFIX:
            self._bonds[AccountId(identity)] = decode(value, Bond)
        elif prefix == CHANNEL_PREFIX:
            self._channels.set(ChannelId(identity), decode(value, Channel))
        elif prefix == TRACK_PREFIX:
            self._tracks.apply(self.tip.height, {TrackId(identity): decode(value, Track)})
        elif key == FEE_POOL_KEY:
            self.fee_pool = decode_sum(value)
        elif key in CHARTER_KEYS:
            self.charter = charter_with_row(self.charter, key, value)
        elif key == AUTHORITIES_KEY:
            self.schedule = decode(value, AuthoritySchedule)
        elif prefix == MOTION_PREFIX:
            motion = decode(value, Motion)
            self._motions[motion.number] = motion
        elif prefix == EVIDENCE_PREFIX:
            self._evidence[evidence_key_of(key)] = decode(value, Evidence)
        elif prefix == MODEL_PREFIX:
            self._registrations[ModelId(identity)] = decode(value, Registration)
        else:
            raise StateInvalid(f"a row of no known kind: {key.hex()}")

    @classmethod
    def from_genesis(cls, genesis: Genesis) -> "LedgerState":
        """The state before block 1. Raises ``GenesisInvalid``."""
        rows = genesis_rows(genesis)
        header = genesis_header(genesis, lattice_root(updated(EMPTY_LATTICE, (), rows)))
        return cls(genesis, rows, header)

    @classmethod
    def from_rows(cls, genesis: Genesis, rows: Iterable[Row], header: Header) -> "LedgerState":
        """The state behind ``header`` from stored rows.

        Raises ``StateInvalid`` unless they give its state root and conserve the supply.
        """
        try:
            state = cls(genesis, rows, header)
            state._check()
        except MalformedMessage as error:
            raise StateInvalid(f"a stored row does not decode: {error}") from None
        return state

    @classmethod
    def resumed(
        cls,
        genesis: Genesis,
        tables: Tables,
        rows: Iterable[Row],
        header: Header,
        lattice: LatticeSum,
        tree: Iterable[Row] = (),
    ) -> "LedgerState":
        """The state behind ``header`` from its tables, all other rows, and the sum that was stored beside them.

        Recounts the money, reading every account once, and takes the sum as it is if it gives the header's root:
        whoever calls this recomputes it from the rows later. Raises ``StateInvalid`` like ``from_rows``.
        """
        try:
            state = cls(genesis, rows, header, tables, tree)
            state.lattice = lattice
            state._check()
        except MalformedMessage as error:
            raise StateInvalid(f"a stored row does not decode: {error}") from None
        state._checkpoints.open()
        return state

    def _check(self) -> None:
        root = lattice_root(self.lattice)
        if root != self.tip.state_root:
            raise StateInvalid(
                f"rows give state root {root.hex()}, block {self.tip.height} has {self.tip.state_root.hex()}"
            )
        supply = recount(self)
        self._balances = supply.balances
        if supply.total != supply.issued:
            raise StateInvalid(f"supply is {supply.total} base units but {supply.issued} were issued")

    @property
    def height(self) -> Height:
        """Height of the tip; 0 before the first block."""
        return self.tip.height

    @property
    def ledger_time_ms(self) -> LedgerTimeMs:
        """Ledger time after the tip."""
        return self.tip.ledger_time_ms

    @property
    def development(self) -> bool:
        """True where keys are publicly known and small numbers will do."""
        return self.genesis.development

    @property
    def parameters(self) -> Parameters:
        """The numbers that the network agrees on now."""
        return self.charter.parameters

    @property
    def issued(self) -> Amount:
        """All credits that there have to be."""
        return self.charter.issued.amount

    @property
    def authorities(self) -> AuthoritySet:
        """The set that decides the next block."""
        return self._sets[1]

    def authorities_at(self, height: Height) -> AuthoritySet | None:
        """The set that decides a height; known for the tip and the two heights above it, else ``None``."""
        return self._sets[height - self.height] if 0 <= height - self.height < len(self._sets) else None

    @property
    def sets_around(self) -> tuple[AuthoritySet, ...]:
        """The sets of the tip and the two heights above it; the same tuple until a block changes the state."""
        return self._sets

    # Recovery

    @property
    def recovery(self) -> Recovery | None:
        """What operators have agreed on out of band for the next height, if this node was told of it."""
        return self.recovery_after(self.tip, AuthoritySet.of(self.schedule.current)) if self._recoveries else None

    def recovery_after(self, header: Header, replaced: AuthoritySet) -> Recovery | None:
        """The same for the height after this header, which ``replaced`` would have decided."""
        recovery, signers = self._recoveries.get(header_hash(header), (None, ()))
        if recovery is None or recovery.height != header.height:
            return None
        return recovery if signed_by_member(signers, replaced) else None

    def follow_recovery(self, recovery: Recovery, signers: Sequence[AuthorityId]) -> None:
        """From the block that the recovery names on, its set decides; also if that block is still to come.

        The later attempt of two for one block counts; one that nobody has signed who decides there counts for nothing.
        Raises ``RecoveryRefused`` if the block is to come on another tip than this; what lies below the tip is the
        caller's to check.
        """
        if recovery.height == self.tip.height:
            check_named(recovery, self.tip)
            if not signed_by_member(signers, AuthoritySet.of(self.schedule.current)):
                raise RecoveryRefused("nobody who decides this ledger has signed the recovery document")
        known, _ = self._recoveries.get(recovery.block_hash, (None, ()))
        if known is None or known.attempt < recovery.attempt:
            self._recoveries[recovery.block_hash] = recovery, tuple(signers)
        self._sets = sets_of(self.schedule, self.recovery)

    def account(self, account_id: AccountId) -> Account:
        """The account's row; an account nobody paid has balance 0 and nonce 0."""
        return self._accounts.get(account_id)

    def bond(self, account_id: AccountId) -> Bond:
        """The account's bond; all zeros where there is none."""
        return self._bonds.get(account_id, NO_BOND)

    def channel(self, channel_id: ChannelId) -> Channel | None:
        """An open channel, or ``None``."""
        return self._channels.get(channel_id)

    def motion(self, number: MotionNumber) -> Motion | None:
        """A motion on the agenda or among the last outcomes, or ``None``."""
        return self._motions.get(number)

    def motions(self) -> tuple[Motion, ...]:
        """All motions on the agenda and the last outcomes, oldest first."""
        return tuple(self._motions[number] for number in sorted(self._motions))

    def evidence(self, authority: AuthorityId) -> Evidence | None:
        """What proved that a key signed twice, or ``None``."""
        return self._evidence.get(authority)

    def registration(self, model_id: ModelId) -> Registration | None:
        """Who published a model, or ``None`` if nobody has registered it."""
        return self._registrations.get(model_id)

    def track(self, identity: TrackId) -> Track:
        """One account's track record in one role; ``NO_TRACK`` where there is none."""
        return self._tracks.get(identity)

    def channels_of(self, account_id: AccountId) -> tuple[tuple[ChannelId, Channel], ...]:
        """Open channels in which the account is payer or payee, oldest first."""
        return self._channels.of(account_id)

    def channels_paid_by(self, account_id: AccountId) -> tuple[tuple[ChannelId, Channel], ...]:
        """Open channels that the account has opened itself, oldest first: how many there are is its own doing.

        Strangers can open any number of channels *towards* an account; what is looked at often must not see those.
        """
        return self._channels.paid_by(account_id)

    def supply(self) -> Supply:
        """Where all credits are; a full recount, linear in the state's size."""
        return recount(self)

    def supply_kept(self) -> Supply:
        """``supply`` without reading every account: balances as counted at the start and kept by difference since."""
        return _supply(self, self._balances)

    def rows(self) -> Iterator[Row]:
        """All rows that exist, sorted by key: what a snapshot holds."""
        others = sorted(self._other_rows())
        assert ACCOUNT_PREFIX < others[0][0] <= others[-1][0] < TRACK_PREFIX, "accounts come first, tracks last"
        for account_id, account in self._accounts.items():
            yield _existing(account_row(account_id, account))
        yield from others
        for identity, track in self.tracks():
            yield _existing(track_row(identity, track))

    def _other_rows(self) -> Iterator[Row]:
        for account_id, bond in self._bonds.items():
            yield _existing(bond_row(account_id, bond))
        for channel_id, channel in self._channels.items():
            yield _existing(channel_row(channel_id, channel))
        for model_id, registration in self._registrations.items():
            yield _existing(registration_row(model_id, registration))
        yield from self._few_rows()

    def _few_rows(self) -> Iterator[Row]:
        """Rows of which there are few, whatever the number of accounts."""
        yield sum_row(FEE_POOL_KEY, self.fee_pool)
        yield from charter_rows(self.charter)
        yield authorities_row(self.schedule)
        for number, motion in self._motions.items():
            yield _existing(motion_row(number, motion))
        for authority, evidence in self._evidence.items():
            yield _existing(evidence_row(authority, evidence))

    def row(self, key: bytes) -> bytes | None:
        """One row's value, or ``None`` if there is no such row."""
        prefix, identity = key[:1], key[1:]
        if prefix == ACCOUNT_PREFIX:
            return account_row(AccountId(identity), self.account(AccountId(identity)))[1]
        if prefix == BOND_PREFIX:
            return bond_row(AccountId(identity), self.bond(AccountId(identity)))[1]
        if prefix == CHANNEL_PREFIX:
            return channel_row(ChannelId(identity), self.channel(ChannelId(identity)))[1]
        if prefix == MODEL_PREFIX:
            return registration_row(ModelId(identity), self.registration(ModelId(identity)))[1]
        if prefix == TRACK_PREFIX:
            return track_row(TrackId(identity), self.track(TrackId(identity)))[1]
        return next((value for found, value in self._few_rows() if found == key), None)

    @property
    def checkpoint_root(self) -> Hash:
        """Root of the state tree at the last checkpoint: what the next header says."""
        return self._checkpoints.root

    def proven_row(self, key: bytes) -> ProvenRow | None:
        """A row as it was at the last checkpoint, with its proof; ``None`` if that is not known until the next one."""
        return self._checkpoints.prove(key)

    def accounts(self) -> Iterator[tuple[AccountId, Account]]:
        """All accounts that say something, in the order of their ids."""
        yield from self._accounts.items()

    def bonds(self) -> Iterator[tuple[AccountId, Bond]]:
        """All bonds that are not empty, in no promised order."""
        yield from self._bonds.items()

    def channels(self) -> Iterator[tuple[ChannelId, Channel]]:
        """All open channels, in no promised order."""
        yield from self._channels.items()

    def tracks(self) -> Iterator[tuple[TrackId, Track]]:
        """All track records, in the order of their ids."""
        yield from self._tracks.items()

    def apply(self, execution: Execution) -> tuple[StoredChange, ...]:
        """Make an executed block the new tip; all or nothing. Cheap, unless the block is a checkpoint.

        Gives what a store keeps of the state tree, beside the block's rows. Raises ``LocalProtocolError`` unless the
        block was executed on the present tip.
        """
        if execution.header.parent != self.tip_hash:
            raise LocalProtocolError(f"block {execution.header.height} does not follow tip {self.height}")
        kept = self._checkpoints.record(execution)
        changes = execution.changes
        for account_id, account in changes.accounts.items():
            self._balances += account.balance - self._accounts.get(account_id).balance
        self._accounts.apply(execution.header.height, changes.accounts)
        for account_id, bond in changes.bonds.items():
            if bond == NO_BOND:
                self._bonds.pop(account_id, None)
            else:
                self._bonds[account_id] = bond
        for channel_id, channel in changes.channels.items():
            self._channels.set(channel_id, channel)
        for number, motion in changes.motions.items():
            if motion is None:
                self._motions.pop(number, None)
            else:
                self._motions[number] = motion
        self._evidence.update(changes.accused)
        self._registrations.update(changes.registrations)
        self._tracks.apply(execution.header.height, changes.tracks)
        self.charter = changes.charter
        self.fee_pool = changes.fee_pool
        changed = changes.schedule != self.schedule
        self.schedule = changes.schedule
        self.lattice, self.tip, self.tip_hash = execution.lattice, execution.header, execution.block_hash
        if changed or self._recoveries:
            self._sets = sets_of(self.schedule, self.recovery)
        return kept

    def take_over(self, other: "LedgerState") -> None:
        """Become what another state of the same network says, from a snapshot: whoever holds this one sees it too."""
        assert other.genesis_hash == self.genesis_hash
        vars(self).update(vars(other), _recoveries=self._recoveries)
        self._sets = sets_of(self.schedule, self.recovery)
        self._checkpoints.rebase(self)


def _existing(row: tuple[bytes, bytes | None]) -> Row:
    key, value = row
    assert value is not None
    return key, value


def recount(state: LedgerState) -> Supply:
    """Count every credit in the state, touching every row."""
    return _supply(state, sum(account.balance for _, account in state.accounts()))


def _supply(state: LedgerState, balances: int) -> Supply:
    return Supply(
        balances=balances,
        deposits=sum(channel.held for _, channel in state.channels()),
        bonds=sum(bond.total for _, bond in state.bonds()),
        fee_pool=state.fee_pool,
        issued=state.issued,
    )


def sets_of(
    schedule: AuthoritySchedule, recovery: Recovery | None = None
) -> tuple[AuthoritySet, AuthoritySet, AuthoritySet]:
    """The sets that decide the tip and the two heights above it; equal ones are one object."""
    if recovery is not None:
        recovered = AuthoritySet.of(recovery.membership, recovery.view_base)
        return AuthoritySet.of(schedule.previous), recovered, AuthoritySet.of(recovery.membership)
    previous = AuthoritySet.of(schedule.previous)
    current = previous if schedule.current == schedule.previous else AuthoritySet.of(schedule.current)
    following = current if schedule.following == schedule.current else AuthoritySet.of(schedule.following)
    return previous, current, following
