"""A client of a node's session: many jobs at a time over one connection, for `mercat batch` and programs like it.

Law: the standard library and msgspec alone, like the rest of the command line. Closing the session cancels what still
runs in it. Source of the frames: RFC 6455; masks are there to confuse proxies, and on a unix socket there is none.
"""

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from node.api.requests import ErrorView, SessionAnswer, SessionCancel, SessionRun
from node.cli.failures import CommandFailed, ExitCode
from node.runtime.control import RunEvent, RunRequest

FRAME_BYTES_MAX = 64 * 1024 * 1024
"""Far above what a node joins into one frame."""
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10
_FINAL = 0x80
_MASKED = 0x80
_NO_MASK = bytes(4)
_ANSWERS = msgspec.json.Decoder(list[SessionAnswer])


class JobSession:
    """Runs jobs of one node; an async context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._runs: dict[int, asyncio.Queue[SessionAnswer]] = {}
        self._next = 0
        self._lost: CommandFailed | None = None

    async def __aenter__(self) -> Self:
        """Raises ``CommandFailed`` when no node answers."""
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(str(self._path), limit=1 << 20)
            await self._upgrade()
        except (OSError, asyncio.IncompleteReadError) as error:
            raise self._unreachable(str(error)) from None
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self._reading = self._tasks.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reading.cancel()
        self._writer.close()
        await self._tasks.__aexit__(None, None, None)

    def _unreachable(self, reason: str) -> CommandFailed:
        return CommandFailed(f"no node answers on {self._path} ({reason})", ExitCode.UNREACHABLE, "node_unreachable")

    async def _upgrade(self) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        self._writer.write(
            f"GET /v1/session HTTP/1.1\r\nHost: node\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "):
            raise CommandFailed("the node knows no sessions: it is of an older version", ExitCode.FAILED, "no_sessions")

    async def run(self, request: RunRequest) -> AsyncIterator[RunEvent]:
        """A job's events. Closing the iterator cancels the job.

        Raises ``CommandFailed`` for a request that the node refuses, and when the node is gone.
        """
        if self._lost is not None:
            raise self._lost
        number, self._next = self._next, self._next + 1
        answers = self._runs[number] = asyncio.Queue()
        self._send(_TEXT, msgspec.json.encode(SessionRun(number, msgspec.Raw(msgspec.json.encode(request)))))
        ended = False
        try:
            while not ended:
                answer = await answers.get()
                ended = answer.ended
                for event in answer.events:
                    yield event
                if answer.error is not None:
                    raise CommandFailed(answer.error.message, answer.error.exit_code, answer.error.code)
        finally:
            del self._runs[number]
            if not ended and self._lost is None:
                self._send(_TEXT, msgspec.json.encode(SessionCancel(number)))

    def _send(self, kind: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            length = bytes((_MASKED | size,))
        elif size < 1 << 16:
            length = bytes((_MASKED | 126,)) + size.to_bytes(2, "big")
        else:
            length = bytes((_MASKED | 127,)) + size.to_bytes(8, "big")
        self._writer.write(b"".join((bytes((_FINAL | kind,)), length, _NO_MASK, payload)))

    async def _frame(self) -> tuple[int, bytes]:
        first, size = await self._reader.readexactly(2)
        if size == 126:
            size = int.from_bytes(await self._reader.readexactly(2), "big")
        elif size == 127:
            size = int.from_bytes(await self._reader.readexactly(8), "big")
        if size > FRAME_BYTES_MAX or not first & _FINAL:
            raise ConnectionError("a frame that no node sends")
        return first & 0x0F, await self._reader.readexactly(size)

    async def _read(self) -> None:
        reason = "it closed the session"
        try:
            while True:
                kind, payload = await self._frame()
                if kind == _PING:
                    self._send(_PONG, payload)
                elif kind == _CLOSE:
                    reason = payload[2:].decode("utf-8", "replace") or reason
                    break
                elif kind == _TEXT:
                    for answer in _ANSWERS.decode(payload):
                        run = self._runs.get(answer.number)
                        if run is not None:
                            run.put_nowait(answer)
        except (OSError, asyncio.IncompleteReadError, msgspec.DecodeError) as error:
            reason = str(error) or reason
        self._lost = self._unreachable(reason)
        gone = ErrorView(self._lost.code, self._lost.message, self._lost.exit_code)
        for number, run in self._runs.items():
            run.put_nowait(SessionAnswer(number, error=gone, ended=True))
