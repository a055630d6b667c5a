"""One node's gossip for a benchmark: the real transport, the real router and the real door, and no judge.

Run as a program it is the publisher: it tells its address, and for each line on its standard input publishes that many
signed objects; it ends when its standard input closes.
"""

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import uvloop
from nacl.signing import SigningKey

from node.clock import read_clock
from node.runtime.door import Door
from node.runtime.timers import Timers
from node.transport.identity import NodeIdentity
from node.transport.peer_store import PeerStore
from node.transport.policy import DialPolicy
from node.transport.transport import Transport
from protocol.gossip.policy import GossipPolicy, Rate
from protocol.gossip.router import GossipRouter
from protocol.gossip.verdicts import ACCEPTED
from protocol.messages.effects import CancelTimer, Disconnect, Effect, Send, SetTimer, TimerKey
from protocol.messages.envelope import envelope_id, open_envelope, seal, signature_check, signing_bytes
from protocol.messages.kinds import MessageKind
from protocol.messages.peers import PROTOCOL_VERSION, Hello, NodeRecord
from protocol.messages.wire import Announce, Graft, Prune, Pull, Push, WireMessage
from protocol.primitives.codec import encode
from protocol.primitives.limits import BATCH_MESSAGES_MAX
from protocol.primitives.units import AccountId, Hash, Height, NodeId, PublicKey, TimestampMs
from scripts.benchmarks.transfers import Purse

GENESIS_HASH = Hash(b"benchmark of gossip".ljust(32, b"."))
_ENDLESS = Rate(1_000_000, 10_000_000)
_ENDLESS_BYTES = Rate(1 << 30, 1 << 33)
UNBOUND = GossipPolicy(
    ids_in=_ENDLESS, bodies_in=_ENDLESS, bytes_in=_ENDLESS_BYTES, bodies_out=_ENDLESS, bytes_out=_ENDLESS_BYTES
)
"""Without a peer's allowances: what the machinery can do, not what one peer may ask of it."""


def objects(count: int, purse: Purse) -> list[bytes]:
    """Signed objects of about 200 bytes, no two alike."""
    return purse.sign(count, 1)


class GossipNode:
    """An async context manager; ``accepted`` counts objects taken from the peer."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        seed = os.urandom(32)
        self._key = SigningKey(seed)
        identity = NodeIdentity(seed)
        self.node_id = identity.node_id
        self.router = GossipRouter(identity.node_id, seed, UNBOUND)
        self.accepted = 0
        self.linked = asyncio.Event()
        self._wanted = 0
        self._enough = asyncio.Event()
        self._door = Door(threads)
        self._timers = Timers(read_clock, self._timer)
        self.transport = Transport(
            identity,
            GENESIS_HASH,
            "127.0.0.1",
            0,
            make_hello=self._hello,
            on_link_up=self._link_up,
            on_link_down=lambda peer, reason: self._do(self.router.link_down(peer, read_clock())),
            on_messages=self._take,
            on_event=lambda name, fields: None,
            peer_store=PeerStore(None, GENESIS_HASH),
            dial=DialPolicy(links_target=0, backoff_first_ms=20),
            loopback_only=True,
        )

    @property
    def address(self) -> str:
        """Where it listens."""
        host, port = self.transport.address
        return f"{host}:{port}"

    def _hello(self) -> Hello:
        now = TimestampMs(read_clock().wall_ms)
        record = encode(NodeRecord(now, now, (self.address,), AccountId(bytes(self._key.verify_key))))
        signature = self._key.sign(signing_bytes(GENESIS_HASH, MessageKind.NODE_RECORD, record)).signature
        sealed = seal(MessageKind.NODE_RECORD, record, PublicKey(bytes(self._key.verify_key)), signature)
        return Hello(PROTOCOL_VERSION, GENESIS_HASH, sealed, Height(0))

    def _link_up(self, peer: NodeId, hello: Hello, record: NodeRecord) -> None:
        self._do(self.router.link_up(peer, read_clock()))
        self.linked.set()

    def _timer(self, key: TimerKey) -> None:
        self._do(self.router.timer(key, read_clock()))

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, message):
                    self.transport.send(peer, message)
                case SetTimer(key, at):
                    self._timers.set(key, at)
                case CancelTimer(key):
                    self._timers.cancel(key)
                case Disconnect(_, reason):
                    raise AssertionError(f"gossip between two honest nodes broke: {reason}")
                case _:
                    raise AssertionError(effect)

    async def _take(self, peer: NodeId, messages: tuple[WireMessage, ...], size: int) -> None:
        for message in messages:
            match message:
                case Push(envelope):
                    await self._body(peer, envelope)
                case Announce() | Pull() | Graft() | Prune():
                    self._do(self.router.receive(peer, message, read_clock()))
                case _:
                    pass

    async def _body(self, peer: NodeId, received: bytes) -> None:
        admission = self.router.offered(peer, received, read_clock())
        self._do(admission.effects)
        if admission.judgement is not None:
            return
        envelope, _ = open_envelope(received)
        assert await self._door.admit([signature_check(GENESIS_HASH, envelope)])
        self._do(self.router.judged(peer, envelope_id(envelope), received, ACCEPTED, read_clock()))
        self.accepted += 1
        if self.accepted >= self._wanted:
            self._enough.set()

    async def until_accepted(self, count: int) -> None:
        """Returns once so many objects were accepted in all."""
        self._wanted = count
        self._enough.clear()
        if self.accepted < count:
            async with asyncio.timeout(60):
                await self._enough.wait()

    async def publish(self, envelopes: list[bytes]) -> None:
        """Announce objects of our own, a frame's worth at a time."""
        for start in range(0, len(envelopes), BATCH_MESSAGES_MAX):
            now = read_clock()
            for received in envelopes[start : start + BATCH_MESSAGES_MAX]:
                self._do(self.router.publish(received, envelope_id(open_envelope(received)[0]), None, now))
            await asyncio.sleep(0)

    async def __aenter__(self) -> "GossipNode":
        await self.transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timers.cancel_all()
        await self.transport.__aexit__(kind, error, trace)


async def _publish() -> None:
    """The publisher's life: signed objects are ready before each line is answered."""
    purse = Purse.open(GENESIS_HASH)
    with ThreadPoolExecutor(2) as threads:
        async with GossipNode(threads) as node:
            print(f"{node.node_id.hex()} {node.address}", flush=True)
            while line := await asyncio.to_thread(sys.stdin.readline):
                prepared = objects(int(line), purse)
                print("ready", flush=True)
                await asyncio.to_thread(sys.stdin.readline)
                await node.publish(prepared)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as publisher:
        publisher.run(_publish())
