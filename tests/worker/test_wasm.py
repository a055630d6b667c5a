"""WebAssembly programs in the real sandbox: the same bytes and fuel every time, and nothing of this machine."""

import asyncio
import os
from collections.abc import Awaitable
from pathlib import Path

import msgpack
import pytest
import wasmtime

from node.worker.child.runtime import Prefilled, Request
from node.worker.child.wasm import WasmRuntime
from node.worker.errors import JobRefused, ModelError, WorkerError
from node.worker.models import ModelDescription, ModelId, ModelStore
from node.worker.supervisor import JobRequest, WorkerChunk, WorkerSupervisor
from tests.worker.conftest import added, run

UNITS = 100


@pytest.fixture(scope="session")
def python(store: ModelStore) -> ModelId:
    return added(store, "python")


def program(store: ModelStore, folder: Path, text: str, **settings: int | str) -> ModelId:
    """A module written by hand, in the text form."""
    path = folder / "module.wasm"
    path.write_bytes(wasmtime.wat2wasm(text))
    facts: dict[str, int | str] = {"module_file": "module.wasm", "fuel_per_unit": 10_000, **settings}
    return store.add_local(ModelDescription("program", "1", "wasm", "Apache-2.0", facts), {"module.wasm": path})


def source(text: str, units: int = UNITS, seed: int = 0) -> JobRequest:
    return JobRequest("text", text.encode(), units, 256, seed=seed)


async def test_a_program_gives_the_same_bytes_and_the_same_fuel_in_two_workers(
    store: ModelStore, python: ModelId
) -> None:
    job = source("print(sum(i * i for i in range(100000)))\nprint({1, 2, 3})", units=10_000)
    seen: list[list[WorkerChunk]] = []
    for _ in range(2):
        async with WorkerSupervisor(store) as supervisor:
            seen += [await run(supervisor, python, job), await run(supervisor, python, job)]
    assert b"".join(piece.payload for piece in seen[0]).startswith(b"333328333350000\n")
    assert sum(piece.units for piece in seen[0]) > UNITS
    assert all(pieces == seen[0] for pieces in seen)


FAILING = {
    "exception": ("print('before')\n1/0", b"ZeroDivisionError", "failed"),
    "exit code": ("raise SystemExit(3)", b"exit code 3", "failed"),
    "no such file": ("open('/etc/passwd')", b"ENOENT", "failed"),
    "a file to write": ("open('new', 'w')", b"OSError", "failed"),
    "too much memory": ("x = [0] * 10**9", b"MemoryError", "failed"),
    "endless": ("print('before')\nwhile True: pass", b"before\n", "length"),
}


async def test_a_program_that_fails_is_paid_for_its_steps_and_says_why(store: ModelStore, python: ModelId) -> None:
    async with WorkerSupervisor(store) as supervisor:
        for text, said, finish in FAILING.values():
            (piece,) = await run(supervisor, python, source(text))
            assert said in piece.payload
            assert (piece.finish, piece.units == UNITS) == (finish, finish == "length")
        (next_piece,) = await run(supervisor, python, source("print(1)"))
    assert next_piece.payload == b"1\n"


async def test_clock_and_environment_are_the_same_for_everybody(store: ModelStore, python: ModelId) -> None:
    async with WorkerSupervisor(store) as supervisor:
        (first,) = await run(supervisor, python, source("import time, os\nprint(time.time())\nprint(os.listdir('/'))"))
    assert first.payload.splitlines() == [b"1600000000.000002", b"[]"]


async def test_arguments_input_and_files_reach_the_program(store: ModelStore, python: ModelId) -> None:
    code = "import sys\nprint(open('a.txt').read(), sys.stdin.read(), sys.argv[1:])"
    payload = msgpack.packb({"args": [code, "x"], "stdin": b"in", "files": {"a.txt": b"file"}})
    async with WorkerSupervisor(store) as supervisor:
        (piece,) = await run(supervisor, python, JobRequest("wasi", payload, UNITS, 256))
    assert piece.payload == b"file in ['x']\n"


BAD_INPUTS = {
    "not a map": msgpack.packb([1]),
    "other fields": msgpack.packb({"environment": {}}),
    "args of numbers": msgpack.packb({"args": [1]}),
    "zero byte": msgpack.packb({"args": ["a\0b"]}),
    "not MessagePack": b"\xc1",
}


async def test_a_wrong_input_is_refused_before_anything_runs(store: ModelStore, python: ModelId) -> None:
    async with WorkerSupervisor(store) as supervisor:
        for payload in BAD_INPUTS.values():
            with pytest.raises(JobRefused, match=r"args|fields|map"):
                await run(supervisor, python, JobRequest("wasi", payload, UNITS, 256))


async def test_a_cancelled_program_stops_at_once_and_the_worker_goes_on(store: ModelStore, python: ModelId) -> None:
    async with WorkerSupervisor(store) as supervisor:
        job = await supervisor.open_job(
            python, bytes(32), JobRequest("text", b"while True: pass", 1_000_000, 256), deadline_s=60
        )
        await job.prefill()
        async with asyncio.TaskGroup() as tasks:
            piece = tasks.create_task(_failure(job.next_chunk()))
            await asyncio.sleep(0)
            await job.cancel()
            assert isinstance(await piece, WorkerError)
        (next_piece,) = await run(supervisor, python, source("print(1)"))
    assert next_piece.payload == b"1\n"


async def _failure(waiting: Awaitable[WorkerChunk]) -> WorkerError | None:
    try:
        await waiting
    except WorkerError as error:
        return error
    return None


def test_a_program_cancelled_before_its_first_step_takes_none(tmp_path: Path) -> None:
    path = tmp_path / "module.wasm"
    path.write_bytes(wasmtime.wat2wasm('(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))'))
    runtime = WasmRuntime()
    runtime.prepare()
    runtime.load({"module.wasm": str(path)}, {"module_file": "module.wasm"}, 1)
    runtime.open(1, Request("bytes", b"", 1_000_000, 256, 0, 0, ()))
    assert runtime.step() == [Prefilled(1, 1)]
    state = runtime._jobs[1]
    runtime._running = 1
    runtime.cancel(1)
    assert runtime._run(state) == 0
    os.close(runtime._wake_reading)
    os.close(runtime._wake_writing)


QUESTIONS = """
(module
  (import "wasi_snapshot_preview1" "random_get" (func $ask (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (loop $again (drop (call $ask (i32.const {at}) (i32.const {size}))) (br $again))))
"""


DICE = """
(module
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\40\\00\\00\\00\\10\\00\\00\\00")
  (func (export "_start")
    (drop (call $random (i32.const 64) (i32.const 16)))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))))
"""


async def test_random_bytes_come_from_the_seed_of_the_job(store: ModelStore, tmp_path: Path) -> None:
    dice = program(store, tmp_path, DICE)
    async with WorkerSupervisor(store) as supervisor:
        drawn = [
            (await run(supervisor, dice, JobRequest("bytes", b"", 256, 256, seed=seed)))[0].payload
            for seed in (1, 1, 2)
        ]
    assert len(drawn[0]) == 16
    assert drawn[0] == drawn[1] != drawn[2]


async def test_questions_to_the_host_cost_fuel(store: ModelStore, tmp_path: Path) -> None:
    """A million of units buy about five questions each, so that a module can't keep the host busy for little."""
    asking = program(store, tmp_path, QUESTIONS.format(at=0, size=8))
    async with WorkerSupervisor(store) as supervisor:
        (piece,) = await run(supervisor, asking, JobRequest("bytes", b"", 256, 256))
    assert (piece.finish, piece.units, piece.payload) == ("length", 256, b"")


async def test_a_pointer_outside_the_memory_fails_the_program_alone(store: ModelStore, tmp_path: Path) -> None:
    asking = program(store, tmp_path, QUESTIONS.format(at=65_530, size=64))
    async with WorkerSupervisor(store) as supervisor:
        (piece,) = await run(supervisor, asking, JobRequest("bytes", b"", 256, 256))
        (again,) = await run(supervisor, asking, JobRequest("bytes", b"", 256, 256))
    assert (piece.finish, piece.payload) == ("failed", b"a pointer outside the program's memory\n")
    assert again == piece


BAD_MODULES = {
    "no program": '(module (func (export "other")))',
    "threads": '(module (memory (export "memory") 1 1 shared) (func (export "_start")))',
}


@pytest.mark.parametrize("name", BAD_MODULES)
async def test_a_module_that_cannot_run_here_is_refused_at_load(store: ModelStore, tmp_path: Path, name: str) -> None:
    bad = program(store, tmp_path, BAD_MODULES[name])
    async with WorkerSupervisor(store) as supervisor:
        with pytest.raises((ModelError, WorkerError)):
            await supervisor.load(bad)


async def test_bytes_that_are_no_module_are_refused_at_load(store: ModelStore, tmp_path: Path) -> None:
    path = tmp_path / "junk"
    path.write_bytes(b"\0asm" + bytes(1000))
    facts: dict[str, int | str] = {"module_file": "module.wasm"}
    bad = store.add_local(ModelDescription("junk", "1", "wasm", "Apache-2.0", facts), {"module.wasm": path})
    async with WorkerSupervisor(store) as supervisor:
        with pytest.raises((ModelError, WorkerError), match="WebAssembly"):
            await supervisor.load(bad)
