"""A server on the loopback that says whatever a test wants, byte by byte, and remembers what it was asked."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

MODEL = "tiny"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


Script = Callable[[Asked, "Connection"], Awaitable[None]]


@dataclass(slots=True)
class Connection:
    """Writes to one client."""

    writer: asyncio.StreamWriter

    async def raw(self, content: bytes) -> None:
        """These bytes."""
        self.writer.write(content)
        await self.writer.drain()

    async def answer(self, status: int, body: object, *headers: str) -> None:
        """A whole JSON answer."""
        content = json.dumps(body).encode()
        head = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(content)}", *headers]
        await self.raw("\r\n".join([*head, "", ""]).encode() + content)

    async def begin(self, kind: str = "text/event-stream") -> None:
        """A stream that ends when the connection does."""
        await self.raw(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode())

    async def event(self, content: object) -> None:
        """One event."""
        text = content if isinstance(content, str) else json.dumps(content)
        await self.raw(f"data: {text}\n\n".encode())

    async def text(self, content: str, finish: str | None = None) -> None:
        """One event of an answer."""
        await self.event({"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}]})

    async def usage(self, completion_tokens: int) -> None:
        """The count at the end."""
        await self.event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": completion_tokens}})


@dataclass(slots=True)
class Upstream:
    """A running server: its address, what it was asked, and how many clients have gone away."""

    url: str
    asked: list[Asked] = field(default_factory=list)
    closed: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    def streamed(self) -> list[Asked]:
        """The requests for answers."""
        return [asked for asked in self.asked if asked.body.get("stream")]


async def prompt_counted(asked: Asked, connection: Connection) -> None:
    """How an honest server answers what comes before the stream: its models, and the count of a prompt."""
    if asked.path.endswith("/models"):
        await connection.answer(200, {"object": "list", "data": [{"id": MODEL}]})
    else:
        await connection.answer(200, {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1}})


@asynccontextmanager
async def upstream(stream: Script, before: Script = prompt_counted) -> AsyncIterator[Upstream]:
    """A server that answers streamed requests by ``stream`` and all others by ``before``."""
    running: Upstream
    serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving[task] = writer
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                asked = await _read(reader)
                running.asked.append(asked)
                script = stream if asked.body.get("stream") else before
                await script(asked, Connection(writer))
                if script is stream:
                    break
        writer.close()
        del serving[task]
        running.closed.release()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    running = Upstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    async with server:
        yield running
        left = list(serving)
        for writer in serving.values():
            writer.transport.abort()
        if left:
            await asyncio.wait(left)


async def _read(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    content = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(method, path, headers, json.loads(content) if content else {})
