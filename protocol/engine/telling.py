"""Telling the other party of a job what this node has recorded of it, and asking the same of it.

Law: only a party to a job is told of it, anybody else hears that nothing is known of it; each peer is
answered so often and no oftener; the row is read beside the engine's steps (``ReadJob``), never in one.
"""

from msgspec import Struct

from protocol.engine.inputs import AskTimeline, JobRead
from protocol.gossip.policy import Rate
from protocol.gossip.token_bucket import TokenBucket
from protocol.market.records import JobRecord, timeline_of
from protocol.messages.effects import Dial, Effect, Notify, Now, ReadJob, SignAndSend
from protocol.messages.envelope import message_id
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Timeline, TimelineRequest
from protocol.primitives.codec import Message, encode
from protocol.primitives.units import (
    AccountId,
    Hash,
    HashField,
    MessageId,
    MonotonicMs,
    NodeId,
    TimestampField,
    TimestampMs,
)

ANSWERS = Rate(20, 64)
"""For each peer: an answer costs a look at the disk and a signature, some 0.3 ms."""

ASKERS_MAX = 1024
"""Peers whose questions are counted, 100 bytes each."""

QUESTIONS_MAX = 256
"""Questions of our own that wait for a link or an answer; the oldest go first."""


class TimelineTold(Message, frozen=True):
    """Event: the other side has answered. Both times are by this node's clock."""

    request: HashField
    """``unique`` of the question."""
    envelope: bytes
    asked_at: TimestampField
    heard_at: TimestampField


class _Question(Struct):
    ask: AskTimeline
    payload: bytes
    asked_at: TimestampMs
    sent: bool


class Telling:
    """One node's questions and answers about jobs."""

    def __init__(self, own: AccountId) -> None:
        self._own = own
        self._linked: dict[NodeId, None] = {}
        self._questions: dict[MessageId, _Question] = {}
        """By the id of the signed request."""
        self._askers: dict[NodeId, TokenBucket] = {}

    def link_up(self, peer: NodeId, now: Now) -> list[Effect]:
        """Ask what has waited for this link."""
        self._linked[peer] = None
        waiting = [each for each in self._questions.values() if each.ask.node == peer and not each.sent]
        return [effect for each in waiting for effect in self._send(each, now)]

    def link_down(self, peer: NodeId) -> None:
        """A link is gone; what was asked over it may be answered over the next one."""
        self._linked.pop(peer, None)

    def ask(self, ask: AskTimeline, now: Now) -> list[Effect]:
        """This node's user wants to know what the other side has recorded."""
        payload = encode(TimelineRequest(ask.job, ask.unique))
        question = _Question(ask, payload, now.wall_ms, False)
        while len(self._questions) >= QUESTIONS_MAX:
            del self._questions[next(iter(self._questions))]
        self._questions[message_id(MessageKind.TIMELINE_REQUEST, self._own, payload)] = question
        return self._send(question, now) if ask.node in self._linked else [Dial(ask.node, ask.addresses)]

    def drop(self, unique: Hash) -> None:
        """Nobody waits for this answer any more."""
        for asked, question in tuple(self._questions.items()):
            if question.ask.unique == unique:
                del self._questions[asked]

    def asked(
        self, peer: NodeId, signer: AccountId, request_id: MessageId, request: TimelineRequest, now: Now
    ) -> list[Effect]:
        """A peer wants to know of a job."""
        # [IGNORE] more questions than a person has
        if not self._may_ask(peer, now.monotonic_ms):
            return []
        return [ReadJob(request.job, peer, signer, request_id)]

    def read(self, read: JobRead, record: JobRecord | None, now: Now) -> list[Effect]:
        """What is known of a job that was asked for; ``record`` is its state now."""
        question = read.question
        # [UNKNOWN] who asks is no party to it
        if record is None or question.asker not in (record.buyer, record.provider):
            timeline = Timeline(question.request, question.job, now.wall_ms, known=False)
        else:
            timeline = timeline_of(record, question.request, now.wall_ms)
        return [SignAndSend(MessageKind.TIMELINE, encode(timeline), (question.to,))]

    def told(self, signer: AccountId, timeline: Timeline, envelope_bytes: bytes, now: Now) -> list[Effect]:
        """An answer came."""
        question = self._questions.get(timeline.request)
        # [IGNORE] not asked for, of another job, or not from whom it was asked of
        if question is None or (signer, timeline.job) != (question.ask.account, question.ask.job):
            return []
        del self._questions[timeline.request]
        return [Notify(TimelineTold(question.ask.unique, envelope_bytes, question.asked_at, now.wall_ms))]

    def _send(self, question: _Question, now: Now) -> list[Effect]:
        question.sent, question.asked_at = True, now.wall_ms
        return [SignAndSend(MessageKind.TIMELINE_REQUEST, question.payload, (question.ask.node,))]

    def _may_ask(self, peer: NodeId, now: MonotonicMs) -> bool:
        bucket = self._askers.get(peer)
        if bucket is None:
            if len(self._askers) >= ASKERS_MAX:
                del self._askers[next(iter(self._askers))]
            bucket = self._askers[peer] = TokenBucket.full(ANSWERS, now)
        return bucket.take(ANSWERS, now, 1)
