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
_READ_BYTES = 1 << 16
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


class FrameReader:
    """Frames from one pipe, one after the other. What one read brings is taken apart without another one."""

    def __init__(self, stream: asyncio.StreamReader, frame_s: float) -> None:
        self._stream = stream
        self._frame_s = frame_s
        self._pending = bytearray()

    async def next(self) -> Frame:
        """The next frame. Raises EOFError (asyncio.IncompleteReadError), MalformedFrame, FrameTooLong, FrameStalled."""
        deadline: float | None = None
        while (body := self._take()) is None:
            if self._pending and deadline is None:
                deadline = asyncio.get_running_loop().time() + self._frame_s
            piece = await self._more(deadline)
            if not piece:
                raise asyncio.IncompleteReadError(bytes(self._pending), None)
            self._pending += piece
        return parse(decode(body))

    async def _more(self, deadline: float | None) -> bytes:
        if deadline is None:
            return await self._stream.read(_READ_BYTES)
        try:
            async with asyncio.timeout_at(deadline):
                return await self._stream.read(_READ_BYTES)
        except TimeoutError:
            raise FrameStalled(f"a frame was not complete within {self._frame_s} s") from None

    def _take(self) -> bytes | None:
        if len(self._pending) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack_from(self._pending)
        if length > OUTPUT_FRAME_BYTES_MAX + FRAME_FIELDS_BYTES:
            raise FrameTooLong(f"a frame of {length} bytes")
        end = LENGTH.size + length
        if len(self._pending) < end:
            return None
        body = bytes(self._pending[LENGTH.size : end])
        del self._pending[:end]
        return body
