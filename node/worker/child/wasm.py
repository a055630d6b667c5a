"""The WebAssembly runtime: any WASI module as a deterministic job, metered in fuel.

Law: the same module, input and seed give the same bytes and the same fuel on every node with this build: one engine
configuration, canonical NaNs, no threads, a closed world (`wasi.py`). Work units are fuel: `fuel_per_unit` steps each,
rounded up. A program that fails is paid like any other; its error output and what stopped it end what it wrote. One
job runs at a time, in a thread of its own, so that frames are read meanwhile; a cancelled one is interrupted through
the engine's epoch.

Source: wasmtime's documentation of fuel, epochs and deterministic execution.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import wasmtime

from node.worker.child import wasi
from node.worker.child.frames import MalformedFrame, Value, decode
from node.worker.child.runtime import (
    OUTPUT_BYTES_MAX,
    PIECE_BYTES_MAX,
    Broken,
    Event,
    Loaded,
    LoadFailed,
    Piece,
    Prefilled,
    Refused,
    Request,
    Runtime,
)

FUEL_PER_UNIT_DEFAULT = 1_000_000
FUEL_PER_UNIT_MIN = 10_000
MEMORY_MEBIBYTES_DEFAULT = 256
STACK_BYTES = 512 * 1024
STDERR_SHOWN_BYTES = 4096
FILES_MAX = 256
TABLE_ELEMENTS_MAX = 100_000
_WORD = 0xFFFFFFFF
_LONG = 0xFFFFFFFFFFFFFFFF
_TYPES: dict[str, Callable[[], wasmtime.ValType]] = {"i": wasmtime.ValType.i32, "I": wasmtime.ValType.i64}


@dataclass(slots=True)
class _Job:
    request: Request
    world: wasi.World
    credit: int = 0
    prefilled: bool = False
    pieces: deque[tuple[bytes, int]] | None = None
    finish: str = "done"
    cancelled: bool = False
    broken: str | None = None


class WasmRuntime(Runtime):
    """One module; jobs queue for it in turn."""

    def __init__(self) -> None:
        self._jobs: dict[int, _Job] = {}
        self._running: int | None = None
        self._finished: deque[int] = deque()
        self._files: dict[str, bytes] = {}
        self._fuel_per_unit = FUEL_PER_UNIT_DEFAULT
        self._memory_bytes = MEMORY_MEBIBYTES_DEFAULT << 20
        self._arguments: tuple[bytes, ...] = ()
        self._input_as_argument = False
        self._wake_reading = self._wake_writing = -1

    @property
    def wakes(self) -> int | None:
        """A descriptor that becomes readable when a job has ended."""
        return self._wake_reading

    def prepare(self) -> dict[str, int | str]:
        self._wake_reading, self._wake_writing = os.pipe()
        configuration = wasmtime.Config()
        configuration.consume_fuel = True
        configuration.epoch_interruption = True
        configuration.cranelift_nan_canonicalization = True
        configuration.wasm_relaxed_simd_deterministic = True
        configuration.wasm_threads = False
        configuration.shared_memory = False
        configuration.parallel_compilation = False
        configuration.memory_init_cow = False  # it asks for a memfd, which the filter refuses
        configuration.wasm_exceptions = True
        configuration.max_wasm_stack = STACK_BYTES
        self._engine = wasmtime.Engine(configuration)
        self._linker = self._linked()
        return {"stack_bytes": STACK_BYTES, "call_fuel": wasi.CALL_FUEL, "byte_fuel": wasi.BYTE_FUEL}

    def load(self, files: dict[str, str], settings: dict[str, Value], slots: int) -> Loaded:
        module = settings.get("module_file")
        if not isinstance(module, str) or module not in files:
            raise LoadFailed("the manifest must name the module's file as module_file")
        self._fuel_per_unit = _setting(settings, "fuel_per_unit", FUEL_PER_UNIT_DEFAULT, FUEL_PER_UNIT_MIN, 1 << 40)
        self._memory_bytes = _setting(settings, "memory_mebibytes", MEMORY_MEBIBYTES_DEFAULT, 1, 4096) << 20
        arguments = settings.get("arguments", "")
        input_as = settings.get("input_as", "stdin")
        if not isinstance(arguments, str) or input_as not in ("stdin", "argument"):
            raise LoadFailed("arguments must be text, and input_as stdin or argument")
        self._arguments = (module.encode(), *(argument.encode() for argument in arguments.split()))
        self._input_as_argument = input_as == "argument"
        for name, path in files.items():
            if name != module:
                with open(path, "rb") as stream:
                    self._files[name] = stream.read()
        try:
            with open(files[module], "rb") as stream:
                self._module = wasmtime.Module(self._engine, stream.read())
            self._linker.define_unknown_imports_as_traps(self._module)
        except wasmtime.WasmtimeError as error:
            raise LoadFailed(f"not a usable WebAssembly module: {str(error)[:300]}") from None
        if "_start" not in [exported.name for exported in self._module.exports]:
            raise LoadFailed("the module has no _start: it is a library, not a program")
        return Loaded(0)

    def _linked(self) -> wasmtime.Linker:
        linker = wasmtime.Linker(self._engine)
        linker.allow_shadowing = True
        for name, parameters in wasi.SIGNATURES.items():
            types = wasmtime.FuncType([_TYPES[letter]() for letter in parameters], [wasmtime.ValType.i32()])
            linker.define_func("wasi_snapshot_preview1", name, types, self._question(name, parameters), True)
        exit_type = wasmtime.FuncType([wasmtime.ValType.i32()], [])
        linker.define_func("wasi_snapshot_preview1", "proc_exit", exit_type, _exit)
        return linker

    def _question(self, name: str, parameters: str) -> Callable[..., int]:
        masks = [_WORD if letter == "i" else _LONG for letter in parameters]

        def ask(caller: wasmtime.Caller, *arguments: int) -> int:
            assert self._running is not None
            world = self._jobs[self._running].world
            memory = _Memory(caller, self._store)
            self._store.set_fuel(max(0, self._store.get_fuel() - wasi.CALL_FUEL))
            unsigned = tuple(value & mask for value, mask in zip(arguments, masks, strict=True))
            return world.call(name, memory.read, memory.write, unsigned)

        return ask

    # Jobs

    def open(self, job: int, request: Request) -> None:
        arguments, stdin, files = self._arguments, request.payload, dict(self._files)
        if request.input_format == "wasi":
            more, stdin, own = _parts(request.payload)
            arguments, files = (*arguments, *more), files | own
        elif request.input_format not in ("bytes", "text"):
            raise Refused("this model takes input_format 'bytes', 'text' or 'wasi'")
        elif self._input_as_argument:
            if b"\0" in request.payload:
                raise Refused("the input is an argument of this program and can't hold a zero byte")
            arguments, stdin = (*arguments, request.payload), b""
        world = wasi.World(arguments, stdin, files, request.seed, OUTPUT_BYTES_MAX - 2 * STDERR_SHOWN_BYTES)
        self._jobs[job] = _Job(request, world)

    def grant(self, job: int) -> None:
        if job in self._jobs:
            self._jobs[job].credit += 1

    def cancel(self, job: int) -> None:
        if job == self._running:
            self._jobs[job].cancelled = True  # first: a job that has no deadline yet looks at this once it has one
            self._engine.increment_epoch()
            return
        self._jobs.pop(job, None)

    def busy(self) -> bool:
        return bool(self._finished) or any(self._ready(job, state) for job, state in self._jobs.items())

    def _ready(self, job: int, state: _Job) -> bool:
        if job == self._running:
            return False
        if not state.prefilled or state.broken is not None:
            return True
        return self._running is None if state.pieces is None else state.credit > 0

    def step(self) -> list[Event]:
        if self._finished:
            os.read(self._wake_reading, 1)
            ended = self._finished.popleft()
            self._running = None
            if self._jobs[ended].cancelled:
                del self._jobs[ended]
        for job, state in list(self._jobs.items()):
            if not self._ready(job, state):
                continue
            self._jobs[job] = self._jobs.pop(job)  # to the back: jobs take turns
            if not state.prefilled:
                state.prefilled = True
                return [Prefilled(job, 1)]
            if state.broken is not None:
                del self._jobs[job]
                return [Broken(job, state.broken)]
            if state.pieces is None:
                self._running = job
                threading.Thread(target=self._execute, args=(job, state), daemon=True).start()
                return []
            return [self._release(job, state)]
        return []

    def _release(self, job: int, state: _Job) -> Piece:
        assert state.pieces is not None
        state.credit -= 1
        payload, units = state.pieces.popleft()
        if state.pieces:
            return Piece(job, payload, units, (), None)
        del self._jobs[job]
        return Piece(job, payload, units, (), state.finish)

    # In the job's thread

    def _execute(self, job: int, state: _Job) -> None:
        try:
            spent = self._run(state)
            units = -(-spent // self._fuel_per_unit)
            state.pieces = deque(_pieces(bytes(state.world.stdout), units, state.request.chunk_units))
        except MemoryError:
            state.broken = "out of memory"
        except Exception as error:  # whatever the engine raises, the job is over and the worker goes on
            state.broken = f"{type(error).__name__}: {str(error)[:300]}"
        finally:
            self._finished.append(job)
            os.write(self._wake_writing, b"\0")

    def _run(self, state: _Job) -> int:
        """Fuel spent. A program that fails has taken its steps all the same: what went wrong ends its output."""
        budget = state.request.max_output_units * self._fuel_per_unit
        store = self._store = wasmtime.Store(self._engine)
        try:
            store.set_limits(
                memory_size=self._memory_bytes, table_elements=TABLE_ELEMENTS_MAX, instances=1, tables=16, memories=1
            )
            store.set_fuel(budget)
            store.set_epoch_deadline(1)
            if state.cancelled:
                return 0
            state.finish, last_words = self._ended(store)
            if state.finish == "failed":
                state.world.stdout += state.world.stderr[-STDERR_SHOWN_BYTES:] + last_words.encode()
            return budget - store.get_fuel()
        finally:
            store.close()  # not left to the collector: the memory of the next job is this one's

    def _ended(self, store: wasmtime.Store) -> tuple[str, str]:
        """Run the program; how it ended, and what there is to say about a failure."""
        try:
            start = self._linker.instantiate(store, self._module).exports(store)["_start"]
            assert isinstance(start, wasmtime.Func)
            start(store)
        except wasi.Exited as ended:
            return ("failed", f"exit code {ended.code}\n") if ended.code else ("done", "")
        except wasi.OutputTooLarge:
            return "failed", f"\nmore than {OUTPUT_BYTES_MAX} bytes of output\n"
        except wasi.OutOfMemoryBounds:
            return "failed", "a pointer outside the program's memory\n"
        except (wasmtime.Trap, wasmtime.WasmtimeError) as trap:
            return ("length", "") if store.get_fuel() == 0 else ("failed", f"{_first_line(trap)}\n")
        return "done", ""


class _Memory:
    """The calling module's memory, every access within its bounds and paid for."""

    def __init__(self, caller: wasmtime.Caller, store: wasmtime.Store) -> None:
        memory = caller.get("memory")
        if not isinstance(memory, wasmtime.Memory):
            raise wasi.OutOfMemoryBounds
        self._memory = memory
        self._caller = caller
        self._store = store

    def _pay(self, start: int, size: int) -> None:
        if start + size > self._memory.data_len(self._caller):
            raise wasi.OutOfMemoryBounds
        self._store.set_fuel(max(0, self._store.get_fuel() - size * wasi.BYTE_FUEL))

    def read(self, start: int, size: int) -> bytes:
        self._pay(start, size)
        return bytes(self._memory.read(self._caller, start, start + size))

    def write(self, start: int, content: bytes) -> None:
        self._pay(start, len(content))
        self._memory.write(self._caller, content, start)


def _exit(code: int) -> None:
    raise wasi.Exited(code & _WORD)


def _setting(settings: dict[str, Value], name: str, default: int, lowest: int, highest: int) -> int:
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise LoadFailed(f"{name} must be a whole number from {lowest} to {highest}")
    return value


def _parts(payload: bytes) -> tuple[tuple[bytes, ...], bytes, dict[str, bytes]]:
    """Arguments, standard input and files of a job from its MessagePack map. Raises Refused."""
    try:
        value = decode(payload)
    except MalformedFrame as error:
        raise Refused(f"a 'wasi' input is a MessagePack map: {error}") from None
    if not isinstance(value, dict) or set(value) - {"args", "stdin", "files"}:
        raise Refused("a 'wasi' input has no other fields than args, stdin and files")
    arguments, stdin, files = value.get("args", []), value.get("stdin", b""), value.get("files", {})
    if not isinstance(arguments, list) or not isinstance(stdin, bytes) or not isinstance(files, dict):
        raise Refused("args is a list of texts, stdin bytes, and files a map from name to bytes")
    texts = [argument.encode() for argument in arguments if isinstance(argument, str) and "\0" not in argument]
    named = {name: content for name, content in files.items() if isinstance(content, bytes)}
    if len(texts) != len(arguments) or len(named) != len(files) or len(files) > FILES_MAX:
        raise Refused(f"args are texts without zero bytes, files at most {FILES_MAX}, each bytes")
    return tuple(texts), stdin, named


def _pieces(output: bytes, units: int, chunk_units: int) -> list[tuple[bytes, int]]:
    """Output and units spread over as few pieces as both bounds allow; at least one unit in all."""
    units = max(1, units)
    count = max(-(-units // chunk_units), -(-len(output) // PIECE_BYTES_MAX))
    step = -(-len(output) // count)
    return [
        (output[number * step : (number + 1) * step], (number + 1) * units // count - number * units // count)
        for number in range(count)
    ]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("wasm trap")), lines[-1] if lines else "trap")
    return reason[:200]
