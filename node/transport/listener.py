"""The accepting side: TCP, TLS, the WebSocket upgrade, and a bound on connections that have not become links.

Law: a connection that has not greeted us in time is closed, and there are never more than
``PENDING_CONNECTIONS_MAX`` of them, counted from the TCP connection on. Room is made at the address with the most of
them: the oldest that has proved no key yet goes first. So a stranger who only connects, or stops half-way, can't take
the descriptors that the node needs, nor crowd out those who come from elsewhere or go on. A connection that begins with
the prologue of pieces is handed over as it is, before TLS, to whoever carries bulk bytes.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine

from aiohttp import web

from node.transport.certificates import WrongPeerKey, proved_node
from node.transport.endpoints import format_endpoint
from node.transport.link import CONNECTION_ERRORS, Socket
from node.transport.neighbours import Neighbours, neighbour_of
from node.transport.policy import LinkPolicy
from protocol.messages.pieces import PROLOGUE
from protocol.primitives.limits import FRAME_BYTES_MAX, PENDING_CONNECTIONS_MAX
from protocol.primitives.units import MonotonicMs

SWEEP_SECONDS = 1.0
NO_DESCRIPTOR_SECONDS = 0.1
"""How long accepting rests when the kernel has no descriptor left for us."""

Greeted = Callable[[], None]
"""To be called once the peer has greeted us and its link stands."""
TakePieces = Callable[[socket.socket, str], Awaitable[None]]
"""Runs a connection that carries pieces to its end; also given the address that it comes from."""
Spawn = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]


class _Pending:
    """A connection that is no link yet."""

    __slots__ = ("connection", "place", "proved", "until")

    def __init__(self, connection: socket.socket, place: str, until: float) -> None:
        self.connection = connection
        self.place = place
        self.until = until
        """When it must have greeted us."""
        self.proved = False
        """Its TLS handshake is done."""


class Listener:
    """Accepts connections and hands each upgraded socket to ``accept``, which runs it to its end."""

    def __init__(
        self,
        context: ssl.SSLContext,
        policy: LinkPolicy,
        neighbours: Neighbours,
        accept: Callable[[Socket, str, Greeted], Awaitable[None]],
        take_pieces: TakePieces | None = None,
    ) -> None:
        """Without ``take_pieces`` a connection for pieces is closed."""
        self._take_pieces = take_pieces
        self._neighbours = neighbours
        self._context = context
        self._policy = policy
        self._accept = accept
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._pending: dict[web.RequestHandler, _Pending] = {}
        """The connection behind each protocol, oldest first."""
        self._untouched: dict[web.RequestHandler, socket.socket] = {}
        """Connections that no transport owns yet: nobody else would close them."""

    async def bind(self, host: str, port: int) -> tuple[str, int]:
        """Listen; the address that was bound. Raises ``OSError``."""
        self._loop = asyncio.get_running_loop()
        self._web = web.Server(self._handle, access_log=None)
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        try:
            for family, _, _, _, address in dict.fromkeys(found):
                listening = socket.create_server(address, family=family)
                self._sockets.append(listening)
                listening.setblocking(False)
        except BaseException:
            self.stop_accepting()
            raise
        bound = self._sockets[0].getsockname()
        return str(bound[0]), int(bound[1])

    def start(self, spawn: Spawn) -> None:
        """Accept connections, in tasks made by ``spawn``, until ``stop_accepting``."""
        self._accepting = [spawn(self._accept_all(listening, spawn)) for listening in self._sockets]
        spawn(self._sweep())

    def stop_accepting(self) -> None:
        """Close the listening sockets; connections stay."""
        for task in self._accepting:
            task.cancel()  # each closes its socket once the loop has let go of it
        if not self._accepting:
            for listening in self._sockets:
                listening.close()

    async def stop(self) -> None:
        """Close what is left of the connections. The tasks made by ``spawn`` must have ended."""
        self.stop_accepting()
        for left in (*self._sockets, *self._untouched.values()):  # those whose task ended before it began
            left.close()
        await self._web.shutdown(self._policy.linger_ms / 1000)

    async def _accept_all(self, listening: socket.socket, spawn: Spawn) -> None:
        with listening:
            while True:
                try:
                    connection, address = await self._loop.sock_accept(listening)
                except OSError:
                    await asyncio.sleep(NO_DESCRIPTOR_SECONDS)
                    continue
                host, now = str(address[0]), self._loop.time()
                if not self._neighbours.may_connect(host, MonotonicMs(int(now * 1000))):
                    connection.close()
                    continue
                while len(self._pending) >= PENDING_CONNECTIONS_MAX:
                    self._cut(self._least_deserving())
                protocol = self._web()
                until = now + 2 * self._policy.greeting_timeout_ms / 1000
                self._pending[protocol] = _Pending(connection, neighbour_of(host), until)
                self._untouched[protocol] = connection
                spawn(self._begin(protocol, connection, host))

    async def _begin(self, protocol: web.RequestHandler, connection: socket.socket, host: str) -> None:
        """Find out what an accepted connection is for, and hand it over."""
        del self._untouched[protocol]
        try:
            async with asyncio.timeout(self._policy.greeting_timeout_ms / 1000):
                for_pieces = await self._is_for_pieces(connection)
        except BaseException as error:
            self._pending.pop(protocol, None)
            connection.close()
            if isinstance(error, OSError | EOFError):
                return
            raise
        if not for_pieces:
            await self._secure(protocol, connection)
            return
        self._pending.pop(protocol, None)
        if self._take_pieces is None:
            connection.close()
        else:
            await self._take_pieces(connection, host)

    async def _is_for_pieces(self, connection: socket.socket) -> bool:
        """Look at the first byte; take the prologue away if it is one. Raises ``EOFError``, ``OSError``."""
        while True:
            try:
                first = connection.recv(1, socket.MSG_PEEK)
                break
            except BlockingIOError:
                await self._readable(connection)
        if not first:
            raise EOFError
        if first != PROLOGUE[:1]:
            return False
        begun = b""
        while len(begun) < len(PROLOGUE):
            part = await self._loop.sock_recv(connection, len(PROLOGUE) - len(begun))
            begun += part
            if not part or not PROLOGUE.startswith(begun):
                raise EOFError
        return True

    async def _readable(self, connection: socket.socket) -> None:
        """Wait until something came, or the connection ended."""
        ready = self._loop.create_future()
        self._loop.add_reader(connection, ready.cancel)
        try:
            await asyncio.wait((ready,))
        finally:
            self._loop.remove_reader(connection)

    async def _secure(self, protocol: web.RequestHandler, connection: socket.socket) -> None:
        """Make the TLS connection over an accepted one; ``_handle`` gets what comes through it."""
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._policy.greeting_timeout_ms / 1000,
                ssl_shutdown_timeout=self._policy.linger_ms / 1000,
            )
        except (OSError, ssl.SSLError, TimeoutError):
            self._cut(protocol)

    def _least_deserving(self) -> web.RequestHandler:
        counts: dict[str, int] = {}
        for pending in self._pending.values():
            counts[pending.place] = counts.get(pending.place, 0) + 1
        return min(self._pending, key=lambda protocol: self._merit(self._pending[protocol], counts))

    @staticmethod
    def _merit(pending: _Pending, counts: dict[str, int]) -> tuple[int, bool, float]:
        return -counts[pending.place], pending.proved, pending.until

    def _cut(self, protocol: web.RequestHandler) -> None:
        """End a connection at whatever stage it is; its transport sees the end and closes the descriptor."""
        pending = self._pending.pop(protocol, None)
        if pending is not None:
            with contextlib.suppress(OSError):  # closed already
                pending.connection.shutdown(socket.SHUT_RDWR)

    async def _sweep(self) -> None:
        """Close connections that took too long to become links. Runs until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = self._loop.time()
            for protocol in [protocol for protocol, pending in self._pending.items() if pending.until < now]:
                self._cut(protocol)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            proved_node(None if request.transport is None else request.transport.get_extra_info("ssl_object"))
        except WrongPeerKey as error:
            return self._closing_response(403, str(error))
        waiting = self._pending.get(request.protocol)
        if waiting is not None:
            waiting.proved = True
        websocket = web.WebSocketResponse(
            compress=False,
            heartbeat=self._policy.heartbeat_ms / 1000,
            max_msg_size=FRAME_BYTES_MAX,
            timeout=self._policy.linger_ms / 1000,
        )
        if request.path != "/" or not websocket.can_prepare(request).ok:
            return self._closing_response(400, "links are WebSockets at /")
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        endpoint = format_endpoint(str(peer[0]), int(peer[1])) if isinstance(peer, tuple) else "unknown"
        try:
            await websocket.prepare(request)
        except CONNECTION_ERRORS:
            # The peer hung up during the upgrade: nobody is there to be answered, and nothing is wrong here.
            return self._closing_response(400, "the connection was closed during the upgrade")
        protocol = request.protocol
        await self._accept(websocket, endpoint, lambda: self._greeted(protocol))
        return websocket

    def _greeted(self, protocol: web.RequestHandler) -> None:
        self._pending.pop(protocol, None)

    def _closing_response(self, status: int, text: str) -> web.Response:
        response = web.Response(status=status, text=text)
        response.force_close()
        return response
