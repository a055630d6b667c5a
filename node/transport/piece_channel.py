"""One connection that carries pieces, from either end, for the thread that runs it.

Law: every wait ends: a message, a piece and a silence each have their time. The peer's key is known before anything is
said. Whatever the peer sends, a caller sees a message, the bytes that it asked for, ``RemoteProtocolError`` or
``ConnectionLost``. TLS is done here by a blocking socket because there Python lets go of its lock: the loop that blocks
and jobs depend on loses nothing but processor time, and no byte is copied between encryption and the caller.
"""

import contextlib
import socket
import ssl

import msgspec

from node.clock import read_clock
from node.transport.certificates import proved_node
from protocol.messages.pieces import (
    LENGTH_BYTES,
    PieceMessage,
    decode_piece_message,
    encode_piece_message,
    piece_message_length,
)
from protocol.primitives.errors import MercatError, RemoteProtocolError
from protocol.primitives.units import NodeId


class PieceTimes(msgspec.Struct, frozen=True, kw_only=True):
    """What this end waits for, in ms."""

    handshake_ms: int = 5_000
    message_ms: int = 5_000
    """From a message's first byte to its last."""
    silence_ms: int = 10_000
    """No byte comes, or none goes: the peer has stalled."""
    piece_ms: int = 60_000
    """One answer, whole. A mebibyte in a minute is a third of the slowest line that anybody sells."""
    idle_ms: int = 15_000
    """The answering end waits so long for the next question."""


class ConnectionLost(MercatError):
    """The connection broke, ended or stalled. Nobody broke a rule."""


class OutOfTurn(RemoteProtocolError):
    """The peer said something that nobody may say at this point."""

    def __init__(self, message: PieceMessage) -> None:
        super().__init__(f"a {type(message).__name__} out of turn")


class PieceChannel:
    """Messages and raw bytes over one TLS connection; used by one thread, aborted by any."""

    def __init__(
        self, connection: socket.socket, context: ssl.SSLContext, *, answering: bool, times: PieceTimes
    ) -> None:
        """Takes a connected socket over."""
        self.times = times
        connection.settimeout(times.handshake_ms / 1000)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = context.wrap_socket(connection, server_side=answering, do_handshake_on_connect=False)

    def shake_hands(self) -> NodeId:
        """Make the TLS connection; the peer's node id, whose key it has proved. Raises ``ConnectionLost``."""
        try:
            self._socket.do_handshake()
        except (OSError, ValueError) as error:
            raise ConnectionLost(f"no TLS connection: {error}") from None
        return proved_node(self._socket)

    def abort(self) -> None:
        """End the connection from another thread: whatever waits on it fails at once."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back; without TLS's goodbye, which nothing here depends on."""
        self._socket.close()

    def send(self, message: PieceMessage) -> None:
        """Send a message. Raises ``ConnectionLost``."""
        self.send_bytes(memoryview(encode_piece_message(message)), read_clock().monotonic_ms + self.times.message_ms)

    def send_bytes(self, content: memoryview, until_ms: int) -> None:
        """Send raw bytes, all of them before a time of the monotonic clock. Raises ``ConnectionLost``."""
        try:
            self._socket.settimeout(self.times.silence_ms / 1000)
            while content:
                self._check_time(until_ms)
                content = content[self._socket.send(content) :]
        except OSError as error:
            raise ConnectionLost(_said(error)) from None

    def receive(self, wait_ms: int | None = None) -> PieceMessage:
        """The next message, which begins within `wait_ms`. Raises ``ConnectionLost``, ``RemoteProtocolError``."""
        head = memoryview(bytearray(LENGTH_BYTES))
        self._fill(head[:1], wait_ms or self.times.silence_ms, wait_ms)
        self._fill(head[1:], self.times.message_ms)
        content = bytearray(piece_message_length(bytes(head)))
        self._fill(memoryview(content), self.times.message_ms)
        return decode_piece_message(bytes(content))

    def receive_bytes(self, target: memoryview) -> None:
        """Exactly so many raw bytes. Raises ``ConnectionLost``."""
        self._fill(target, self.times.piece_ms)

    def _fill(self, target: memoryview, total_ms: int, silence_ms: int | None = None) -> None:
        until_ms = read_clock().monotonic_ms + total_ms
        try:
            self._socket.settimeout(min(total_ms, silence_ms or self.times.silence_ms) / 1000)
            while target:
                received = self._socket.recv_into(target)
                if not received:
                    raise ConnectionLost("the peer hung up")
                target = target[received:]
                if target:
                    self._check_time(until_ms)
        except OSError as error:
            raise ConnectionLost(_said(error)) from None

    def _check_time(self, until_ms: int) -> None:
        if read_clock().monotonic_ms > until_ms:
            raise ConnectionLost("too slow")


def _said(error: OSError) -> str:
    return "the peer stalled" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
