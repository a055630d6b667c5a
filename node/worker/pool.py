"""One model's warm worker, kept alive: started, shared by jobs, restarted when it ends, quarantined if it keeps ending.

Law: a worker that ends fails its jobs at once and is started again in the background, after a pause that grows. Jobs
whose worker was ended because of *another* job are done again in a fresh one, once: what was released already is
compared, not released twice, because a job's output depends on nothing but its own request. What a worker keeps of a
tenant's between jobs serves that tenant alone, and is gone once another takes its place.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from node.worker.child.frames import encode
from node.worker.errors import (
    CapacityExceeded,
    DeathReason,
    JobFailed,
    JobTimedOut,
    ModelQuarantined,
    WorkerDied,
    WorkerError,
)
from node.worker.fair_slots import FairSlots
from node.worker.health import CRASHES, Health
from node.worker.limits import WorkerLimits
from node.worker.process import Prefilled, Worker, WorkerChunk, WorkerJob
from node.worker.rate import Rate
from node.worker.request import JobRequest

PoolState = Literal["idle", "loading", "ready", "restarting", "quarantined"]
INNOCENT_DEATHS: tuple[DeathReason, ...] = ("deadline", "cancelled")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class PoolView:
    """A model's workers at a glance."""

    state: PoolState
    reason: str
    """Why it is not ready; empty if it is."""
    until_s: float
    """Seconds until a quarantine or a pause is over."""
    slots_free: int
    waiting: int
    jobs: int
    units_out: int
    """Output units of all jobs since the start."""
    units_per_second: float
    crashes: int


class PooledJob:
    """One job, pulled piece by piece. One call at a time."""

    def __init__(self, pool: "ModelPool", job: WorkerJob, tenant: str, until: float) -> None:
        self.job_id = job.job_id
        self._pool = pool
        self._job = job
        self._tenant = tenant
        self._until = until
        self._moved = False
        self._prefilled: Prefilled | None = None
        self._released: list[bytes] = []
        """A digest of each piece that was handed out."""

    async def prefill(self) -> Prefilled:
        """Wait until the input is processed. Raises JobRefused, JobTimedOut, WorkerDied."""
        self._prefilled = await self._carried(lambda job: job.prefill())
        return self._prefilled

    async def next_chunk(self) -> WorkerChunk:
        """Let one more piece be released and wait for it. Raises JobRefused, JobTimedOut, WorkerDied, JobEnded."""
        chunk = await self._carried(lambda job: job.next_chunk())
        self._released.append(_digest(chunk))
        self._pool.count(chunk.units)
        return chunk

    async def cancel(self) -> None:
        """Give the job up. Returns once the worker has forgotten it, or was killed for not doing so."""
        await self._job.cancel()

    async def _carried(self, step: Callable[[WorkerJob], Awaitable[Answer]]) -> Answer:
        try:
            return await step(self._job)
        except WorkerDied as died:
            if self._moved or died.death not in INNOCENT_DEATHS:
                raise
        self._moved = True
        await self._again()
        return await step(self._job)

    async def _again(self) -> None:
        """Bring a fresh worker to where the last one was."""
        self._job = await self._pool.place(self._job.job_id, self._job.request, self._tenant, self._until)
        if self._prefilled is not None and await self._job.prefill() != self._prefilled:
            raise JobFailed("another worker counted the input differently")
        for released in self._released:
            if _digest(await self._job.next_chunk()) != released:
                raise JobFailed("another worker gave another output for the same request")


def _digest(chunk: WorkerChunk) -> bytes:
    content = encode([chunk.payload, chunk.units, [*chunk.tokens], chunk.finish])
    return hashlib.blake2b(content, digest_size=16).digest()


class ModelPool:
    """The worker of one model and everybody who wants it. ``start`` makes a new one."""

    def __init__(
        self,
        start: Callable[[Callable[[str], None]], Awaitable[Worker]],
        slots: int,
        limits: WorkerLimits,
        tasks: asyncio.TaskGroup,
        changed: Callable[[], None],
    ) -> None:
        self._start = start
        self._slots = FairSlots(slots, limits.jobs_queued)
        self._limits = limits
        self._tasks = tasks
        self._changed = changed
        self._health = Health(limits.health)
        self._worker: Worker | None = None
        self._accounted: Worker | None = None
        self._starting: asyncio.Future[Worker] | None = None
        self._filling: asyncio.Task[None] | None = None
        self._state: PoolState = "idle"
        self._reason = ""
        self._resumes_at = 0.0
        self._closing = False
        self._closed = asyncio.Event()
        self._jobs = self._crashes = 0
        self._rate = Rate()

    @property
    def live(self) -> Worker | None:
        """The worker that takes jobs now, if there is one."""
        return self._worker if self._worker is not None and self._worker.alive() else None

    async def worker(self) -> Worker:
        """A warm worker, started if there is none. Raises ModelQuarantined and whatever a start raises."""
        if (live := self.live) is not None:
            return live
        self._refuse_quarantined()
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_future()
            self._filling = self._tasks.create_task(self._fill(self._starting))
        return await asyncio.shield(self._starting)

    async def _fill(self, starting: "asyncio.Future[Worker]") -> None:
        """Start a worker for everybody who waits for one, whether or not they still do when it is ready."""
        try:
            if self._worker is not None:
                await self._worker.gone.wait()
                self._account(self._worker)
            if self._state == "idle":
                self._enter("loading", "")
            await self._pause(self._resumes_at)
            self._refuse_quarantined()
            self._worker = worker = await self._start(self._slots.give_back)
            self._tasks.create_task(self._watch(worker), name=f"watch {worker.manifest.name}")
            self._enter("ready", "")
            starting.set_result(worker)
        except Exception as error:
            self._failed_start(error)
            starting.set_exception(error)
            starting.exception()  # marks it as seen: nobody has to be waiting
        finally:
            self._starting = None

    def _failed_start(self, error: Exception) -> None:
        if self._state == "loading":
            self._enter("idle", str(error))
        elif isinstance(error, WorkerError) and not isinstance(error, ModelQuarantined):
            self._note(error)

    async def open(self, job_id: bytes, request: JobRequest, tenant: str, until: float) -> PooledJob:
        """Take a job on, waiting for a slot in turn. Raises as `worker` does, CapacityExceeded, JobTimedOut."""
        return PooledJob(self, await self.place(job_id, request, tenant, until), tenant, until)

    async def place(self, job_id: bytes, request: JobRequest, tenant: str, until: float) -> WorkerJob:
        """Put a job into the worker that is alive when its turn comes."""
        self._refuse_quarantined()
        await self._slots.take(tenant, until)
        try:
            worker = self.live
            if worker is None:
                async with asyncio.timeout_at(until):
                    worker = await self.worker()
            job = worker.open(job_id, request, until, tenant)
        except TimeoutError:
            self._slots.give_back(tenant)
            raise JobTimedOut("the model was not loaded before the job's deadline") from None
        except BaseException:
            self._slots.give_back(tenant)
            raise
        self._jobs += 1
        return job

    def count(self, units: int) -> None:
        """So much was released."""
        self._rate.count(units)

    def view(self) -> PoolView:
        """How it is now."""
        now = asyncio.get_running_loop().time()
        left = max(0.0, self._resumes_at - now) if self._state in ("quarantined", "restarting") else 0.0
        return PoolView(
            self._state, self._reason, left, self._slots.free, self._slots.waiting, self._jobs, self._rate.units,
            self._rate.per_second(), self._crashes,
        )  # fmt: skip

    async def close(self, reason: str) -> None:
        """End the worker, and start none any more."""
        self.stop(reason)
        if self._worker is not None:
            await self._worker.gone.wait()

    def stop(self, reason: str) -> None:
        """As `close`, without waiting for the end."""
        self._closing = True
        self._closed.set()
        if self._filling is not None and self._starting is not None:
            self._filling.cancel()
            self._starting.cancel()  # a task that is cancelled before its first step can't do it
        if self._worker is not None:
            self._worker.kill(reason, "closed")

    def _refuse_quarantined(self) -> None:
        if self._closing:
            raise CapacityExceeded("the model is being unloaded")
        now = asyncio.get_running_loop().time()
        held = self._health.quarantine(now)
        if held is not None:
            raise ModelQuarantined(held.reason, max(1, round(held.until - now)))

    def _enter(self, state: PoolState, reason: str, resumes_at: float = 0.0) -> None:
        self._state, self._reason, self._resumes_at = state, reason, resumes_at
        self._changed()

    async def _watch(self, worker: Worker) -> None:
        """When the worker ends, see to it that there is another."""
        await worker.gone.wait()
        self._account(worker)
        while not self._closing and self.live is None:
            if self._state == "quarantined":
                await self._pause(self._resumes_at)
            with contextlib.suppress(WorkerError):  # noted where it failed
                await self.worker()

    def _account(self, worker: Worker) -> None:
        """Note the end of a worker, once."""
        if self._accounted is not worker and worker.death is not None:
            self._accounted = worker
            self._note(worker.death)

    def _note(self, error: WorkerError) -> None:
        """Something ended a worker: when may the next one start?"""
        if self._closing:
            return
        now = asyncio.get_running_loop().time()
        if isinstance(error, WorkerDied) and error.death not in CRASHES:
            self._enter("restarting", error.reason)
            return
        self._crashes += 1
        quarantine = self._health.crashed(now, error.reason)
        if quarantine is not None:
            self._enter("quarantined", quarantine.reason, quarantine.until)
        else:
            self._enter("restarting", error.reason, now + self._health.pause_s(now))

    async def _pause(self, until: float) -> None:
        """Wait until a time of the loop, or until the pool closes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._closed.wait()
