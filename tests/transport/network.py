"""Nodes on loopback for tests: a transport that records what it is told, and a way to wait for it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import blake2b
from types import TracebackType

import aiohttp
from nacl.signing import SigningKey

from node.transport.endpoints import format_endpoint
from node.transport.identity import NodeIdentity
from node.transport.peer_store import PeerStore
from node.transport.policy import DialPolicy, LinkPolicy
from node.transport.transport import OnMessages, Transport
from protocol.messages.envelope import seal, signing_bytes
from protocol.messages.kinds import MessageKind
from protocol.messages.peers import PROTOCOL_VERSION, Hello, NodeRecord
from protocol.messages.wire import WireMessage, encode_message, join_frame
from protocol.primitives.codec import encode
from protocol.primitives.units import AccountId, Hash, Height, NodeId, PublicKey, TimestampMs

GENESIS = Hash(b"g" * 32)
WAIT_SECONDS = 10.0
QUICK = DialPolicy(
    links_target=0, attempt_timeout_ms=3_000, backoff_first_ms=5, backoff_max_ms=50, exchange_interval_ms=200
)
"""Dials at once and only what it is told to; no test waits for a default delay."""
BRISK = LinkPolicy(greeting_timeout_ms=3_000, linger_ms=300)


def seed_of(name: str) -> bytes:
    """A node's key seed from a name."""
    return blake2b(name.encode(), digest_size=32).digest()


def identity_of(name: str) -> NodeIdentity:
    """A node's identity from a name."""
    return NodeIdentity(seed_of(name))


def record_of(
    name: str, addresses: tuple[str, ...] = (), incarnation: int = 1, genesis_hash: Hash = GENESIS, issued_at: int = 1
) -> bytes:
    """A signed node record."""
    key = SigningKey(seed_of(name))
    payload = encode(NodeRecord(incarnation, TimestampMs(issued_at), addresses, AccountId(b"a" * 32)))
    signature = key.sign(signing_bytes(genesis_hash, MessageKind.NODE_RECORD, payload)).signature
    return seal(MessageKind.NODE_RECORD, payload, PublicKey(bytes(key.verify_key)), signature)


class RecordingNode:
    """One node's transport and everything that it has reported."""

    def __init__(
        self,
        name: str,
        *,
        genesis_hash: Hash = GENESIS,
        version: int = PROTOCOL_VERSION,
        incarnation: int = 1,
        record: bytes | None = None,
        seeds: tuple[str, ...] = (),
        dial: DialPolicy = QUICK,
        link: LinkPolicy = BRISK,
        store: PeerStore | None = None,
        on_messages: OnMessages | None = None,
        make: type[Transport] = Transport,
        loopback_only: bool = True,
    ) -> None:
        self.name = name
        self.identity = identity_of(name)
        self.node_id = self.identity.node_id
        self.log: list[tuple[str, NodeId, str]] = []
        self.received: list[tuple[NodeId, WireMessage]] = []
        self.events: list[tuple[str, dict[str, object]]] = []
        self.store = store if store is not None else PeerStore(None, genesis_hash)
        self._changed = asyncio.Event()
        self._genesis_hash, self._version, self._incarnation, self._record = genesis_hash, version, incarnation, record
        self.transport = make(
            self.identity,
            genesis_hash,
            "127.0.0.1",
            0,
            make_hello=self._hello,
            on_link_up=lambda peer, hello, record: self._note("up", peer, ""),
            on_link_down=lambda peer, reason: self._note("down", peer, reason),
            on_messages=on_messages or self._take,
            on_event=self._event,
            peer_store=self.store,
            seeds=seeds,
            dial=dial,
            link=link,
            loopback_only=loopback_only,
        )

    def _hello(self) -> Hello:
        addresses = (self.endpoint,)
        record = self._record or record_of(self.name, addresses, self._incarnation, self._genesis_hash)
        return Hello(self._version, self._genesis_hash, record, Height(0))

    def _note(self, what: str, peer: NodeId, reason: str) -> None:
        self.log.append((what, peer, reason))
        self._changed.set()

    def _take(self, peer: NodeId, messages: tuple[WireMessage, ...], size: int) -> None:
        self.received.extend((peer, message) for message in messages)
        self._changed.set()

    def _event(self, name: str, fields: dict[str, object]) -> None:
        self.events.append((name, fields))
        self._changed.set()

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return format_endpoint(*self.transport.address)

    def linked(self) -> list[NodeId]:
        """Peers with a link, sorted."""
        return [facts.node for facts in self.transport.links()]

    def reasons(self, event: str) -> list[str]:
        """Reasons of all events of one name."""
        return [str(fields.get("reason", "")) for name, fields in self.events if name == event]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something this node reports makes the condition true."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"{self.name} waited in vain; log {self.log}, events {self.events}") from None

    async def __aenter__(self) -> "RecordingNode":
        await self.transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.transport.__aexit__(kind, error, trace)


async def link_up(dialer: RecordingNode, listener: RecordingNode, *, keep: bool = False) -> None:
    """Dial and wait until both sides have the link."""
    dialer.transport.dial(listener.node_id, (listener.endpoint,), keep=keep)
    await dialer.until(lambda: listener.node_id in dialer.linked())
    await listener.until(lambda: dialer.node_id in listener.linked())


@asynccontextmanager
async def raw_socket(name: str, node: RecordingNode) -> AsyncIterator[aiohttp.ClientWebSocketResponse[bool]]:
    """A WebSocket of a peer with a good key that then does what a test wants."""
    context = identity_of(name).client_context
    async with aiohttp.ClientSession() as session:
        url = f"wss://{node.endpoint}/"
        async with session.ws_connect(url, ssl=context, autoping=False, max_msg_size=2**24) as socket:
            yield socket


@asynccontextmanager
async def raw_link(name: str, node: RecordingNode) -> AsyncIterator[aiohttp.ClientWebSocketResponse[bool]]:
    """The same, greeted, with the link standing at ``node``."""
    async with raw_socket(name, node) as socket:
        hello = Hello(PROTOCOL_VERSION, GENESIS, record_of(name), Height(0))
        await socket.send_bytes(join_frame([encode_message(hello)]))
        await node.until(lambda: identity_of(name).node_id in node.linked())
        yield socket
