"""A job that does nothing: what the market costs around the work.

Each job goes from a program over the buyer's control socket to the buyer's node, over TLS to the provider's node, into
a sandboxed worker and back: signed agreement, chunk, receipt, voucher, each durable before what follows from it. The
buyer has paid before, so input and output are one chunk (``market`` measures the other way, too). Baselines of the same
run: a bare HTTP echo between two processes, and the sandboxed worker alone.
"""

import asyncio
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp

from node.config.descriptions import description_path
from node.runtime.control import RunEvent, RunRequest
from node.worker.models import ModelStore, load_description
from node.worker.supervisor import JobRequest, WorkerSupervisor
from scripts.benchmarks.control import Control
from scripts.benchmarks.measure import PAIRS, Report, note, run_loop
from scripts.benchmarks.network import Network, development_network
from scripts.benchmarks.processes import ProcessorMeter
from scripts.benchmarks.python_process import Spoken, python_process

PAYLOAD = b"What does a market cost when the work is free? " * 2
CONCURRENCY = 8
_WARM_UP = 20
"""The first job opens the channel on the ledger; caches and the processor's clock settle within a few more."""

Timed = Callable[[], Coroutine[Any, Any, float]]


class _Echoes:
    """The same payload by three ways; each call returns seconds."""

    def __init__(self, control: Control, url: str, session: aiohttp.ClientSession, worker: WorkerSupervisor) -> None:
        self._control = control
        self._url = url
        self._session = session
        self._worker = worker
        self.model = ""
        self.jobs: list[str] = []
        self.events: list[list[tuple[float, RunEvent]]] = []

    async def market(self) -> float:
        """Through the whole market."""
        events = await self._control.run(RunRequest("echo", "bytes", PAYLOAD))
        assert b"".join(event.payload for _, event in events) == PAYLOAD
        self.jobs.append(str(events[-1][1].facts["job"]))
        self.events.append(events)
        return events[-1][0]

    async def bare(self) -> float:
        """Through a bare HTTP server."""
        started = time.perf_counter()
        async with self._session.post(self._url, data=PAYLOAD) as response:
            assert await response.read() == PAYLOAD
        return time.perf_counter() - started

    async def sandboxed(self) -> float:
        """Through a sandboxed worker of our own."""
        started = time.perf_counter()
        request = JobRequest("bytes", PAYLOAD, len(PAYLOAD), len(PAYLOAD))
        job = await self._worker.open_job(self.model, os.urandom(32), request, deadline_s=30)
        await job.prefill()
        assert (await job.next_chunk()).payload == PAYLOAD
        await job.cancel()
        return time.perf_counter() - started


async def _rounds(ways: dict[str, Timed], count: int) -> dict[str, list[float]]:
    """Every way once in each round, starting with another one each time."""
    names = list(ways)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(count):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            taken[name].append(await ways[name]())
    return taken


def _medians(samples: list[float], groups: int) -> list[float]:
    """Medians of consecutive groups: one job alone is too noisy to be half of a pair."""
    size = max(1, len(samples) // groups)
    parts = [sorted(samples[start : start + size]) for start in range(0, size * groups, size)]
    return [part[len(part) // 2] for part in parts if part]


def _breakdown(report: Report, runs: list[list[tuple[float, RunEvent]]]) -> None:
    """Where a job's time goes, as its user sees it: from each event to the next."""
    steps: dict[str, list[float]] = defaultdict(list)
    for events in runs:
        names = [event.event + str(event.facts.get("state", "") or "") for _, event in events]
        steps[f"sent to {names[0]}"].append(events[0][0])
        for (before, first), (after, second) in pairwise(zip((at for at, _ in events), names, strict=True)):
            steps[f"{first} to {second}"].append(after - before)
    report.notes.append("median ms from event to event at the user's program:")
    for name, seconds in steps.items():
        report.notes.append(f"  {name:<44} {sorted(seconds)[len(seconds) // 2] * 1000:7.2f}  in {len(seconds)} jobs")


async def _at_once(echoes: _Echoes, jobs: int) -> float:
    """Seconds for so many jobs, ``CONCURRENCY`` at a time."""
    left = iter(range(jobs))

    async def one_after_the_other() -> None:
        for _ in left:
            await echoes.market()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(CONCURRENCY):
            tasks.create_task(one_after_the_other())
    return time.perf_counter() - started


async def _measure(network: Network, server: Spoken, report: Report, quick: bool) -> None:
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mercat-bench-"))
        store = ModelStore(Path(folder))
        worker = await stack.enter_async_context(WorkerSupervisor(store))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        control = await stack.enter_async_context(Control(network.control("buyer-1"), CONCURRENCY))
        echoes = _Echoes(control, f"http://127.0.0.1:{await server.heard()}/", session, worker)
        echoes.model = store.add_local(load_description(description_path("echo")), {})
        await worker.load(echoes.model)
        note("one job at a time")
        ways: dict[str, Timed] = {"market": echoes.market, "bare": echoes.bare, "sandboxed": echoes.sandboxed}
        await _rounds(ways, 3 if quick else _WARM_UP)
        echoes.events.clear()
        taken = await _rounds(ways, PAIRS if quick else 25 * PAIRS)
        report.latencies("market.job", taken["market"])
        report.latencies("http.echo", taken["bare"], baseline=True)
        report.latencies("worker.job", taken["sandboxed"], baseline=True)
        report.ratio("market.job_to_http_echo", _medians(taken["market"], PAIRS), _medians(taken["bare"], PAIRS))
        report.ratio("market.job_to_worker_job", _medians(taken["market"], PAIRS), _medians(taken["sandboxed"], PAIRS))
        _breakdown(report, echoes.events)
        await _throughput(echoes, network, control, report, quick)


async def _throughput(echoes: _Echoes, network: Network, control: Control, report: Report, quick: bool) -> None:
    note(f"{CONCURRENCY} jobs at a time, then redemption of what they earned")
    await _at_once(echoes, 2 * CONCURRENCY)
    echoes.events.clear()
    echoes.jobs.clear()
    count = 2 * CONCURRENCY if quick else 75 * CONCURRENCY
    meter = ProcessorMeter({name: network.pid(name) for name in ("buyer-1", "provider-1")})
    started = time.perf_counter()
    seconds = await _at_once(echoes, count)
    key = f"concurrency={CONCURRENCY}"
    report.add(f"market.job.finished_per_second/{key}", count / seconds, "jobs/s")
    for role in ("buyer", "provider"):
        report.add(f"market.job.processor_ms/node={role}", meter.seconds(f"{role}-1") / count * 1000, "ms")
    report.latencies(f"market.job/{key}", [events[-1][0] for events in echoes.events])
    for job in echoes.jobs[-2 * CONCURRENCY :]:
        await control.settle(job)
    settled_s = time.perf_counter() - started
    report.add(f"market.job.settled_per_second/{key}", count / settled_s, "jobs/s")
    views = [await control.job(job) for job in echoes.jobs[:: max(1, count // 20)]]
    assert all(view.settled_height is not None for view in views), "a job was left without its anchor"


def measure(quick: bool) -> Report:
    """Round trips of no-op jobs, and jobs settled per second."""
    report = Report.start("no-op jobs through buyer, provider and sandboxed worker, with vouchers and receipt")
    with (
        python_process("scripts.benchmarks.echo_server") as server,
        development_network(authorities=1 if quick else 4, slots=2 * CONCURRENCY) as network,
    ):
        run_loop(_measure(network, server, report, quick))
    report.target("market.job.p50", "<=", 5.0)
    return report
