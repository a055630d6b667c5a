"""One link: the greeting, the reader, the batching writer, the end.

Law: a link is greeted before anything else passes, in both directions. One task reads, one task writes; reading waits
for whoever takes the messages (backpressure reaches the peer through TCP), sending never waits (its queue refuses).
Whatever the peer does, ``run`` returns a reason.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import aiohttp
import msgspec
from aiohttp import WSMsgType, web

from node.transport.outgoing import OutgoingQueue
from node.transport.peer_store import open_record
from node.transport.policy import LinkPolicy
from protocol.messages.peers import Hello, NodeRecord
from protocol.messages.wire import Goodbye, WireMessage, encode_message, join_frame, split_frame
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.limits import TEXT_BYTES_MAX
from protocol.primitives.units import NodeId

Socket = aiohttp.ClientWebSocketResponse[bool] | web.WebSocketResponse[bool]

CONNECTION_ERRORS = (aiohttp.ClientError, aiohttp.WebSocketError, OSError, ssl.SSLError, TimeoutError)
"""What a connection may end with through no fault of this program. aiohttp's reset errors are OSErrors."""


class LinkRefused(RemoteProtocolError):
    """This link is not to be: another network or version, the wrong peer, or a goodbye instead of a greeting."""


class LinkEnd(msgspec.Struct, frozen=True):
    """Why a link ended, and whether the peer broke a rule."""

    reason: str
    misbehaved: bool = False


class LinkFacts(msgspec.Struct, frozen=True):
    """One link as people see it. Times are the loop's monotonic clock in ms."""

    node: NodeId
    endpoint: str
    outbound: bool
    """We dialed it."""
    incarnation: int
    opened_ms: int
    messages_received: int
    messages_sent: int
    bytes_received: int
    bytes_sent: int
    messages_dropped: int
    queued_messages: int
    queued_bytes: int


def shorten(reason: str) -> str:
    """A reason that fits a Goodbye."""
    return reason if len(reason) <= TEXT_BYTES_MAX else reason[: TEXT_BYTES_MAX - 1] + "…"


def told_with_ban(reason: str, ban_ms: int) -> str:
    """A reason for a Goodbye that also says when to come back."""
    ban = f"; banned for {ban_ms / 1000:g} s" if ban_ms > 0 else ""
    room = TEXT_BYTES_MAX - len(ban)
    return (reason if len(reason) <= room else reason[: room - 1] + "…") + ban


@contextmanager
def only_own_cancellation() -> Iterator[None]:
    """Turn a cancellation that nobody asked this task for into a connection error.

    aiohttp lets all writers of a connection wait on one future: cancelling one of them, such as its own ping, raises
    ``CancelledError`` in the others. Taken for a real one it would silently end a dial that should go on for ever.
    """
    try:
        yield
    except asyncio.CancelledError:
        _own_cancellation_or_error()
        raise


def _own_cancellation_or_error() -> None:
    task = asyncio.current_task()
    if task is not None and not task.cancelling():
        raise ConnectionError("another writer of the connection was cancelled") from None


async def send_frame(socket: Socket, frame: bytes) -> None:
    """Send one frame; waits while the connection's buffer is full. Raises connection errors."""
    try:
        await socket.send_bytes(frame)
    except asyncio.CancelledError:
        _own_cancellation_or_error()
        raise


async def receive_frame(socket: Socket) -> tuple[tuple[WireMessage, ...], int]:
    """The next frame's messages and its size in bytes.

    Raises ``RemoteProtocolError`` on anything that is no frame, ``ConnectionError`` when the connection ends.
    """
    try:
        received = await socket.receive()
    except asyncio.CancelledError:
        _own_cancellation_or_error()
        raise
    if received.type is WSMsgType.BINARY:
        messages = split_frame(received.data)
        if not messages:
            raise RemoteProtocolError("a frame without messages")
        return messages, len(received.data)
    if received.type is WSMsgType.TEXT:
        raise RemoteProtocolError("text where a binary frame was due")
    if received.type is WSMsgType.ERROR:
        error = socket.exception()
        if isinstance(error, aiohttp.WebSocketError):
            raise RemoteProtocolError(f"broken WebSocket frame ({error.code}): {error}")
        raise ConnectionError(str(error))
    raise ConnectionError(f"connection closed ({socket.close_code})")


async def say_goodbye(socket: Socket, reason: str, linger_ms: int) -> None:
    """Tell the peer why and close; errors and a peer that does not read change nothing."""
    try:
        async with asyncio.timeout(linger_ms / 1000):
            await send_frame(socket, join_frame([encode_message(Goodbye(shorten(reason)))]))
    except CONNECTION_ERRORS:
        pass
    await close_socket(socket, linger_ms)


async def close_socket(socket: Socket, linger_ms: int) -> None:
    """Close, with the closing handshake if the peer takes part in time. Safe to call on a closed socket."""
    try:
        async with asyncio.timeout(linger_ms / 1000):
            with only_own_cancellation():
                await socket.close()
    except CONNECTION_ERRORS:
        pass


async def greet(socket: Socket, own: Hello, peer: NodeId) -> tuple[Hello, NodeRecord]:
    """Exchange Hellos. Raises ``LinkRefused``, another ``RemoteProtocolError`` or a connection error."""
    await send_frame(socket, join_frame([encode_message(own)]))
    messages, _ = await receive_frame(socket)
    match messages:
        case (Hello() as hello,):
            pass
        case (Goodbye(reason),):
            raise LinkRefused(f"peer said goodbye: {reason}")
        case _:
            raise RemoteProtocolError("peer did not greet first")
    if hello.version != own.version:
        raise LinkRefused(f"protocol version {hello.version} there, {own.version} here")
    if hello.genesis_hash != own.genesis_hash:
        raise LinkRefused(f"network {hello.genesis_hash.hex()[:16]} there, {own.genesis_hash.hex()[:16]} here")
    node, record = open_record(own.genesis_hash, hello.record)
    if node != peer:
        raise RemoteProtocolError(f"greeting holds the record of another node, {node.hex()[:16]}")
    return hello, record


Deliver = Callable[[NodeId, tuple[WireMessage, ...], int], Awaitable[None] | None]


class Link:
    """A greeted connection to one peer."""

    def __init__(
        self, socket: Socket, peer: NodeId, record: NodeRecord, endpoint: str, outbound: bool, policy: LinkPolicy
    ) -> None:
        self.peer = peer
        self.record = record
        self.outbound = outbound
        self.ended = asyncio.Event()
        self.superseded = False
        """Another link to the same peer has taken this one's place: nothing of this one is delivered any more."""
        self.peers_asked_ms = -1
        """When we last asked for peers and have no answer yet; −1 when no answer is due."""
        self.peers_told_ms = -1
        self._socket = socket
        self._endpoint = endpoint
        self._policy = policy
        self._queue = OutgoingQueue(policy.queue_messages_max, policy.queue_bytes_max)
        self._work = asyncio.Event()
        self._closing = asyncio.Event()
        self._close_end = LinkEnd("closed")
        self._opened_ms = int(asyncio.get_running_loop().time() * 1000)
        self._received = self._sent = self._bytes_received = self._bytes_sent = self._dropped = 0

    @property
    def host(self) -> str:
        """The address at the other end, without its port."""
        return self._endpoint.rpartition(":")[0].strip("[]")

    def facts(self) -> LinkFacts:
        """A snapshot for people."""
        return LinkFacts(
            self.peer,
            self._endpoint,
            self.outbound,
            self.record.incarnation,
            self._opened_ms,
            self._received,
            self._sent,
            self._bytes_received,
            self._bytes_sent,
            self._dropped,
            len(self._queue),
            self._queue.waiting_bytes,
        )

    def send(self, encoded: bytes) -> bool:
        """Queue one message; False when it was dropped. Never waits."""
        if self._closing.is_set() or not self._queue.offer(encoded):
            self._dropped += 1
            return False
        self._work.set()
        return True

    def close(self, end: LinkEnd, *, flush: bool) -> None:
        """End the link soon, telling the peer why; with ``flush`` what waits is sent first, for at most the linger."""
        if self._closing.is_set():
            return
        if not flush:
            self._queue.clear()
        self._close_end = end
        self._closing.set()
        self._work.set()

    async def run(self, deliver: Deliver, misbehaviour_ban_ms: int = 0) -> LinkEnd:
        """Read and write until the link ends; the socket is closed on return. A peer that broke a rule is told for how
        long it will be turned away."""
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(self._read(deliver))
            writing = tasks.create_task(self._write())
            lingering = tasks.create_task(self._linger())
            done, rest = await asyncio.wait((reading, writing, lingering), return_when=asyncio.FIRST_COMPLETED)
            for task in rest:
                task.cancel()
        end = next(iter(sorted(done, key=(reading, writing, lingering).index))).result()
        told = told_with_ban(end.reason, misbehaviour_ban_ms) if end.misbehaved else end.reason
        await say_goodbye(self._socket, told, self._policy.linger_ms)
        return end

    async def _linger(self) -> LinkEnd:
        await self._closing.wait()
        await asyncio.sleep(self._policy.linger_ms / 1000)
        return self._close_end

    async def _read(self, deliver: Deliver) -> LinkEnd:
        try:
            while True:
                messages, size = await receive_frame(self._socket)
                self._received += len(messages)
                self._bytes_received += size
                for message in messages:
                    if isinstance(message, Goodbye):
                        return LinkEnd(f"peer said goodbye: {message.reason}")
                    if isinstance(message, Hello):
                        raise RemoteProtocolError("greeted twice")
                if self.superseded or self._closing.is_set():
                    continue
                handed_over = deliver(self.peer, messages, size)
                if handed_over is not None:
                    await handed_over
        except RemoteProtocolError as error:
            return LinkEnd(str(error), misbehaved=True)
        except CONNECTION_ERRORS as error:
            return LinkEnd(str(error) or type(error).__name__)

    async def _write(self) -> LinkEnd:
        try:
            while True:
                while self._queue:
                    frame, count = self._queue.take_frame()
                    await send_frame(self._socket, frame)
                    self._sent += count
                    self._bytes_sent += len(frame)
                    if self._queue:
                        await asyncio.sleep(0)  # sending yields only when the socket is full
                if self._closing.is_set():
                    return self._close_end
                self._work.clear()
                await self._work.wait()
        except CONNECTION_ERRORS as error:
            return LinkEnd(str(error) or type(error).__name__)
