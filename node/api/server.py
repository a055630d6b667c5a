"""The control API on its unix socket: one route for each thing that ``NodeControl`` offers.

Law: the socket is its owner's alone (0600 from the first moment), whoever may open it may act as the node's user.
A client that goes away cancels what it had running: handler cancellation is on.
"""

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from aiohttp import web

from node.api.requests import (
    REQUEST_BYTES_MAX,
    AmountBody,
    CountMax,
    ErrorBody,
    ErrorView,
    MotionBody,
    PublishBody,
    RowsMax,
    SendBody,
    SettledView,
    TimeoutMs,
    VoteBody,
    WaitBody,
)
from node.api.session import serve_session
from node.api.streams import stream_lines
from node.runtime.control import JOBS_LISTED, QUOTE_ROWS, ControlError, FaultsView, NodeControl, RunEvent, RunRequest
from node.runtime.model_views import PullEvent, PullRequest
from node.telemetry import event_logger
from protocol.primitives.errors import UserError

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SHUTDOWN_S = 0.5
"""What handlers have to end by themselves when the node stops."""

_STATUS_OF_EXIT_CODE = {2: 400, 3: 502, 4: 402, 5: 503, 124: 504}
_log = event_logger("api")


def _answer(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def _error(code: str, message: str, exit_code: int, status: int) -> web.Response:
    return _answer(ErrorBody(ErrorView(code, message, exit_code)), status)


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure leaves as ``{"error": {code, message, exit_code}}``."""
    try:
        return await handler(request)
    except ControlError as error:
        status = 404 if error.code.endswith("not_found") else _STATUS_OF_EXIT_CODE.get(error.exit_code, 500)
        return _error(error.code, error.message, error.exit_code, status)
    except (UserError, msgspec.ValidationError) as error:
        return _error("invalid_request", str(error), 2, 400)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _error("malformed_request", f"the body is not JSON: {error}", 2, 400)
    except web.HTTPException as error:
        return _error(error.reason.lower().replace(" ", "_"), f"{request.method} {request.path}", 2, error.status)
    except Exception as error:
        _log.error("request_failed", path=request.path, exc_info=True)
        return _error("internal", f"{type(error).__name__}; the node's log has more", 1, 500)


async def _body(request: web.Request, kind: type[T]) -> T:
    return msgspec.json.decode(await request.read(), type=kind)


def _number(request: web.Request, name: str) -> int:
    text = request.match_info[name]
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise UserError(f"not a {name}: {text!r}")
    return int(text)


def _timeout_ms(request: web.Request) -> int:
    return msgspec.convert(request.query.get("timeout_ms", "30000"), TimeoutMs, strict=False)


def _count_max(request: web.Request) -> int:
    return msgspec.convert(request.query.get("count", JOBS_LISTED), CountMax, strict=False)


class ControlRoutes:
    """Handlers over one node."""

    def __init__(self, control: NodeControl) -> None:
        self._control = control

    def table(self) -> list[web.RouteDef]:
        """Every route."""
        control = self._control
        return [
            _read("/v1/status", lambda request: control.status()),
            _read("/v1/models", lambda request: control.models()),
            _read("/v1/faults", lambda request: control.faults()),
            web.post("/v1/faults", self.have_faults),
            _read("/v1/offers", lambda request: control.offers()),
            _read("/v1/bids", lambda request: control.bids()),
            web.post("/v1/quote", self.quote),
            web.post("/v1/run", self.run),
            web.post("/v1/pull", self.pull_model),
            web.get("/v1/session", self.session),
            _read("/v1/jobs", lambda request: control.jobs(_count_max(request))),
            _read("/v1/jobs/{job}", lambda request: control.job(request.match_info["job"])),
            web.get("/v1/jobs/{job}/why", self.why),
            web.get("/v1/jobs/{job}/receipt", self.receipt),
            web.post("/v1/jobs/{job}/cancel", self.cancel),
            web.post("/v1/jobs/{job}/settle", self.settle),
            _read("/v1/requests/{request}", lambda request: control.request(request.match_info["request"])),
            _read("/v1/account", lambda request: control.account(request.query.get("account"))),
            web.post("/v1/send", self.send),
            _read("/v1/channels", lambda request: control.channels()),
            web.post("/v1/channels/{channel}/close", self.close_channel),
            _read("/v1/provider", lambda request: control.provider()),
            _read("/v1/records/{who}", lambda request: control.record(request.match_info["who"])),
            web.post("/v1/provider/bond", self.bond),
            web.post("/v1/provider/unbond", self.unbond),
            _read("/v1/registrations/{model}", lambda request: control.registration(request.match_info["model"])),
            web.post("/v1/registrations", self.publish),
            _read("/v1/ledger", lambda request: control.ledger()),
            _read("/v1/blocks/{height}", lambda request: control.block(_number(request, "height"))),
            _read("/v1/supply", lambda request: control.supply()),
            web.get("/v1/proof/{subject}/{identity}", self.proof),
            web.get("/v1/checkpoint", self.checkpoint),
            web.get("/v1/decided/{height}", self.decided),
            _read("/v1/authorities", lambda request: control.authorities()),
            _read("/v1/parameters", lambda request: control.parameters()),
            _read("/v1/motions", lambda request: control.motions()),
            _read("/v1/motions/{number}", lambda request: control.motion(_number(request, "number"))),
            web.post("/v1/motions", self.open_motion),
            web.post("/v1/motions/{number}/vote", self.vote),
        ]

    async def quote(self, request: web.Request) -> web.StreamResponse:
        """Who would take a job at what price, and why others would not."""
        rows_max = msgspec.convert(request.query.get("rows", QUOTE_ROWS), RowsMax, strict=False)
        return _answer(self._control.quote(await _body(request, RunRequest), rows_max))

    async def have_faults(self, request: web.Request) -> web.StreamResponse:
        """Make this node of a development network faulty, or well again."""
        return _answer(self._control.have_faults(await _body(request, FaultsView)))

    async def run(self, request: web.Request) -> web.StreamResponse:
        """Run a job: one ``RunEvent`` a line. A refusal before the first event is an ordinary error answer."""
        events = self._control.run(await _body(request, RunRequest))
        return await stream_lines(request, events, _failed_run, "the job ended without any event")

    async def pull_model(self, request: web.Request) -> web.StreamResponse:
        """Pull a model from peers: one ``PullEvent`` a line."""
        body = await _body(request, PullRequest)
        events = self._control.pull_model(body)
        return await stream_lines(request, events, lambda error: _failed_pull(body, error), "the pull told nothing")

    async def why(self, request: web.Request) -> web.StreamResponse:
        """What this node, the other party and the ledger have recorded of a job."""
        return _answer(await self._control.why(request.match_info["job"]))

    async def session(self, request: web.Request) -> web.StreamResponse:
        """Many jobs over one WebSocket."""
        return await serve_session(request, self._control)

    async def receipt(self, request: web.Request) -> web.StreamResponse:
        """The receipt file, as it is to be stored and verified."""
        content = await self._control.receipt(request.match_info["job"])
        return web.Response(body=content, content_type="application/json")

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """Cancel a job and its further charges."""
        return _answer(await self._control.cancel(request.match_info["job"]))

    async def settle(self, request: web.Request) -> web.StreamResponse:
        """Anchor a job's receipt in a block."""
        wait = await _body(request, WaitBody)
        return _answer(SettledView(await self._control.settle(request.match_info["job"], wait.timeout_ms)))

    async def proof(self, request: web.Request) -> web.StreamResponse:
        """The proof file of an account or a channel."""
        subject, identity = request.match_info["subject"], request.match_info["identity"]
        content = await self._control.proof(subject, identity, _timeout_ms(request))
        return web.Response(body=content, content_type="application/json")

    async def checkpoint(self, request: web.Request) -> web.StreamResponse:
        """A checkpoint file."""
        content = await self._control.checkpoint(_timeout_ms(request))
        return web.Response(body=content, content_type="application/json")

    async def decided(self, request: web.Request) -> web.StreamResponse:
        """Decided blocks as MessagePack."""
        content = await self._control.decided(_number(request, "height"))
        return web.Response(body=content, content_type="application/msgpack")

    async def send(self, request: web.Request) -> web.StreamResponse:
        """Send money."""
        body = await _body(request, SendBody)
        return _answer(await self._control.send(body.recipient, body.amount, body.timeout_ms))

    async def close_channel(self, request: web.Request) -> web.StreamResponse:
        """Close a payment channel."""
        wait = await _body(request, WaitBody)
        return _answer(await self._control.close_channel(request.match_info["channel"], wait.timeout_ms))

    async def bond(self, request: web.Request) -> web.StreamResponse:
        """Put money at stake as a provider."""
        body = await _body(request, AmountBody)
        return _answer(await self._control.bond(body.amount, body.timeout_ms))

    async def unbond(self, request: web.Request) -> web.StreamResponse:
        """Start to take the stake back."""
        body = await _body(request, AmountBody)
        return _answer(await self._control.unbond(body.amount, body.timeout_ms))

    async def publish(self, request: web.Request) -> web.StreamResponse:
        """Register a model as published by this node's account."""
        body = await _body(request, PublishBody)
        return _answer(await self._control.publish(body.manifest, body.timeout_ms))

    async def open_motion(self, request: web.Request) -> web.StreamResponse:
        """Put something to vote."""
        body = await _body(request, MotionBody)
        return _answer(await self._control.open_motion(body.subject, body.timeout_ms))

    async def vote(self, request: web.Request) -> web.StreamResponse:
        """Vote on a motion."""
        body = await _body(request, VoteBody)
        return _answer(await self._control.vote(_number(request, "number"), body.approve, body.timeout_ms))


def _failed_run(error: ControlError) -> RunEvent:
    facts: dict[str, str | int | bool | None] = {
        "code": error.code,
        "reason": error.message,
        "exit_code": error.exit_code,
    }
    return RunEvent("failed", facts)


def _failed_pull(request: PullRequest, error: ControlError) -> PullEvent:
    return PullEvent(
        "failed", request.model, "failed", code=error.code, reason=error.message, exit_code=error.exit_code
    )


def _read(path: str, answer: Callable[[web.Request], object]) -> web.RouteDef:
    async def handler(request: web.Request) -> web.StreamResponse:
        return _answer(answer(request))

    return web.get(path, handler, allow_head=False)


class SocketTaken(UserError):
    """Another node answers on the control socket."""


def _private_socket(path: Path) -> tuple[socket.socket, int]:
    """A bound unix socket that never, not for a moment, was open to other users, and its file's inode."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists():
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise SocketTaken(f"{path} exists and is not a socket")
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise SocketTaken(f"another node answers on {path}; stop it or choose another state directory")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        os.chmod(path, 0o600)  # where the kernel ignores the mode of an unbound socket
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener, path.stat().st_ino


def _remove_socket(path: Path, inode: int) -> None:
    """Unlink the socket unless somebody put another one there meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_ino == inode:
            path.unlink()


def control_application(control: NodeControl) -> web.Application:
    """The routes as an application."""
    application = web.Application(middlewares=[errors_as_json], client_max_size=REQUEST_BYTES_MAX)
    application.add_routes(ControlRoutes(control).table())
    return application


@contextlib.asynccontextmanager
async def serve_control(control: NodeControl, path: Path) -> AsyncIterator[None]:
    """Serve a node's control API on a unix socket while the context lasts; the socket file goes with it.

    Raises ``SocketTaken`` if another node answers there.
    """
    listener, inode = await asyncio.to_thread(_private_socket, path)
    runner = web.AppRunner(
        control_application(control),
        handle_signals=False,
        handler_cancellation=True,
        access_log=None,
        # A stream that is still open then is cancelled, and its job with it: a stop waits for nobody's reading.
        shutdown_timeout=SHUTDOWN_S,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        yield
    finally:
        _remove_socket(path, inode)
        await runner.cleanup()
