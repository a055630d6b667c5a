"""Workers that misbehave. The runtime inside a real sandbox is taken over, as a hostile model would; the node must
end it, say why, and serve the next job."""

import asyncio
import os
import resource
import signal
from pathlib import Path

import pytest

from node.worker import process
from node.worker.errors import (
    CapacityExceeded,
    CorruptModel,
    DeathReason,
    JobFailed,
    JobTimedOut,
    UnknownModel,
    WorkerDied,
)
from node.worker.health import HealthLimits
from node.worker.limits import WorkerLimits
from node.worker.models import ModelDescription, ModelId, ModelStore
from node.worker.runtimes import CHILD_SOURCE
from node.worker.supervisor import JobRequest, Prefilled, WorkerChunk, WorkerSupervisor
from tests.worker.conftest import exists, run, running, text

PATIENT = HealthLimits(crashes_max=1000, pause_s=0.0)
QUICK = WorkerLimits(cancel_grace_s=0.1, frame_s=0.3, memory_bytes=256 << 20, output_bytes=64 << 10, health=PATIENT)

# Replaces what the echo runtime does with a payload; everything else (launch, filters, limits) is the real thing.
TAKEN_OVER = """
import os, sys, threading, time
from node.worker.child import echo, frames

def write(content):
    descriptor = 3
    while content:
        content = content[os.write(descriptor, content):]

def flood():
    while True:
        write(frames.encode(["piece", 0, b"x" * 1000, 0, [], None]) * 50)  # none but the first is asked for

def loop():
    while True:
        pass

def threads():
    while True:
        threading.Thread(target=time.sleep, args=(1000,)).start()

def hoard():
    kept = []
    while True:
        kept.append(bytearray(1 << 22))

def shout():
    for _ in range(64):
        os.write(2, b"x" * (1 << 16))

attacks = {
    b"loop": loop,
    b"shout": shout,
    b"give up": lambda: (write(frames.encode(["cancelled", 0])), loop()),
    b"give up later": lambda: threading.Timer(0.2, lambda: write(frames.encode(["cancelled", 0]))).start(),
    b"flood": flood,
    b"announce": lambda: (write(b"\\xff\\xff\\xff\\xff"), loop()),
    b"stall": lambda: (write(b"\\x00\\x00\\x01\\x00half"), loop()),
    b"garbage": lambda: (write(b"\\x00\\x00\\x00\\x02\\xc1\\xc1"), loop()),
    b"unknown": lambda: (write(frames.encode(["launder", 1])), loop()),
    b"stranger": lambda: (write(frames.encode(["prefilled", 77, 1])), loop()),
    b"twice": lambda: (write(frames.encode(["prefilled", 0, 1])), loop()),
    b"unasked": lambda: (write(frames.encode(["piece", 0, b"", 0, [], None]) * 2), loop()),
    b"overclaim": lambda: (write(frames.encode(["piece", 0, b"", 1000, [], None])), loop()),
    b"tokens": lambda: (write(frames.encode(["piece", 0, b"", 1, [1], None])), loop()),
    b"reload": lambda: (write(frames.encode(["ready", 5])), loop()),
    b"abort": os.abort,
    b"exit": lambda: os._exit(0),
    b"hoard": hoard,
    b"threads": threads,
}
honest = echo.EchoRuntime.run
def run(self, request):
    attacks.get(request.payload, lambda: None)()
    return honest(self, request)
echo.EchoRuntime.run = run
judge = echo.EchoRuntime.check
echo.EchoRuntime.check = lambda self, request: judge(self, request) + (request.payload == b"overcount")
"""

BREAKS: dict[str, DeathReason] = {
    "flood": "malformed_frame",
    "announce": "output_cap",
    "stall": "stalled",
    "garbage": "malformed_frame",
    "unknown": "malformed_frame",
    "stranger": "malformed_frame",
    "twice": "malformed_frame",
    "unasked": "malformed_frame",
    "overclaim": "malformed_frame",
    "tokens": "malformed_frame",
    "reload": "malformed_frame",
    "give up": "malformed_frame",
    "overcount": "malformed_frame",
    "abort": "crashed",
    "exit": "crashed",
}


@pytest.fixture
def taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    imports, _, start = CHILD_SOURCE.partition("; from node")
    assert start
    monkeypatch.setattr(process, "CHILD_SOURCE", f"{imports}\n{TAKEN_OVER}\nfrom node{start}")


def asked(payload: bytes) -> JobRequest:
    return JobRequest("bytes", payload, 100, 100)


@pytest.mark.usefixtures("taken_over")
async def test_a_worker_that_breaks_the_rules_is_ended_with_the_reason(store: ModelStore, echo: ModelId) -> None:
    """Each in turn: the worker dies with its reason within a second or so, and the next job is served."""
    loop = asyncio.get_running_loop()
    async with WorkerSupervisor(store, limits=QUICK) as supervisor:
        for name, death in BREAKS.items():
            await supervisor.load(echo)
            began = loop.time()
            with pytest.raises(WorkerDied) as died:
                await run(supervisor, echo, asked(name.encode()), deadline_s=20)
            assert (died.value.death, died.value.fault) == (death, "provider"), name
            assert loop.time() - began < 2.0, name
        assert text(await run(supervisor, echo, asked(b"fine"))) == "fine"


@pytest.mark.usefixtures("taken_over")
async def test_a_flood_does_not_fill_the_nodes_memory(store: ModelStore, echo: ModelId) -> None:
    async with WorkerSupervisor(store, limits=QUICK) as supervisor:
        await supervisor.load(echo)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(WorkerDied):
            await run(supervisor, echo, asked(b"flood"))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


@pytest.mark.usefixtures("taken_over")
async def test_a_worker_that_goes_on_giving_up_what_has_ended_is_ended(store: ModelStore, echo: ModelId) -> None:
    """Otherwise it could keep the node busy with such frames for ever: no job of its own has a deadline."""
    async with WorkerSupervisor(store, limits=QUICK) as supervisor:
        await run(supervisor, echo, asked(b"give up later"))
        worker = running(supervisor, echo)
        async with asyncio.timeout(5):
            await worker.gone.wait()
        assert worker._death is not None
        assert worker._death.death == "malformed_frame"


@pytest.mark.usefixtures("taken_over")
async def test_what_a_worker_prints_is_read_slowly(store: ModelStore, echo: ModelId) -> None:
    loop = asyncio.get_running_loop()
    async with WorkerSupervisor(store, limits=QUICK) as supervisor:
        await supervisor.load(echo)
        began = loop.time()
        assert text(await run(supervisor, echo, asked(b"shout"))) == "shout"
        assert loop.time() - began > 0.3  # 4 MiB; a node that reads as fast as it can takes hundredths


async def test_a_model_that_claims_more_context_than_its_manifest_is_ended(
    store: ModelStore, echo: ModelId, monkeypatch: pytest.MonkeyPatch
) -> None:
    imports, _, start = CHILD_SOURCE.partition("; from node")
    boast = "from node.worker.child import echo, runtime; echo.EchoRuntime.load = lambda *_: runtime.Loaded(1 << 20)"
    monkeypatch.setattr(process, "CHILD_SOURCE", f"{imports}\n{boast}\nfrom node{start}")
    async with WorkerSupervisor(store, limits=QUICK) as supervisor:
        with pytest.raises(WorkerDied, match="context"):
            await supervisor.load(echo)


@pytest.mark.usefixtures("taken_over")
async def test_a_stubborn_worker_dies_at_its_jobs_deadline_and_its_neighbours_are_moved(
    store: ModelStore, echo: ModelId
) -> None:
    async with WorkerSupervisor(store, limits=QUICK) as supervisor:
        await supervisor.load(echo)
        first = running(supervisor, echo)
        stubborn = await supervisor.open_job(echo, b"a", asked(b"loop"), deadline_s=0.4)
        beside = await supervisor.open_job(echo, b"b", asked(b"fine"), deadline_s=20)
        await stubborn.prefill()
        with pytest.raises(JobTimedOut):
            await stubborn.next_chunk()
        async with asyncio.timeout(2):
            await first.gone.wait()
        assert (await beside.prefill(), await beside.next_chunk()) == (
            Prefilled(4),
            WorkerChunk(b"fine", 4, (), "done"),
        )
        assert text(await run(supervisor, echo, asked(b"fine"))) == "fine"


@pytest.mark.usefixtures("taken_over")
async def test_memory_and_threads_end_at_their_limits_and_the_job_alone_fails(store: ModelStore, echo: ModelId) -> None:
    async with WorkerSupervisor(store, limits=QUICK) as supervisor:
        with pytest.raises(JobFailed, match="memory"):
            await run(supervisor, echo, asked(b"hoard"))
        worker = running(supervisor, echo)
        assert worker.alive()
        with pytest.raises(WorkerDied):  # the thread that can't be started ends the runtime
            await run(supervisor, echo, asked(b"threads"))


async def test_an_output_over_its_cap_is_cut(store: ModelStore, echo: ModelId) -> None:
    async with WorkerSupervisor(store, limits=QUICK) as supervisor:
        request = JobRequest("bytes", bytes(100_000), 1 << 20, 1 << 20)
        with pytest.raises(WorkerDied) as died:
            await run(supervisor, echo, request)
        assert died.value.death == "output_cap"
        assert text(await run(supervisor, echo, asked(b"fine"))) == "fine"


async def test_kill_9_in_the_middle_of_jobs_fails_them_within_a_second(store: ModelStore, echo: ModelId) -> None:
    async with WorkerSupervisor(store) as supervisor:
        jobs = [await supervisor.open_job(echo, b"a", asked(b"x"), deadline_s=30) for _ in range(3)]
        for job in jobs:
            await job.prefill()
        worker = running(supervisor, echo)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        async with asyncio.timeout(1):
            await worker.gone.wait()
            for job in jobs:
                with pytest.raises(WorkerDied) as died:
                    await job.next_chunk()
                assert died.value.death == "crashed"
        assert text(await run(supervisor, echo, asked(b"fine"))) == "fine"


async def test_jobs_beyond_the_slots_wait_their_turn_and_beyond_the_queue_are_refused(
    store: ModelStore, echo: ModelId
) -> None:
    async with WorkerSupervisor(store, slots=1, limits=WorkerLimits(jobs_queued=1)) as supervisor:
        await supervisor.load(echo)
        first = await supervisor.open_job(echo, b"a", asked(b"first"), deadline_s=30)
        await first.prefill()
        async with asyncio.TaskGroup() as group:
            second = group.create_task(run(supervisor, echo, asked(b"second")))
            await asyncio.sleep(0)
            with pytest.raises(CapacityExceeded):
                await supervisor.open_job(echo, b"c", asked(b"third"), deadline_s=30)
            assert (await first.next_chunk()).payload == b"first"
        assert text(second.result()) == "second"
        blocking = await supervisor.open_job(echo, b"d", asked(b"x"), deadline_s=30)
        with pytest.raises(JobTimedOut, match="no slot"):
            await supervisor.open_job(echo, b"e", asked(b"x"), deadline_s=0.05)
        await blocking.cancel()


async def test_a_job_nobody_pulls_still_meets_its_deadline_and_frees_the_slot(store: ModelStore, echo: ModelId) -> None:
    async with WorkerSupervisor(store, slots=1) as supervisor:
        await supervisor.load(echo)
        forgotten = await supervisor.open_job(echo, b"a", asked(b"x"), deadline_s=0.2)
        assert text(await run(supervisor, echo, asked(b"fine"))) == "fine"
        with pytest.raises(JobTimedOut):
            await forgotten.next_chunk()


async def test_a_model_file_that_was_changed_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    weights = tmp_path / "weights"
    weights.write_bytes(b"w" * 1000)
    model = store.add_local(ModelDescription("m", "1", "onnx", "none"), {"model.onnx": weights})
    (file,) = store.manifest(model).files
    stored = store.file_path(file)
    stat = stored.stat()
    stored.chmod(0o644)
    stored.write_bytes(b"w" * 999 + b"W")
    os.utime(stored, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time: only the bytes differ
    async with WorkerSupervisor(store) as supervisor:
        with pytest.raises(CorruptModel, match=r"model\.onnx"):
            await supervisor.load(model)
        stored.unlink()
        with pytest.raises(CorruptModel, match="missing"):
            await supervisor.load(model)
        with pytest.raises(UnknownModel):
            await supervisor.load("0" * 64)
        with pytest.raises(UnknownModel):
            await supervisor.load("../../etc/passwd")


async def test_unload_ends_the_process(store: ModelStore, echo: ModelId) -> None:
    async with WorkerSupervisor(store) as supervisor:
        await supervisor.load(echo)
        worker = running(supervisor, echo)
        await supervisor.unload(echo)
        assert worker.pid is not None
        assert not exists(worker.pid)
        assert text(await run(supervisor, echo, asked(b"fine"))) == "fine"
