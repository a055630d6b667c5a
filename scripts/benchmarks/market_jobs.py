"""No-op jobs through the whole market: how long one takes, how many are settled a second, what each costs whom.

Every job is what any job is: signed bid and agreement, TLS, a sandboxed worker, vouchers and receipt on disk before
what follows from them leaves. The buyer has paid the provider before, so that input and output leave as one chunk;
``trust=0`` is the same where the input is paid first, as by a buyer that the provider does not know yet. All processes
share this machine's cores, the program that asks included.
"""

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

from node.cli.cluster_layout import ClusterRecord
from node.runtime.control import RunRequest
from scripts.benchmarks.control import Control
from scripts.benchmarks.measure import Report, note, run_loop
from scripts.benchmarks.network import Network, development_network
from scripts.benchmarks.processes import ProcessorMeter, children
from scripts.benchmarks.stages import tell_stages

PAYLOAD = b"What does a market cost when the work is free? " * 2
AT_ONCE = (1, 8, 32)
_WARM_UP = 64
_REDEEM_AGE = "age_ms = 2000"
_PROVIDER = "[provider]\n"
_PROFILE_SECONDS = 30.0
_DURABILITY = (
    "durability: a journal of rows before SQLite, fdatasync at every commit, on the file system of the "
    "temporary directory; a promise, voucher or receipt is on disk before anything that follows from it leaves the "
    "node; what is ready in one turn of the loop shares a commit, rows that nobody waits for join the next one (5 ms); "
    "the provider redeems every four seconds, settled is what a block holds, the wait for the last redemption included"
)


class _Load:
    """Jobs of one buyer's node."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self.latencies: list[float] = []
        self.jobs: list[str] = []

    async def run(self, jobs: int, at_once: int) -> float:
        """Seconds that so many jobs take."""
        self.latencies, self.jobs = [], []
        left = iter(range(jobs))
        started = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(self._one_after_the_other(left))
        return time.perf_counter() - started

    async def _one_after_the_other(self, left: Iterator[int]) -> None:
        request = RunRequest("echo", "bytes", PAYLOAD, brief=True)
        for _ in left:
            events = await self._control.run(request)
            assert b"".join(event.payload for _, event in events) == PAYLOAD
            self.latencies.append(events[-1][0])
            self.jobs.append(str(events[-1][1].facts["job"]))

    async def settle(self, at_once: int) -> None:
        """Have every receipt anchored: those of the last jobs of all lanes anchor the earlier ones."""
        for job in self.jobs[-2 * at_once :]:
            await self._control.settle(job)


class _Meters:
    """Processor time of everybody who takes part, this program included."""

    def __init__(self, network: Network) -> None:
        pids = {"buyer": network.pid("buyer-1"), "provider": network.pid("provider-1")}
        self._workers = children(pids["provider"])
        self._authorities = [network.pid(node.name) for node in network.record.nodes if node.role == "authority"]
        everybody = [*pids.values(), *self._workers, *self._authorities]
        self._pids, self._meter = pids, ProcessorMeter({str(pid): pid for pid in everybody})
        self._own = time.process_time()

    def milliseconds(self, jobs: int) -> dict[str, float]:
        """Milliseconds a job by process."""
        spent = {role: self._meter.seconds(str(pid)) for role, pid in self._pids.items()}
        spent["worker"] = sum(self._meter.seconds(str(pid)) for pid in self._workers)
        spent["authorities"] = sum(self._meter.seconds(str(pid)) for pid in self._authorities)
        spent["client"] = time.process_time() - self._own
        return {role: seconds / jobs * 1000 for role, seconds in spent.items()}


async def _measured(network: Network, report: Report, quick: bool) -> dict[str, float]:
    """All figures but the stages; milliseconds a job by process at the most jobs at once."""
    async with Control(network.control("buyer-1")) as control:
        load = _Load(control)
        await load.run(_WARM_UP if not quick else 4, 4)
        before = (await control.ledger()).height
        done, spent = 0, dict[str, float]()
        for at_once in AT_ONCE:
            jobs = 2 * at_once if quick else 600 + 280 * at_once
            note(f"{jobs} jobs, {at_once} at a time")
            meters = _Meters(network)
            started = time.perf_counter()
            seconds = await load.run(jobs, at_once)
            spent = meters.milliseconds(jobs)
            await load.settle(at_once)
            settled_s = time.perf_counter() - started
            key = f"at_once={at_once}"
            report.latencies(f"market.job/{key}", load.latencies)
            report.add(f"market.job.finished_per_second/{key}", jobs / seconds, "jobs/s")
            report.add(f"market.job.settled_per_second/{key}", jobs / settled_s, "jobs/s")
            for role, milliseconds in spent.items():
                report.add(f"market.job.processor_ms/{key},process={role}", milliseconds, "ms")
            report.add(f"market.job.processor_ms/{key}", sum(spent.values()), "ms")
            done += jobs
        decided = [await control.block(height) for height in range(before + 1, (await control.ledger()).height + 1)]
        report.add("market.job.ledger_transactions", sum(len(block.transactions) for block in decided) / done, "1/job")
    return spent


async def _profiled(network: Network, folder: Path, jobs: int, at_once: int) -> dict[str, Path]:
    """Profiles of the buyer's and the provider's node while they do jobs."""
    pids = {"buyer": network.pid("buyer-1"), "provider": network.pid("provider-1")}
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(Control(network.control("buyer-1")))
        load = _Load(control)
        await load.run(at_once, 4)
        for pid in pids.values():
            os.kill(pid, signal.SIGUSR2)
        await load.run(jobs, at_once)
        for pid in pids.values():
            os.kill(pid, signal.SIGUSR2)
        profiles = {role: folder / str(pid) for role, pid in pids.items()}
        async with asyncio.timeout(_PROFILE_SECONDS):
            while not all(path.exists() for path in profiles.values()):
                await control.ledger()
    return profiles


def _stages(report: Report, spent: dict[str, float], quick: bool) -> None:
    """A second network, profiled: what the first one measured is not disturbed by it."""
    at_once = AT_ONCE[-1]
    jobs = 2 * at_once if quick else 20 * at_once
    note(f"{jobs} jobs, profiled")
    with tempfile.TemporaryDirectory(prefix="mercat-profiles-") as folder:
        beside = {"PROFILES": folder, "PYTHONPATH": str(Path(__file__).parent / "profiled")}
        kept = {name: os.environ.get(name) for name in beside}
        os.environ.update(beside)
        try:
            with development_network(authorities=1, slots=2 * at_once) as network:
                for role, profile in run_loop(_profiled(network, Path(folder), jobs, at_once)).items():
                    tell_stages(report, role, profile, jobs, spent[role])
        finally:
            for name, value in kept.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def _redeem_every_four_seconds(record: ClusterRecord) -> None:
    """So that jobs are settled while others run: a provider at its default would settle all of them after the end."""
    for node in record.nodes:
        if node.role == "provider":
            written = node.config.read_text()
            assert written.count(_REDEEM_AGE) == 1
            node.config.write_text(written.replace(_REDEEM_AGE, "age_ms = 4000"))


def _trust_nobody(record: ClusterRecord) -> None:
    """As if every buyer were new: the input is paid before output leaves."""
    _redeem_every_four_seconds(record)
    for node in record.nodes:
        if node.role == "provider":
            written = node.config.read_text()
            assert written.count(_PROVIDER) == 1
            node.config.write_text(written.replace(_PROVIDER, f"{_PROVIDER}trust_permille = 0\n"))


async def _among_strangers(network: Network, report: Report, quick: bool) -> None:
    async with Control(network.control("buyer-1")) as control:
        load = _Load(control)
        await load.run(4 if quick else _WARM_UP, 4)
        note("one at a time, the input paid first")
        await load.run(4 if quick else 600, 1)
        report.latencies("market.job/at_once=1,trust=0", load.latencies)


def measure_jobs(report: Report, quick: bool) -> None:
    """Latency, jobs settled a second, processor time by process and by stage, of jobs that do nothing."""
    report.notes.append(_DURABILITY)
    authorities, slots = 1 if quick else 4, 2 * AT_ONCE[-1]
    with development_network(authorities=authorities, slots=slots, prepare=_redeem_every_four_seconds) as network:
        spent = run_loop(_measured(network, report, quick))
    with development_network(authorities=authorities, slots=slots, prepare=_trust_nobody) as network:
        run_loop(_among_strangers(network, report, quick))
    _stages(report, spent, quick)
    report.target("market.job.p50/at_once=1", "<=", 3.0)
    report.target("market.job.p99/at_once=1", "<=", 10.0)
    report.target(f"market.job.settled_per_second/at_once={AT_ONCE[-1]}", ">=", 600.0)
    report.target("market.job.ledger_transactions", "<=", 0.01)
