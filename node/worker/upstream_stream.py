"""What an OpenAI-compatible server streams: events out of bytes, text out of events, and units out of text.

Law: nothing of it is believed beyond what can be seen. Bytes held are bounded; an event that is not one, a stream that
ends without a finish, or numbers that contradict what was streamed are the server's fault. Units are counted so that
the buyer never pays for more than was seen:

- one unit for each event that brings text, never more than the text has bytes;
- what the server's own final count names beyond that is added to the last piece, up to one unit for each byte that was
  streamed and one for the end, and never over what was asked for or what a piece may hold;
- without a final count, nothing is added.

Sans-IO: bytes are handed in, pieces are taken out. Source: the OpenAI API reference (chat and text completions,
streaming), the HTML standard (server-sent events).
"""

import json
from dataclasses import dataclass, field
from typing import Literal

from node.worker.errors import JobFailed

EVENT_BYTES_MAX = 64 << 10  # one event brings a few tokens; a server that packs more into one is not answered for
PIECE_BYTES_MAX = 128 << 10  # a piece ends here even if it may hold more units: with one event it still fits a chunk

Finish = Literal["stop", "length"]


class EventReader:
    """Server-sent events out of bytes: the data of each, in order. Comments and other fields are passed over."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self._held = 0

    def feed(self, content: bytes) -> list[bytes]:
        """The events that these bytes complete. Raises JobFailed on one that is too long."""
        events: list[bytes] = []
        self._line += content
        while (end := self._line.find(b"\n")) >= 0:
            line = bytes(self._line[:end]).removesuffix(b"\r")
            del self._line[: end + 1]
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
                self._held += len(line)
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data, self._held = [], 0
            if self._held > EVENT_BYTES_MAX:
                raise JobFailed(f"the server sent an event of more than {EVENT_BYTES_MAX} bytes")
        if len(self._line) + self._held > EVENT_BYTES_MAX:
            raise JobFailed(f"the server sent an event of more than {EVENT_BYTES_MAX} bytes")
        return events


@dataclass(frozen=True, slots=True)
class Delta:
    """One event's content."""

    text: str = ""
    finish: Finish | None = None
    completion_tokens: int | None = None


def tokens_of(usage: object, name: str) -> int | None:
    """A count out of a ``usage`` object; None if there is none. Raises JobFailed on one that can't be."""
    if not isinstance(usage, dict) or usage.get(name) is None:
        return None
    count = usage[name]
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < 1 << 31:
        raise JobFailed(f"the server's {name} is not a count")
    return count


def read_json(content: bytes) -> dict[str, object]:
    """A JSON object that the server sent. Raises JobFailed."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise JobFailed("the server sent something that is not JSON") from None
    if not isinstance(value, dict):
        raise JobFailed("the server sent something that is not a JSON object")
    return value


def read_delta(content: bytes) -> Delta:
    """One event of a completion's stream. Raises JobFailed."""
    event = read_json(content)
    if event.get("error"):
        raise JobFailed("the server broke off")  # why, its operator reads in its log
    completion_tokens = tokens_of(event.get("usage"), "completion_tokens")
    choices = event.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices) or len(choices) > 1:
        raise JobFailed("the server sent an event without one choice")
    if not choices:
        return Delta(completion_tokens=completion_tokens)
    (choice,) = choices
    delta = choice.get("delta", choice)
    text = (delta.get("content") if "delta" in choice else choice.get("text")) if isinstance(delta, dict) else 0
    reason = choice.get("finish_reason")
    if not isinstance(text, str | None) or not isinstance(reason, str | None):
        raise JobFailed("the server sent an event whose content is not text")
    finish: Finish | None = None if not reason else "length" if reason == "length" else "stop"
    return Delta(text or "", finish, completion_tokens)


def error_text(body: dict[str, object]) -> str:
    """What the server says went wrong, fit to be shown."""
    error = body.get("error", body.get("message", ""))
    said = error.get("message", "") if isinstance(error, dict) else error
    return "".join(letter for letter in str(said)[:400] if letter.isprintable())[:200]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of output and the units it is paid for."""

    payload: bytes
    units: int
    finish: Finish | None


@dataclass(slots=True)
class Meter:
    """Takes a stream's deltas and gives pieces of at most ``chunk_units``, ``units_max`` in all."""

    units_max: int
    chunk_units: int
    bytes_max: int
    _counted: int = 0
    _streamed: int = 0
    _said: int | None = None
    _payload: bytearray = field(default_factory=bytearray)
    _units: int = 0
    _finish: Finish | None = None
    _closed: bool = False

    @property
    def full(self) -> bool:
        """Whether a piece can be taken: no more fits, or nothing more comes."""
        return self._closed or self._units >= self.chunk_units or len(self._payload) >= PIECE_BYTES_MAX

    @property
    def settled(self) -> bool:
        """Whether the rest of the stream says nothing that is still wanted."""
        return self._closed or (self._finish is not None and self._said is not None)

    def take(self, delta: Delta) -> None:
        """One more event. Raises JobFailed."""
        if self._closed:
            return
        if delta.completion_tokens is not None:
            if delta.completion_tokens > self.units_max:
                raise JobFailed("the server counts more tokens than it was asked for")
            self._said = delta.completion_tokens
        if delta.text:
            if self._finish is not None:
                raise JobFailed("the server went on after its finish")
            content = delta.text.encode("utf-8", "replace")
            self._streamed += len(content)
            if self._streamed > self.bytes_max:
                raise JobFailed(f"the server's output is over its cap of {self.bytes_max} bytes")
            self._payload += content
            self._count(1)
        if delta.finish is not None:
            self._finish = delta.finish
        if self._counted >= self.units_max:
            self._finish = self._finish or "length"
            self._closed = True

    def end(self) -> None:
        """The stream is over. Raises JobFailed unless it said that it was finished, and its count is possible."""
        if self._closed:
            return
        if self._finish is None:
            raise JobFailed("the server's stream ended before its answer did")
        if self._said is not None:
            if self._said < self._counted:
                raise JobFailed(f"the server counts {self._said} tokens, and streamed text {self._counted} times")
            seen = min(self._said, self._streamed + 1)
            self._count(min(seen - self._counted, self.chunk_units - self._units, self.units_max - self._counted))
        self._closed = True

    def part(self) -> Part:
        """The piece that is full."""
        assert self.full
        part = Part(bytes(self._payload), self._units, self._finish if self._closed else None)
        self._payload.clear()
        self._units = 0
        return part

    def _count(self, units: int) -> None:
        if units > 0:
            self._units += units
            self._counted += units
