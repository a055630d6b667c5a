"""What a worker costs beside its work: a job that does nothing, starts cold and warm, and the memory of shared models.

A cold start is compared with the same program, imports and model in a plain process: what is left is the sandbox.
"""

import asyncio
import sys
import sysconfig
import time
from pathlib import Path

from node.config.descriptions import description_path
from node.worker.child.frames import LENGTH, Value, decode, encode
from node.worker.limits import DEFAULT_LIMITS
from node.worker.models import Manifest, ModelStore, load_description
from node.worker.packages import add_from_package
from node.worker.process import Worker
from node.worker.supervisor import JobRequest, WorkerSupervisor
from scripts.benchmarks.measure import PAIRS, Report, percentile
from scripts.benchmarks.network import MODEL_STORE
from scripts.benchmarks.processes import MEBIBYTE

ROOT = Path(__file__).parents[2]
MODELS = ("echo", "minilm", "smollm2-135m")
NOOP_JOBS = 2000
WARM_STARTS = 200
SHARING = 3
SLOTS = 4
_PLAIN = (
    f"import sys; sys.path[:0] = [{str(ROOT)!r}, {sysconfig.get_path('platlib')!r}]"
    "; from node.worker.child.main import main; main()"
)


async def _noop(supervisor: WorkerSupervisor, echo: str, tenant: str) -> float:
    """One job through the sandbox and back; the answer is checked."""
    started = time.perf_counter()
    job = await supervisor.open_job(echo, b"job", JobRequest("bytes", b"nothing", 7, 7), deadline_s=30, tenant=tenant)
    await job.prefill()
    chunk = await job.next_chunk()
    assert (chunk.payload, chunk.finish) == (b"nothing", "done")
    return time.perf_counter() - started


async def _jobs(store: ModelStore, echo: str, report: Report, quick: bool) -> None:
    async with WorkerSupervisor(store) as supervisor:
        await supervisor.load(echo)
        for _ in range(20):
            await _noop(supervisor, echo, "somebody")
        report.latencies(
            "worker.noop", [await _noop(supervisor, echo, "somebody") for _ in range(50 if quick else NOOP_JOBS)]
        )
        warm = []
        for number in range(10 if quick else WARM_STARTS):
            started = time.perf_counter()
            await supervisor.load(echo)
            await _noop(supervisor, echo, f"buyer {number}")
            warm.append(time.perf_counter() - started)
    report.latencies("worker.start/warm=1", warm)
    report.target("worker.noop.p50", "<=", 0.5)
    report.target("worker.start.p50/warm=1", "<=", 5.0)


async def _sandboxed_start(store: ModelStore, manifest: Manifest) -> float:
    """From nothing to a loaded model in the sandbox."""
    async with asyncio.TaskGroup() as tasks:
        started = time.perf_counter()
        worker = await Worker.start(store, manifest, SLOTS, DEFAULT_LIMITS, tasks)
        took = time.perf_counter() - started
        worker.kill("measured", "closed")
        await worker.gone.wait()
    return took


async def _plain_start(store: ModelStore, manifest: Manifest) -> float:
    """The same program without a sandbox, until it says that it is ready."""
    wanted: dict[str, Value] = {
        "runtime": manifest.runtime, "files": {file.path: str(store.file_path(file)) for file in manifest.files},
        "settings": {**manifest.settings}, "slots": SLOTS, "filter": b"", "processes": 0,
    }  # fmt: skip
    started = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-B", "-c", _PLAIN,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(encode(["start", wanted]))
    said: list[object] = []
    while said[:1] != ["ready"]:
        (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
        frame = decode(await process.stdout.readexactly(length))
        assert isinstance(frame, list)
        assert frame[0] in ("confined", "ready"), frame
        said = [*frame]
    took = time.perf_counter() - started
    process.stdin.close()
    await process.wait()
    return took


async def _cold(store: ModelStore, name: str, report: Report, quick: bool) -> None:
    manifest = store.manifest(await add_from_package(store, load_description(description_path(name))))
    over: list[float] = []
    whole: list[float] = []
    plain: list[float] = []
    for number in range(-1, PAIRS):
        if number % 2:
            sandboxed, bare = await _sandboxed_start(store, manifest), await _plain_start(store, manifest)
        else:
            bare, sandboxed = await _plain_start(store, manifest), await _sandboxed_start(store, manifest)
        if number >= 0:
            over.append(sandboxed - bare)
            whole.append(sandboxed)
            plain.append(bare)
    report.add(f"worker.start_over_plain.p50/model={name}", max(0.0, percentile(over, 50)) * 1000, "ms")
    report.add(f"worker.start_over_plain.best/model={name}", max(0.0, min(whole) - min(plain)) * 1000, "ms")
    report.baseline(f"plain.start.p50/model={name}", percentile(plain, 50) * 1000, "ms")
    report.target(f"worker.start_over_plain.p50/model={name}", "<=", 80.0)


def _mapped(pid: int, bytes_min: int) -> int:
    """Bytes that the kernel counts as this process's share of large files it has mapped."""
    share, file = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if "-" in name.split()[0]:
            first, last = (int(end, 16) for end in line.split()[0].split("-"))
            file = last - first >= bytes_min and len(line.split()) > 5
        elif name == "Pss" and file:
            share += int(value.split()[0]) * 1024
    return share


def _inside(pid: int) -> int:
    """The process that holds the model: the last of the launcher's descendants."""
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[-1])
    return pid


async def _shared(store: ModelStore, report: Report) -> None:
    """Several workers with one model: the kernel's shares of its file add up to one copy."""
    manifest = store.manifest(await add_from_package(store, load_description(description_path(MODELS[-1]))))
    size = manifest.size_bytes()
    async with asyncio.TaskGroup() as tasks:
        workers = [await Worker.start(store, manifest, 1, DEFAULT_LIMITS, tasks) for _ in range(SHARING)]
        shares = [_mapped(_inside(worker.pid), size // 2) for worker in workers if worker.pid is not None]
        for worker in workers:
            worker.kill("measured", "closed")
            await worker.gone.wait()
    assert len(shares) == SHARING
    assert all(shares), "no worker has mapped the model"
    report.add(f"worker.model_shares_mebibytes/workers={SHARING}", sum(shares) / MEBIBYTE, "MiB")
    report.baseline("file.model_mebibytes", size / MEBIBYTE, "MiB")
    report.add(f"worker.model_copies/workers={SHARING}", sum(shares) / size, "copies")
    report.target(f"worker.model_copies/workers={SHARING}", "<=", 1.1)


async def _measure(report: Report, quick: bool) -> None:
    store = ModelStore(MODEL_STORE)
    echo = await add_from_package(store, load_description(description_path("echo")))
    await _jobs(store, echo, report, quick)
    for name in MODELS[:1] if quick else MODELS:
        await _cold(store, name, report, quick)
    await _shared(store, report)


def measure(report: Report, quick: bool) -> None:
    """What a worker costs beside its work: no-op jobs, starts, shared memory."""
    asyncio.run(_measure(report, quick))
