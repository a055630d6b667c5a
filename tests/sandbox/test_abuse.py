"""Workers that abuse what they were given, in the real worker: each is ended with the reason, or its job alone fails,
and the next job is served."""

import asyncio
import random
import shutil
from pathlib import Path

import msgpack
import pytest

from node.worker import process
from node.worker.errors import DeathReason, JobFailed, JobRefused, JobTimedOut, WorkerDied
from node.worker.limits import WorkerLimits
from node.worker.models import ModelDescription, ModelId, ModelStore
from node.worker.runtimes import CHILD_SOURCE
from node.worker.supervisor import JobRequest, WorkerSupervisor
from tests.worker.conftest import run, text

pytestmark = pytest.mark.usefixtures("unquestioned")
QUICK = WorkerLimits(cancel_grace_s=0.1, frame_s=0.5, memory_bytes=256 << 20, cpu_s=3)

TAKEN_OVER = """
import os, signal, time
from node.worker.child import echo, frames, runtime

def loris():
    for byte in frames.encode(["piece", 0, b"x" * 100, 1, [], None]):
        os.write(3, bytes([byte]))
        time.sleep(0.02)

def deaf():
    for number in range(1, 65):
        if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
            signal.signal(number, signal.SIG_IGN)
    while True:
        pass

def spin():
    while True:
        pass

def bomb():
    raise MemoryError if len(bytearray(1 << 30)) else None

def nest():
    def down(): down()
    down()

attacks = {b"loris": loris, b"deaf": deaf, b"spin": spin, b"bomb": bomb, b"nest": nest}
honest = echo.EchoRuntime.run
def run(self, request):
    attacks.get(request.payload, lambda: None)()
    return honest(self, request)
echo.EchoRuntime.run = run
"""


@pytest.fixture
def taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    imports, _, start = CHILD_SOURCE.partition("; from node")
    monkeypatch.setattr(process, "CHILD_SOURCE", f"{imports}\n{TAKEN_OVER}\nfrom node{start}")


def asked(payload: bytes) -> JobRequest:
    return JobRequest("bytes", payload, 100, 100)


@pytest.mark.usefixtures("taken_over")
@pytest.mark.parametrize(
    ("attack", "deadline_s", "death"),
    [
        (b"loris", 20.0, "stalled"),
        (b"nest", 20.0, "crashed"),
    ],
    ids=["a frame that dribbles", "recursion without end"],
)
async def test_a_worker_is_ended_for(
    store: ModelStore, echo: ModelId, attack: bytes, deadline_s: float, death: DeathReason
) -> None:
    async with WorkerSupervisor(store, limits=QUICK) as supervisor:
        with pytest.raises(WorkerDied) as died:
            await run(supervisor, echo, asked(attack), deadline_s)
        assert died.value.death == death
        assert text(await run(supervisor, echo, asked(b"fine"))) == "fine"


@pytest.mark.usefixtures("taken_over")
@pytest.mark.parametrize("attack", [b"spin", b"deaf"], ids=["endless loop", "deaf to signals"])
async def test_a_job_that_does_not_end_is_ended_at_its_deadline(
    store: ModelStore, echo: ModelId, attack: bytes
) -> None:
    loop = asyncio.get_running_loop()
    async with WorkerSupervisor(store, limits=QUICK) as supervisor:
        await supervisor.load(echo)
        began = loop.time()
        with pytest.raises(JobTimedOut):
            await run(supervisor, echo, asked(attack), deadline_s=0.4)
        assert loop.time() - began < 2
        assert text(await run(supervisor, echo, asked(b"fine"))) == "fine"


@pytest.mark.usefixtures("taken_over")
async def test_a_memory_bomb_fails_its_job_alone(store: ModelStore, echo: ModelId) -> None:
    async with WorkerSupervisor(store, limits=QUICK) as supervisor:
        with pytest.raises(JobFailed, match="memory"):
            await run(supervisor, echo, asked(b"bomb"))
        assert text(await run(supervisor, echo, asked(b"fine"))) == "fine"


@pytest.mark.long
@pytest.mark.usefixtures("taken_over")
async def test_processor_time_that_is_used_up_ends_the_worker_and_says_so(store: ModelStore, echo: ModelId) -> None:
    async with WorkerSupervisor(store, limits=QUICK) as supervisor:
        with pytest.raises(WorkerDied, match="processor time") as died:
            await run(supervisor, echo, asked(b"spin"), deadline_s=60)
        assert died.value.death == "time"


async def test_a_worker_that_never_reads_does_not_hold_the_node(
    store: ModelStore, echo: ModelId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that it is ready and reads no more: the job's deadline ends it, however much waits in the pipe."""
    imports, _, start = CHILD_SOURCE.partition("; from node")
    deaf = "import time; from node.worker.child import main; main.serve = lambda *_: time.sleep(1000)"
    monkeypatch.setattr(process, "CHILD_SOURCE", f"{imports}\n{deaf}\nfrom node{start}")
    async with WorkerSupervisor(store, limits=QUICK) as supervisor:
        await supervisor.load(echo)
        job = await supervisor.open_job(echo, b"job", JobRequest("bytes", bytes(4 << 20), 1, 1), deadline_s=0.5)
        with pytest.raises(JobTimedOut):
            await job.prefill()
        async with asyncio.timeout(5):
            await job.cancel()


@pytest.mark.parametrize(
    "shape", [[1 << 40], [1 << 20, 1 << 20, 1 << 20], [-1], [2**63]], ids=["huge", "overflow", "negative", "too large"]
)
async def test_a_tensor_that_claims_a_size_is_the_users_fault(
    store: ModelStore, magika: ModelId, shape: list[int]
) -> None:
    async with WorkerSupervisor(store) as supervisor:
        payload = msgpack.packb({"bytes": {"dtype": "int32", "shape": shape, "data": b"abcd"}})
        with pytest.raises(JobRefused):
            await run(supervisor, magika, JobRequest("tensors", payload, 1, 1))


def mutated(source: Path, target: Path, seed: int) -> None:
    """A copy with a few bytes changed near its beginning, where the structure is, or cut short."""
    dice = random.Random(seed)
    shutil.copyfile(source, target)
    target.chmod(0o644)
    with target.open("r+b") as file:
        if seed % 4 == 3:
            file.truncate(dice.randrange(1, target.stat().st_size))
        for _ in range(dice.randrange(1, 30)):
            file.seek(dice.randrange(min(target.stat().st_size, 1 << 16)))
            file.write(bytes([dice.randrange(256)]))


async def outcome(store: ModelStore, model: ModelId) -> str:
    """How loading a hostile model ends; anything but an answer or a worker's end is a fault of ours."""
    async with WorkerSupervisor(store) as supervisor:
        try:
            async with asyncio.timeout(60):
                await supervisor.load(model)
        except WorkerDied as died:
            return died.death if died.fault == "provider" and died.reason else "without a reason"
        return "loaded"


async def mutations(store: ModelStore, tmp_path: Path, model: ModelId, seeds: range) -> list[str]:
    manifest = store.manifest(model)
    (weights,) = [file for file in manifest.files if file.path.endswith((".onnx", ".gguf"))]
    ends = []
    for seed in seeds:
        copy = tmp_path / f"mutated-{seed}"
        mutated(store.file_path(weights), copy, seed)
        scratch = ModelStore(tmp_path / f"store-{seed}")
        files = {file.path: store.file_path(file) for file in manifest.files} | {weights.path: copy}
        description = ModelDescription("hostile", "1", manifest.runtime, "none", settings=manifest.settings)
        ends.append(await outcome(scratch, scratch.add_local(description, files)))
        shutil.rmtree(scratch.directory)
        copy.unlink()
    return ends


async def test_mutated_onnx_models_end_no_more_than_their_worker(
    store: ModelStore, magika: ModelId, tmp_path: Path
) -> None:
    assert set(await mutations(store, tmp_path, magika, range(6))) <= {"loaded", "start", "crashed", "memory"}


@pytest.mark.long
async def test_mutated_language_models_end_no_more_than_their_worker(
    store: ModelStore, smollm: ModelId, tmp_path: Path
) -> None:
    assert set(await mutations(store, tmp_path, smollm, range(16))) <= {"loaded", "start", "crashed", "memory"}
