"""What the engine itself tells its own user. Events of a room are defined in that room."""

from typing import Annotated

from msgspec import Meta

from protocol.primitives.codec import Message
from protocol.primitives.limits import TEXT_BYTES_MAX
from protocol.primitives.units import BlockHashField, HashField, HeightField, NodeIdField

Reason = Annotated[str, Meta(max_length=TEXT_BYTES_MAX)]


class TransactionDecided(Message, frozen=True):
    """A transaction of this node's account is in a block."""

    request: HashField
    transaction: HashField
    height: HeightField
    block_hash: BlockHashField


class TransactionFailed(Message, frozen=True):
    """A transaction of this node's account will not happen; nothing was paid but possibly a fee."""

    request: HashField
    reason: Reason
    code: Reason = ""
    """The refusal as a stable word, where the mempool refused it; see ``TransactionRejected``."""


class PeerMisbehaved(Message, frozen=True):
    """A peer broke a rule; ``reason`` says which."""

    peer: NodeIdField
    reason: Reason


class OfferPublished(Message, frozen=True):
    """Our offer went out with so many models and free slots."""

    sequence: Annotated[int, Meta(ge=0)]
    models: Annotated[int, Meta(ge=0)]
    slots_free: Annotated[int, Meta(ge=0)]


class NotSelling(Message, frozen=True):
    """This provider does not offer, and why."""

    reason: Reason
