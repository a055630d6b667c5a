"""One simulated node: carries out a participant's effects as a runtime would, on simulated time, network and disk.

Law: effects are carried out in order; a crash cuts the order at one point, and nothing behind it happens.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from node.simulation.checkers import Checkers, Violation
from node.simulation.disk import GuardRefused, SimulatedDisk
from node.simulation.keys import SimulatedKey, Verifier
from node.simulation.network import SimulatedNetwork
from node.simulation.timeline import Timeline
from protocol.ledger.state import LedgerState
from protocol.messages import wire
from protocol.messages.effects import (
    CancelTimer,
    CommitBlock,
    Delete,
    Effect,
    GuardPosition,
    Halt,
    Notify,
    Now,
    Put,
    Send,
    SendBlocks,
    SetTimer,
    SignAndSend,
    TimerKey,
)
from protocol.messages.kinds import KeyRole, MessageKind, key_role
from protocol.primitives.codec import Message
from protocol.primitives.errors import RemoteProtocolError, SignatureInvalid, UserError
from protocol.primitives.signing import SignatureCheck
from protocol.primitives.units import AuthorityId, DurationMs, Hash, MonotonicMs, NodeId, TimestampMs

EPOCH_MS = 1_800_000_000_000
"""Wall clock at the start of every simulation."""


class Participant(Protocol):
    """What runs inside a simulated node: a ``Replica``, or anything with its entry points."""

    state: LedgerState

    def start(self, nonce: Hash, now: Now) -> list[Effect]: ...
    def link_up(self, peer: NodeId, now: Now) -> list[Effect]: ...
    def link_down(self, peer: NodeId, now: Now) -> list[Effect]: ...
    def receive(self, peer: NodeId, message: wire.WireMessage, now: Now) -> list[Effect]: ...
    def signed(self, envelope_bytes: bytes, now: Now) -> list[Effect]: ...
    def submit(self, envelope_bytes: bytes, now: Now) -> list[Effect]: ...
    def timer(self, key: TimerKey, now: Now) -> list[Effect]: ...
    def checks(self, message: wire.WireMessage) -> list[SignatureCheck]: ...


@dataclass(frozen=True)
class MemberKeys:
    """The keys of one node; ``authority`` is ``None`` for a follower."""

    node: SimulatedKey
    account: SimulatedKey
    authority: SimulatedKey | None


@dataclass
class Surroundings:
    """What all nodes of a simulation share."""

    timeline: Timeline
    network: SimulatedNetwork
    verifier: Verifier
    checkers: Checkers
    genesis_hash: Hash
    trace: Callable[[str, bytes], None]
    events: list[tuple[str, Message]] = field(default_factory=list)
    liars: dict[NodeId, None] = field(default_factory=dict)
    """Nodes whose messages may break any rule."""


class SimulatedNode:
    """A node that can crash, lose its disk, pause and start again."""

    def __init__(
        self,
        name: str,
        keys: MemberKeys,
        skew_ms: int,
        around: Surroundings,
        disk: SimulatedDisk,
        build: Callable[[SimulatedDisk], Participant],
        guarded: bool = True,
    ) -> None:
        self.name = name
        self.keys = keys
        self.id = NodeId(keys.node.public)
        self.disk = disk
        self.life = 0
        self.participant: Participant | None = None
        self.crash_after: int | None = None
        """Crash at the durable effect that comes after so many others: before it, or right after it."""
        self.crash_behind = False
        self.audible: Callable[[NodeId], bool] = lambda peer: True
        """Whom this process reaches: the twins of one key each have an audience of their own."""
        self.paused_until = 0
        self.honest = True
        """False for the twins of one key: nothing is promised to them."""
        self._around = around
        self._skew_ms = skew_ms
        self._build = build
        self._guarded = guarded
        self._timers: dict[TimerKey, int] = {}
        self._timer_sequence = 0

    @property
    def up(self) -> bool:
        """True while the process runs."""
        return self.participant is not None

    def now(self) -> Now:
        """This node's clocks: the monotonic one starts anew with each life, the wall clock is skewed."""
        elapsed = self._around.timeline.now_ms
        return Now(MonotonicMs(elapsed + 7919 * self.life), TimestampMs(EPOCH_MS + elapsed + self._skew_ms))

    # Faults

    def start(self, nonce: Hash) -> None:
        """Start the process on what the disk holds."""
        assert self.participant is None
        self.life += 1
        self.participant = self._build(self.disk)
        self._step(self.participant.start(nonce, self.now()))

    def crash(self) -> None:
        """SIGKILL: memory and timers are gone, the disk stays."""
        self.participant = None
        self.crash_after = None
        self._timers.clear()
        self._around.trace(f"{self.name} crash", b"")

    # Inputs

    def link_up(self, peer: NodeId) -> None:
        """A link to this peer stands."""
        if self.participant is not None:
            self._step(self.participant.link_up(peer, self.now()))

    def link_down(self, peer: NodeId) -> None:
        """The link to this peer is gone."""
        if self.participant is not None:
            self._step(self.participant.link_down(peer, self.now()))

    def deliver(self, peer: NodeId, frame: bytes) -> None:
        """A frame from the network; a paused node reads it when it goes on."""
        if self._around.timeline.now_ms < self.paused_until:
            self._around.timeline.at(self.paused_until, lambda: self.deliver(peer, frame))
            return
        self._around.trace(f"{self.name} receives", frame)
        for message in wire.split_frame(frame):
            participant = self.participant
            if participant is None:
                return
            try:
                if not self._around.verifier.hold(participant.checks(message)):
                    raise SignatureInvalid(f"a {type(message).__name__} with a broken signature")
                effects = participant.receive(peer, message, self.now())
            except RemoteProtocolError as error:
                if peer in self._around.liars:
                    continue
                raise Violation(f"{self.name} blames an honest node: {error}") from error
            self._step(effects)

    def submit(self, envelope_bytes: bytes) -> bool:
        """A user's transaction; False if the node is down or its mempool refuses."""
        if self.participant is None or self._around.timeline.now_ms < self.paused_until:
            return False
        try:
            effects = self.participant.submit(envelope_bytes, self.now())
        except UserError:
            return False
        self._step(effects)
        return True

    def _fire(self, key: TimerKey, sequence: int) -> None:
        if self._timers.get(key) != sequence or self.participant is None:
            return
        if self._around.timeline.now_ms < self.paused_until:
            self._around.timeline.at(self.paused_until, lambda: self._fire(key, sequence))
            return
        del self._timers[key]
        self._step(self.participant.timer(key, self.now()))

    def _handed_back(self, life: int, envelope_bytes: bytes) -> None:
        if self.participant is not None and self.life == life:
            self._step(self.participant.signed(envelope_bytes, self.now()))

    # Effects

    def _step(self, effects: list[Effect]) -> None:
        life = self.life
        for effect in effects:
            if self.participant is None or self.life != life:
                return
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        timeline = self._around.timeline
        match effect:
            case Put() | Delete() | CommitBlock():
                self._durable(lambda: self._commit(effect))
            case SignAndSend():
                self._sign(effect)
            case Send():
                self._send(effect.to, effect.message)
            case SendBlocks():
                blocks = self.disk.blocks_from(effect.height)
                if blocks:
                    self._send(effect.to, wire.Blocks(blocks, self.disk.tip))
            case SetTimer():
                self._timer_sequence += 1
                sequence, key = self._timer_sequence, effect.key
                self._timers[key] = sequence
                timeline.after(effect.at - self.now().monotonic_ms, lambda: self._fire(key, sequence))
            case CancelTimer():
                self._timers.pop(effect.key, None)
            case Notify():
                self._around.events.append((self.name, effect.event))
            case Halt():
                if self.honest:
                    raise Violation(f"{self.name} halted: {effect.reason}")
                self.crash()
            case _:
                pass

    def _durable(self, make: Callable[[], None]) -> bool:
        """Commit one durable effect, unless the armed crash comes before it; False once the node is dead."""
        if self.crash_after is None:
            make()
            return True
        self.crash_after -= 1
        if self.crash_after >= 0:
            make()
            return True
        if self.crash_behind:
            make()
        self.crash()
        return False

    def _commit(self, effect: Put | Delete | CommitBlock) -> None:
        self.disk.commit(effect)
        if isinstance(effect, CommitBlock):
            assert self.participant is not None
            self._around.trace(f"{self.name} commits {effect.height}", effect.block_hash)
            if self.honest:
                self._around.checkers.on_commit(effect, self.participant.state)
            self.disk.guard.raise_watermark(effect.height)

    def _sign(self, effect: SignAndSend) -> None:
        role = key_role(effect.kind)
        key = self.keys.authority if role is KeyRole.AUTHORITY else self.keys.account
        assert key is not None
        payload = effect.payload
        if effect.position is not None:
            reserved = self._reserve(effect.position, payload)
            if reserved is None:
                return
            payload = reserved
            if self.honest:
                authority = AuthorityId(key.public)
                self._around.checkers.on_sign(authority, effect.position, effect.kind, payload, self.disk)
        envelope = key.seal(self._around.genesis_hash, effect.kind, payload)
        is_ballot = effect.kind in (MessageKind.VOTE, MessageKind.FINAL)
        message = wire.Ballot(envelope) if is_ballot else wire.Direct(envelope)
        for peer in effect.to:
            self._send(peer, message)
        life = self.life
        self._around.timeline.after(SIGNING_MS, lambda: self._handed_back(life, envelope))

    def _reserve(self, position: GuardPosition, payload: bytes) -> bytes | None:
        """Ask the sign guard; ``None`` if the node died on it."""
        if not self._guarded:
            return payload
        answers: list[bytes] = []
        try:
            alive = self._durable(lambda: answers.append(self.disk.guard.reserve(position, payload)))
        except GuardRefused as refusal:
            raise Violation(f"{self.name} asked to sign where its guard is closed: {refusal}") from None
        return answers[0] if alive else None

    def _send(self, peer: NodeId, message: wire.WireMessage) -> None:
        if not self.audible(peer):
            return
        frame = wire.join_frame([wire.encode_message(message)])
        self._around.network.send(self.id, peer, frame)


SIGNING_MS = DurationMs(1)
"""From ``SignAndSend`` to its envelope's return: a group commit of the guard and one signature."""
