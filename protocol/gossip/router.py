"""The gossip router: announcements, pulls, mesh, scores.

Law: it never verifies and never judges. The order for a body is ``offered`` (cheap checks, before the signature),
then the door and the judge, then ``judged``; only an accepted object is kept, served and announced. Whatever peers do,
what they cost is bounded by their allowances, and an object that one honest peer announces is pulled in the end.
"""

from collections import deque
from itertools import islice

import msgspec

from protocol.gossip import verdicts
from protocol.gossip.conduct import Conduct
from protocol.gossip.mesh import maintain_mesh
from protocol.gossip.objects import BoundedCounts, BoundedMemory, Objects
from protocol.gossip.peers import Peers, PeerState
from protocol.gossip.policy import GossipPolicy
from protocol.gossip.pulls import Pulls, PullState
from protocol.gossip.verdicts import Judgement, Verdict
from protocol.messages.effects import CancelTimer, Effect, Now, Send, SetTimer, TimerKey
from protocol.messages.envelope import Envelope, envelope_bytes_hash, envelope_id, open_envelope
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Bid, Offer
from protocol.messages.wire import Announce, Graft, Prune, Pull, Push
from protocol.primitives.codec import Message
from protocol.primitives.errors import MalformedMessage
from protocol.primitives.limits import ANNOUNCED_IDS_MAX, DISPATCH_BYTES_MAX, GOSSIP_OBJECT_BYTES_MAX, GOSSIP_PULLS_MAX
from protocol.primitives.units import Hash, MessageId, MonotonicMs, NodeId, TimestampMs

HEARTBEAT_TIMER = TimerKey("gossip", "heartbeat")
PULL_TIMER = TimerKey("gossip", "pull")

GOSSIPED_KINDS = (
    MessageKind.OFFER,
    MessageKind.BID,
    MessageKind.TRANSACTION,
    MessageKind.VOTE,
    MessageKind.FINAL,
    MessageKind.DISPATCH,
    MessageKind.INQUIRY,
    MessageKind.TESTIMONY,
)
"""What travels by gossip unless the engine says otherwise."""

OBJECT_BYTES_MAX = {MessageKind.DISPATCH: DISPATCH_BYTES_MAX}
"""Kinds that may be larger than ``GOSSIP_OBJECT_BYTES_MAX``."""


class Admission(msgspec.Struct, frozen=True):
    """What the router says of a body before its signature is checked.

    ``judgement`` None: check the signature, judge the payload, call ``judged``. Otherwise the body goes no further.
    """

    judgement: Judgement | None
    object_id: MessageId | None
    envelope: Envelope | None
    payload: Message | None
    effects: list[Effect]


def _announcements(peer: NodeId, ids: list[Hash]) -> list[Effect]:
    batches = (ids[start : start + ANNOUNCED_IDS_MAX] for start in range(0, len(ids), ANNOUNCED_IDS_MAX))
    return [Send(peer, Announce(tuple(batch))) for batch in batches]


class GossipRouter:
    """One node's gossip. ``seed`` is any bytes of the node's own; peers that can't guess it can't steer its mesh."""

    def __init__(
        self,
        own: NodeId,
        seed: bytes,
        policy: GossipPolicy | None = None,
        kinds: tuple[MessageKind, ...] = GOSSIPED_KINDS,
    ) -> None:
        self.policy = policy or GossipPolicy()
        self.peers = Peers(own, seed, self.policy)
        self.objects = Objects()
        self.pulls = Pulls()
        self.conduct = Conduct(self.peers, self.policy)
        self.epoch = 0
        self._kinds = kinds
        self._checking = BoundedMemory(GOSSIP_PULLS_MAX)
        self._owed = BoundedCounts(GOSSIP_PULLS_MAX)
        """For peer and id, how often a body was asked for and not yet brought, also by a link that has ended since."""
        self._late = BoundedCounts(GOSSIP_PULLS_MAX)
        """For peer and id, the points that a body's lateness has cost."""
        self._ticking = False
        self._pull_timer_at: MonotonicMs | None = None
        self._reconciled = 0

    @property
    def scores(self) -> dict[NodeId, int]:
        """Scores that are not zero."""
        return self.peers.scores

    def body(self, object_id: MessageId) -> bytes | None:
        """The envelope of a live object."""
        held = self.objects.live.get(object_id)
        return None if held is None else held.envelope

    # Links

    def link_up(self, peer: NodeId, now: Now) -> list[Effect]:
        """A link stands: the peer is told of all live ids, the first of them at once."""
        backlog = deque(Hash(object_id) for object_id in self.objects.live)
        state = self.peers.add(peer, backlog, now.monotonic_ms)
        effects = self._tick(now)
        if len(self.peers.mesh()) < self.policy.degree_target and self.peers.score(peer) >= 0:
            state.in_mesh = True
            effects.append(Send(peer, Graft()))
        return effects + self._tell_backlog(peer, state)

    def link_down(self, peer: NodeId, now: Now) -> list[Effect]:
        """A link is gone: what was asked of the peer is asked of others."""
        self.peers.linked.pop(peer, None)
        self.pulls.forget_peer(peer, now.monotonic_ms)
        return self._advance_pulls(now)

    def _tick(self, now: Now) -> list[Effect]:
        if self._ticking:
            return []
        self._ticking = True
        return [SetTimer(HEARTBEAT_TIMER, MonotonicMs(now.monotonic_ms + self.policy.heartbeat_ms))]

    # Messages

    def receive(self, peer: NodeId, message: Announce | Pull | Graft | Prune, now: Now) -> list[Effect]:
        """A message of the router's own from a linked peer."""
        state = self.peers.linked.get(peer)
        if state is None or state.leaving:
            return []
        state.heard(now.monotonic_ms)
        match message:
            case Announce(ids):
                return self._announced(peer, state, ids, now)
            case Pull(ids):
                return self._pulled(peer, state, ids, now)
            case Graft():
                return self._grafted(peer, state, now)
            case Prune():
                state.in_mesh = False
                state.graft_after = MonotonicMs(now.monotonic_ms + self.policy.prune_backoff_ms)
                return []

    def _announced(self, peer: NodeId, state: PeerState, ids: tuple[Hash, ...], now: Now) -> list[Effect]:
        allowed = min(len(ids), state.ids_in.available(self.policy.ids_in, now.monotonic_ms))
        state.ids_in.charge(allowed)
        newest_old = self.epoch - self.policy.old_epochs
        known_since = [self.objects.seen.since(announced) for announced in ids]
        old = sum(since is not None and since <= newest_old for since in known_since)
        effects = self.conduct.repeated(peer, old, now.monotonic_ms)
        if allowed < len(ids):
            effects += self.conduct.useless(peer, "announces more than it may", now.monotonic_ms)
        if state.leaving or self.peers.score(peer) < self.policy.mute_below:
            return effects
        for announced in ids[:allowed]:
            object_id = MessageId(announced)
            if object_id in self.objects.seen:
                continue
            pull = self.pulls.want(object_id, peer, now.monotonic_ms)
            if pull is not None:
                self.pulls.schedule(object_id, pull, now.monotonic_ms)
        return effects + self._advance_pulls(now)

    def _pulled(self, peer: NodeId, state: PeerState, ids: tuple[Hash, ...], now: Now) -> list[Effect]:
        effects: list[Effect] = []
        if not any(wanted in self.objects.seen for wanted in ids):
            return self.conduct.chatter(peer, "pulls what it was never told of", now.monotonic_ms)
        for wanted in dict.fromkeys(ids):
            held = self.objects.live.get(MessageId(wanted))
            if held is None or held.expires_at <= now.wall_ms:
                continue
            if not state.bytes_out.take(self.policy.bytes_out, now.monotonic_ms, len(held.envelope)):
                break
            if not state.bodies_out.take(self.policy.bodies_out, now.monotonic_ms, 1):
                break
            effects.append(Send(peer, Push(held.envelope)))
        return effects

    def _grafted(self, peer: NodeId, state: PeerState, now: Now) -> list[Effect]:
        if state.in_mesh:
            return []
        effects: list[Effect] = []
        too_early = now.monotonic_ms < state.graft_after
        if too_early:
            effects = self.conduct.penalise(peer, self.policy.rule_broken_cost, "grafts again and again")
        if too_early or self.peers.score(peer) < 0 or len(self.peers.mesh()) >= self.policy.degree_max:
            state.graft_after = MonotonicMs(now.monotonic_ms + self.policy.prune_backoff_ms)
            return [*effects, Send(peer, Prune())]
        state.in_mesh = True
        return effects

    # Bodies

    def admissible(self, peer: NodeId, envelope_bytes: bytes) -> Admission:
        """The router's checks on a body, cheapest first, without any change of state."""
        # [REJECT] larger than any gossip object
        if len(envelope_bytes) > max(OBJECT_BYTES_MAX.values()):
            return Admission(verdicts.TOO_LARGE, None, None, None, [])
        # [IGNORE] these bytes are known or being checked
        bytes_hash = envelope_bytes_hash(envelope_bytes)
        if bytes_hash in self.objects.broken or bytes_hash in self._checking:
            envelope, payload = open_envelope(envelope_bytes)  # as it was when it came first
            return Admission(verdicts.BYTES_SEEN, envelope_id(envelope), envelope, payload, [])
        # [REJECT] not a well-formed envelope
        try:
            envelope, payload = open_envelope(envelope_bytes)
        except MalformedMessage:
            return Admission(verdicts.MALFORMED, None, None, None, [])
        # [REJECT] this kind does not travel by gossip
        if envelope.kind not in self._kinds:
            return Admission(verdicts.KIND_NOT_GOSSIPED, None, envelope, payload, [])
        # [REJECT] larger than any of its kind
        if len(envelope_bytes) > OBJECT_BYTES_MAX.get(envelope.kind, GOSSIP_OBJECT_BYTES_MAX):
            return Admission(verdicts.TOO_LARGE, None, envelope, payload, [])
        # [IGNORE] already seen
        object_id = envelope_id(envelope)
        if object_id in self.objects.seen:
            return Admission(verdicts.ALREADY_SEEN, object_id, envelope, payload, [])
        # [IGNORE] body was not asked for
        pull = self.pulls.wanted.get(object_id)
        if pull is None or peer not in pull.asked:
            return Admission(verdicts.NOT_ASKED_FOR, object_id, envelope, payload, [])
        return Admission(None, object_id, envelope, payload, [])

    def offered(self, peer: NodeId, envelope_bytes: bytes, now: Now) -> Admission:
        """A body has arrived, its signature unchecked. Unless there is a judgement, ``judged`` must follow."""
        admission = self.admissible(peer, envelope_bytes)
        state = self.peers.linked.get(peer)
        if state is not None:
            state.bytes_in.available(self.policy.bytes_in, now.monotonic_ms)
            state.bytes_in.charge(len(envelope_bytes))
            state.heard(now.monotonic_ms)
            state.last_body = now.monotonic_ms
        # A late answer is no fault, nor is one that a new link brings to what the last one was asked.
        owed = admission.object_id is not None and self._owed.take(peer + admission.object_id)
        if owed and admission.object_id is not None:
            self.conduct.delivered(peer, self._late.take_all(peer + admission.object_id), now.monotonic_ms)
        if admission.judgement is None:
            assert admission.object_id is not None
            pull = self.pulls.wanted[admission.object_id]
            self.pulls.settle(pull)
            pull.judging = True
            deadline = MonotonicMs(now.monotonic_ms + self.policy.judging_timeout_ms)
            self.pulls.schedule(admission.object_id, pull, deadline)
            self._checking.add(envelope_bytes_hash(envelope_bytes))
        elif admission.judgement.verdict is Verdict.REJECT:
            admission.effects.extend(self.conduct.misbehaved(peer, admission.judgement.reason))
        elif admission.judgement is verdicts.NOT_ASKED_FOR and not owed:
            admission.effects.extend(self.conduct.penalise(peer, self.policy.unasked_cost, admission.judgement.reason))
        elif not owed:
            admission.effects.extend(self.conduct.useless(peer, admission.judgement.reason, now.monotonic_ms))
        return admission

    def judged(
        self,
        peer: NodeId,
        object_id: MessageId,
        envelope_bytes: bytes,
        verdict: Judgement | Verdict,
        now: Now,
        expires_at: TimestampMs | None = None,
    ) -> list[Effect]:
        """The verdict on a body of this peer. A bare IGNORE counts as retryable, as failures of standing are.

        ``expires_at`` None: what an offer or bid says itself, else the policy's default lifetime.
        """
        judgement = verdict if isinstance(verdict, Judgement) else Judgement(verdict, "", retryable=True)
        bytes_hash = envelope_bytes_hash(envelope_bytes)
        self._checking.discard(bytes_hash)
        effects: list[Effect] = []
        match judgement.verdict:
            case Verdict.ACCEPT:
                effects = self._accepted(peer, object_id, envelope_bytes, expires_at, now)
            case Verdict.IGNORE:
                effects = self._ignored(peer, object_id, judgement, now)
            case Verdict.REJECT:
                effects = self.conduct.misbehaved(peer, judgement.reason)
                if judgement.authentic:
                    self.pulls.end(object_id)
                    self.objects.seen.add(object_id, self.epoch)
                else:
                    self.objects.broken.add(bytes_hash)
                    self._ask_next(object_id, now)
        return effects + self._advance_pulls(now)

    def _accepted(
        self, peer: NodeId, object_id: MessageId, envelope: bytes, expires_at: TimestampMs | None, now: Now
    ) -> list[Effect]:
        pull = self.pulls.end(object_id)
        holders = {peer: None} if pull is None else {**pull.announcers, **pull.asked, peer: None}
        if object_id not in self.objects.seen:
            self.peers.change_score(peer, self.policy.first_delivery_points)
            self.conduct.useful(peer, now.monotonic_ms)
        if not self._keep(object_id, envelope, expires_at, now):
            return []
        return [Send(other, Announce((Hash(object_id),))) for other in self.peers.mesh() if other not in holders]

    def _keep(self, object_id: MessageId, envelope: bytes, expires_at: TimestampMs | None, now: Now) -> bool:
        if expires_at is None:
            _, payload = open_envelope(envelope)
            default = TimestampMs(now.wall_ms + self.policy.lifetime_ms_default)
            expires_at = payload.expires_at if isinstance(payload, Offer | Bid) else default
        return self.objects.add(object_id, envelope, expires_at, now.wall_ms, self.epoch)

    def _ignored(self, peer: NodeId, object_id: MessageId, judgement: Judgement, now: Now) -> list[Effect]:
        state = self.peers.linked.get(peer)
        if state is not None:
            state.bodies_in.charge(self.policy.ignored_body_charge)
        pull = self.pulls.wanted.get(object_id)
        if judgement.retryable and pull is not None and pull.retries < self.policy.retries_max:
            self.pulls.begin_again(object_id, pull, MonotonicMs(now.monotonic_ms + self.policy.retry_ms))
            return []
        self.pulls.end(object_id)
        if not judgement.retryable:
            self.objects.seen.add(object_id, self.epoch)
        return [] if judgement.excused else self.conduct.useless(peer, judgement.reason, now.monotonic_ms)

    def _ask_next(self, object_id: MessageId, now: Now) -> None:
        pull = self.pulls.wanted.get(object_id)
        if pull is not None and pull.waiting_for is None:
            pull.judging = False
            self.pulls.schedule(object_id, pull, now.monotonic_ms)

    def publish(
        self, envelope_bytes: bytes, object_id: MessageId, expires_at: TimestampMs | None, now: Now
    ) -> list[Effect]:
        """Our own object, or one that came in by another way: keep it and announce it to every linked peer."""
        pull = self.pulls.end(object_id)
        holders = {} if pull is None else {**pull.announcers, **pull.asked}
        effects = self._tick(now)
        if self._keep(object_id, envelope_bytes, expires_at, now):
            announcement = Announce((Hash(object_id),))
            effects += [Send(peer, announcement) for peer in self.peers.linked if peer not in holders]
        return effects

    # Time

    def timer(self, key: TimerKey, now: Now) -> list[Effect]:
        """One of the router's timers."""
        if key == PULL_TIMER:
            self._pull_timer_at = None
            return self._advance_pulls(now)
        assert key == HEARTBEAT_TIMER, key
        self.epoch += 1
        self.objects.expire(now.wall_ms)
        self.peers.decay_scores()
        effects: list[Effect] = [SetTimer(HEARTBEAT_TIMER, MonotonicMs(now.monotonic_ms + self.policy.heartbeat_ms))]
        effects += maintain_mesh(self.peers, self.policy, self.epoch, now.monotonic_ms)
        effects += self._tell_recent()
        for peer, state in self.peers.linked.items():
            effects += self._tell_backlog(peer, state)
        return effects + self._reconcile()

    def _tell_backlog(self, peer: NodeId, state: PeerState) -> list[Effect]:
        ids: list[Hash] = []
        while state.backlog and len(ids) < self.policy.backlog_ids_per_heartbeat:
            object_id = state.backlog.popleft()
            if MessageId(object_id) in self.objects.live:
                ids.append(object_id)
        return _announcements(peer, ids)

    def _tell_recent(self) -> list[Effect]:
        ids = self.objects.recent(self.epoch - self.policy.recent_epochs)[-4 * ANNOUNCED_IDS_MAX :]
        if not ids:
            return []
        outside = [peer for peer, state in self.peers.linked.items() if not state.in_mesh and not state.leaving]
        chosen = self.peers.drawn(outside, self.epoch, self.policy.lazy_peers)
        return [effect for peer in chosen for effect in _announcements(peer, ids)]

    def _reconcile(self) -> list[Effect]:
        """Tell one peer of one window of all live ids: over time everybody is told of everything again."""
        chosen = self.peers.drawn([*self.peers.linked], -self.epoch, 1)
        if not chosen or not self.objects.live:
            return []
        start = self._reconciled % len(self.objects.live)
        ids = [Hash(key) for key in islice(self.objects.live, start, start + self.policy.reconcile_ids_per_heartbeat)]
        self._reconciled = start + len(ids)
        return _announcements(chosen[0], ids)

    # Pulls

    def _advance_pulls(self, now: Now) -> list[Effect]:
        """Bring every due pull a step further, and set the timer for the next."""
        asks: dict[NodeId, list[Hash]] = {}
        effects: list[Effect] = []
        for object_id, pull in self.pulls.due(now.monotonic_ms):
            effects += self._advance_pull(object_id, pull, asks, now.monotonic_ms)
        for peer, ids in asks.items():
            batches = (ids[start : start + ANNOUNCED_IDS_MAX] for start in range(0, len(ids), ANNOUNCED_IDS_MAX))
            effects += [Send(peer, Pull(tuple(batch))) for batch in batches]
        return effects + self._set_pull_timer()

    def _advance_pull(
        self, object_id: MessageId, pull: PullState, asks: dict[NodeId, list[Hash]], now: MonotonicMs
    ) -> list[Effect]:
        policy = self.policy
        if pull.judging:
            self.pulls.end(object_id)
            return []
        effects: list[Effect] = []
        late = pull.waiting_for
        if late is not None:
            state = self.peers.linked.get(late)
            if state is not None and pull.extensions < policy.extensions_max:
                extended = MonotonicMs(state.last_body + policy.pull_timeout_ms)
                if extended > now:
                    pull.extensions += 1
                    self.pulls.schedule(object_id, pull, extended)
                    return []
            self.pulls.settle(pull)
            effects = self._failed(late, object_id, pull.asked_at, now)
        for peer in [*pull.announcers]:
            if self._is_silent(peer):
                del pull.announcers[peer]  # what it holds it will announce again
            elif self._may_ask(peer, now):
                self.peers.linked[peer].bodies_in.charge(1)
                self.pulls.wait_for(object_id, pull, peer, now, MonotonicMs(now + policy.pull_timeout_ms))
                asks.setdefault(peer, []).append(Hash(object_id))
                self._owed.add(peer + object_id)
                return effects
        if pull.announcers:
            self.pulls.schedule(object_id, pull, MonotonicMs(now + policy.defer_ms))
        else:
            self.pulls.end(object_id)
        return effects

    def _failed(self, peer: NodeId, object_id: MessageId, asked_at: MonotonicMs, now: MonotonicMs) -> list[Effect]:
        """A body did not come in time. Of a link on which nothing came at all the peer may be innocent: however many
        bodies it owes then, that counts once. What comes late after all is made good."""
        state = self.peers.linked.get(peer)
        if state is None or state.last_heard > asked_at:
            self._late.add(peer + object_id, self.policy.failed_pull_cost)
            cost, reason = self.policy.failed_pull_cost, "announces what it does not send"
            return self.conduct.failed_to_deliver(peer, cost, reason, now)
        if state.silent:
            return []
        state.silent = True
        self._late.add(peer + object_id, self.policy.silence_cost)
        cost, reason = self.policy.silence_cost, "announces and falls silent"
        return self.conduct.failed_to_deliver(peer, cost, reason, now)

    def _is_silent(self, peer: NodeId) -> bool:
        state = self.peers.linked.get(peer)
        return state is not None and state.silent

    def _may_ask(self, peer: NodeId, now: MonotonicMs) -> bool:
        state = self.peers.linked.get(peer)
        return (
            state is not None
            and not state.leaving
            and self.pulls.in_flight.get(peer, 0) < self.conduct.in_flight_max(peer, now)
            and state.bodies_in.available(self.policy.bodies_in, now) > 0
            and state.bytes_in.available(self.policy.bytes_in, now) > 0
        )

    def _set_pull_timer(self) -> list[Effect]:
        deadline = self.pulls.next_deadline()
        if deadline is None:
            if self._pull_timer_at is None:
                return []
            self._pull_timer_at = None
            return [CancelTimer(PULL_TIMER)]
        if self._pull_timer_at is not None and self._pull_timer_at <= deadline:
            return []
        self._pull_timer_at = deadline
        return [SetTimer(PULL_TIMER, deadline)]
