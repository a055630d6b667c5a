"""The supervisor: the node's one door to its workers.

Law: one warm worker process for each model, several jobs at once in it. A job is pulled: each call to `next_chunk`
lets the worker release exactly one more piece, and it computes at most one piece ahead. A model's files are hashed
before every load, and nothing is loaded unless this machine proved its isolation. A dead worker's jobs fail at once;
the next use starts a new one.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from node.worker.errors import CapacityExceeded, IsolationUnavailable, JobTimedOut
from node.worker.limits import DEFAULT_LIMITS, WorkerLimits
from node.worker.models import Fact, Manifest, ModelId, ModelStore
from node.worker.process import JobRequest, Prefilled, Worker, WorkerChunk, WorkerJob
from node.worker.runtimes import available_runtimes, runtime_build
from node.worker.sandbox.probe import Check, IsolationLevel, IsolationReport, probe

__all__ = [
    "Check", "IsolationReport", "JobRequest", "LoadedModel", "Prefilled", "WorkerChunk", "WorkerJob",
    "WorkerLimits", "WorkerSupervisor", "available_runtimes", "probe",
]  # fmt: skip

MODELS_LOADED_MAX = 8  # also the number of user ids one node takes


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Facts about a model that is ready to serve, as they go into offers and receipts."""

    model_id: ModelId
    manifest: Manifest
    runtime: str
    runtime_build: str
    settings: Mapping[str, Fact]
    context_tokens: int  # 0 where the runtime has no such thing
    load_ms: int  # hashing, launching, importing and loading
    isolation: IsolationLevel


class WorkerSupervisor:
    """Starts, shares and ends workers. Use as `async with`; enter and leave it in the same task."""

    def __init__(self, store: ModelStore, *, slots: int = 4, limits: WorkerLimits = DEFAULT_LIMITS) -> None:
        assert 1 <= slots <= 64
        self._store = store
        self._slots = slots
        self._limits = limits
        self._tasks = asyncio.TaskGroup()
        self._workers: dict[str, tuple[Worker, LoadedModel]] = {}
        self._process_slots: dict[str, int] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._report: IsolationReport | None = None
        self._probing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker, _ in self._workers.values():
            worker.kill("the node is closing", "closed")
        # the caller's own error goes on as it is, not wrapped in a group
        await self._tasks.__aexit__(None, None, None)

    async def probe(self) -> IsolationReport:
        """Prove this machine's isolation, once; later calls return the same report."""
        async with self._probing:
            if self._report is None:
                self._report = await probe(self._limits)
        return self._report

    async def load(self, model_id: str) -> LoadedModel:
        """A warm worker for this model, started if there is none.

        Raises IsolationUnavailable, UnknownModel, CorruptModel, RuntimeUnavailable, WorkerDied.
        """
        _, loaded = await self._worker(model_id)
        return loaded

    async def unload(self, model_id: str) -> None:
        """End the model's worker, if it has one. Its jobs fail with WorkerDied."""
        kept = self._workers.pop(model_id, None)
        if kept is not None:
            kept[0].kill("the model was unloaded", "closed")
            await kept[0].gone.wait()
            self._process_slots.pop(model_id, None)

    async def open_job(self, model_id: str, job_id: bytes, request: JobRequest, *, deadline_s: float) -> WorkerJob:
        """Hand a job to the model's worker; waits for a free slot. The deadline covers everything from this call on.

        Raises what `load` does, CapacityExceeded, JobTimedOut. A bad request shows in `prefill`.
        """
        until = asyncio.get_running_loop().time() + deadline_s
        try:
            async with asyncio.timeout_at(until):
                worker, _ = await self._worker(model_id)
        except TimeoutError:
            raise JobTimedOut("the model was not loaded before the job's deadline") from None
        return await worker.open(job_id, request, until)

    async def _worker(self, model_id: str) -> tuple[Worker, LoadedModel]:
        lock = self._locks.setdefault(model_id, asyncio.Lock())
        async with lock:
            kept = self._workers.get(model_id)
            if kept is not None and kept[0].alive():
                return kept
            if kept is not None:
                await kept[0].gone.wait()
            report = await self.probe()
            if report.level != "strong":
                raise IsolationUnavailable(report.summary())
            started = await self._start(ModelId(model_id), report.level)
            self._workers[model_id] = started
            return started

    async def _start(self, model_id: ModelId, level: IsolationLevel) -> tuple[Worker, LoadedModel]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        manifest = await asyncio.to_thread(self._store.verify, model_id)
        build = runtime_build(manifest.runtime)
        slot = self._process_slots.get(model_id)
        if slot is None:
            free = [number for number in range(MODELS_LOADED_MAX) if number not in self._process_slots.values()]
            if not free:
                raise CapacityExceeded(f"{MODELS_LOADED_MAX} models are loaded already: unload one")
            slot = self._process_slots[model_id] = free[0]
        try:
            worker = await Worker.start(self._store, manifest, slot, self._slots, self._limits, self._tasks)
        except BaseException:
            self._process_slots.pop(model_id, None)
            raise
        facts: dict[str, Fact] = {**manifest.settings, **worker.settings}
        load_ms = int((loop.time() - began) * 1000)
        return worker, LoadedModel(
            model_id, manifest, manifest.runtime, build, facts, worker.context_tokens, load_ms, level
        )
