"""The supervisor: the node's one door to its workers, and to the servers that its operator runs beside it.

Law: one warm worker process for each model, several jobs at once in it. A job is pulled: each call to `next_chunk`
lets the worker release exactly one more piece, and it computes at most one piece ahead. A model's files are hashed
before every load, and nothing is loaded unless this machine proved its isolation and has the memory. A dead worker's
jobs fail at once, and a new one is started.
"""

import asyncio
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from node.worker import memory
from node.worker.errors import BadUpstream, CapacityExceeded, IsolationUnavailable
from node.worker.limits import DEFAULT_LIMITS, WorkerLimits
from node.worker.memory import MemoryNeed
from node.worker.models import Fact, Manifest, ModelId, ModelStore
from node.worker.pool import ModelPool, PooledJob, PoolView
from node.worker.process import Prefilled, Worker, WorkerChunk
from node.worker.request import JobRequest
from node.worker.runtimes import available_runtimes, runtime_build
from node.worker.sandbox.facts import Check
from node.worker.sandbox.probe import IsolationLevel, IsolationReport, probe
from node.worker.sandbox.running import Usage, adopt_orphans
from node.worker.upstream import UpstreamAddress, UpstreamModel, check_address
from node.worker.upstream_job import UpstreamJob

__all__ = [
    "Check", "IsolationReport", "JobRequest", "LoadedModel", "PoolView", "PooledJob", "Prefilled", "ServedJob",
    "WorkerChunk", "WorkerLimits", "WorkerSupervisor", "available_runtimes", "probe",
]  # fmt: skip

MODELS_LOADED_MAX = 8  # worker processes beside each other
ServedJob = PooledJob | UpstreamJob
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
    isolation: IsolationLevel | Literal["declared"]


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
        self._pools: dict[str, ModelPool] = {}
        self._loaded: dict[str, LoadedModel] = {}
        self._needs: dict[str, MemoryNeed] = {}
        self._upstreams: dict[str, UpstreamModel] = {}
        self._report: IsolationReport | None = None
        self._probing = asyncio.Lock()
        self.changed = asyncio.Event()
        """Set whenever a model's state changes; whoever watches clears it."""

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        # A launcher that somebody kills leaves its worker to us: it is waited for like any other.
        self._adopted_before = adopt_orphans(True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in self._pools.values():
            pool.stop("the node is closing")
        for upstream in self._upstreams.values():
            await upstream.close()
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

        Raises IsolationUnavailable, UnknownModel, CorruptModel, RuntimeUnavailable, MemoryShort, ModelQuarantined,
        WorkerDied.
        """
        await self._pool(model_id).worker()
        return self._loaded[model_id]

    def attach(self, address: UpstreamAddress) -> LoadedModel:
        """Serve a model of a server that the operator runs, from when it answers on. Raises BadUpstream."""
        check_address(address)
        manifest = address.manifest()
        model_id = self._store.add_manifest(manifest)
        if model_id in self._upstreams:
            raise BadUpstream(f"{address.model} of a server of the kind {address.server!r} is served already")
        upstream = UpstreamModel(address, self._slots, self._limits, self._tasks, self.changed.set)
        self._upstreams[model_id] = upstream
        upstream.start()
        facts: dict[str, Fact] = {**manifest.settings, "isolation": "declared"}
        return LoadedModel(model_id, manifest, manifest.runtime, upstream.build, facts, 0, 0, "declared")

    async def unload(self, model_id: str) -> None:
        """End the model's worker, if it has one. Its jobs fail with WorkerDied."""
        pool = self._pools.pop(model_id, None)
        if pool is not None:
            await pool.close("the model was unloaded")
            self._loaded.pop(model_id, None)
            self._needs.pop(model_id, None)

    async def serve(
        self, model_id: str, job_id: bytes, request: JobRequest, *, deadline_s: float, tenant: str = ""
    ) -> ServedJob:
        """As `open_job`, for models of upstream servers too. Raises UpstreamUnavailable beside what that does."""
        if (upstream := self._upstreams.get(model_id)) is None:
            return await self.open_job(model_id, job_id, request, deadline_s=deadline_s, tenant=tenant)
        until = asyncio.get_running_loop().time() + deadline_s
        return await upstream.open(job_id, request, tenant, until)

    async def open_job(
        self, model_id: str, job_id: bytes, request: JobRequest, *, deadline_s: float, tenant: str = ""
    ) -> PooledJob:
        """Hand a job to the model's worker; waits for a free slot in turn with the other tenants' jobs.

        The deadline covers everything from this call on. Raises what `load` does, CapacityExceeded, JobTimedOut,
        JobRefused. What only the model can judge shows in `prefill`.
        """
        until = asyncio.get_running_loop().time() + deadline_s
        return await self._pool(model_id).open(job_id, request, tenant, until)

    def view(self, model_id: str) -> PoolView | None:
        """How a model's worker is doing; None if it was never wanted."""
        pool = self._upstreams.get(model_id) or self._pools.get(model_id)
        return pool.view() if pool is not None else None

    def usage(self, model_id: str) -> Usage:
        """What the kernel says that the model's worker has used so far."""
        worker = self.running(model_id)
        return worker.usage() if worker is not None else Usage()

    def running(self, model_id: str) -> Worker | None:
        """The worker that takes this model's jobs now."""
        pool = self._pools.get(model_id)
        return pool.live if pool is not None else None

    def _pool(self, model_id: str) -> ModelPool:
        pool = self._pools.get(model_id)
        if pool is None:
            start = functools.partial(self._start, ModelId(model_id))
            pool = ModelPool(start, self._slots, self._limits, self._tasks, self.changed.set)
            self._pools[model_id] = pool
        return pool

    async def _start(self, model_id: ModelId, freed: Callable[[str], None]) -> Worker:
        loop = asyncio.get_running_loop()
        began = loop.time()
        manifest = await asyncio.to_thread(self._store.verify, model_id)
        report = await self.probe()
        require(report, manifest.runtime, self._isolation)
        build = runtime_build(manifest.runtime)
        # In a thread, because the need is read from a stranger's file.
        need = await asyncio.to_thread(memory.need_of, self._store, manifest, self._slots)
        again = self._admit(model_id, need)
        try:
            worker = await Worker.start(
                self._store, manifest, self._slots, self._limits, self._tasks, report.layers, freed
            )
        except BaseException:
            if not again:
                self._needs.pop(model_id, None)
            raise
        facts: dict[str, Fact] = {**manifest.settings, **worker.settings}
        load_ms = int((loop.time() - began) * 1000)
        self._loaded[model_id] = LoadedModel(
            model_id, manifest, manifest.runtime, build, facts, worker.context_tokens, load_ms, report.level
        )
        return worker

    def _admit(self, model_id: ModelId, need: MemoryNeed) -> bool:
        """Promise a model its memory, until it is unloaded. Returns whether it had been promised before.

        Raises CapacityExceeded, MemoryShort.
        """
        others = [other for other in self._needs if other != model_id]
        if len(others) >= MODELS_LOADED_MAX:
            raise CapacityExceeded(f"{MODELS_LOADED_MAX} models are loaded already: unload one")
        promised = sum(max(0, self._needs[other].private_bytes - self.usage(other).memory_bytes) for other in others)
        memory.admit(need, self._limits, memory.available_bytes(), promised)
        again = model_id in self._needs
        self._needs[model_id] = need
        return again
