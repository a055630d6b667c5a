"""What the state machine of one height asks of its replica, in an order that is a promise.

Law: data only. ``Keep`` and ``KeepBody`` are durable before any later ``Sign`` of the same list leaves the node.
"""

import msgspec

from protocol.messages.consensus import Certificate
from protocol.messages.effects import GuardPosition
from protocol.messages.kinds import MessageKind
from protocol.primitives.codec import Message
from protocol.primitives.units import AuthorityIdField, BlockHash, MonotonicMs, TimestampMs, View


class _Output(msgspec.Struct, frozen=True):
    pass


class Keep(_Output, frozen=True):
    """Make this certificate durable until the height closes."""

    certificate: Certificate


class Forward(_Output, frozen=True):
    """Send this certificate to all authorities."""

    certificate: Certificate


class KeepBody(_Output, frozen=True):
    """Make the body of this block durable until the height closes; the replica holds it already."""

    block_hash: BlockHash


class KeepProposal(_Output, frozen=True):
    """Remember the first PROPOSAL of a view until the height closes, over restarts: a second one is evidence."""

    view: View
    envelope: bytes


class Sign(_Output, frozen=True):
    """Sign under the guard and send to all authorities; hand the envelope back through ``own_signed``."""

    position: GuardPosition
    kind: MessageKind
    payload: bytes


class SendBallot(_Output, frozen=True):
    """Send an own VOTE or FINAL once more."""

    envelope: bytes


class SendProposal(_Output, frozen=True):
    """Send an own PROPOSAL with the block's body and its justification."""

    envelope: bytes
    block_hash: BlockHash
    certificates: tuple[Certificate, ...]


class BuildBlock(_Output, frozen=True):
    """Build a new block now and answer with ``built``; or answer later, when there is something to put in."""

    view: View


class JudgeBlock(_Output, frozen=True):
    """Validate and execute a newly proposed block; ``received`` is its arrival by wall clock. Answer: ``judged``."""

    view: View
    block_hash: BlockHash
    received: TimestampMs


class NeedBody(_Output, frozen=True):
    """Get this body, from one of ``signers`` if it is not here, execute it, make it durable; answer: ``body_ready``."""

    block_hash: BlockHash
    signers: tuple[int, ...]


class PullCertificate(_Output, frozen=True):
    """Ask other authorities for whatever they hold for this view."""

    view: View


class WakeAt(_Output, frozen=True):
    """Call ``tick`` at this time; replaces the last one."""

    at: MonotonicMs


class Decided(_Output, frozen=True):
    """The height is decided. Always the last output of its list."""

    certificate: Certificate


class SafetyBroken(_Output, frozen=True):
    """Two certificates that exclude each other: more authorities are faulty than the protocol can bear."""

    reason: str


class Equivocation(Message, frozen=True):
    """Evidence: one key signed two statements where the protocol allows one. Both are whole envelopes."""

    authority: AuthorityIdField
    first: bytes
    second: bytes


Output = (
    Keep
    | Forward
    | KeepBody
    | KeepProposal
    | Sign
    | SendBallot
    | SendProposal
    | BuildBlock
    | JudgeBlock
    | NeedBody
    | PullCertificate
    | WakeAt
    | Decided
    | SafetyBroken
    | Equivocation
)
