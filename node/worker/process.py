"""One warm worker process and the jobs in it.

Law: the worker is believed in nothing but the settings it names before it has read a stranger's byte. A frame that
wasn't asked for, is too large, or breaks a job's own limits ends the worker. Whoever kills it records why; a death
without a recorded reason is explained from the exit status and the control group.
"""

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from node.worker.canonical import canonical_settings
from node.worker.child.frames import MalformedFrame, Value, encode
from node.worker.child.runtime import TEXTS_MAX
from node.worker.errors import (
    DeathReason,
    JobCancelled,
    JobEnded,
    JobFailed,
    JobRefused,
    JobTimedOut,
    WorkerDied,
    WorkerError,
)
from node.worker.frames import (
    CancelDone,
    Confined,
    Failed,
    Frame,
    FrameReader,
    FrameStalled,
    FrameTooLong,
    InputDone,
    JobBroken,
    PieceDone,
    Ready,
    RequestRefused,
)
from node.worker.limits import INPUT_BYTES_MAX, MEBIBYTE, STDERR_BYTES_KEPT, WorkerLimits
from node.worker.models import Manifest, ModelStore
from node.worker.request import JobRequest
from node.worker.runtimes import CHILD_SOURCE, NODE_DECIDES, child_binds, input_units_max, node_settings
from node.worker.sandbox import seccomp
from node.worker.sandbox.launch import launch
from node.worker.sandbox.layers import MODEL, STRONG_LAYERS, Bind, Command, Layers
from node.worker.sandbox.running import SandboxedProcess, Usage

GROUP_EXTRA_BYTES = 128 * MEBIBYTE  # the interpreter's own pages, beside private memory and the model
DRAIN_PAUSE_S = 0.01  # after 64 KiB of what a worker prints: reading it must not keep the node busy
Finish = Literal["stop", "length", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Chunk 0 is done: the input was processed; nothing was released yet."""

    input_units: int


@dataclass(frozen=True, slots=True)
class WorkerChunk:
    """One released piece of output; `finish` is set on the last."""

    payload: bytes
    units: int
    tokens: tuple[int, ...]
    finish: Finish | None


class WorkerJob:
    """One job in a worker, pulled piece by piece. One call at a time."""

    def __init__(
        self, worker: "Worker", number: int, job_id: bytes, request: JobRequest, until: float, tenant: str
    ) -> None:
        self.job_id = job_id
        self.tenant = tenant
        self.number = number
        self.request = request
        self._worker = worker
        self._until = until
        self._input: asyncio.Future[Prefilled] = asyncio.get_running_loop().create_future()
        self._piece: asyncio.Future[WorkerChunk] | None = None
        """What the worker may release."""
        if request.pull_first:
            self._piece = asyncio.get_running_loop().create_future()
        self._ended: WorkerError | None = None
        self._units = 0
        self._bytes = 0
        self.cancelled = asyncio.Event()
        self._timer = asyncio.get_running_loop().call_at(until, self._expire)

    async def prefill(self) -> Prefilled:
        """Wait until the input is processed. Raises JobRefused, JobTimedOut, WorkerDied."""
        return await asyncio.shield(self._input)

    async def next_chunk(self) -> WorkerChunk:
        """Let one more piece be released and wait for it. Raises JobRefused, JobTimedOut, WorkerDied, JobEnded."""
        if self._piece is None:
            if self._ended is not None:
                raise self._ended
            self._piece = asyncio.get_running_loop().create_future()
            self._worker.send(["grant", self.number])
        waiting = self._piece
        try:
            return await asyncio.shield(waiting)
        finally:
            if waiting.done():
                self._piece = None

    async def cancel(self) -> None:
        """Give the job up. Returns once the worker has forgotten it, or was killed for not doing so."""
        if self._ended is None:
            self._abandon(JobCancelled("the job was cancelled"), "cancelled")
        if self._worker.has(self.number):
            await self.cancelled.wait()

    def _expire(self) -> None:
        self._abandon(JobTimedOut("the job's deadline passed"), "deadline")

    def _abandon(self, error: WorkerError, death: DeathReason) -> None:
        """End the job for its caller now; the worker gets a grace to forget it, then is killed."""
        self.fail(error)
        if self._worker.has(self.number):
            self._worker.give_up(self.number)
            self._timer = self._worker.after_grace(self._insist(death))

    def _insist(self, death: DeathReason) -> Callable[[], None]:
        def insist() -> None:
            if self._worker.has(self.number):
                self._worker.kill(f"a job was not given up in time ({death})", death)

        return insist

    def fail(self, error: WorkerError) -> None:
        """End the job with an error, for whoever waits and whoever asks later."""
        self._timer.cancel()
        if self._ended is not None:
            return
        self._ended = error
        for waiting in (self._input, self._piece):
            if waiting is not None and not waiting.done():
                waiting.set_exception(error)
                waiting.exception()  # marks it as seen: nobody has to be waiting

    def left(self) -> None:
        """The worker has no such job any more."""
        self._timer.cancel()
        self.cancelled.set()

    def take_input(self, frame: InputDone) -> None:
        """The worker says that the input is processed."""
        if self._ended is not None:
            return
        if self._input.done():
            raise MalformedFrame("an input was done twice")
        lowest, highest = self._worker.input_units(self.request)
        if not lowest <= frame.input_units <= highest:
            raise MalformedFrame("input units that this input can't have")
        self._input.set_result(Prefilled(frame.input_units))

    def take_piece(self, frame: PieceDone, limits: WorkerLimits, text: bool) -> bool:
        """The worker releases a piece. Returns whether it was the last. Raises MalformedFrame, OutputOverflow."""
        self._bytes += len(frame.payload)
        if self._bytes > limits.output_bytes:
            raise OutputOverflow
        if self._ended is None:
            self._check(frame, text)
            assert self._piece is not None
            self._units += frame.units
            finish: Finish | None = None
            match frame.finish:
                case "stop" | "length" | "done" | "failed":
                    finish = frame.finish
            self._piece.set_result(WorkerChunk(frame.payload, frame.units, frame.tokens, finish))
        if frame.finish is not None and self._ended is None:
            self._ended = JobEnded("the job has ended")
        return frame.finish is not None

    def _check(self, frame: PieceDone, text: bool) -> None:
        if self._piece is None or self._piece.done() or not self._input.done():
            raise MalformedFrame("a piece that wasn't asked for")
        if frame.units > self.request.chunk_units or self._units + frame.units > self.request.max_output_units:
            raise MalformedFrame("more units than asked for")
        if len(frame.tokens) != (frame.units if text else 0):
            raise MalformedFrame("tokens and units differ")
        if text:
            try:
                frame.payload.decode("utf-8")
            except UnicodeDecodeError:
                raise MalformedFrame("text that isn't UTF-8") from None


class OutputOverflow(Exception):
    """A job's output is over its cap."""


class Worker:
    """A sandboxed process with one loaded model."""

    def __init__(
        self, process: SandboxedProcess, manifest: Manifest, slots: int, limits: WorkerLimits,
        freed: Callable[[str], None], decided: dict[str, int],
    ) -> None:  # fmt: skip
        self.manifest = manifest
        self._decided = decided
        self.settings: dict[str, int | str] = {}
        self.context_tokens = 0
        self.gone = asyncio.Event()
        self._process = process
        self._limits = limits
        self._slots = slots
        self._freed = freed
        self._jobs: dict[int, WorkerJob] = {}
        self._next_number = 0
        self._giving_up: dict[int, None] = {}
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._confined = False
        self._closing = False
        self._death: WorkerDied | None = None
        self._said = bytearray()

    @classmethod
    async def start(
        cls, store: ModelStore, manifest: Manifest, slots: int, limits: WorkerLimits, tasks: asyncio.TaskGroup,
        layers: Layers = STRONG_LAYERS, freed: Callable[[str], None] = lambda tenant: None,
    ) -> "Worker":  # fmt: skip
        """Launch, confine and load. ``freed`` is called with the tenant of each job that ends.

        Raises IsolationUnavailable, WorkerDied.
        """
        binds = [Bind(store.file_path(file).resolve(), f"{MODEL}/{file.path}") for file in manifest.files]
        memory = limits.memory_bytes + manifest.size_bytes() + GROUP_EXTRA_BYTES
        command = Command(CHILD_SOURCE, (*child_binds(manifest.runtime), *binds), memory)
        decided = node_settings(manifest.runtime, manifest.settings, limits.batch_max)
        decided |= await asyncio.to_thread(canonical_settings, store, manifest)
        worker = cls(await launch(command, limits, layers=layers), manifest, slots, limits, freed, decided)
        tasks.create_task(worker._run(), name=f"worker {manifest.name}")
        worker._begin(layers)
        try:
            async with asyncio.timeout(limits.start_s):
                await asyncio.shield(worker._ready)
        except TimeoutError:
            worker.kill(f"the model did not load within {limits.start_s:.0f} s", "start")
            await worker.gone.wait()
            raise worker._death or WorkerDied("gone", "start") from None
        except BaseException:
            worker.kill("the start was given up", "closed")
            raise
        return worker

    def _begin(self, layers: Layers) -> None:
        wanted: dict[str, Value] = {
            "runtime": self.manifest.runtime,
            "files": {file.path: f"{self._process.root}{MODEL}/{file.path}" for file in self.manifest.files},
            "settings": {**self.manifest.settings, **self._decided},
            "slots": self._slots,
            "filter": seccomp.filter_after_imports() if layers.filter_after_imports else b"",
            "processes": self._process.processes_max,
        }
        self.send(["start", wanted])

    def alive(self) -> bool:
        """Whether it takes jobs."""
        return not self._closing

    @property
    def death(self) -> WorkerDied | None:
        """Why it is gone; None while it isn't."""
        return self._death

    def has(self, number: int) -> bool:
        """Whether the worker still holds this job."""
        return number in self._jobs

    @property
    def pid(self) -> int | None:
        """The first process inside the sandbox, as the host counts."""
        return self._process.inner_pid

    def usage(self) -> Usage:
        """What the kernel says that it used: so far, or in all once it has ended."""
        return self._process.usage()

    def open(self, job_id: bytes, request: JobRequest, until: float, tenant: str = "") -> WorkerJob:
        """Take a job on; there must be a free slot. Raises JobRefused."""
        assert self.alive()
        size = len(request.payload) + len(request.prefix)
        if size > INPUT_BYTES_MAX:
            raise JobRefused(f"the input has {size} bytes; at most {INPUT_BYTES_MAX} are taken")
        number = self._next_number
        try:
            frame = encode(["open", number, request.frame(tenant)])
        except (MalformedFrame, ValueError, TypeError, OverflowError) as error:
            raise JobRefused(f"the request can't be passed on: {error}") from None
        self._next_number += 1
        job = self._jobs[number] = WorkerJob(self, number, job_id, request, until, tenant)
        self._process.stdin.write(frame + encode(["grant", number]) if request.pull_first else frame)
        return job

    def send(self, frame: Value) -> None:
        """Queue a frame for the worker. What is queued is bounded by its slots and the cap on an input."""
        if not self._closing:
            self._process.stdin.write(encode(frame))

    def give_up(self, number: int) -> None:
        """Tell the worker to forget a job; it answers each time, once."""
        self._giving_up[number] = None
        self.send(["cancel", number])

    def input_units(self, request: JobRequest) -> tuple[int, int]:
        """The fewest and the most units that an honest worker can count for this input."""
        match self.manifest.runtime:
            case "gguf":
                return 1, self._context_tokens_max()
            case "echo":
                size = len(request.payload) + len(request.prefix)
                return size, size
            case _:
                texts = min(TEXTS_MAX, 1 + len(request.payload) // 3) if request.input_format == "texts" else 1
                return 1, max(1, input_units_max(self.manifest.runtime, self.manifest.settings) * texts // TEXTS_MAX)

    def _context_tokens_max(self) -> int:
        named = self.manifest.settings.get("context_tokens")
        return named if isinstance(named, int) and self.manifest.runtime == "gguf" else 0

    def after_grace(self, then: Callable[[], None]) -> asyncio.TimerHandle:
        """Call something when the time for giving up a job is over."""
        return asyncio.get_running_loop().call_later(self._limits.cancel_grace_s, then)

    def kill(self, reason: str, death: DeathReason) -> None:
        """End the whole process tree now; the first reason given is the one that counts."""
        if self._death is None and not self._closing:
            self._death = WorkerDied(reason, death)
            self._close(self._death)
        self._process.kill()

    def _close(self, error: WorkerDied) -> None:
        """No more jobs; those that are open or waiting fail with this."""
        self._closing = True
        for number in list(self._jobs):
            self._jobs[number].fail(error)
            self._leave(number)
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()

    def _leave(self, number: int) -> None:
        job = self._jobs.pop(number)
        job.left()
        self._freed(job.tenant)

    async def _run(self) -> None:
        """Serve the pipes until the process is gone, then say why it went."""
        try:
            async with asyncio.TaskGroup() as pipes:
                pipes.create_task(self._drain())
                pipes.create_task(self._read())
        finally:
            self._closing = True
            self._process.kill()
            status = await self._process.end()
            if self._death is None:
                self._death = self._explained(status)
            self._close(self._death)
            self.gone.set()

    async def _read(self) -> None:
        stream = self._process.stdout
        frames = FrameReader(stream, self._limits.frame_s)
        try:
            while True:
                self._take(await frames.next())
        except asyncio.IncompleteReadError:
            self._closing = True
        except (OutputOverflow, FrameTooLong):
            self.kill(f"a job's output is over its cap of {self._limits.output_bytes} bytes", "output_cap")
        except FrameStalled as stalled:
            self.kill(str(stalled), "stalled")
        except MalformedFrame as malformed:
            self.kill(f"the worker broke the protocol: {malformed}", "malformed_frame")
        self._process.kill()
        while await stream.read(1 << 16):  # an unread pipe would hide the end
            pass

    async def _drain(self) -> None:
        """Read what native code prints, and keep the last of it."""
        while piece := await self._process.stderr.read(1 << 16):
            self._said += piece
            del self._said[:-STDERR_BYTES_KEPT]
            await asyncio.sleep(DRAIN_PAUSE_S)

    def _explained(self, status: int) -> WorkerDied:
        if self._process.out_of_memory:
            return WorkerDied("the worker took more memory than it may have", "memory")
        # The limit counts finer than the bill does.
        if status == 128 + signal.SIGKILL and self.usage().cpu_ms >= self._limits.cpu_s * 800:
            return WorkerDied(f"the worker used up its {self._limits.cpu_s} s of processor time", "time")
        said = "".join(letter for letter in self._said.decode("ascii", "replace") if letter.isprintable())[-300:]
        death: DeathReason = "crashed" if self._ready.done() else "start"
        return WorkerDied(f"the worker {_ending(status)}" + (f": {said}" if said else ""), death)

    def _take(self, frame: Frame) -> None:
        """Act on one frame. Raises MalformedFrame, OutputOverflow."""
        if not self._ready.done():
            self._take_start(frame)
            return
        match frame:
            case InputDone():
                self._job(frame.job).take_input(frame)
            case PieceDone():
                job = self._job(frame.job)
                if job.take_piece(frame, self._limits, text=self.manifest.runtime == "gguf"):
                    self._leave(frame.job)
            case RequestRefused():
                self._job(frame.job).fail(JobRefused(frame.reason))
                self._leave(frame.job)
            case JobBroken():
                self._job(frame.job).fail(JobFailed(frame.reason))
                self._leave(frame.job)
            case CancelDone():
                if frame.job not in self._giving_up:
                    raise MalformedFrame("a job given up unasked")
                del self._giving_up[frame.job]
                if frame.job in self._jobs:
                    self._jobs[frame.job].fail(JobCancelled("the worker gave the job up"))
                    self._leave(frame.job)
            case _:
                raise MalformedFrame("a frame out of its time")

    def _take_start(self, frame: Frame) -> None:
        match frame:
            case Confined(settings) if not self._confined:
                self._confined = True
                if not settings.pop("invariant", 1):  # nobody may promise what this machine does not show
                    self._decided.pop("canonical", None)
                self.settings = {**settings, **self._decided}
                if taken := sorted({*self.settings, *NODE_DECIDES} & set(self.manifest.settings)):
                    self.kill(f"{self.manifest.name}: its manifest may not set {taken[0]!r}", "start")
            case Ready(context_tokens) if self._confined:
                if context_tokens > self._context_tokens_max():
                    raise MalformedFrame("more context than the manifest names")
                self.context_tokens = context_tokens
                self._ready.set_result(None)
            case Failed(reason):
                self.kill(f"{self.manifest.name}: {reason}", "start")
            case _:
                raise MalformedFrame("a frame out of its time")

    def _job(self, number: int) -> WorkerJob:
        job = self._jobs.get(number)
        if job is None:
            raise MalformedFrame("a job that isn't open")
        return job


def _ending(status: int) -> str:
    """How a process ended, by its launcher's status."""
    try:
        return f"was ended by {signal.Signals(status - 128).name}"
    except ValueError:
        return f"ended with status {status}"
