"""Of what use a peer's message was: what gossip's allowances for useless data are charged with.

Law: judged by what came of the message and what the door had to check for it, never by its sender's claims. In doubt
neutral: statements that cross each other on their way are nobody's fault.
"""

from collections.abc import Container
from enum import IntEnum

import msgspec

from protocol.gossip.conduct import Conduct
from protocol.messages import wire
from protocol.messages.effects import CommitBlock, Effect, ReadJob, SignAndSend
from protocol.messages.envelope import envelope_id, open_envelope
from protocol.messages.kinds import MessageKind
from protocol.primitives.units import Height, MessageId, MonotonicMs, NodeId


class DoorWork(msgspec.Struct, frozen=True):
    """What the door had to do for a message."""

    listed: int
    """Signatures that it carried and that might have mattered; 0 for statements that are known or closed."""
    fresh: int
    """Those among them that had not been checked before: about 0.1 ms each."""


class Use(IntEnum):
    """What became of a message."""

    USEFUL = 1
    NEUTRAL = 2
    CHATTER = 3
    """Dropped unchecked."""
    USELESS = 4
    """Checked in vain."""


_ANSWERS_TO_BIDS = (MessageKind.QUOTE_SEAL, MessageKind.QUOTE)
"""They go where a bid said, and nobody tells a provider that its offer does not do or that it came too late."""

NEUTRAL_WORK = DoorWork(1, 0)
"""For callers without a door of their own."""

_STATEMENTS = (wire.Proposal, wire.Ballot, wire.CertificateNotice, wire.Body, wire.Blocks)


class Usefulness:
    """Judges messages, one peer's tips remembered, and tells the conduct of it."""

    def __init__(self, conduct: Conduct, pending: Container[MessageId]) -> None:
        """``pending`` are the transactions that wait here."""
        self._conduct = conduct
        self._pending = pending
        self._told: dict[NodeId, Height] = {}
        """The highest tip that each linked peer has told of."""
        self.last = Use.NEUTRAL
        """Of the message handled last: the runtime makes those pay that were of no use."""

    def forget(self, peer: NodeId) -> None:
        """The link is gone."""
        self._told.pop(peer, None)

    def received(
        self,
        peer: NodeId,
        message: wire.WireMessage,
        work: DoorWork,
        effects: list[Effect],
        now: MonotonicMs,
        *,
        authority: bool,
        counted: bool = True,
    ) -> list[Effect]:
        """What follows for the peer from a message and its effects; a statement that was not ``counted`` was checked in
        vain."""
        self.last = self._use(peer, message, work, effects)
        if self.last is Use.USEFUL and not counted and not _decided(effects):
            self.last = Use.USELESS
        name = type(message).__name__
        match self.last:
            case Use.USEFUL:
                self._conduct.useful(peer, now)
            case Use.CHATTER:
                return self._conduct.chatter(peer, f"a {name} that changes nothing", now, authority=authority)
            case Use.USELESS:
                return self._conduct.useless(peer, f"a {name} that changes nothing", now)
            case Use.NEUTRAL:
                pass
        return []

    def unexpected(self, peer: NodeId, message: wire.WireMessage, now: MonotonicMs) -> list[Effect]:
        """The message was dropped unseen: no honest node sends it over this link."""
        self.last = Use.CHATTER
        return self._conduct.chatter(peer, f"a {type(message).__name__} that was not expected", now)

    def _use(self, peer: NodeId, message: wire.WireMessage, work: DoorWork, effects: list[Effect]) -> Use:
        match message:
            case wire.Direct() | wire.JobInput():
                useful = False
                for effect in effects:
                    if isinstance(effect, ReadJob):
                        return Use.NEUTRAL  # a question: its answer is paid for when it is given
                    useful = useful or not _refusal(effect)
                if not useful and isinstance(message, wire.Direct) and _kind(message) in _ANSWERS_TO_BIDS:
                    return Use.CHATTER
                return Use.USEFUL if useful else Use.USELESS
            case wire.Transactions():
                if work.listed == 0:
                    return Use.CHATTER
                # Many honest nodes push the same: those that were checked before are on their way already.
                if work.fresh == 0:
                    return Use.NEUTRAL
                return Use.USEFUL if self._taken(message, effects) else Use.USELESS
            case wire.TipNotice(height):
                news = height > self._told.get(peer, Height(-1))
                self._told[peer] = max(height, self._told.get(peer, Height(0)))
                return Use.NEUTRAL if news else Use.CHATTER
            case wire.OpenJobs():
                return Use.NEUTRAL if effects else Use.CHATTER
            case wire.BlocksRequest() | wire.BodyRequest() | wire.CertificateRequest() | wire.StandingRequest():
                return Use.NEUTRAL if effects else Use.CHATTER
            case _ if isinstance(message, _STATEMENTS):
                if work.listed == 0:
                    return Use.CHATTER
                return Use.USEFUL if work.fresh or _decided(effects) else Use.NEUTRAL
            case _:
                return Use.NEUTRAL  # gossip judges its own

    def _taken(self, message: wire.Transactions, effects: list[Effect]) -> bool:
        ids = (envelope_id(open_envelope(received)[0]) for received in message.envelopes)
        return _decided(effects) or any(transaction_id in self._pending for transaction_id in ids)


def _kind(message: wire.Direct) -> MessageKind:
    return open_envelope(message.envelope)[0].kind


def _decided(effects: list[Effect]) -> bool:
    return any(isinstance(effect, CommitBlock) for effect in effects)


def _refusal(effect: Effect) -> bool:
    return isinstance(effect, SignAndSend) and effect.kind is MessageKind.REFUSAL
