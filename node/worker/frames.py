"""The node's end of a worker's pipes. Nothing that comes through them is trusted.

Law: a length over the cap, a frame that stalls half-way, or bytes that aren't one of the known frames raise, and the
caller kills the worker. Waiting for a frame to *begin* has no limit here: that is each job's deadline.
"""

import asyncio
from dataclasses import dataclass

from node.worker.child.frames import LENGTH, MalformedFrame, Value, decode
from node.worker.limits import OUTPUT_FRAME_BYTES_MAX

FRAME_FIELDS_BYTES = 1 << 18  # room for token numbers beside a full piece of payload
REASON_CHARACTERS_MAX = 500
SETTINGS_MAX = 32


class FrameTooLong(Exception):
    """The worker announced a frame over the cap."""


class FrameStalled(Exception):
    """A frame began and did not go on."""


@dataclass(frozen=True, slots=True)
class Confined:
    """The second filter is in force; settings were read before any stranger's byte."""

    settings: dict[str, int | str]


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""

    context_tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The model can't be loaded."""

    reason: str


@dataclass(frozen=True, slots=True)
class InputDone:
    """A job's input was processed."""

    job: int
    input_units: int


@dataclass(frozen=True, slots=True)
class PieceDone:
    """A job's next piece of output."""

    job: int
    payload: bytes
    units: int
    tokens: tuple[int, ...]
    finish: str | None


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """A job's request is at fault."""

    job: int
    reason: str


@dataclass(frozen=True, slots=True)
class JobBroken:
    """A job failed while it ran."""

    job: int
    reason: str


@dataclass(frozen=True, slots=True)
class CancelDone:
    """A job is forgotten."""

    job: int


@dataclass(frozen=True, slots=True)
class CanaryDone:
    """One attack was tried."""

    name: str
    stopped: bool
    seen: str


Frame = Confined | Ready | Failed | InputDone | PieceDone | RequestRefused | JobBroken | CancelDone | CanaryDone


def _small(value: int, highest: int = 1 << 31) -> int:
    if isinstance(value, bool) or not 0 <= value <= highest:
        raise MalformedFrame("a number out of range")
    return value


FINISHES = (None, "stop", "length", "done", "failed")


def parse(value: Value) -> Frame:
    """One known frame. Raises MalformedFrame."""
    match value:
        case ["prefilled", int(job), int(units)]:
            return InputDone(_small(job), _small(units))
        case ["piece", int(job), bytes(payload), int(units), list(tokens), finish] if finish in FINISHES:
            if len(payload) > OUTPUT_FRAME_BYTES_MAX:
                raise MalformedFrame("a piece is too large")
            numbers = []
            for token in tokens:
                if not isinstance(token, int):
                    raise MalformedFrame("a token is not a number")
                numbers.append(_small(token))
            return PieceDone(_small(job), payload, _small(units), tuple(numbers), finish)
        case ["refused", int(job), str(reason)]:
            return RequestRefused(_small(job), reason[:REASON_CHARACTERS_MAX])
        case ["broken", int(job), str(reason)]:
            return JobBroken(_small(job), reason[:REASON_CHARACTERS_MAX])
        case ["cancelled", int(job)]:
            return CancelDone(_small(job))
        case ["confined", dict(settings)]:
            return Confined(_settings(settings))
        case ["ready", int(context_tokens)]:
            return Ready(_small(context_tokens))
        case ["failed", str(reason)]:
            return Failed(reason[:REASON_CHARACTERS_MAX])
        case ["canary", str(name), bool(stopped), str(seen)]:
            return CanaryDone(name[:REASON_CHARACTERS_MAX], stopped, seen[:REASON_CHARACTERS_MAX])
        case _:
            raise MalformedFrame("unknown frame")


def _settings(given: dict[str, Value]) -> dict[str, int | str]:
    settings: dict[str, int | str] = {}
    if len(given) > SETTINGS_MAX:
        raise MalformedFrame("too many settings")
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise MalformedFrame("a setting is neither a whole number nor a text")
        settings[name] = value[:REASON_CHARACTERS_MAX] if isinstance(value, str) else value
    return settings


async def read_frame(stream: asyncio.StreamReader, frame_s: float) -> Frame:
    """The next frame. Raises EOFError (asyncio.IncompleteReadError), MalformedFrame, FrameTooLong, FrameStalled."""
    first = await stream.readexactly(1)
    try:
        async with asyncio.timeout(frame_s):
            header = first + await stream.readexactly(LENGTH.size - 1)
            (length,) = LENGTH.unpack(header)
            if length > OUTPUT_FRAME_BYTES_MAX + FRAME_FIELDS_BYTES:
                raise FrameTooLong(f"a frame of {length} bytes")
            body = await stream.readexactly(length)
    except TimeoutError:
        raise FrameStalled(f"a frame was not complete within {frame_s} s") from None
    return parse(decode(body))
