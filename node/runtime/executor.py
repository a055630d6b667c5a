"""Carries out effects, in order, with one disk commit for everything that waits (group commit).

Law: no effect leaves the node before every durable effect ahead of it is on disk, and no authority's signature exists
before the sign guard has committed its position. Writing earlier than asked is always safe, sending earlier never is:
so a batch first commits all its durable effects, then reserves all its guard positions, then acts one by one.

What can't outlive this process (timers, work, signatures that are kept) waits for no disk. Rows that nothing waits for
are written a moment later, with others: an end of a job that only this node needs to know costs no commit of its own.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from typing import Protocol, cast

from node.runtime.signer import Signer
from node.runtime.snapshots import SnapshotDesk
from node.store.database import Store
from node.store.errors import GuardRefused
from node.store.sign_guard import SignGuard
from protocol.messages.blocks import DecidedBlock
from protocol.messages.effects import (
    CancelTimer,
    CloseWork,
    CommitBlock,
    Delete,
    Effect,
    GuardPosition,
    Notify,
    OpenWork,
    PullWork,
    Put,
    Send,
    SetTimer,
    SignAndSend,
)
from protocol.primitives.units import Height

_BATCH_EFFECTS_MAX = 2048
"""Bounds the time of one commit, so that urgent sends wait for no more than about 20 ms of rows."""

_WATERMARK_EVERY = 16
"""The guard forgets closed heights this often; rows kept a little longer cost nothing."""

_INLINE_ROWS_MAX = 1024
"""Less than ten ms on the loop. In a thread each row waits for the interpreter twice, behind whatever the loop does."""
_INLINE_COMMIT_S = 0.004
_FORGET = 1.2
"""How fast a disk is shows in its fastest commits: others met a busy machine. Each commit lets the best one count so
much less, so that a disk which turns slow is taken for slow after a dozen."""
_PROBE_EVERY = 16
"""So often a slow disk is looked at again from the loop: in a thread of a busy process every commit is slow."""

_COMPANY_S = 0.005
"""So long do rows that nobody waits for wait for others. What a crash in between takes is what it would have taken had
they come so much later. What is sent patiently waits for company, too: where what follows comes at once, both share a
commit, a frame and the receiver's attention."""

Durable = Put | Delete | CommitBlock
# Two dozen effects a job pass here: they are told apart by their exact types, which cost a tenth of an instance check.
_ROWS = frozenset((Put, Delete))
_DURABLE = frozenset((Put, Delete, CommitBlock))
_ENDS_WITH_US = frozenset((SetTimer, CancelTimer, OpenWork, PullWork, CloseWork))


class Actor(Protocol):
    """Carries out effects that are not about the disk."""

    def act(self, effect: Effect) -> None: ...
    def send_signed(self, effect: SignAndSend, envelope: bytes) -> None: ...
    def hand_back(self, envelope: bytes) -> None: ...


class EffectExecutor:
    """Owns the order of effects. ``submit`` from the loop; ``run`` in one task of the node's group."""

    def __init__(
        self,
        store: Store,
        guard: SignGuard | None,
        signer: Signer,
        threads: Executor,
        actor: Actor,
        on_committed: Callable[[CommitBlock], None],
        snapshots: SnapshotDesk | None = None,
    ) -> None:
        self._store = store
        self._guard = guard
        self._signer = signer
        self._threads = threads
        self._actor = actor
        self._on_committed = on_committed
        self._snapshots = snapshots
        self._queue: deque[Effect] = deque()
        self._batch: list[Effect] = []
        """What is being carried out now."""
        self._running = self._acting = False
        self._flush_due: asyncio.Handle | None = None
        """When what waits for the disk will be committed."""
        self._urgent = False
        """True while something in the queue shall leave as soon as the disk lets it."""
        self._signed: deque[bytes] = deque()
        """Sent, and not handed back to the engine yet: links write first, so that peers work while we take notes."""
        self._failure: Exception | None = None
        self._checkpointing: Future[None] | None = None
        self._commit_s = 1.0
        """What a small commit takes; the first ones go to a thread until the disk has shown what it is."""
        self._in_thread = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, effects: Iterable[Effect]) -> None:
        """Carry effects out behind all earlier ones: at once as far as they wait for no disk, the others soon."""
        here: list[Effect] = []
        for effect in effects:
            if self._running and _stays_here(effect):
                here.append(effect)
            else:
                self._queue.append(effect)
                self._urgent = self._urgent or not _may_wait(effect)
        for effect in here:  # what a signature causes comes behind all that came with it
            self._attempt(effect)
        if self._queue:
            self._idle.clear()
            self._proceed()

    def fail(self, error: Exception) -> None:
        """The engine broke down in the middle of a step: nothing of what it may ask for from now on is carried out.

        ``run`` raises the error, and the node ends.
        """
        self._failure = self._failure or error
        self._idle.clear()
        self._wake.set()

    def waiting_block(self, height: Height) -> DecidedBlock | None:
        """A block that the engine's state has behind it and the disk not yet. Ask before the store is asked."""
        for effect in (*self._batch, *self._queue):
            if isinstance(effect, CommitBlock) and effect.height == height:
                return effect.decided
        return None

    async def drain(self) -> None:
        """Wait until everything submitted so far has been carried out."""
        await self._idle.wait()

    async def run(self) -> None:
        """Carry out effects until cancelled. A disk error ends the task, and with it the node: nothing is sent that
        should have been written."""
        self._running = True
        self._proceed()
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self._failure is not None:
                    raise self._failure
                await self._carry_out(self._batch)
                self._batch = []
                self._proceed()
        finally:
            self._running = False

    def _proceed(self) -> None:
        """Act as far as nothing waits for a disk; what does is committed in the loop's next turn, with whatever has
        come until then. What acts cause meanwhile is queued behind them."""
        if not self._running or self._acting or self._batch:
            return
        while self._queue and self._failure is None and not _needs_disk(self._queue[0]):
            self._attempt(self._queue.popleft())
        if not self._queue:
            self._urgent = False
            if self._failure is None and not self._signed:
                self._idle.set()
        elif self._failure is None:
            self._schedule()

    def _attempt(self, effect: Effect) -> None:
        """Act. An act that fails ends the node, whoever has asked for it."""
        if self._failure is not None:
            return
        nested, self._acting = self._acting, True
        try:
            self._act(effect, {})
        except Exception as error:
            self.fail(error)
        finally:
            self._acting = nested

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        if self._urgent:
            if isinstance(self._flush_due, asyncio.TimerHandle):
                self._flush_due.cancel()
                self._flush_due = None
            # What was sent a moment ago goes out first: it shall not wait in this process for a disk.
            self._flush_due = self._flush_due or loop.call_soon(self._flush)
        elif self._flush_due is None:
            self._flush_due = loop.call_later(_COMPANY_S, self._flush)

    def _flush(self) -> None:
        """Commit what waits. A few rows on a disk that has been fast lately are written at once: the way to a thread
        and back would cost as much again. Blocks, guarded signatures, many rows and slow disks leave the loop free."""
        self._flush_due = None
        if not self._running or self._batch or self._failure is not None:
            return
        batch = [self._queue.popleft() for _ in range(min(len(self._queue), _BATCH_EFFECTS_MAX))]
        durable = _durable(batch)
        waits = any(map(_is_heavy, batch))
        if waits or len(durable) > _INLINE_ROWS_MAX or self._is_slow():
            self._batch = batch
            self._wake.set()
            return
        began = time.perf_counter()
        try:
            self._store.commit(durable)
        except Exception as error:
            self.fail(error)
            return
        self._took(time.perf_counter() - began)
        self._shorten_log()
        for effect in batch:
            self._attempt(effect)
        self._proceed()

    async def _carry_out(self, batch: list[Effect]) -> None:
        durable = _durable(batch)
        if durable:
            await self._commit(durable)
        guarded = [effect for effect in batch if isinstance(effect, SignAndSend) and effect.position is not None]
        allowed = await self._reserve(guarded)
        nested, self._acting = self._acting, True
        try:
            for effect in batch:
                self._act(effect, allowed)
        finally:
            self._acting = nested

    def _act(self, effect: Effect, allowed: dict[int, bytes | None]) -> None:
        if type(effect) in _ROWS:
            return
        if isinstance(effect, SignAndSend):
            payload = allowed[id(effect)] if effect.position is not None else effect.payload
            if payload is not None:
                self._sign(effect, payload)
        elif isinstance(effect, CommitBlock):
            self._on_committed(effect)
        else:
            self._actor.act(effect)

    def _sign(self, effect: SignAndSend, payload: bytes) -> None:
        envelope = self._signer.sign(effect.kind, payload)
        self._actor.send_signed(effect, envelope)
        if not self._signed and effect.to:
            self._idle.clear()
            asyncio.get_running_loop().call_soon(self._hand_back_in_turn)
        self._signed.append(envelope)
        if not effect.to:
            self.hand_back()

    def _hand_back_in_turn(self) -> None:
        """Behind the links' writers in the loop's next turn, and before whatever comes in during it."""
        self.hand_back()
        self._proceed()

    def hand_back(self) -> None:
        """Hand back what was signed, in its order. Before every other input: nothing that happens is judged without
        the statements that have left already, no answer to them and no end of the link that they went to."""
        while self._signed and self._failure is None:
            try:
                self._actor.hand_back(self._signed.popleft())
            except Exception as error:
                self.fail(error)

    async def _commit(self, durable: list[Durable]) -> None:
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        await loop.run_in_executor(self._threads, self._commit_here, durable)
        if len(durable) <= _INLINE_ROWS_MAX and not any(isinstance(effect, CommitBlock) for effect in durable):
            self._took(time.perf_counter() - began)
        self._shorten_log()

    def _took(self, seconds: float) -> None:
        self._commit_s = min(seconds, _FORGET * self._commit_s)

    def _is_slow(self) -> bool:
        if self._commit_s < _INLINE_COMMIT_S:
            return False
        self._in_thread += 1
        return self._in_thread % _PROBE_EVERY != 0

    def _shorten_log(self) -> None:
        if self._store.wants_checkpoint and (self._checkpointing is None or self._checkpointing.done()):
            self._checkpointing = self._threads.submit(self._store.checkpoint)
            self._checkpointing.add_done_callback(self._checkpointed(asyncio.get_running_loop()))

    def _checkpointed(self, loop: asyncio.AbstractEventLoop) -> Callable[[Future[None]], None]:
        def look(ended: Future[None]) -> None:
            error = None if ended.cancelled() else ended.exception()
            if isinstance(error, Exception) and not loop.is_closed():
                loop.call_soon_threadsafe(self.fail, error)

        return look

    def _commit_here(self, durable: list[Durable]) -> None:
        """In a thread: commit, then let the guard forget heights that are closed for good now."""
        begin = 0
        for place, effect in enumerate(durable):
            # A snapshot is of the state after one block, whatever follows it in this batch.
            if isinstance(effect, CommitBlock) and self._snapshots is not None and self._snapshots.due(effect.height):
                self._store.commit(durable[begin : place + 1])
                self._snapshots.after_commit()
                begin = place + 1
        self._store.commit(durable[begin:])
        if self._guard is None:
            return
        for effect in durable:
            if isinstance(effect, CommitBlock) and effect.height % _WATERMARK_EVERY == 0:
                self._guard.raise_watermark(effect.height)

    async def _reserve(self, guarded: list[SignAndSend]) -> dict[int, bytes | None]:
        """For each effect the payload that may be signed at its position: its own, the guard's older one, or none."""
        if not guarded:
            return {}
        assert self._guard is not None, "a signature with a position needs the sign guard"
        wanted = [(effect.position, effect.payload) for effect in guarded if effect.position is not None]
        loop = asyncio.get_running_loop()
        held = await loop.run_in_executor(self._threads, _reserve_each, self._guard, wanted)
        return {id(effect): payload for effect, payload in zip(guarded, held, strict=True)}


def _stays_here(effect: Effect) -> bool:
    """True if nobody outside can see that it came before a row: it ends with the process, or is signed and kept."""
    if type(effect) in _ENDS_WITH_US:
        return True
    return isinstance(effect, SignAndSend) and effect.position is None and not effect.to


def _needs_disk(effect: Effect) -> bool:
    return type(effect) in _DURABLE or (isinstance(effect, SignAndSend) and effect.position is not None)


def _is_heavy(effect: Effect) -> bool:
    """True for what takes the disk too long for the loop to wait."""
    if type(effect) in _ROWS:
        return False
    return isinstance(effect, CommitBlock) or (isinstance(effect, SignAndSend) and effect.position is not None)


def _durable(effects: list[Effect]) -> list[Durable]:
    return [cast("Durable", effect) for effect in effects if type(effect) in _DURABLE]


def _may_wait(effect: Effect) -> bool:
    """True if nobody waits for it: a row, news that go to the log alone, a statement that others will follow."""
    if isinstance(effect, Notify):
        return not hasattr(effect.event, "request")
    return type(effect) in _ROWS or (isinstance(effect, Send) and effect.patient)


def _reserve_each(guard: SignGuard, wanted: list[tuple[GuardPosition, bytes]]) -> list[bytes | None]:
    try:
        return [*guard.reserve(wanted)]
    except GuardRefused:
        pass
    # A height among them has closed in the meantime: its signature is of no use any more, the others' are.
    held: list[bytes | None] = []
    for position in wanted:
        try:
            held += guard.reserve([position])
        except GuardRefused:
            held.append(None)
    return held
