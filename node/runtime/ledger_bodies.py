"""What the ledger has decided, as people and their programs read it: money, who decides, what is voted on, blocks.

Law: this module imports nothing heavy, because the command line reads it at every start.
"""

from node.runtime.view import View


class SupplyView(View, frozen=True):
    balances: int
    deposits: int
    bonds: int
    fee_pool: int
    total: int
    genesis_total: int
    issued_by_vote: int = 0
    redeemed_by_vote: int = 0


class AuthorityView(View, frozen=True):
    """One key of the authority set, or one on its way in or out."""

    name: str
    authority: str
    account: str
    node: str
    state: str
    """``active``, ``suspended``, ``joining`` or ``leaving``."""
    since_height: int
    until_height: int | None
    bond: int
    blocks_signed: int
    """Blocks of the present epoch whose certificate carries its signature."""


class RegistrationView(View, frozen=True):
    """Who published a model, by the ledger."""

    model: str
    registered: bool
    publisher: str | None
    """``None`` while nobody has registered it; so are the others."""
    height: int | None
    manifest_bytes: int | None


class AuthoritiesView(View, frozen=True):
    """Who decides, and how many are needed."""

    height: int
    quorum: int
    faulty_max: int
    authorities: tuple[AuthorityView, ...]


class ParameterView(View, frozen=True):
    """A number that the network agrees on, and the range in which a vote may set it."""

    name: str
    value: int
    least: int
    most: int


class ParametersView(View, frozen=True):
    """What the network has agreed on."""

    version: int
    coming_version: int | None
    coming_version_height: int | None
    parameters: tuple[ParameterView, ...]


class VoteView(View, frozen=True):
    """What an authority has voted; ``None`` while it has not."""

    name: str
    authority: str
    approve: bool | None


class MotionView(View, frozen=True):
    """Something put to vote."""

    motion: int
    subject: str
    detail: str
    status: str
    """``open``, ``passed``, ``done``, ``rejected``, ``expired`` or ``failed``."""
    opener: str
    opened_height: int
    due_at_ledger_ms: int
    """When an open motion expires and a passed one takes effect."""
    ledger_time_ms: int
    approvals: int
    rejections: int
    needed: int
    votes: tuple[VoteView, ...]
    concluded_height: int | None
    outcome: str


class TransactionView(View, frozen=True):
    """A transaction of ours that the ledger has decided."""

    transaction: str
    height: int
    block_hash: str


class LedgerView(View, frozen=True):
    height: int
    block_hash: str
    timestamp_ms: int
    ledger_time_ms: int
    state_root: str
    authorities: tuple[str, ...]
    quorum: int
    pending_transactions: int
    blocks_from: int = 1
    """The lowest height from which on this node has every block."""
    blocks_kept: int = 0
    """At least so many blocks are kept; 0: all, for ever."""
    snapshots: tuple[int, ...] = ()
    """Heights of the snapshots that this node serves, oldest first."""


class BlockTransactionView(View, frozen=True):
    transaction: str
    sender: str
    nonce: int
    fee: int
    action: str
    detail: str


class BlockView(View, frozen=True):
    height: int
    block_hash: str
    parent: str
    timestamp_ms: int
    ledger_time_ms: int
    state_root: str
    transactions_root: str
    view: int
    signers: tuple[str, ...]
    transactions: tuple[BlockTransactionView, ...]
