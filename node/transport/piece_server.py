"""Gives pieces of models to whoever proves a node's key, within limits.

Law: a stranger names a model by its hash and its files and pieces by number; what there is to give, the library
decides, and no byte of a question ever becomes part of a path. A peer takes one thread and one buffer for as long as it
keeps asking and taking, has at most ``PIECE_CONNECTIONS_PER_PEER_MAX`` such connections, and pays for every byte from
its own allowance and from that of all, and with time for a question that brings few. Who finds no room is told so
before TLS, which costs us nothing.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec

from node.clock import read_clock
from node.transport.bulk_threads import bulk_threads, in_thread
from node.transport.endpoints import is_loopback
from node.transport.neighbours import neighbour_of
from node.transport.piece_channel import ConnectionLost, OutOfTurn, PieceChannel, PieceTimes
from node.transport.throttle import Throttle
from protocol.messages.pieces import (
    BUSY,
    WELCOME,
    Granted,
    ManifestWanted,
    PieceGreeting,
    PieceListWanted,
    PieceMessage,
    PieceWanted,
    Refused,
)
from protocol.primitives.errors import MercatError, RemoteProtocolError
from protocol.primitives.limits import PIECE_CONNECTIONS_MAX, PIECE_CONNECTIONS_PER_PEER_MAX, TEXT_BYTES_MAX
from protocol.primitives.units import Hash, ModelId, NodeId

SLICE_BYTES = 256 * 1024
"""Sent between two looks at allowance and time."""

SMALL_ANSWERS_PER_SECOND = 50
"""On one connection. An answer below a slice costs time, not bytes: a model has a hundred of them, a flood no end."""

OnEvent = Callable[[str, dict[str, object]], None]
IsBanned = Callable[[NodeId], bool]


class NotShared(MercatError):
    """What was asked for is not given away here, and why."""


class SharedModel(Protocol):
    """One model that is given away. Methods are called in threads and raise ``NotShared``."""

    @property
    def manifest(self) -> bytes:
        """The bytes that the model's id is the hash of."""
        ...

    def piece_list(self, file: int) -> bytes:
        """Hashes of the pieces of a file."""
        ...

    def piece(self, file: int, piece: int) -> tuple[int, int, int]:
        """Where a piece is: an open descriptor, a position in it, and how many bytes."""
        ...

    def close(self) -> None:
        """Let go of its files."""
        ...


class PieceLibrary(Protocol):
    """What a node gives away."""

    def open(self, model: ModelId) -> SharedModel:
        """A model, for as long as one peer asks for it. Called in threads. Raises ``NotShared``."""
        ...


class PiecePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How much one node gives."""

    upload_bytes_per_second: int | None = None
    """To all peers together; None: as much as they take."""
    upload_per_peer_bytes_per_second: int | None = None
    connections_max: int = PIECE_CONNECTIONS_MAX
    connections_per_peer_max: int = PIECE_CONNECTIONS_PER_PEER_MAX
    """Of one node, and before it has proved who it is, of one address; this machine's own addresses excepted."""
    times: PieceTimes = PieceTimes()


class Served(msgspec.Struct):
    """What came of one connection."""

    peer: NodeId | None = None
    bytes_sent: int = 0
    reason: str = ""
    """Why it ended, if not in order."""


class PieceServer:
    """Runs each connection in a thread of its own pool; ``take`` and ``stop`` are called on the loop."""

    def __init__(
        self,
        context: ssl.SSLContext,
        genesis_hash: Hash,
        library: PieceLibrary,
        policy: PiecePolicy,
        is_banned: IsBanned,
        on_event: OnEvent,
    ) -> None:
        self._context = context
        self._genesis_hash = genesis_hash
        self._library = library
        self._policy = policy
        self._is_banned = is_banned
        self._on_event = on_event
        self._threads = bulk_threads(policy.connections_max, "mercat-pieces")
        self._stop = threading.Event()
        self._channels: dict[PieceChannel, str] = {}
        """Every connection and the place that it comes from; the loop's alone."""
        self._total = Throttle(policy.upload_bytes_per_second)
        self._lock = threading.Lock()
        self._peers: dict[NodeId, tuple[int, Throttle]] = {}
        """Connections and allowance of each peer that has some."""

    async def take(self, connection: socket.socket, host: str) -> None:
        """Run an accepted connection, whose prologue has been read, to its end; it is closed then."""
        loop = asyncio.get_running_loop()
        try:
            room = self._has_room(host)
            await loop.sock_sendall(connection, WELCOME if room else BUSY)
            if not room:
                return
            channel = PieceChannel(connection, self._context, answering=True, times=self._policy.times)
        except OSError:
            return
        finally:
            connection.close()  # a channel has taken the descriptor over
        self._channels[channel] = neighbour_of(host)
        try:
            served = await in_thread(self._threads, lambda: self._serve(channel), channel.abort)
        finally:
            del self._channels[channel]
            channel.close()
        peer = "" if served.peer is None else served.peer.hex()
        self._on_event("pieces.served", {"peer": peer, "bytes": served.bytes_sent, "reason": served.reason})

    def stop(self) -> None:
        """End every connection; their threads end at once."""
        self._stop.set()
        for channel in self._channels:
            channel.abort()
        self._threads.shutdown(wait=False)

    def _has_room(self, host: str) -> bool:
        place = neighbour_of(host)
        here = sum(1 for other in self._channels.values() if other == place)
        return (
            not self._stop.is_set()
            and len(self._channels) < self._policy.connections_max
            and (is_loopback(host) or here < self._policy.connections_per_peer_max)
        )

    # In the threads

    def _serve(self, channel: PieceChannel) -> Served:
        served = Served()
        try:
            served.peer = channel.shake_hands()
            greeting = channel.receive()
            if not isinstance(greeting, PieceGreeting):
                raise OutOfTurn(greeting)
            with self._allowance(served.peer) as throttle:
                refusal = self._refusal(served.peer, greeting, throttle)
                if refusal is not None:
                    channel.send(refusal)
                    served.reason = refusal.reason
                elif throttle is not None:
                    with contextlib.closing(
                        _Answerer(channel, self._library, (throttle, self._total), self._stop)
                    ) as it:
                        it.answer_all(served)
        except ConnectionLost as error:
            served.reason = str(error)
        except RemoteProtocolError as error:
            served.reason = f"broke a rule: {error}"
        return served

    def _refusal(self, peer: NodeId, greeting: PieceGreeting, throttle: Throttle | None) -> Refused | None:
        if greeting.genesis_hash != self._genesis_hash:
            return Refused("this node belongs to another network", False)
        if self._is_banned(peer):
            return Refused("banned", True)
        if throttle is None:
            return Refused("this node has as many connections as one may have", True)
        return None

    @contextlib.contextmanager
    def _allowance(self, peer: NodeId) -> Iterator[Throttle | None]:
        """The peer's share of the upload while one more connection of it lasts; None if it has too many."""
        with self._lock:
            count, throttle = self._peers.get(peer) or (0, Throttle(self._policy.upload_per_peer_bytes_per_second))
            full = count >= self._policy.connections_per_peer_max
            if not full:
                self._peers[peer] = (count + 1, throttle)
        if full:
            yield None
            return
        try:
            yield throttle
        finally:
            with self._lock:
                count, _ = self._peers[peer]
                if count == 1:
                    del self._peers[peer]
                else:
                    self._peers[peer] = (count - 1, throttle)


class _Answerer:
    """Answers the questions that come on one connection, in turn."""

    def __init__(
        self, channel: PieceChannel, library: PieceLibrary, throttles: Sequence[Throttle], stop: threading.Event
    ) -> None:
        self._channel = channel
        self._library = library
        self._throttles = throttles
        self._stop = stop
        self._open: tuple[ModelId, SharedModel] | None = None
        self._buffer = memoryview(bytearray(SLICE_BYTES))
        self._small = Throttle(SMALL_ANSWERS_PER_SECOND)

    def close(self) -> None:
        """Let go of the model that was asked for last."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def answer_all(self, served: Served) -> None:
        """Until the peer hangs up, breaks a rule or asks nothing more. Raises what the channel raises."""
        while not self._stop.is_set():
            question = self._channel.receive(self._channel.times.idle_ms)
            size = 0
            try:
                size = self._answer(question)
            except NotShared as error:
                self._channel.send(Refused(str(error)[:TEXT_BYTES_MAX], False))
            served.bytes_sent += size
            if size < SLICE_BYTES:
                self._small.take(1, self._stop)

    def _answer(self, question: PieceMessage) -> int:
        match question:
            case ManifestWanted():
                return self._give(self._model(question.model).manifest)
            case PieceListWanted():
                return self._give(self._model(question.model).piece_list(question.file))
            case PieceWanted():
                return self._give_piece(*self._model(question.model).piece(question.file, question.piece))
            case _:
                raise OutOfTurn(question)

    def _model(self, wanted: ModelId) -> SharedModel:
        if self._open is None or self._open[0] != wanted:
            self.close()
            self._open = (wanted, self._library.open(wanted))
        return self._open[1]

    def _give(self, content: bytes) -> int:
        until_ms = self._begin(len(content))
        for start in range(0, len(content), SLICE_BYTES):
            until_ms = self._send(memoryview(content)[start : start + SLICE_BYTES], until_ms)
        return len(content)

    def _give_piece(self, descriptor: int, position: int, size: int) -> int:
        until_ms = self._begin(size)
        end = position + size
        while position < end:
            view = self._buffer[: min(SLICE_BYTES, end - position)]
            try:
                if os.preadv(descriptor, [view], position) != len(view):
                    raise ConnectionLost("the file is shorter than the manifest says")
            except OSError as error:
                raise ConnectionLost(f"the file can't be read: {error.strerror}") from None
            until_ms = self._send(view, until_ms)
            position += len(view)
        return size

    def _begin(self, size: int) -> int:
        self._channel.send(Granted(size))
        return read_clock().monotonic_ms + self._channel.times.piece_ms

    def _send(self, view: memoryview, until_ms: int) -> int:
        """Send a slice once it is paid for; the time until which the rest may take, what we made it wait added."""
        began = read_clock().monotonic_ms
        for throttle in self._throttles:
            throttle.take(len(view), self._stop)
        until_ms += read_clock().monotonic_ms - began
        self._channel.send_bytes(view, until_ms)
        return until_ms
