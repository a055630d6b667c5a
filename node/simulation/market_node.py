"""A simulated node that runs the whole engine, and a worker of its own that echoes what it is given.

Law: the engine is the shipped one. The worker dies with its node, as a sandboxed process would.
"""

import random
from collections.abc import Callable

from msgspec import Struct

from node.simulation.disk import SimulatedDisk
from node.simulation.engine_participant import EngineParticipant
from node.simulation.market_checkers import MarketCheckers
from node.simulation.member import MemberKeys, Participant, SimulatedNode, Surroundings
from protocol.engine.engine import Engine
from protocol.engine.inputs import Input, WorkFailed, WorkPiece, WorkPrefilled
from protocol.messages import wire
from protocol.messages.effects import CloseWork, Effect, Notify, OpenWork, PullWork, SignAndSend
from protocol.messages.envelope import open_envelope
from protocol.messages.market import Chunk, FaultKind, FinishReason, JobPayload
from protocol.primitives.codec import decode
from protocol.primitives.units import MessageId, NodeId, WorkUnits

PREFILL_MS = (2, 60)
PIECE_MS = (2, 80)
SHORT_PIECE_MS = (0, 8)
"""Where it is all of the output."""


class _Work(Struct):
    body: bytes
    prefix: int
    chunk_units: int
    output_units_max: int
    produced: int = 0
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
                prefix = len(payload.prefix)
                self._work[effect.job] = _Work(payload.body, prefix, effect.chunk_units, effect.output_units_max)
            case PullWork():
                life, span = self.life, self._span(effect.job)
                self._around.timeline.after(self._dice.randint(*span), lambda: self._deliver_piece(life, effect.job))
            case CloseWork():
                self._work.pop(effect.job, None)
            case Notify():
                self._market.on_event(self.name, effect.event)
                super()._carry_out(effect)
            case _:
                super()._carry_out(effect)

    def _span(self, job: MessageId) -> tuple[int, int]:
        work = self._work.get(job)
        if work is None or not work.prefilled:
            return PREFILL_MS
        return SHORT_PIECE_MS if len(work.body) <= work.chunk_units else PIECE_MS

    def _deliver_piece(self, life: int, job: MessageId) -> None:
        work = self._work.get(job)
        if work is None or life != self.life:
            return
        if self._dice.random() < self._failing_share:
            del self._work[job]
            self.feed(WorkFailed(job, FaultKind.PROVIDER, "the worker died"))
        elif not work.prefilled:
            work.prefilled = True
            self.feed(WorkPrefilled(job, WorkUnits(len(work.body) + work.prefix)))
        else:
            start = work.prefix + work.produced
            end = min(start + work.chunk_units, len(work.body), work.prefix + work.output_units_max)
            piece, work.produced = work.body[start:end], end - work.prefix
            done = end in (len(work.body), work.prefix + work.output_units_max)
            finish = FinishReason.DONE if done else FinishReason.NONE
            self.feed(WorkPiece(job, piece, WorkUnits(len(piece)), finish))
