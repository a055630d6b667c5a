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

from node.worker.errors import IsolationUnavailable, JobTimedOut
from node.worker.limits import DEFAULT_LIMITS, WorkerLimits
from node.worker.models import Fact, Manifest, ModelId, ModelStore
from node.worker.process import JobRequest, Prefilled, Worker, WorkerChunk, WorkerJob
from node.worker.runtimes import available_runtimes, runtime_build
from node.worker.sandbox.facts import Check
from node.worker.sandbox.probe import IsolationLevel, IsolationReport, probe
from node.worker.sandbox.running import adopt_orphans

__all__ = [
    "Check", "IsolationReport", "JobRequest", "LoadedModel", "Prefilled", "WorkerChunk", "WorkerJob",
    "WorkerLimits", "WorkerSupervisor", "available_runtimes", "probe",
]  # fmt: skip

MODELS_LOADED_MAX = 8  # worker processes beside each other
# What runs strangers' code or inputs in a machine of its own; the others parse models in native code.
FALLBACK_RUNTIMES = ("echo", "wasm")


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


def require(report: IsolationReport, runtime: str, isolation: str) -> None:
    """Let a runtime serve strangers only behind what was proved. Raises IsolationUnavailable.

    ``isolation`` is what the operator insists on: with `fallback` it stands for every runtime's risk.
    """
    if report.level == "strong" and isolation in ("", "none", "fallback", "strong"):
        return
    if report.level == "fallback" and isolation in ("", "fallback"):
        if isolation == "fallback" or runtime in FALLBACK_RUNTIMES:
            return
        raise IsolationUnavailable(
            f"the {runtime} runtime is not offered behind a fallback sandbox unless provider.isolation says "
            f"'fallback'; {report.summary()}"
        )
    wanted = f"isolation {isolation!r} is wanted; " if isolation not in ("", report.level) else ""
    raise IsolationUnavailable(wanted + report.summary())


class WorkerSupervisor:
    """Starts, shares and ends workers. Use as `async with`; enter and leave it in the same task."""

    def __init__(
        self, store: ModelStore, *, slots: int = 4, limits: WorkerLimits = DEFAULT_LIMITS, isolation: str = ""
    ) -> None:
        """``isolation`` is the level that the operator insists on; empty: what is safe for each runtime."""
        assert 1 <= slots <= 64
        self._isolation = isolation
        self._adopted_before = False
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
        # A launcher that somebody kills leaves its worker to us: it is waited for like any other.
        self._adopted_before = adopt_orphans(True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker, _ in self._workers.values():
            worker.kill("the node is closing", "closed")
        # the caller's own error goes on as it is, not wrapped in a group
        await self._tasks.__aexit__(None, None, None)
        adopt_orphans(self._adopted_before)

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
            started = await self._start(ModelId(model_id))
            self._workers[model_id] = started
            return started

    async def _start(self, model_id: ModelId) -> tuple[Worker, LoadedModel]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        manifest = await asyncio.to_thread(self._store.verify, model_id)
        report = await self.probe()
        require(report, manifest.runtime, self._isolation)
        build = runtime_build(manifest.runtime)
        try:
            worker = await Worker.start(self._store, manifest, self._slots, self._limits, self._tasks, report.layers)
        except BaseException:
            self._process_slots.pop(model_id, None)
            raise
        facts: dict[str, Fact] = {**manifest.settings, **worker.settings}
        load_ms = int((loop.time() - began) * 1000)
        return worker, LoadedModel(
            model_id, manifest, manifest.runtime, build, facts, worker.context_tokens, load_ms, report.level
        )
