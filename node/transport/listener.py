"""The accepting side: TLS, the WebSocket upgrade, and a bound on connections that have not become links.

Law: a connection that does not get through TLS and the upgrade in time is closed, and there are never more than
``PENDING_CONNECTIONS_MAX`` of them: the oldest goes first.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web

from node.transport.certificates import WrongPeerKey, proved_node
from node.transport.endpoints import format_endpoint
from node.transport.link import Socket
from node.transport.policy import LinkPolicy
from protocol.primitives.limits import FRAME_BYTES_MAX, PENDING_CONNECTIONS_MAX

SWEEP_SECONDS = 1.0


class Listener:
    """Accepts connections and hands each upgraded socket to ``accept``, which runs it to its end."""

    def __init__(
        self, context: ssl.SSLContext, policy: LinkPolicy, accept: Callable[[Socket, str], Awaitable[None]]
    ) -> None:
        self._context = context
        self._policy = policy
        self._accept = accept
        self._pending: dict[web.RequestHandler, float] = {}

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; the address that was bound. Raises ``OSError``."""
        self._loop = asyncio.get_running_loop()
        self._web = web.Server(self._handle, access_log=None)
        self._server = await self._loop.create_server(
            self._connection,
            host,
            port,
            ssl=self._context,
            ssl_handshake_timeout=self._policy.greeting_timeout_ms / 1000,
            ssl_shutdown_timeout=self._policy.linger_ms / 1000,
        )
        bound = self._server.sockets[0].getsockname()
        return str(bound[0]), int(bound[1])

    def stop_accepting(self) -> None:
        """Close the listening socket; connections stay."""
        self._server.close()

    async def stop(self) -> None:
        """Close what is left of the connections."""
        self._server.close()
        await self._web.shutdown(self._policy.linger_ms / 1000)
        await self._server.wait_closed()

    def _connection(self) -> web.RequestHandler:
        protocol = self._web()
        while len(self._pending) >= PENDING_CONNECTIONS_MAX:
            oldest = next(iter(self._pending))
            del self._pending[oldest]
            oldest.force_close()
        self._pending[protocol] = self._loop.time() + 2 * self._policy.greeting_timeout_ms / 1000
        return protocol

    async def sweep(self) -> None:
        """Close connections that took too long to become links. Runs until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = self._loop.time()
            for protocol in [protocol for protocol, until in self._pending.items() if until < now]:
                del self._pending[protocol]
                protocol.force_close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self._pending.pop(request.protocol, None)
        try:
            proved_node(None if request.transport is None else request.transport.get_extra_info("ssl_object"))
        except WrongPeerKey as error:
            return self._closing_response(403, str(error))
        socket = web.WebSocketResponse(
            compress=False,
            heartbeat=self._policy.heartbeat_ms / 1000,
            max_msg_size=FRAME_BYTES_MAX,
            timeout=self._policy.linger_ms / 1000,
        )
        if request.path != "/" or not socket.can_prepare(request).ok:
            return self._closing_response(400, "links are WebSockets at /")
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        endpoint = format_endpoint(str(peer[0]), int(peer[1])) if isinstance(peer, tuple) else "unknown"
        await socket.prepare(request)
        await self._accept(socket, endpoint)
        return socket

    def _closing_response(self, status: int, text: str) -> web.Response:
        response = web.Response(status=status, text=text)
        response.force_close()
        return response
