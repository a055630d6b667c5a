"""A simulated node that runs the whole engine, and a worker of its own that echoes what it is given.

Law: the engine is the shipped one. The worker dies with its node, as a sandboxed process would.
"""

import random
from collections.abc import Callable

from msgspec import Struct

from node.simulation.disk import SimulatedDisk
from node.simulation.market_checkers import MarketCheckers
from node.simulation.member import MemberKeys, Participant, SimulatedNode, Surroundings
from protocol.engine.engine import Engine
from protocol.engine.inputs import (
    BodyOffered,
    Input,
    LinkDown,
    LinkUp,
    Received,
    Serve,
    Signed,
    Started,
    TimerFired,
    WorkFailed,
    WorkPiece,
    WorkPrefilled,
)
from protocol.ledger.state import LedgerState
from protocol.messages import wire
from protocol.messages.effects import (
    CloseWork,
    Effect,
    Notify,
    Now,
    OpenWork,
    PullWork,
    SignAndSend,
    Table,
    TimerKey,
)
from protocol.messages.envelope import open_envelope
from protocol.messages.market import Chunk, FaultKind, FinishReason, JobPayload
from protocol.messages.peers import NodeRecord
from protocol.primitives.codec import decode
from protocol.primitives.signing import SignatureCheck
from protocol.primitives.units import AccountId, Hash, MessageId, NodeId, WorkUnits

PREFILL_MS = (2, 60)
PIECE_MS = (2, 80)


class EngineParticipant:
    """The engine with the entry points that a simulated node calls."""

    def __init__(self, engine: Engine, disk: SimulatedDisk, serve: Serve | None) -> None:
        self.engine = engine
        self.state: LedgerState = engine.replica.state
        self._disk = disk
        self._serve = serve

    def start(self, nonce: Hash, now: Now) -> list[Effect]:
        """What an earlier life left, then the first inputs of this one."""
        tables = self._disk.tables
        effects = self.engine.restore(
            buyer_lanes=[*tables[Table.BUYER_LANE].values()],
            seller_lanes=[*tables[Table.SELLER_LANE].values()],
            own_transactions=[*tables[Table.OWN_TRANSACTION].values()],
            row=lambda table, key: tables[table].get(key),
            now=now,
        )
        effects += self.engine.step(Started(nonce), now)
        return effects + (self.engine.step(self._serve, now) if self._serve is not None else [])

    def link_up(self, peer: NodeId, now: Now) -> list[Effect]:
        """A link stands."""
        record = NodeRecord(1, now.wall_ms, (), AccountId(bytes(32)))
        return self.engine.step(LinkUp(peer, record, 0), now)

    def link_down(self, peer: NodeId, now: Now) -> list[Effect]:
        """A link is gone."""
        return self.engine.step(LinkDown(peer), now)

    def receive(self, peer: NodeId, message: wire.WireMessage, now: Now) -> list[Effect]:
        """A message whose signatures hold."""
        effects: list[Effect] = []
        if isinstance(message, wire.Push):
            effects = self.engine.step(BodyOffered(peer, message.envelope), now)
            if not self.engine.body_wanted:
                return effects
        return effects + self.engine.step(Received(peer, message), now)

    def signed(self, envelope_bytes: bytes, now: Now) -> list[Effect]:
        """An own envelope, handed back."""
        return self.engine.step(Signed(envelope_bytes), now)

    def submit(self, envelope_bytes: bytes, now: Now) -> list[Effect]:
        """A transaction of somebody who uses this node."""
        return self.engine.replica.submit(envelope_bytes, now)

    def timer(self, key: TimerKey, now: Now) -> list[Effect]:
        """One of the engine's timers has come."""
        return self.engine.step(TimerFired(key), now)

    def readable(self, message: wire.WireMessage) -> wire.WireMessage:
        """What of a message the door can check."""
        return self.engine.readable(message)

    def checks(self, message: wire.WireMessage) -> list[SignatureCheck]:
        """What the door has to verify."""
        return self.engine.checks(message)


class _Work(Struct):
    body: bytes
    chunk_units: int
    output_units_max: int
    position: int = 0
    prefilled: bool = False


class MarketNode(SimulatedNode):
    """A node with an engine and, if it sells, a worker."""

    def __init__(
        self,
        name: str,
        keys: MemberKeys,
        skew_ms: int,
        around: Surroundings,
        disk: SimulatedDisk,
        build: Callable[[SimulatedDisk], EngineParticipant],
        checkers: MarketCheckers,
        dice: random.Random,
        failing_share: float,
    ) -> None:
        def engine_built(on: SimulatedDisk) -> Participant:
            participant = build(on)
            self._engine = participant.engine
            return participant

        super().__init__(name, keys, skew_ms, around, disk, engine_built)
        self._market = checkers
        self._dice = dice
        self._failing_share = failing_share
        self._work: dict[MessageId, _Work] = {}

    @property
    def engine(self) -> Engine | None:
        """The running engine."""
        return None if self.participant is None else self._engine

    def feed(self, happened: Input) -> None:
        """Hand an input to the engine, if it runs."""
        if self.engine is not None:
            self._step(self.engine.step(happened, self.now()))

    def crash(self) -> None:
        """The worker dies with its node."""
        self._work.clear()
        super().crash()

    def _sign(self, effect: SignAndSend) -> None:
        self._market.on_sign(self.keys.account.public, effect.kind, effect.payload)
        super()._sign(effect)

    def _send(self, peer: NodeId, message: wire.WireMessage) -> None:
        if isinstance(message, wire.Direct):
            _, payload = open_envelope(message.envelope)
            if isinstance(payload, Chunk):
                self._market.on_send(payload, self.disk)
        super()._send(peer, message)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case OpenWork():
                payload = decode(effect.payload, JobPayload)
                self._work[effect.job] = _Work(payload.body, effect.chunk_units, effect.output_units_max)
            case PullWork():
                life, span = self.life, PIECE_MS if self._prefilled(effect.job) else PREFILL_MS
                self._around.timeline.after(self._dice.randint(*span), lambda: self._deliver_piece(life, effect.job))
            case CloseWork():
                self._work.pop(effect.job, None)
            case Notify():
                self._market.on_event(self.name, effect.event)
                super()._carry_out(effect)
            case _:
                super()._carry_out(effect)

    def _prefilled(self, job: MessageId) -> bool:
        return job in self._work and self._work[job].prefilled

    def _deliver_piece(self, life: int, job: MessageId) -> None:
        work = self._work.get(job)
        if work is None or life != self.life:
            return
        if self._dice.random() < self._failing_share:
            del self._work[job]
            self.feed(WorkFailed(job, FaultKind.PROVIDER, "the worker died"))
        elif not work.prefilled:
            work.prefilled = True
            self.feed(WorkPrefilled(job, WorkUnits(len(work.body))))
        else:
            end = min(work.position + work.chunk_units, len(work.body), work.output_units_max)
            piece, work.position = work.body[work.position : end], end
            done = end in (len(work.body), work.output_units_max)
            finish = FinishReason.DONE if done else FinishReason.NONE
            self.feed(WorkPiece(job, piece, WorkUnits(len(piece)), finish))
