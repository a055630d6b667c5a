"""Everything that can happen to an engine.

Law: an input is data; the same sequence of inputs gives the same sequence of effects. Signatures inside a ``Received``
have been settled at the door.
"""

import msgspec

from protocol.engine.usefulness import NEUTRAL_WORK, DoorWork
from protocol.ledger.state import LedgerState
from protocol.market.agreement import JobRequest
from protocol.messages.blocks import DecidedBlock
from protocol.messages.effects import ReadJob, TimerKey
from protocol.messages.market import FaultKind, FinishReason, ModelOffer
from protocol.messages.peers import NodeRecord
from protocol.messages.transactions import Action
from protocol.messages.wire import WireMessage
from protocol.primitives.units import AccountId, DurationMs, Hash, MessageId, NodeId, WorkUnits


class _Input(msgspec.Struct, frozen=True):
    pass


class Started(_Input, frozen=True):
    """First input of a process's life; ``nonce`` is 32 fresh random bytes."""

    nonce: Hash


class LinkUp(_Input, frozen=True):
    """A link whose peer proved its node key and greeted us from the same network."""

    peer: NodeId
    record: NodeRecord
    tip: int


class LinkDown(_Input, frozen=True):
    peer: NodeId


class Unreachable(_Input, frozen=True):
    """A node that was dialed has given no link at any of its addresses; it may be dialed again."""

    peer: NodeId


class Received(_Input, frozen=True):
    """A message whose signatures all hold."""

    peer: NodeId
    message: WireMessage
    work: DoorWork = NEUTRAL_WORK


class Unexpected(_Input, frozen=True):
    """A message that was dropped before the door: ``Engine.expects`` said that no honest node sends it."""

    peer: NodeId
    message: WireMessage


class Misbehaved(_Input, frozen=True):
    """The door refused what this peer sent: a broken signature or malformed bytes."""

    peer: NodeId
    reason: str


class Discredited(_Input, frozen=True):
    """What this peer gave us beside its link, such as a piece of a model, was false; its messages may be good."""

    peer: NodeId
    reason: str


class BodyOffered(_Input, frozen=True):
    """A gossip body has arrived, its signature unchecked. The engine says in ``body_wanted`` whether to check it."""

    peer: NodeId
    envelope: bytes


class BodyBroken(_Input, frozen=True):
    """A gossip body that the router admitted turned out to have a signature that does not hold."""

    peer: NodeId
    envelope: bytes


class Signed(_Input, frozen=True):
    """Our own envelope, handed back after ``SignAndSend``."""

    envelope: bytes


class TimerFired(_Input, frozen=True):
    key: TimerKey


class WorkPrefilled(_Input, frozen=True):
    """The worker has processed a job's input."""

    job: MessageId
    input_units: WorkUnits


class WorkPiece(_Input, frozen=True):
    """The worker's next piece; ``units`` are this piece's output units."""

    job: MessageId
    payload: bytes
    units: WorkUnits
    finish: FinishReason


class WorkFailed(_Input, frozen=True):
    job: MessageId
    fault: FaultKind
    reason: str


class Serve(_Input, frozen=True):
    """What this provider can serve from now on; an empty tuple of models stops selling."""

    models: tuple[ModelOffer, ...]
    slots: int
    isolation: str
    region: str
    addresses: tuple[str, ...]
    lifetime_ms: DurationMs = DurationMs(60_000)
    """A provider that dies is forgotten after so long at the latest."""


class SnapshotInstalled(_Input, frozen=True):
    """The fetched snapshot holds and is on disk: the state it says, and the decided block at its height."""

    state: LedgerState
    decided: DecidedBlock


class SnapshotRefused(_Input, frozen=True):
    """The fetched snapshot does not hold; nothing has changed."""

    reason: str


class StartJob(_Input, frozen=True):
    """A job that this node's user wants done."""

    request: JobRequest


class CancelJob(_Input, frozen=True):
    """The user of this job request wants no more."""

    request: Hash
    reason: str


class AskTimeline(_Input, frozen=True):
    """This node's user wants to know what the other party to a job has recorded of it."""

    unique: Hash
    job: MessageId
    account: AccountId
    node: NodeId
    addresses: tuple[str, ...]


class DropTimeline(_Input, frozen=True):
    """Nobody waits for the answer to this question any more."""

    unique: Hash


class JobRead(_Input, frozen=True):
    """The row of a job that a peer has asked about; ``None`` if there is none."""

    question: ReadJob
    row: bytes | None


class WantAction(_Input, frozen=True):
    """The user wants this action on the ledger, paid and signed by this node's account."""

    request: Hash
    action: Action


Input = (
    Started
    | LinkUp
    | LinkDown
    | Unreachable
    | Received
    | Unexpected
    | Misbehaved
    | Discredited
    | BodyOffered
    | BodyBroken
    | Signed
    | TimerFired
    | WorkPrefilled
    | WorkPiece
    | WorkFailed
    | Serve
    | SnapshotInstalled
    | SnapshotRefused
    | StartJob
    | CancelJob
    | AskTimeline
    | DropTimeline
    | JobRead
    | WantAction
)
