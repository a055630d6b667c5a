"""Turns what happens into inputs, and effects into acts.

Law: inputs are handed to the engine one at a time on the loop; messages of one peer keep their order. Nothing reaches
the engine whose signatures the door has not checked.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import assert_never

from node.runtime.announcements import Announcements
from node.runtime.door import INLINE_CHECKS_MAX, Door
from node.runtime.executor import EffectExecutor
from node.runtime.snapshots import SnapshotDesk
from node.runtime.timers import Timers
from node.runtime.turnstile import Turnstile, cost_us, measured_us
from node.runtime.work import WorkPump
from node.store.database import Store
from node.transport.transport import Transport
from protocol.engine.engine import Engine
from protocol.engine.inputs import (
    BodyBroken,
    BodyOffered,
    Input,
    JobRead,
    LinkDown,
    Misbehaved,
    Received,
    Signed,
    TimerFired,
    Unexpected,
)
from protocol.engine.trade import BUYERS_KINDS, SELLERS_KINDS
from protocol.engine.usefulness import DoorWork, Use
from protocol.market.buyer_job import RequestInvalid
from protocol.messages import effects as effect_types
from protocol.messages.blocks import DecidedBlock
from protocol.messages.effects import Effect, Now, SignAndSend, Table
from protocol.messages.envelope import open_envelope, signature_check
from protocol.messages.kinds import MessageKind
from protocol.messages.wire import Ballot, Blocks, Direct, Push, WireMessage
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.limits import BLOCKS_PER_RESPONSE_MAX, FRAME_BYTES_MAX
from protocol.primitives.units import Hash, Height, NodeId

_BLOCKS_BYTES_MAX = FRAME_BYTES_MAX // 2
"""Half a frame: leaves room for whatever is batched with it."""

_BALLOTS = (MessageKind.VOTE, MessageKind.FINAL)
_BETWEEN_TWO = frozenset((*BUYERS_KINDS, *SELLERS_KINDS))
"""Statements that go to one peer and hardly ever come back, in a redemption or by gossip: checked again then."""


class NodeHalted(Exception):
    """The node stopped itself because going on would have risked money; the text says what to look at."""


class EngineLoop:
    """The engine with its clock, its door and its hands."""

    def __init__(
        self,
        engine: Engine,
        genesis_hash: Hash,
        clock: Callable[[], Now],
        door: Door,
        store: Store,
        threads: Executor,
        tasks: asyncio.TaskGroup,
        announcements: Announcements,
    ) -> None:
        self.engine = engine
        self.announcements = announcements
        self.work: WorkPump | None = None
        self.snapshots: SnapshotDesk | None = None
        self._genesis_hash = genesis_hash
        self._clock = clock
        self._door = door
        self._store = store
        self._threads = threads
        self._tasks = tasks
        self._transport: Transport | None = None
        self._executor: EffectExecutor | None = None
        self._timers = Timers(clock, self._timer_fired)
        self._turnstile = Turnstile(lambda peer: peer in engine.replica.seats, lambda: clock().monotonic_ms)
        self._answering: dict[NodeId, None] = {}
        """Peers for whom decided blocks are being read."""
        self._reading = asyncio.Semaphore(1)

    def connect(self, transport: Transport, executor: EffectExecutor) -> None:
        """Give the loop its hands; before the first input."""
        self._transport = transport
        self._executor = executor

    def feed(self, happened: Input) -> None:
        """Hand one input to the engine and queue what it asks for.

        An engine that fails has changed a part of its state and lost the effects of it: it ends the node, whoever the
        caller is (the event loop and the control API only log what a callback raises).
        """
        assert self._executor is not None
        if not isinstance(happened, Signed):
            self._executor.hand_back()
        try:
            effects = self.engine.step(happened, self._clock())
        except (RemoteProtocolError, RequestInvalid):
            raise  # refused before anything changed
        except Exception as error:
            self._executor.fail(error)
            raise
        self._executor.submit(effects)

    async def receive(self, peer: NodeId, messages: tuple[WireMessage, ...], size: int) -> None:
        """Messages of one peer, in order, from a frame of ``size`` bytes; while this runs the peer is not read from.
        A peer that always has one more frame ready leaves the loop to everybody else after each turn of a millisecond.

        Raises ``RemoteProtocolError`` when a message is malformed inside.
        """
        each = size // max(1, len(messages))
        for message in messages:
            await self._turnstile.enter(peer)
            began = time.perf_counter()
            use, signatures = await self._handle(peer, message)
            cost = cost_us(each, signatures)
            if signatures <= INLINE_CHECKS_MAX:  # nobody else had the loop meanwhile
                cost = measured_us(cost, time.perf_counter() - began)
            if use is not Use.NEUTRAL:
                self._turnstile.pay(peer, cost, useful=use is Use.USEFUL)
            else:
                self._turnstile.take_turn(peer, cost)
        if not messages:
            await self._turnstile.enter(peer)
            self._turnstile.pay(peer, cost_us(size, 0), useful=False)  # the transport alone had to do with it

    async def _handle(self, peer: NodeId, message: WireMessage) -> tuple[Use, int]:
        """Of what use a message was, and how many signatures had to be checked for it."""
        if isinstance(message, Push) and not self._is_wanted(peer, message):
            return Use.CHATTER, 0
        if not self.engine.expects(peer, message):
            self.feed(Unexpected(peer, message))
            return Use.CHATTER, 0
        message = self.engine.readable(message)
        checks = self.engine.checks(message)
        held, fresh = await self._door.examine(checks, once=isinstance(message, Direct))
        if held:
            self.feed(Received(peer, message, DoorWork(len(checks), fresh)))
            return self.engine.usefulness.last, fresh
        if isinstance(message, Push):
            self.feed(BodyBroken(peer, message.envelope))
        else:
            self.feed(Misbehaved(peer, f"a {type(message).__name__} with a signature that does not hold"))
        return Use.USELESS, fresh

    def _is_wanted(self, peer: NodeId, message: Push) -> bool:
        """Ask the router before the signature is checked: most bodies that are not wanted cost a hash."""
        self.feed(BodyOffered(peer, message.envelope))
        return self.engine.body_wanted

    def link_down(self, peer: NodeId) -> None:
        """A link is gone."""
        self._turnstile.forget(peer)
        self.feed(LinkDown(peer))

    def stop_timers(self) -> None:
        """No timer fires any more."""
        self._timers.cancel_all()

    def _timer_fired(self, key: effect_types.TimerKey) -> None:
        self.feed(TimerFired(key))

    # Hands, called by the executor in the order of effects

    def send_signed(self, effect: SignAndSend, envelope: bytes) -> None:
        """An envelope of ours exists: send it where it should go."""
        assert self._transport is not None
        if effect.kind not in _BETWEEN_TWO:
            opened, _ = open_envelope(envelope)
            self._door.remember(signature_check(self._genesis_hash, opened))
        message: WireMessage = Ballot(envelope) if effect.kind in _BALLOTS else Direct(envelope)
        for peer in effect.to:
            self._transport.send(peer, message)

    def hand_back(self, envelope: bytes) -> None:
        """Our own statement comes back to the engine as an input."""
        self.feed(Signed(envelope))

    def act(self, effect: Effect) -> None:
        """Carry out one effect that is neither about the disk nor a signature."""
        assert self._transport is not None
        match effect:
            case effect_types.Send():
                self._transport.send(effect.to, effect.message)
            case effect_types.Notify():
                self.announcements.tell(effect.event)
            case effect_types.SetTimer():
                self._timers.set(effect.key, effect.at)
            case effect_types.CancelTimer():
                self._timers.cancel(effect.key)
            case effect_types.OpenWork() | effect_types.PullWork() | effect_types.CloseWork():
                self._act_on_work(effect)
            case effect_types.SendBlocks():
                if effect.to not in self._answering:
                    self._answering[effect.to] = None
                    self._tasks.create_task(self._send_blocks(effect))
            case effect_types.ReadJob():
                self._tasks.create_task(self._read_job(effect))
            case (
                effect_types.SendSnapshotOffer()
                | effect_types.SendSnapshotChunk()
                | effect_types.KeepSnapshot()
                | effect_types.KeepSnapshotChunk()
                | effect_types.InstallSnapshot()
            ):
                assert self.snapshots is not None
                self._tasks.create_task(self.snapshots.act(effect, self._transport, self.feed, self._pay_for_bytes))
            case effect_types.Dial():
                self._transport.dial(effect.node, effect.addresses, keep=effect.keep, once=effect.once)
            case effect_types.Undial():
                self._transport.forget(effect.node)
            case effect_types.Disconnect():
                self._transport.disconnect(effect.peer, effect.reason, effect.ban_ms)
            case effect_types.Halt():
                raise NodeHalted(effect.reason)
            case effect_types.Put() | effect_types.Delete() | effect_types.CommitBlock() | SignAndSend():
                raise AssertionError(f"the executor keeps {type(effect).__name__} to itself")
            case _:
                assert_never(effect)

    def _act_on_work(self, effect: effect_types.OpenWork | effect_types.PullWork | effect_types.CloseWork) -> None:
        assert self.work is not None, "only a node with workers accepts jobs"
        match effect:
            case effect_types.OpenWork():
                self.work.open(effect)
            case effect_types.PullWork():
                self.work.pull(effect)
            case effect_types.CloseWork():
                self.work.close(effect)

    async def _send_blocks(self, effect: effect_types.SendBlocks) -> None:
        """One answer for each peer and one read at a time: those who ask must not keep our own commits waiting."""
        loop = asyncio.get_running_loop()
        try:
            async with self._reading:
                blocks, first = await loop.run_in_executor(self._threads, self._read_blocks, effect.height)
        finally:
            del self._answering[effect.to]
        assert self._transport is not None
        self._pay_for_bytes(effect.to, sum(len(decided.block) for decided in blocks))
        self._transport.send(effect.to, Blocks(tuple(blocks), self.engine.replica.state.tip.height, first))

    async def _read_job(self, effect: effect_types.ReadJob) -> None:
        """How many of these a peer may cause is bounded where they are asked for."""
        loop = asyncio.get_running_loop()
        row = await loop.run_in_executor(self._threads, self._store.get, Table.JOB, effect.job)
        self._pay_for_bytes(effect.to, len(row or b""))
        self.feed(JobRead(effect, row))

    def _pay_for_bytes(self, peer: NodeId, size: int) -> None:
        """Charge a link for an answer: a small question must not buy megabytes for nothing."""
        self._turnstile.pay_for_answer(peer, cost_us(size, 0))

    def _read_blocks(self, height: Height) -> tuple[list[DecidedBlock], Height]:
        """The answer's blocks, none from below the height from which on they are all here, and that height."""
        blocks = self._store.decided_blocks(height, _BLOCKS_BYTES_MAX, BLOCKS_PER_RESPONSE_MAX)
        # Asked for second: what was there may have gone since, and what has gone is below this.
        first = self._store.blocks_from()
        return (blocks if height >= first else []), first
