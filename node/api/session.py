"""A session: many jobs over one WebSocket of the control API, for programs that run more than one.

Law: a request for each job and a line for each of its events cost a connection more than a small job does; here both
are messages, and those that are ready together leave together. Whatever still runs when its client goes away is
cancelled. A client that does not read keeps its own jobs waiting and nobody else's.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import msgspec
from aiohttp import WSMsgType, web

from node.api.requests import (
    REQUEST_BYTES_MAX,
    SESSION_RUNS_MAX,
    ErrorView,
    SessionAnswer,
    SessionAsk,
    SessionCancel,
    SessionRun,
)
from node.runtime.control import ControlError, NodeControl, RunRequest
from node.telemetry import event_logger
from protocol.primitives.errors import UserError

_WAITING_BYTES_MAX = 4 * 1024 * 1024
"""Beyond this a job's next events wait until the client has read."""
_ANSWER_BYTES = 512
"""What an answer takes beside its payload, about."""
_log = event_logger("api")


class Session:
    """One client's jobs."""

    def __init__(self, control: NodeControl, socket: web.WebSocketResponse[bool]) -> None:
        self._control = control
        self._socket = socket
        self._runs: dict[int, asyncio.Task[None]] = {}
        self._answers: list[SessionAnswer] = []
        self._waiting_bytes = 0
        self._more = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def serve(self) -> None:
        """Read until the client goes away."""
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(self._write())
            try:
                async for received in self._socket:
                    if received.type is not WSMsgType.TEXT:
                        break
                    self._take(received.data, tasks)
            except msgspec.DecodeError as error:
                await self._socket.close(code=1008, message=str(error).encode()[:120])
            finally:
                writing.cancel()
                for run in tuple(self._runs.values()):
                    run.cancel()

    def _take(self, received: str, tasks: asyncio.TaskGroup) -> None:
        match msgspec.json.decode(received, type=SessionAsk):
            case SessionCancel(number):
                run = self._runs.get(number)
                if run is not None:
                    run.cancel()
            case SessionRun(number) as asked:
                if number in self._runs:
                    raise msgspec.ValidationError(f"run {number} is under way")
                if len(self._runs) >= SESSION_RUNS_MAX:
                    self._refuse(number, "too_many_runs", f"{SESSION_RUNS_MAX} jobs run in this session", 5)
                    return
                self._runs[number] = tasks.create_task(self._run(asked))

    async def _run(self, asked: SessionRun) -> None:
        number = asked.number
        try:
            request = msgspec.json.decode(asked.request, type=RunRequest)
            events = self._control.run(request)
            try:
                async for ready in events:
                    self._say(SessionAnswer(number, ready))
                    if self._waiting_bytes > _WAITING_BYTES_MAX:
                        self._room.clear()
                        await self._room.wait()
            finally:
                if isinstance(events, AsyncGenerator):
                    await events.aclose()
            self._say(SessionAnswer(number, ended=True))
        except ControlError as error:
            self._refuse(number, error.code, error.message, error.exit_code)
        except (UserError, msgspec.ValidationError) as error:
            self._refuse(number, "invalid_request", str(error), 2)
        except asyncio.CancelledError:
            self._refuse(number, "cancelled", "the job is cancelled", 1)
            raise
        except Exception as error:
            _log.error("request_failed", path="/v1/session", exc_info=True)
            self._refuse(number, "internal", f"{type(error).__name__}; the node's log has more", 1)
        finally:
            del self._runs[number]

    def _refuse(self, number: int, code: str, message: str, exit_code: int) -> None:
        self._say(SessionAnswer(number, error=ErrorView(code, message, exit_code), ended=True))

    def _say(self, answer: SessionAnswer) -> None:
        self._answers.append(answer)
        self._waiting_bytes += _ANSWER_BYTES + sum(len(event.payload) for event in answer.events)
        self._more.set()

    async def _write(self) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await self._more.wait()
                await asyncio.sleep(0)  # a turn of the loop: the last piece of an output and its end mostly share one
                self._more.clear()
                answers, self._answers, self._waiting_bytes = self._answers, [], 0
                self._room.set()
                await self._socket.send_frame(msgspec.json.encode(answers), WSMsgType.TEXT)


async def serve_session(request: web.Request, control: NodeControl) -> web.StreamResponse:
    """Turn a request into a session and serve it to its end."""
    socket = web.WebSocketResponse(compress=False, max_msg_size=REQUEST_BYTES_MAX)
    await socket.prepare(request)
    await Session(control, socket).serve()
    return socket
