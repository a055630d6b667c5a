"""All links of one node: listens, dials, greets, resolves double links, sends, exchanges peers, stops.

Law: one link for each peer. ``on_link_up`` comes before the first ``on_messages`` of a link, ``on_link_down`` after
its last. When both sides dial at once the link dialed by the smaller node id stays; a peer that has started anew (its
incarnation rose) always replaces its old link.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import TracebackType

import aiohttp

from node.transport.certificates import proved_node
from node.transport.dialing import Dialer
from node.transport.endpoints import OffLoopback, format_endpoint, is_loopback, parse_endpoint, parse_seed
from node.transport.identity import NodeIdentity
from node.transport.link import (
    CONNECTION_ERRORS,
    Link,
    LinkEnd,
    LinkFacts,
    LinkRefused,
    Socket,
    close_socket,
    greet,
    say_goodbye,
    told_with_ban,
)
from node.transport.listener import Greeted, Listener
from node.transport.neighbours import Neighbours
from node.transport.peer_exchange import PeerExchange
from node.transport.peer_store import PeerStore
from node.transport.piece_server import PieceLibrary, PiecePolicy, PieceServer
from node.transport.policy import DialPolicy, LinkPolicy
from protocol.messages.peers import Hello, NodeRecord
from protocol.messages.wire import Peers, PeersRequest, WireMessage, encode_message
from protocol.primitives.errors import RemoteProtocolError, UserError
from protocol.primitives.limits import FRAME_BYTES_MAX
from protocol.primitives.units import Hash, NodeId

OnLinkUp = Callable[[NodeId, Hello, NodeRecord], None]
OnLinkDown = Callable[[NodeId, str], None]
OnMessages = Callable[[NodeId, tuple[WireMessage, ...], int], Awaitable[None] | None]
OnEvent = Callable[[str, dict[str, object]], None]


async def _refuse_redirects(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """A peer answers a dial with 101 or not at all: following a redirect would let it aim our requests."""
    response = await handler(request)
    if response.status != 101:
        response.close()
        raise aiohttp.ClientError(f"HTTP status {response.status} instead of a WebSocket")
    return response


def _nothing() -> None:
    pass


def _nobody(node: NodeId) -> None:
    pass


class Transport:
    """All links of one node; an async context manager that owns every task it starts.

    Callbacks run on the loop and must not block. ``on_messages`` may return an awaitable: the peer is not read from
    until it is done. It may raise ``RemoteProtocolError`` to say that the peer broke a rule; any other error ends the
    transport. ``make_hello`` is called for each greeting and gives this node's signed record and its tip.
    """

    def __init__(
        self,
        identity: NodeIdentity,
        genesis_hash: Hash,
        listen_host: str,
        listen_port: int,
        *,
        make_hello: Callable[[], Hello],
        on_link_up: OnLinkUp,
        on_link_down: OnLinkDown,
        on_messages: OnMessages,
        on_event: OnEvent,
        peer_store: PeerStore,
        seeds: Sequence[str] = (),
        dial: DialPolicy | None = None,
        link: LinkPolicy | None = None,
        loopback_only: bool = False,
        on_unreachable: Callable[[NodeId], None] = _nobody,
        library: PieceLibrary | None = None,
        pieces: PiecePolicy | None = None,
    ) -> None:
        if loopback_only and not is_loopback(listen_host):
            raise OffLoopback(f"a development network does not listen off loopback: {listen_host!r}")
        self._identity = identity
        self._listen = (listen_host, listen_port)
        self._make_hello = make_hello
        self._on_link_up = on_link_up
        self._on_link_down = on_link_down
        self._on_messages = on_messages
        self._on_event = on_event
        self._store = peer_store
        self._seeds = [parse_seed(text) for text in seeds]
        self._dial_policy = dial or DialPolicy()
        self._link_policy = link or LinkPolicy()
        self._loopback_only = loopback_only
        self._links: dict[NodeId, Link] = {}
        self._banned_until: dict[NodeId, float] = {}
        self._spawned: dict[asyncio.Task[None], None] = {}
        self._stopping = False
        self._encoded_last: tuple[WireMessage, bytes] | None = None
        self._dialer = Dialer(
            self._dial_policy,
            peer_store,
            self._links,
            self._attempt,
            self._spawn,
            on_event,
            identity.node_id,
            on_unreachable,
            loopback_only=loopback_only,
        )
        self._exchange = PeerExchange(peer_store, genesis_hash, self._dialer, self._dial_policy, on_event)
        self._neighbours = Neighbours(self._link_policy)
        self._pieces: PieceServer | None = None
        if library is not None:
            self._pieces = PieceServer(
                identity.server_context, genesis_hash, library, pieces or PiecePolicy(), self._is_banned, on_event
            )
        take_pieces = None if self._pieces is None else self._pieces.take
        self._listener = Listener(
            identity.server_context, self._link_policy, self._neighbours, self._accept, take_pieces
        )

    # Start and stop

    async def __aenter__(self) -> "Transport":
        self._loop = asyncio.get_running_loop()
        self.address = await self._listener.bind(*self._listen)
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            middlewares=(_refuse_redirects,),
        )
        self._on_event("transport.listening", {"address": format_endpoint(*self.address)})
        if self._store.load_problem is not None:
            self._on_event("peers.cache_damaged", {"reason": self._store.load_problem})
        self._listener.start(self._spawn)
        self._spawn(self._dialer.discover())
        self._spawn(self._exchange.run(self._links))
        for seed in self._seeds:
            self._dialer.follow_seed(seed)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.stop()
        finally:
            await self._tasks.__aexit__(kind, error, trace)

    async def stop(self) -> None:
        """Say goodbye on every link, for at most the linger, and end every task. Safe to call twice."""
        if self._stopping:
            return
        self._stopping = True
        self._listener.stop_accepting()
        if self._pieces is not None:
            self._pieces.stop()
        links = list(self._links.values())
        for link in links:
            link.close(LinkEnd("node is stopping"), flush=True)
        try:
            async with asyncio.timeout(2 * self._link_policy.linger_ms / 1000):
                for link in links:
                    await link.ended.wait()
        except TimeoutError:
            pass
        tasks = list(self._spawned)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._session.close()
        await self._listener.stop()
        await self._exchange.save()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._tasks.create_task(work)
        self._spawned[task] = None
        task.add_done_callback(lambda done: self._spawned.pop(done, None))
        return task

    # What the runtime asks

    def send(self, peer: NodeId, message: WireMessage) -> bool:
        """Queue a message; False when there is no link or its queue refused. Never waits."""
        link = self._links.get(peer)
        if link is None:
            return False
        last = self._encoded_last
        if last is not None and last[0] is message:
            encoded = last[1]
        else:
            encoded = encode_message(message)
            self._encoded_last = (message, encoded)
        if link.send(encoded):
            return True
        fields = {"peer": peer.hex(), "message": type(message).__name__, "bytes": len(encoded)}
        self._on_event("link.message_dropped", fields)
        return False

    def dial(self, node: NodeId, addresses: tuple[str, ...], *, keep: bool = True, once: bool = False) -> None:
        """Link to a node; with ``keep`` the link is made anew whenever it ends, until ``forget``.

        ``once``: a stranger asks for it; each address is tried once, and none that has failed lately.
        """
        if not self._stopping:
            self._dialer.pursue(node, addresses, keep=keep, once=once)

    def forget(self, node: NodeId) -> None:
        """Stop to keep a link to a node."""
        self._dialer.forget(node)

    def disconnect(self, peer: NodeId, reason: str, ban_ms: int = 0) -> None:
        """Close a link; with ``ban_ms`` the peer is turned away and not dialed for so long, and told so."""
        if ban_ms > 0:
            self._ban(peer, ban_ms)
            reason = told_with_ban(reason, ban_ms)
        link = self._links.get(peer)
        if link is not None:
            link.close(LinkEnd(reason), flush=False)

    def links(self) -> list[LinkFacts]:
        """All links, by node id."""
        return [self._links[node].facts() for node in sorted(self._links)]

    def _ban(self, peer: NodeId, ban_ms: int) -> None:
        now = asyncio.get_running_loop().time()
        self._banned_until = {node: until for node, until in self._banned_until.items() if until > now}
        self._banned_until[peer] = now + ban_ms / 1000
        self._on_event("peer.banned", {"peer": peer.hex(), "ban_ms": ban_ms})

    def _is_banned(self, peer: NodeId) -> bool:
        return self._ban_seconds_left(peer) > 0

    def _ban_seconds_left(self, peer: NodeId) -> int:
        """Called in threads too."""
        return math.ceil(self._banned_until.get(peer, 0.0) - self._loop.time())

    # Making links

    async def _attempt(self, endpoint: str, expected: NodeId | None) -> NodeId | None:
        """One dial, run to the end of its link; the peer if a link stood (or if it was ourselves), else None."""
        if self._stopping or (expected is not None and self._is_banned(expected)):
            return None
        fields: dict[str, object] = {"endpoint": endpoint, "peer": "" if expected is None else expected.hex()}
        try:
            host, port = parse_endpoint(endpoint)
            if self._loopback_only and not is_loopback(host):
                raise OffLoopback(f"a development network does not dial off loopback: {host!r}")
            async with asyncio.timeout(self._dial_policy.attempt_timeout_ms / 1000):
                socket = await self._session.ws_connect(
                    f"wss://{format_endpoint(host, port)}/",
                    ssl=self._identity.client_context,
                    heartbeat=self._link_policy.heartbeat_ms / 1000,
                    max_msg_size=FRAME_BYTES_MAX,
                    timeout=aiohttp.ClientWSTimeout(ws_close=self._link_policy.linger_ms / 1000),
                )
        except (*CONNECTION_ERRORS, UserError) as error:
            self._on_event("dial.failed", {**fields, "reason": str(error) or type(error).__name__})
            return None
        return await self._hold(socket, endpoint, expected, _nothing, outbound=True)

    async def _accept(self, socket: Socket, endpoint: str, greeted: Greeted) -> None:
        """Run an accepted connection, in a task of this transport's group, to the end of its link."""
        if self._stopping:
            return

        async def hold() -> None:
            await self._hold(socket, endpoint, None, greeted, outbound=False)

        await asyncio.wait((self._spawn(hold()),))

    async def _hold(
        self, socket: Socket, endpoint: str, expected: NodeId | None, greeted: Greeted, *, outbound: bool
    ) -> NodeId | None:
        """Run a connection to its end, and close it whatever happens; the peer if a link stood."""
        try:
            return await self._greet_and_run(socket, endpoint, expected, greeted, outbound=outbound)
        finally:
            await close_socket(socket, self._link_policy.linger_ms)

    async def _greet_and_run(
        self, socket: Socket, endpoint: str, expected: NodeId | None, greeted: Greeted, *, outbound: bool
    ) -> NodeId | None:
        """Check the peer's key, greet, place and run one link."""
        fields: dict[str, object] = {"endpoint": endpoint, "outbound": outbound}
        peer: NodeId | None = None
        try:
            peer = proved_node(socket.get_extra_info("ssl_object"))
            fields["peer"] = peer.hex()
            if expected is not None and peer != expected:
                raise LinkRefused(f"another node answers there than {expected.hex()[:16]}")
            if peer == self._identity.node_id:
                raise LinkRefused("this is our own address")
            if self._is_banned(peer):
                raise LinkRefused(f"banned for {self._ban_seconds_left(peer)} s more")
            async with asyncio.timeout(self._link_policy.greeting_timeout_ms / 1000):
                hello, record = await greet(socket, self._make_hello(), peer)
            link = Link(socket, peer, record, endpoint, outbound, self._link_policy)
            self._place(link)
            greeted()
        except RemoteProtocolError as error:
            self._on_event("link.refused", {**fields, "reason": str(error)})
            await say_goodbye(socket, str(error), self._link_policy.linger_ms)
            return peer if peer == self._identity.node_id else None
        except CONNECTION_ERRORS as error:
            self._on_event("link.refused", {**fields, "reason": str(error) or "no greeting in time"})
            await say_goodbye(socket, "no greeting in time", self._link_policy.linger_ms)
            return None
        await self._run(link, hello, fields)
        return peer

    def _place(self, link: Link) -> None:
        """Make ``link`` the peer's link. Raises ``LinkRefused`` when another one stays or there is no room."""
        if self._stopping:
            raise LinkRefused("node is stopping")
        present = self._links.get(link.peer)
        if present is None:
            if len(self._links) >= self._dial_policy.links_max and not self._dialer.wants(link.peer):
                raise LinkRefused("no room for more links")
            if not link.outbound and not self._neighbours.has_room(link.host) and not self._dialer.wants(link.peer):
                raise LinkRefused("no room for more links from one address")
        elif not self._supersedes(link, present):
            raise LinkRefused("another link to this node stays")
        else:
            present.superseded = True
            present.close(LinkEnd("another link to this node took over"), flush=False)
            self._remove(present, "another link to this node took over")
        self._links[link.peer] = link
        if not link.outbound:
            self._neighbours.linked(link.host)

    def _supersedes(self, new: Link, present: Link) -> bool:
        if new.record.incarnation != present.record.incarnation:
            return new.record.incarnation > present.record.incarnation
        if new.outbound == present.outbound:
            return True  # its dialer would not dial again if the first still stood
        return new.outbound == (self._identity.node_id < new.peer)

    async def _run(self, link: Link, hello: Hello, fields: dict[str, object]) -> None:
        self._store.learn_verified(link.peer, link.record, hello.record)
        self._store.linked(link.peer)
        end = LinkEnd("cancelled")
        try:
            self._on_event("link.up", {**fields, "incarnation": link.record.incarnation, "tip": hello.tip})
            self._on_link_up(link.peer, hello, link.record)
            self._exchange.ask(link)
            self._dialer.reconsider()
            end = await link.run(self._deliver, self._dial_policy.misbehaviour_ban_ms)
        finally:
            self._remove(link, end.reason)
            link.ended.set()
            self._dialer.reconsider()
        if end.misbehaved:
            self._on_event("peer.misbehaved", {**fields, "reason": end.reason})
            self._ban(link.peer, self._dial_policy.misbehaviour_ban_ms)

    def _remove(self, link: Link, reason: str) -> None:
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
            if not link.outbound:
                self._neighbours.unlinked(link.host)
            self._on_event("link.down", {"peer": link.peer.hex(), "reason": reason})
            self._on_link_down(link.peer, reason)

    def _deliver(self, peer: NodeId, messages: tuple[WireMessage, ...], size: int) -> Awaitable[None] | None:
        if any(isinstance(message, PeersRequest | Peers) for message in messages):
            return self._deliver_mixed(peer, messages, size)
        return self._on_messages(peer, messages, size)

    async def _deliver_mixed(self, peer: NodeId, messages: tuple[WireMessage, ...], size: int) -> None:
        rest: list[WireMessage] = []
        link = self._links.get(peer)
        for message in messages:
            match message:
                case PeersRequest():
                    if link is not None:
                        self._exchange.tell(link)
                case Peers(records):
                    if link is not None:
                        await self._exchange.learn(link, records)
                case _:
                    rest.append(message)
        # Also when nothing is left: what such frames cost is for the callback to count.
        handed_over = self._on_messages(peer, tuple(rest), size)
        if handed_over is not None:
            await handed_over
