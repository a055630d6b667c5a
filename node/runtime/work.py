"""Between the engine's jobs and the worker room: one task for each job, which fetches a piece when the engine asks.

Law: a piece is asked for once and handed over once. Whatever goes wrong in a worker reaches the engine as
``WorkFailed`` with whose fault it was; a job that the engine has closed is never heard of again.
"""

import asyncio
from collections.abc import Callable

from node.worker.errors import CapacityExceeded, WorkerError
from node.worker.supervisor import JobRequest, ServedJob, WorkerSupervisor
from protocol.engine.inputs import Input, WorkFailed, WorkPiece, WorkPrefilled
from protocol.messages.effects import CloseWork, OpenWork, PullWork
from protocol.messages.market import FaultKind, FinishReason, JobPayload, OutputForm
from protocol.primitives.codec import decode
from protocol.primitives.limits import TEXT_BYTES_MAX
from protocol.primitives.units import MessageId, WorkUnits

_FINISH = {
    None: FinishReason.NONE,
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "done": FinishReason.DONE,
    "failed": FinishReason.FAILED,
}


class _Running:
    """One job's task and the pulls that it has not served yet."""

    def __init__(self) -> None:
        self.pulls = asyncio.Semaphore(0)
        self.task: asyncio.Task[None] | None = None


class WorkPump:
    """Carries out ``OpenWork``, ``PullWork`` and ``CloseWork``."""

    def __init__(self, supervisor: WorkerSupervisor, tasks: asyncio.TaskGroup, feed: Callable[[Input], None]) -> None:
        self._supervisor = supervisor
        self._tasks = tasks
        self._feed = feed
        self._running: dict[MessageId, _Running] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    async def finished(self, within_s: float) -> bool:
        """Wait until no job runs here, but not longer. Returns whether none does."""
        try:
            async with asyncio.timeout(within_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def open(self, effect: OpenWork) -> None:
        """Start a job's task; the first pull runs the input through the model."""
        running = self._running[effect.job] = _Running()
        self._idle.clear()
        running.task = self._tasks.create_task(self._run(effect, running))

    def pull(self, effect: PullWork) -> None:
        """Ask for one more piece."""
        running = self._running.get(effect.job)
        if running is not None:
            running.pulls.release()

    def close(self, effect: CloseWork) -> None:
        """End a job's task; its worker is told to stop at its next step."""
        running = self._running.pop(effect.job, None)
        if running is not None and running.task is not None:
            running.task.cancel()
        if not self._running:
            self._idle.set()

    def give_up(self, reason: str) -> None:
        """Tell the engine that no job will be finished here: the buyers shall know before the links go."""
        for job in tuple(self._running):
            self._feed(WorkFailed(job, FaultKind.PROVIDER, reason))

    def cancel_all(self) -> None:
        """End every job's task, whatever it waits for: the node stops."""
        for running in self._running.values():
            if running.task is not None:
                running.task.cancel()
        self._running.clear()

    async def _run(self, effect: OpenWork, running: _Running) -> None:
        try:
            await self._serve(effect, running)
        except WorkerError as error:
            if self._running.get(effect.job) is running:
                self._feed(WorkFailed(effect.job, _fault(error), str(error)[:TEXT_BYTES_MAX]))

    async def _serve(self, effect: OpenWork, running: _Running) -> None:
        payload = decode(effect.payload, JobPayload)
        request = JobRequest(
            input_format=payload.format,
            payload=payload.body,
            max_output_units=effect.output_units_max,
            chunk_units=effect.chunk_units,
            seed=effect.seed,
            temperature_milli=effect.temperature_milli,
            stop=payload.stop,
            prefix=payload.prefix,
            output="tokens" if payload.output is OutputForm.TOKENS else "text",
            schema=payload.schema,
            grammar=payload.grammar,
            logprobs=payload.logprobs,
            pull_first=True,
        )
        job = await self._supervisor.serve(
            effect.model.hex(),
            effect.job,
            request,
            deadline_s=effect.deadline_ms / 1000,
            tenant=effect.buyer.hex(),
        )
        try:
            await running.pulls.acquire()
            prefilled = await job.prefill()
            self._feed(WorkPrefilled(effect.job, WorkUnits(prefilled.input_units)))
            await self._stream(effect.job, job, running)
        finally:
            await job.cancel()

    async def _stream(self, job_id: MessageId, job: ServedJob, running: _Running) -> None:
        finish = FinishReason.NONE
        while finish is FinishReason.NONE:
            await running.pulls.acquire()
            chunk = await job.next_chunk()
            finish = _FINISH[chunk.finish]
            self._feed(WorkPiece(job_id, chunk.payload, WorkUnits(chunk.units), finish))


def _fault(error: WorkerError) -> FaultKind:
    if isinstance(error, CapacityExceeded):
        return FaultKind.CAPACITY
    return FaultKind.USER if error.fault == "user" else FaultKind.PROVIDER
