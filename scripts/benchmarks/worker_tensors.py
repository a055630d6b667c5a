"""Texts made into numbers by an ONNX model: sixteen requests at a time, in the sandbox and directly.

Run as a program it is the direct side: its first line in is the model's id, each later one a JSON list of texts; it
answers with the seconds that the list took, each text being a request of its own.
"""

import asyncio
import sys
import time

import msgspec

from node.config.descriptions import description_path
from node.worker.child.onnx import OnnxRuntime
from node.worker.child.runtime import Piece, Prefilled, Request
from node.worker.limits import DEFAULT_LIMITS
from node.worker.models import ModelStore, load_description
from node.worker.packages import add_from_package
from node.worker.runtimes import node_settings
from node.worker.supervisor import JobRequest, WorkerSupervisor
from scripts.benchmarks.measure import PAIRS, Report, percentile
from scripts.benchmarks.network import MODEL_STORE
from scripts.benchmarks.python_process import Spoken, python_process

MODEL = "minilm"
AT_ONCE = 16
ROUNDS = 4
DEADLINE_S = 60.0


def _texts(number: int) -> list[str]:
    return [f"Question {number * AT_ONCE + place}: how do bridges carry so much weight?" for place in range(AT_ONCE)]


async def _through_worker(supervisor: WorkerSupervisor, model_id: str, texts: list[str]) -> float:
    async def one(text: str) -> None:
        asked = JobRequest("text", text.encode(), 1, 1)
        job = await supervisor.open_job(model_id, b"job", asked, deadline_s=DEADLINE_S, tenant="one buyer")
        await job.prefill()
        assert (await job.next_chunk()).finish == "done"

    started = time.perf_counter()
    for _ in range(ROUNDS):
        await asyncio.gather(*map(one, texts))
    return time.perf_counter() - started


async def _directly(direct: Spoken, texts: list[str]) -> float:
    direct.say(msgspec.json.encode(texts).decode())
    return float(await direct.heard())


async def _measure(report: Report, quick: bool) -> None:
    store = ModelStore(MODEL_STORE)
    model_id = await add_from_package(store, load_description(description_path(MODEL)))
    ours: list[float] = []
    theirs: list[float] = []
    async with WorkerSupervisor(store, slots=AT_ONCE) as supervisor:
        await supervisor.load(model_id)
        with python_process("scripts.benchmarks.worker_tensors") as direct:
            direct.say(model_id)
            assert await direct.heard() == "ready"
            for number in range(-1, PAIRS):
                texts = _texts(number)
                if number % 2:
                    one, other = await _through_worker(supervisor, model_id, texts), await _directly(direct, texts)
                else:
                    other, one = await _directly(direct, texts), await _through_worker(supervisor, model_id, texts)
                if number >= 0:
                    ours.append(AT_ONCE * ROUNDS / one)
                    theirs.append(AT_ONCE * ROUNDS / other)
    report.ratio("worker.onnx_to_runtime/at_once=16", ours, theirs)
    report.add("worker.onnx.requests_per_second/at_once=16", percentile(ours, 50), "requests/s")
    report.baseline("runtime.onnx.requests_per_second/at_once=16", percentile(theirs, 50), "requests/s")
    report.target("worker.onnx_to_runtime/at_once=16", ">=", 0.9)


def measure(report: Report, quick: bool) -> None:
    """Embeddings: sixteen requests at a time, which share runs on both sides."""
    asyncio.run(_measure(report, quick))


def _answer(runtime: OnnxRuntime, texts: list[str]) -> float:
    started = time.perf_counter()
    for _ in range(ROUNDS):
        for number, text in enumerate(texts):
            runtime.open(number, Request("text", text.encode(), 1, 1, 0, 0, (), tenant="one buyer"))
            runtime.grant(number)
        done = 0
        while runtime.busy():
            for event in runtime.step():
                assert isinstance(event, Piece | Prefilled), event
                done += isinstance(event, Piece)
        assert done == len(texts)
    return time.perf_counter() - started


def main() -> None:
    """Serve until standard input closes."""
    store = ModelStore(MODEL_STORE)
    manifest = store.verify(sys.stdin.readline().strip())
    runtime = OnnxRuntime()
    runtime.prepare()
    files = {file.path: str(store.file_path(file)) for file in manifest.files}
    decided = node_settings(manifest.runtime, manifest.settings, DEFAULT_LIMITS.batch_max)
    runtime.load(files, {**manifest.settings, **decided}, AT_ONCE)
    print("ready", flush=True)
    for line in sys.stdin:
        print(_answer(runtime, msgspec.json.decode(line, type=list[str])), flush=True)


if __name__ == "__main__":
    main()
