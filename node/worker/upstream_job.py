"""One job on an upstream server, pulled piece by piece like a worker's.

Law: the prompt's count is the server's, held against its bytes; a server that gives none is counted low, never high. A
call is answered by what was asked for and nothing is read ahead of it. Whatever ends the job closes its connection and
gives its slot back, once.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Protocol, TypeVar

from node.worker.child.runtime import Refused
from node.worker.child.text import parse_text, parse_turns
from node.worker.errors import (
    JobCancelled,
    JobEnded,
    JobFailed,
    JobRefused,
    JobTimedOut,
    UpstreamUnavailable,
    WorkerError,
)
from node.worker.limits import INPUT_BYTES_MAX, STOP_STRINGS_MAX, WorkerLimits
from node.worker.process import Prefilled, WorkerChunk
from node.worker.request import JobRequest
from node.worker.upstream_stream import EventReader, Meter, read_delta, tokens_of

TEMPLATE_TOKENS = 64  # what a chat template may add to a prompt, and
TURN_TOKENS = 16  # to each turn of it: more than the bytes of a prompt and these can't be its tokens
LOW_BYTES_PER_TOKEN = 8  # a server that counts no tokens is taken to have read so few: texts have about half as many
SEED_BITS = 31  # servers take a seed as a number of 32 bits or more, some of them with a sign
DONE = b"[DONE]"


Answer = TypeVar("Answer")


class Server(Protocol):
    """What a job needs of its server. Both raise JobRefused, JobFailed, CapacityExceeded, UpstreamUnavailable."""

    async def ask(self, path: str, body: dict[str, object]) -> dict[str, object]:
        """One whole answer."""

    def stream(self, path: str, body: dict[str, object]) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """An answer's bytes as they come; leaving closes the connection."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A judged request: where it goes, what is sent, and between which counts its prompt's tokens must lie."""

    path: str
    body: dict[str, object]
    input_units_low: int
    input_units_max: int
    output_units_max: int
    chunk_units: int
    output_bytes_max: int

    def preparing(self) -> dict[str, object]:
        """The request that has the prompt processed and counted."""
        return {**self.body, "max_tokens": 1, "stream": False}

    def streaming(self) -> dict[str, object]:
        """The request for the answer."""
        options = {"include_usage": True}
        return {**self.body, "max_tokens": self.output_units_max, "stream": True, "stream_options": options}


def read_request(request: JobRequest, model: str, limits: WorkerLimits) -> Wanted:
    """Judge a request completely before the server hears of it. Raises JobRefused."""
    if len(request.payload) > INPUT_BYTES_MAX:
        raise JobRefused(f"the input has {len(request.payload)} bytes; at most {INPUT_BYTES_MAX} are taken")
    if request.prefix or request.schema or request.grammar or request.logprobs or request.output != "text":
        raise JobRefused("a model on an upstream server gives plain text from its beginning")
    if len(request.stop) > STOP_STRINGS_MAX or not all(request.stop):
        raise JobRefused(f"stop must be a list of at most {STOP_STRINGS_MAX} strings")
    body: dict[str, object] = {
        "model": model,
        "temperature": request.temperature_milli / 1000,
        "seed": request.seed % (1 << SEED_BITS),
        **({"stop": [*request.stop]} if request.stop else {}),
    }
    try:
        match request.input_format:
            case "chat":
                turns = parse_turns(request.payload)
                path, size = "/chat/completions", sum(len(content.encode()) for _, content in turns)
                body["messages"] = [{"role": role, "content": content} for role, content in turns]
                most = size + TEMPLATE_TOKENS + TURN_TOKENS * len(turns)
            case "text":
                prompt = parse_text(request.payload)
                path, size = "/completions", len(request.payload)
                body["prompt"] = prompt
                most = size + TEMPLATE_TOKENS
            case _:
                raise JobRefused("this model takes input_format 'chat' or 'text'")
    except Refused as refusal:
        raise JobRefused(str(refusal)) from None
    low = max(1, -(-size // LOW_BYTES_PER_TOKEN))
    return Wanted(path, body, low, most, request.max_output_units, request.chunk_units, limits.output_bytes)


class UpstreamJob:
    """One job, pulled piece by piece. One call at a time."""

    def __init__(
        self, job_id: bytes, server: Server, wanted: Wanted, until: float, count: Callable[[int], None],
        freed: Callable[[], None], lost: Callable[[WorkerError], None],
    ) -> None:  # fmt: skip
        self.job_id = job_id
        self._server = server
        self._wanted = wanted
        self._until = until
        self._count = count
        self._freed = freed
        self._lost = lost
        self._connection = AsyncExitStack()
        self._bytes: AsyncIterator[bytes] | None = None
        self._reader = EventReader()
        self._events: deque[bytes] = deque()
        self._meter = Meter(wanted.output_units_max, wanted.chunk_units, wanted.output_bytes_max)
        self._ended: WorkerError | None = None

    async def prefill(self) -> Prefilled:
        """Have the input processed.

        Raises JobRefused, JobFailed, CapacityExceeded, JobTimedOut, UpstreamUnavailable.
        """
        return await self._guarded(self._prefill)

    async def next_chunk(self) -> WorkerChunk:
        """Read on until there is one more piece. Raises as ``prefill`` does, JobEnded after the last one."""
        chunk = await self._guarded(self._next_chunk)
        self._count(chunk.units)
        if chunk.finish is not None:
            await self._end(JobEnded("the job has ended"))
        return chunk

    async def cancel(self) -> None:
        """Give the job up: the connection is closed."""
        await self._end(JobCancelled("the job was cancelled"))

    async def _guarded(self, step: Callable[[], Awaitable[Answer]]) -> Answer:
        """A step within the job's deadline; an error ends the job."""
        if self._ended is not None:
            raise self._ended
        try:
            async with asyncio.timeout_at(self._until):
                return await step()
        except WorkerError as error:
            if isinstance(error, UpstreamUnavailable):
                self._lost(error)
                error = UpstreamUnavailable("the server of this model can't be reached")  # where it is, is not told
            await self._end(error)
            raise error from None
        except TimeoutError:
            late = JobTimedOut("the job's deadline passed")
            await self._end(late)
            raise late from None

    async def _prefill(self) -> Prefilled:
        answer = await self._server.ask(self._wanted.path, self._wanted.preparing())
        counted = tokens_of(answer.get("usage"), "prompt_tokens")
        if not counted:  # none, or the nothing of a server that had it in a cache
            return Prefilled(self._wanted.input_units_low)
        if counted > self._wanted.input_units_max:
            raise JobFailed(f"the server counts {counted} tokens in a prompt that can't have so many")
        return Prefilled(counted)

    async def _next_chunk(self) -> WorkerChunk:
        if self._bytes is None:
            stream = self._server.stream(self._wanted.path, self._wanted.streaming())
            self._bytes = await self._connection.enter_async_context(stream)
        while not self._meter.full:
            if not self._events and not await self._read():
                self._meter.end()
            elif self._events:
                self._take(self._events.popleft())
        part = self._meter.part()
        return WorkerChunk(part.payload, part.units, (), part.finish)

    async def _read(self) -> bool:
        """Read on; False once the stream is over."""
        assert self._bytes is not None
        async for content in self._bytes:
            self._events.extend(self._reader.feed(content))
            return True
        return False

    def _take(self, event: bytes) -> None:
        if event.strip() == DONE:
            self._meter.end()
            return
        self._meter.take(read_delta(event))
        if self._meter.settled:
            self._meter.end()

    async def _end(self, error: WorkerError) -> None:
        if self._ended is None:
            self._ended = error
            self._freed()
        await self._connection.aclose()
