"""Carries out effects, in order, with one disk commit for everything that waits (group commit).

Law: no effect leaves the node before every durable effect ahead of it is on disk, and no authority's signature exists
before the sign guard has committed its position. Writing earlier than asked is always safe, sending earlier never is:
so a batch first commits all its durable effects, then reserves all its guard positions, then acts one by one.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Protocol

from node.runtime.signer import Signer
from node.runtime.snapshots import SnapshotDesk
from node.store.database import Store
from node.store.errors import GuardRefused
from node.store.sign_guard import SignGuard
from protocol.messages.blocks import DecidedBlock
from protocol.messages.effects import CommitBlock, Delete, Effect, GuardPosition, Put, SignAndSend
from protocol.primitives.units import Height

_BATCH_EFFECTS_MAX = 2048
"""Bounds the time of one commit, so that urgent sends wait for no more than about 20 ms of rows."""

_WATERMARK_EVERY = 16
"""The guard forgets closed heights this often; rows kept a little longer cost nothing."""

_INLINE_ROWS_MAX = 16
_INLINE_COMMIT_S = 0.001
_COMMITS_AVERAGED = 8

Durable = Put | Delete | CommitBlock


class Actor(Protocol):
    """Carries out effects that are not about the disk."""

    def act(self, effect: Effect) -> None: ...
    def signed(self, effect: SignAndSend, envelope: bytes) -> None: ...


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
        self._failure: Exception | None = None
        self._commit_s = 1.0
        """What small commits have taken lately; the first ones go to a thread until the disk has shown what it is."""
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, effects: Iterable[Effect]) -> None:
        """Queue effects behind all earlier ones."""
        self._queue.extend(effects)
        if self._queue:
            self._idle.clear()
            self._wake.set()

    def fail(self, error: Exception) -> None:
        """The engine broke down in the middle of a step: nothing of what it may ask for from now on is carried out.

        ``run`` raises the error, and the node ends.
        """
        self._failure = error
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
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue or self._failure is not None:
                if self._failure is not None:
                    raise self._failure
                self._batch = [self._queue.popleft() for _ in range(min(len(self._queue), _BATCH_EFFECTS_MAX))]
                await self._carry_out(self._batch)
                self._batch = []
            self._idle.set()

    async def _carry_out(self, batch: list[Effect]) -> None:
        # What stands before the first effect that needs a disk waits for none.
        free = next((place for place, effect in enumerate(batch) if _needs_disk(effect)), len(batch))
        for effect in batch[:free]:
            self._act(effect, {})
        if free < len(batch):
            # What the free ones have caused joins the same commit.
            batch.extend(self._queue.popleft() for _ in range(min(len(self._queue), _BATCH_EFFECTS_MAX)))
        rest = batch[free:]
        durable: list[Durable] = [effect for effect in rest if isinstance(effect, Put | Delete | CommitBlock)]
        if durable:
            await self._commit(durable)
        guarded = [effect for effect in rest if isinstance(effect, SignAndSend) and effect.position is not None]
        allowed = await self._reserve(guarded)
        for effect in rest:
            self._act(effect, allowed)

    def _act(self, effect: Effect, allowed: dict[int, bytes | None]) -> None:
        match effect:
            case Put() | Delete():
                pass
            case CommitBlock():
                self._on_committed(effect)
            case SignAndSend():
                payload = allowed[id(effect)] if effect.position is not None else effect.payload
                if payload is not None:
                    self._actor.signed(effect, self._signer.sign(effect.kind, payload))
            case _:
                self._actor.act(effect)

    async def _commit(self, durable: list[Durable]) -> None:
        """A few rows on a disk that has been fast lately are written at once: the way to a thread and back would cost
        as much again. Blocks, many rows and slow disks leave the loop free."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        few = len(durable) <= _INLINE_ROWS_MAX and not any(isinstance(effect, CommitBlock) for effect in durable)
        if few and self._commit_s < _INLINE_COMMIT_S:
            # What was sent a moment ago shall not wait in this process for a disk that it does not need.
            await asyncio.sleep(0)
            began = loop.time()
            self._store.commit(durable)
        else:
            await loop.run_in_executor(self._threads, self._commit_here, durable)
        if few:
            self._commit_s += (loop.time() - began - self._commit_s) / _COMMITS_AVERAGED

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


def _needs_disk(effect: Effect) -> bool:
    return isinstance(effect, Put | Delete | CommitBlock) or (
        isinstance(effect, SignAndSend) and effect.position is not None
    )


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
