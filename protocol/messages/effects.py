"""What a pure step may ask of the world: data, in an order that is a promise.

Law: the runtime carries out effects in order. A ``Put``, ``Delete`` or ``CommitBlock`` is on disk before any later
effect leaves the node; a ``SignAndSend`` is in the sign guard, committed, before its signature exists. Several
effects may share one disk commit (group commit), never the other way round.
"""

from enum import IntEnum

import msgspec

from protocol.messages.blocks import DecidedBlock
from protocol.messages.kinds import MessageKind
from protocol.messages.snapshots import SnapshotManifest
from protocol.messages.wire import WireMessage
from protocol.primitives.codec import Message
from protocol.primitives.units import (
    AccountId,
    BlockHash,
    DurationMs,
    Hash,
    Height,
    MessageId,
    ModelId,
    MonotonicMs,
    NodeId,
    TimestampMs,
    View,
    WorkUnits,
)


class Now(msgspec.Struct, frozen=True):
    """The two clocks of one moment, given to every step."""

    monotonic_ms: MonotonicMs
    wall_ms: TimestampMs


class _Effect(msgspec.Struct, frozen=True):
    pass


class Table(IntEnum):
    """Durable key-value tables of the engine's rooms; ``node/store`` gives each a table of its own."""

    CONSENSUS_BODY = 1
    """Block hash → block bytes of the open height."""
    CONSENSUS_CERTIFICATE = 2
    """(height, kind, view) → certificate of the open height."""
    CONSENSUS_PROPOSAL = 3
    """View → envelope of the first proposal seen in it at the open height: a second one is evidence, also later."""
    BUYER_LANE = 10
    """(channel, lane) → what the buyer has promised on the lane."""
    SELLER_LANE = 11
    """(channel, lane) → the best voucher that the provider holds, and its accumulator."""
    JOB = 12
    """Job id → the job as this node knows it, either side."""
    RECEIPT = 13
    """Job id → receipt, agreement and what proves them."""
    OWN_TRANSACTION = 14
    """Transaction id → an envelope of ours that is not yet decided, for rebroadcast after a restart."""
    STANDING = 15
    """Small facts of this node: incarnation, offer sequence, observer mark."""
    ANCHOR = 16
    """(channel, lane, receipts count) → where the ledger has a voucher of ours that commits to so many receipts."""
    SUCCESSION = 17
    """Height → the header that named another set for the height above, with what proves it."""
    RECEIPT_LANE = 18
    """(channel, lane, index in the accumulator) → job and leaf of the receipt: what proofs over a lane are made of."""
    JOB_OF_REQUEST = 19
    """(request, number of the attempt) → job id: the agreements that a request has come to."""
    JOB_STATEMENT = 20
    """Job id → what both sides signed of a job that came to no receipt."""
    CHANNEL_LOG = 21
    """(channel, height, place in the block) → what the ledger did to a channel of this node's account."""


class Put(_Effect, frozen=True):
    """Insert or replace one durable row."""

    table: Table
    key: bytes
    value: bytes


class Delete(_Effect, frozen=True):
    """Remove one durable row."""

    table: Table
    key: bytes


class CommitBlock(_Effect, frozen=True):
    """Block, its certificate, the state rows that it touched and the end of the height's journal: one transaction.

    ``rows`` are (row key, row value or ``None`` for a row that ended). ``transactions`` are the ids of its
    transactions, for look-ups.
    """

    height: Height
    block_hash: BlockHash
    decided: DecidedBlock
    rows: tuple[tuple[bytes, bytes | None], ...]
    transactions: tuple[MessageId, ...]
    lattice: bytes
    """The sum behind the block's state root: a start of a large state need not hash every row before it goes on."""
    tree: tuple[tuple[bytes, bytes | None], ...] = ()
    """Rows of a table of their own, from which a start takes up the state tree; derived from the state's rows."""


class GuardClass(IntEnum):
    """What an authority signs at most once at one (height, view)."""

    PROPOSAL = 1
    VOTE = 2
    FINAL = 3


class GuardPosition(msgspec.Struct, frozen=True):
    """Primary key of the sign guard."""

    height: Height
    view: View
    guard_class: GuardClass


class SignAndSend(_Effect, frozen=True):
    """Sign ``payload`` as ``kind`` with the key that ``kinds.key_role`` names, send it, and hand it back as an input.

    With a ``position`` the sign guard is asked first: if it holds other bytes there, nothing is signed and the engine
    gets the guard's bytes back instead. VOTE and FINAL leave as ``Ballot``, all other kinds as ``Direct``; a PROPOSAL
    goes to nobody: the engine sends it on with its block once it is handed back.
    """

    kind: MessageKind
    payload: bytes
    to: tuple[NodeId, ...] = ()
    position: GuardPosition | None = None


class Send(_Effect, frozen=True):
    """Queue a message for a linked peer; dropped with an event when the link is gone or its queue is full.

    A ``patient`` one may wait a few milliseconds for company: nobody acts on it before what follows it.
    """

    to: NodeId
    message: WireMessage
    patient: bool = False


class SendBlocks(_Effect, frozen=True):
    """Read decided blocks from ``height`` on from the store and send them as ``Blocks``."""

    to: NodeId
    height: Height


class ReadJob(_Effect, frozen=True):
    """Read the job's row from the store and hand it back in a ``JobRead`` input, with who asked."""

    job: MessageId
    to: NodeId
    asker: AccountId
    request: MessageId
    """The ``TimelineRequest`` to be answered."""


class SendSnapshotOffer(_Effect, frozen=True):
    """Send the manifest of the newest snapshot kept, if its height is above ``above``, as ``SnapshotOffer``."""

    to: NodeId
    above: Height


class SendSnapshotChunk(_Effect, frozen=True):
    """Read a chunk of a snapshot that is kept and send it as ``SnapshotChunk``."""

    to: NodeId
    height: Height
    index: int


class KeepSnapshot(_Effect, frozen=True):
    """Begin to fetch this snapshot: keep its manifest for a restart, and forget the chunks of any other."""

    manifest: SnapshotManifest


class KeepSnapshotChunk(_Effect, frozen=True):
    """Keep a chunk of the snapshot that is being fetched; its hash has been checked."""

    index: int
    payload: bytes


class InstallSnapshot(_Effect, frozen=True):
    """Judge the fetched snapshot and, if it holds, make it the state, in one transaction; either way say so in a
    ``SnapshotInstalled`` or ``SnapshotRefused`` input, and forget the fetched chunks."""

    manifest: SnapshotManifest


class TimerKey(msgspec.Struct, frozen=True):
    """Names a timer: the room that set it and the room's own bytes. Setting it again replaces it."""

    room: str
    name: str
    subject: bytes = b""


class SetTimer(_Effect, frozen=True):
    """Hand ``key`` back as an input once the monotonic clock reaches ``at``."""

    key: TimerKey
    at: MonotonicMs


class CancelTimer(_Effect, frozen=True):
    """Forget a timer; unknown keys are fine."""

    key: TimerKey


class Dial(_Effect, frozen=True):
    """Link to this node if there is no link yet; with ``keep`` make the link anew whenever it ends.

    No addresses: those that peers have told, as soon as one has. ``once``: somebody else wants the link, so each
    address is tried once, and none that has failed lately.
    """

    node: NodeId
    addresses: tuple[str, ...]
    keep: bool = False
    once: bool = False


class Undial(_Effect, frozen=True):
    """No longer make the link to this node anew when it ends; one that stands may stand."""

    node: NodeId


class Disconnect(_Effect, frozen=True):
    """Close the link; the peer is told why. ``ban_ms`` > 0 keeps it from coming back for so long."""

    peer: NodeId
    reason: str
    ban_ms: DurationMs = DurationMs(0)


class OpenWork(_Effect, frozen=True):
    """Give a job to a worker. The first ``PullWork`` asks for the processing of the input."""

    job: MessageId
    model: ModelId
    payload: bytes
    """An encoded ``JobPayload``."""
    chunk_units: int
    output_units_max: WorkUnits
    seed: int
    temperature_milli: int
    deadline_ms: DurationMs
    buyer: AccountId
    """Whose job it is: slots are shared between buyers, and nothing of one is kept for another."""


class PullWork(_Effect, frozen=True):
    """Let the worker hand over one more piece of this job."""

    job: MessageId


class CloseWork(_Effect, frozen=True):
    """The job needs no more work: free its slot, whatever state it is in."""

    job: MessageId


class Notify(_Effect, frozen=True):
    """Tell this node's own people and programs: API streams, logs, metrics. Never leaves the node."""

    event: Message


class Halt(_Effect, frozen=True):
    """Stop this node loudly: going on would risk money. ``reason`` says what a person has to look at."""

    reason: str


Effect = (
    Put
    | Delete
    | CommitBlock
    | SignAndSend
    | Send
    | SendBlocks
    | ReadJob
    | SendSnapshotOffer
    | SendSnapshotChunk
    | KeepSnapshot
    | KeepSnapshotChunk
    | InstallSnapshot
    | SetTimer
    | CancelTimer
    | Dial
    | Undial
    | Disconnect
    | OpenWork
    | PullWork
    | CloseWork
    | Notify
    | Halt
)


class BlockDecided(Message, frozen=True):
    """Event: this node has committed a block."""

    height: Height
    block_hash: BlockHash
    timestamp_ms: TimestampMs
    transactions: tuple[Hash, ...]
