"""Answers that come a line at a time: whatever a generator of the node tells, until it ends or the client leaves.

Law: a refusal before the first line is an ordinary error answer, a failure after it a last line; a client that goes
away closes the generator, which ends what it stands for.
"""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

import msgspec
from aiohttp import web

from node.api.requests import STREAM_TYPE
from node.runtime.control import ControlError
from node.telemetry import event_logger

_log = event_logger("api")


async def stream_lines(
    request: web.Request,
    events: AsyncIterator[Sequence[msgspec.Struct]],
    failed: Callable[[ControlError], msgspec.Struct],
    nothing: str,
) -> web.StreamResponse:
    """One JSON object a line for each event. Raises ``ControlError`` if none comes; ``nothing`` says that it ended."""
    response = web.StreamResponse(headers={"Content-Type": STREAM_TYPE, "Cache-Control": "no-store"})
    try:
        with contextlib.suppress(StopAsyncIteration):
            ready = await anext(events)
            await response.prepare(request)
            while True:
                await response.write(b"".join(msgspec.json.encode(event) + b"\n" for event in ready))
                ready = await anext(events)
    except ControlError as error:
        if not response.prepared:
            raise
        await response.write(msgspec.json.encode(failed(error)) + b"\n")
    except ConnectionResetError:
        _log.info("client_left", path=request.path)
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()
    if not response.prepared:
        raise ControlError("no_events", nothing)
    return response
