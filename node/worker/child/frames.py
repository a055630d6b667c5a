"""Frames on the pipes between a node and its worker: four length bytes (big-endian), then one MessagePack value.

Law: a length is checked before anything is read for it; a value holds only nil, booleans, integers, floats, text,
bytes, arrays and maps with text keys, nested at most a few levels.
"""

import os
import select
import struct
import time

import msgpack

LENGTH = struct.Struct(">I")
FRAME_BYTES_MAX = 12 << 20  # one job's input (8 MiB) and its fields
DEPTH_MAX = 16

Value = None | bool | int | float | str | bytes | list["Value"] | dict[str, "Value"]


class MalformedFrame(Exception):
    """Bytes on the pipe are not a frame of this protocol."""


def encode(value: Value, bytes_max: int = FRAME_BYTES_MAX) -> bytes:
    """One frame; MalformedFrame if it would be longer than allowed."""
    body: bytes = msgpack.packb(value, use_bin_type=True)
    if len(body) > bytes_max:
        raise MalformedFrame(f"a frame of {len(body)} bytes is over the limit of {bytes_max}")
    return LENGTH.pack(len(body)) + body


def decode(body: bytes) -> Value:
    """The value of one frame's body. Raises MalformedFrame on anything else than one plain value."""
    try:
        value: Value = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            max_str_len=len(body),
            max_bin_len=len(body),
            max_array_len=len(body),
            max_map_len=len(body),
            max_ext_len=0,
        )
    except (ValueError, RecursionError, msgpack.exceptions.UnpackException, UnicodeDecodeError) as error:
        raise MalformedFrame(f"not MessagePack: {type(error).__name__}") from None
    _check_depth(value, DEPTH_MAX)
    return value


def _check_depth(value: Value, depth: int) -> None:
    if isinstance(value, list | dict):
        if depth == 0:
            raise MalformedFrame("nested too deeply")
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, list | dict):
                _check_depth(item, depth - 1)


class FramePipe:
    """The child's end: blocking or polled reads from one descriptor, whole writes to another."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading = reading
        self._writing = writing
        self._pending = bytearray()

    def read(self, wait_s: float | None, wakes: int | None = None) -> Value | None:
        """The next frame's value; None when none is complete within `wait_s` (None: wait for ever), or when `wakes`,
        a descriptor that somebody else reads, becomes readable meanwhile.

        Raises EOFError when the node has closed the pipe or is gone, MalformedFrame on a broken frame.
        """
        end = None if wait_s is None else time.monotonic() + wait_s
        while True:
            body = self._take()
            if body is not None:
                return decode(body)
            left = None if end is None else max(0.0, end - time.monotonic())
            waited_for = [self._reading] if wakes is None else [self._reading, wakes]
            readable, _, _ = select.select(waited_for, [], [], left)
            if self._reading not in readable:
                return None
            piece = os.read(self._reading, 1 << 16)
            if not piece:
                raise EOFError
            self._pending += piece

    def _take(self) -> bytes | None:
        if len(self._pending) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack_from(self._pending)
        if length > FRAME_BYTES_MAX:
            raise MalformedFrame(f"a frame of {length} bytes is over the limit of {FRAME_BYTES_MAX}")
        end = LENGTH.size + length
        if len(self._pending) < end:
            return None
        body = bytes(self._pending[LENGTH.size : end])
        del self._pending[:end]
        return body

    def write(self, value: Value) -> None:
        """Write one frame completely; BrokenPipeError when the node is gone."""
        rest = memoryview(encode(value))
        while rest:
            rest = rest[os.write(self._writing, rest) :]
