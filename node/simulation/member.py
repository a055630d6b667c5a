"""One simulated node: carries out a participant's effects as a runtime would, on simulated time, network and disk.

Law: effects are carried out in order, and what was written is synced before anything leaves the node; a crash cuts the
order at one point, and nothing behind it happens.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from node.simulation.checkers import Checkers, Violation
from node.simulation.disk import SimulatedDisk
from node.simulation.keys import SimulatedKey, Verifier
from node.simulation.network import SimulatedNetwork
from node.simulation.power import PowerFailed
from node.simulation.timeline import Timeline
from node.store.errors import GuardRefused
from protocol.consensus.outputs import Equivocation
from protocol.engine.replica import Replica
from protocol.ledger.state import LedgerState
from protocol.messages import wire
from protocol.messages.effects import (
    CancelTimer,
    CommitBlock,
    Delete,
    Disconnect,
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
    """What runs inside a simulated node: the whole engine, or a replica alone."""

    state: LedgerState

    @property
    def replica(self) -> Replica: ...
    def start(self, nonce: Hash, now: Now) -> list[Effect]: ...
    def link_up(self, peer: NodeId, now: Now) -> list[Effect]: ...
    def link_down(self, peer: NodeId, now: Now) -> list[Effect]: ...
    def offered(self, peer: NodeId, message: wire.WireMessage, now: Now) -> tuple[list[Effect], bool]: ...
    def receive(self, peer: NodeId, message: wire.WireMessage, now: Now) -> list[Effect]: ...
    def signed(self, envelope_bytes: bytes, now: Now) -> list[Effect]: ...
    def submit(self, envelope_bytes: bytes, now: Now) -> list[Effect]: ...
    def timer(self, key: TimerKey, now: Now) -> list[Effect]: ...
    def readable(self, message: wire.WireMessage) -> wire.WireMessage: ...
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
    strikes: dict[str, int] = field(default_factory=dict)
    """How often each kind of fault struck."""

    def struck(self, fault: str, times: int = 1) -> None:
        """Count a fault."""
        self.strikes[fault] = self.strikes.get(fault, 0) + times

    def true_time(self) -> TimestampMs:
        """What a perfect clock shows."""
        return TimestampMs(EPOCH_MS + self.timeline.now_ms)


Parcel = tuple[NodeId, wire.WireMessage]
"""A message and whom it is for."""


class Manners:
    """How a node talks: this one as its replica wants it to. A dishonest one says what it likes."""

    def says(self, peer: NodeId, message: wire.WireMessage) -> Iterable[wire.WireMessage]:
        """What this peer gets instead of the message that its replica sends."""
        del peer
        return (message,)

    def hears(self, peer: NodeId, message: wire.WireMessage) -> Iterable[Parcel]:
        """What it says, unasked, upon a message."""
        del peer, message
        return ()

    def idles(self) -> Iterable[Parcel]:
        """What it says every quarter of a second."""
        return ()


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
    ) -> None:
        self.name = name
        self.keys = keys
        self.id = NodeId(keys.node.public)
        self.disk = disk
        self.life = 0
        self.participant: Participant | None = None
        self.audible: Callable[[NodeId], bool] = lambda peer: True
        """Whom this process reaches: the twins of one key each have an audience of their own."""
        self.manners = Manners()
        self.paused_until = 0
        self.honest = True
        """False for liars and for the twins of one key: nothing is promised to them."""
        self.guard_is_ahead = False
        """True for a ledger that was restored from a backup without its sign guard, which may refuse open heights."""
        self.skew_ms = skew_ms
        """Error of the wall clock."""
        self.noticed: dict[AuthorityId, int] = {}
        """Whom it saw sign twice, and in which life."""
        self._around = around
        self._build = build
        self._timers: dict[TimerKey, int] = {}
        self._timer_sequence = 0
        self._sync_planned = False

    @property
    def up(self) -> bool:
        """True while the process runs."""
        return self.participant is not None

    @property
    def replica(self) -> Replica:
        """The replica of the running process."""
        assert self.participant is not None
        return self.participant.replica

    @property
    def authority(self) -> AuthorityId | None:
        """The authority key of this node, if it has one."""
        return AuthorityId(self.keys.authority.public) if self.keys.authority is not None else None

    def now(self) -> Now:
        """This node's clocks: the monotonic one starts anew with each life, the wall clock is skewed."""
        elapsed = self._around.timeline.now_ms
        return Now(MonotonicMs(elapsed + 7919 * self.life), TimestampMs(EPOCH_MS + elapsed + self.skew_ms))

    # Faults

    def start(self, nonce: Hash) -> None:
        """Start the process on what the disk holds."""
        assert self.participant is None
        self.life += 1
        if self.honest and self.authority is not None:
            self._around.checkers.on_guard_opened(self.authority, self.disk)
        self.participant = self._build(self.disk)
        self._step(self.participant.start(nonce, self.now()))
        if type(self.manners) is not Manners:
            self._idle(self.life)

    def crash(self) -> None:
        """SIGKILL: memory, timers and what was not synced are gone, the rest of the disk stays."""
        self.participant = None
        self.disk.fail()
        self.disk.power.disarm()
        self._sync_planned = False
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
            try:
                self._receive(peer, message)
            except RemoteProtocolError as error:
                if peer not in self._around.liars:
                    raise Violation(f"{self.name} blames an honest node: {error}") from error
            if self.participant is not None:
                self._say(self.manners.hears(peer, message))

    def _receive(self, peer: NodeId, message: wire.WireMessage) -> None:
        """Through the door, as in ``node/runtime``: what gossip does not want costs no signature check."""
        participant = self.participant
        if participant is None:
            return
        effects, wanted = participant.offered(peer, message, self.now())
        self._step(effects)
        if not wanted or self.participant is not participant:
            return
        readable = participant.readable(message)
        if not self._around.verifier.hold(participant.checks(readable)):
            raise SignatureInvalid(f"a {type(message).__name__} with a broken signature")
        self._step(participant.receive(peer, readable, self.now()))

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

    def carry_out(self, effects: list[Effect]) -> None:
        """Effects of something that this node's own people asked of it."""
        self._step(effects)

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

    def _idle(self, life: int) -> None:
        if self.participant is None or self.life != life:
            return
        if self._around.timeline.now_ms >= self.paused_until:
            self._say(self.manners.idles())
        self._around.timeline.after(IDLE_MS, lambda: self._idle(life))

    # Effects

    def _step(self, effects: list[Effect]) -> None:
        life = self.life
        try:
            for effect in effects:
                if self.participant is None or self.life != life:
                    return
                if not isinstance(effect, Put | Delete | CommitBlock | SetTimer | CancelTimer):
                    self.disk.sync()
                self._carry_out(effect)
        except PowerFailed as failure:
            self._lose_power(failure)

    def _lose_power(self, failure: PowerFailed) -> None:
        self._around.struck(failure.moment.value)
        self.crash()

    def _carry_out(self, effect: Effect) -> None:
        timeline = self._around.timeline
        match effect:
            case Put() | Delete() | CommitBlock():
                self._write(effect)
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
                if isinstance(effect.event, Equivocation) and self.honest:
                    self.noticed[AuthorityId(effect.event.authority)] = self.life
            case Disconnect():
                self._part(effect)
            case Halt():
                if self.honest:
                    raise Violation(f"{self.name} halted: {effect.reason}")
                self.crash()
            case _:
                pass

    def _part(self, effect: Disconnect) -> None:
        """An honest node ends no link to another honest one unless frames were lost; liars may be cut off."""
        network, honest = self._around.network, self.honest and effect.peer not in self._around.liars
        if honest and network.kept_faith(self.id, effect.peer):
            raise Violation(f"{self.name} cuts an honest node off: {effect.reason}")
        self._around.struck("honest node cut off after lost frames" if honest else "liar cut off")
        network.cut(self.id, effect.peer, max(effect.ban_ms, RELINK_MS_MIN))

    def _write(self, effect: Put | Delete | CommitBlock) -> None:
        """Synced before the next effect that leaves the node, or a little later with whatever else was written."""
        self.disk.write(effect)
        if not self._sync_planned:
            self._sync_planned = True
            life = self.life
            self._around.timeline.after(SYNC_MS, lambda: self._sync(life))
        if isinstance(effect, CommitBlock):
            assert self.participant is not None
            self._around.trace(f"{self.name} commits {effect.height}", effect.block_hash)
            if self.honest:
                self._around.checkers.on_commit(effect, self.participant.state, self._around.true_time())

    def _sync(self, life: int) -> None:
        if self.life != life or self.participant is None:
            return
        self._sync_planned = False
        try:
            self.disk.sync()
        except PowerFailed as failure:
            self._lose_power(failure)

    def _sign(self, effect: SignAndSend) -> None:
        role = key_role(effect.kind)
        key = self.keys.authority if role is KeyRole.AUTHORITY else self.keys.account
        assert key is not None
        payload = effect.payload
        if effect.position is not None:
            reserved = self._reserve(AuthorityId(key.public), effect.position, effect.kind, payload)
            if reserved is None:
                return
            payload = reserved
        envelope = key.seal(self._around.genesis_hash, effect.kind, payload)
        is_ballot = effect.kind in (MessageKind.VOTE, MessageKind.FINAL)
        message = wire.Ballot(envelope) if is_ballot else wire.Direct(envelope)
        for peer in effect.to:
            self._send(peer, message)
        life = self.life
        self._around.timeline.after(SIGNING_MS, lambda: self._handed_back(life, envelope))

    def _reserve(
        self, authority: AuthorityId, position: GuardPosition, kind: MessageKind, payload: bytes
    ) -> bytes | None:
        """Ask the sign guard; ``None`` where it is closed. Raises ``PowerFailed``."""
        checkers = self._around.checkers
        try:
            [reserved] = self.disk.guard.reserve([(position, payload)])
        except GuardRefused as refusal:
            if self.honest and not self.guard_is_ahead:
                raise Violation(f"{self.name} asked to sign where its guard is closed: {refusal}") from None
            return None
        if self.honest:
            checkers.on_reserve(authority, position, payload, reserved)
            checkers.on_sign(authority, position, kind, reserved, self.disk)
        return reserved

    def _send(self, peer: NodeId, message: wire.WireMessage) -> None:
        if self.audible(peer):
            self._say((peer, said) for said in self.manners.says(peer, message))

    def _say(self, parcels: Iterable[Parcel]) -> None:
        for peer, message in parcels:
            frame = wire.join_frame([wire.encode_message(message)])
            self._around.network.send(self.id, peer, frame)


SIGNING_MS = DurationMs(1)
"""From ``SignAndSend`` to its envelope's return: a group commit of the guard and one signature."""

SYNC_MS = DurationMs(3)
"""What nothing waits for is synced after so long, with whatever else was written."""

RELINK_MS_MIN = DurationMs(1_000)
"""A link that one side has ended is made anew after so long, or when its ban is over."""

IDLE_MS = DurationMs(250)
"""How often a dishonest node speaks unasked."""
