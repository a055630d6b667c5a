"""A network of routers under a virtual clock: seeded delays and losses, real signatures, peers that lie."""

import random
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from heapq import heappop, heappush

from nacl.signing import SigningKey

from protocol.gossip.policy import GossipPolicy
from protocol.gossip.router import GossipRouter
from protocol.gossip.verdicts import ACCEPTED, SIGNATURE_BROKEN, Judgement
from protocol.messages.effects import CancelTimer, Disconnect, Effect, Now, Send, SetTimer, TimerKey
from protocol.messages.envelope import envelope_id, open_envelope, seal, signature_check, signing_bytes
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Bid
from protocol.messages.wire import Announce, Graft, Prune, Pull, Push, WireMessage
from protocol.primitives.codec import encode
from protocol.primitives.units import (
    Amount,
    Hash,
    MessageId,
    ModelId,
    MonotonicMs,
    NodeId,
    PublicKey,
    TimestampMs,
    WorkUnits,
)

GENESIS = Hash(b"g" * 32)
WALL_START = 1_700_000_000_000


def at(milliseconds: int) -> Now:
    """A moment so many ms after the start."""
    return Now(MonotonicMs(milliseconds), TimestampMs(WALL_START + milliseconds))


def node_id(number: int) -> NodeId:
    """A node's id; routers never use it as a key."""
    return NodeId(blake2b(b"node" + number.to_bytes(4, "big"), digest_size=32).digest())


@lru_cache(maxsize=4096)
def bid(number: int, lifetime_ms: int = 600_000) -> tuple[bytes, MessageId]:
    """A truly signed bid and its id."""
    key = SigningKey(blake2b(b"buyer", digest_size=32).digest())
    unique = Hash(blake2b(number.to_bytes(8, "big"), digest_size=32).digest())
    expiry = TimestampMs(WALL_START + lifetime_ms)
    payload = encode(Bid(ModelId(b"m" * 32), WorkUnits(1), WorkUnits(1), Amount(1), expiry, "none", 1, unique))
    signature = key.sign(signing_bytes(GENESIS, MessageKind.BID, payload)).signature
    envelope = seal(MessageKind.BID, payload, PublicKey(bytes(key.verify_key)), signature)
    return envelope, envelope_id(open_envelope(envelope)[0])


def forged(envelope: bytes, variant: int = 1) -> bytes:
    """The same statement with a broken signature: same id, other bytes."""
    return envelope[:-1] + bytes((envelope[-1] ^ variant,))


@lru_cache(maxsize=8192)
def signature_holds(envelope: bytes) -> bool:
    """What the door would say."""
    return signature_check(GENESIS, open_envelope(envelope)[0]).holds()


Twist = Callable[[NodeId, NodeId, WireMessage], list[WireMessage]]
"""(sender, recipient, message) → what the recipient gets instead."""


def honest(sender: NodeId, recipient: NodeId, message: WireMessage) -> list[WireMessage]:
    """Deliver as sent."""
    return [message]


class Network:
    """Routers joined by links; everything drawn from one seed."""

    def __init__(
        self,
        count: int,
        seed: int,
        *,
        loss_percent: int = 0,
        delay_ms: tuple[int, int] = (1, 30),
        twist: Twist = honest,
        policy: GossipPolicy | None = None,
    ) -> None:
        self.dice = random.Random(seed)
        self.nodes = [node_id(number) for number in range(count)]
        self.routers = {node: GossipRouter(node, seed.to_bytes(8, "big"), policy) for node in self.nodes}
        self.links: dict[NodeId, dict[NodeId, None]] = {node: {} for node in self.nodes}
        self.now = 0
        self.judge: Callable[[NodeId, NodeId, bytes], Judgement] = lambda node, peer, envelope: ACCEPTED
        self.judged_bodies: list[tuple[NodeId, bytes]] = []
        self.disconnected: list[tuple[NodeId, NodeId, str]] = []
        self.delivered: list[tuple[NodeId, NodeId, WireMessage]] = []
        self.trace = blake2b(digest_size=16)
        self._loss_percent = loss_percent
        self._delay_ms = delay_ms
        self._twist = twist
        self._sequence = 0
        self._queue: list[tuple[int, int, NodeId, NodeId | None, WireMessage | TimerKey]] = []
        self._timers: dict[tuple[NodeId, TimerKey], int] = {}

    def link(self, left: NodeId, right: NodeId) -> None:
        """A link stands."""
        if left == right or right in self.links[left]:
            return
        self.links[left][right] = None
        self.links[right][left] = None
        self.apply(left, self.routers[left].link_up(right, at(self.now)))
        self.apply(right, self.routers[right].link_up(left, at(self.now)))

    def unlink(self, left: NodeId, right: NodeId) -> None:
        """A link is gone."""
        if self.links[left].pop(right, self) is self:
            return
        del self.links[right][left]
        self.apply(left, self.routers[left].link_down(right, at(self.now)))
        self.apply(right, self.routers[right].link_down(left, at(self.now)))

    def link_randomly(self, degree: int) -> None:
        """A ring, so that the network is connected, and random links up to about the degree."""
        for position, node in enumerate(self.nodes):
            self.link(node, self.nodes[(position + 1) % len(self.nodes)])
        while sum(map(len, self.links.values())) < degree * len(self.nodes):
            self.link(*self.dice.sample(self.nodes, 2))

    def publish(self, node: NodeId, number: int) -> MessageId:
        """A node publishes a bid."""
        envelope, object_id = bid(number)
        self.apply(node, self.routers[node].publish(envelope, object_id, None, at(self.now)))
        return object_id

    def apply(self, node: NodeId, effects: list[Effect]) -> None:
        """Carry out effects."""
        for effect in effects:
            self.trace.update(repr((self.now, node, effect)).encode())
            match effect:
                case Send(to, message):
                    if to in self.links[node]:
                        self.send(node, to, message)
                case SetTimer(key, deadline):
                    self._timers[node, key] = deadline
                    self._push(deadline, node, None, key)
                case CancelTimer(key):
                    self._timers.pop((node, key), None)
                case Disconnect(peer, reason):
                    self.disconnected.append((node, peer, reason))
                    self.unlink(node, peer)
                case _:
                    raise AssertionError(f"unexpected effect {effect}")

    def send(self, sender: NodeId, recipient: NodeId, message: WireMessage) -> None:
        """Put a message on a link, or lose it."""
        if self.dice.randrange(100) >= self._loss_percent:
            self._push(self.now + self.dice.randint(*self._delay_ms), recipient, sender, message)

    def _push(self, when: int, node: NodeId, sender: NodeId | None, what: WireMessage | TimerKey) -> None:
        self._sequence += 1
        heappush(self._queue, (when, self._sequence, node, sender, what))

    def run(self, milliseconds: int, until: Callable[[], bool] | None = None) -> None:
        """Let time pass; with ``until`` stop as soon as it holds."""
        end = self.now + milliseconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, node, sender, what = heappop(self._queue)
            if isinstance(what, TimerKey):
                if self._timers.get((node, what)) == self.now:
                    del self._timers[node, what]
                    self.apply(node, self.routers[node].timer(what, at(self.now)))
            elif sender is not None and sender in self.links[node]:
                for message in self._twist(sender, node, what):
                    self.deliver(node, sender, message)
            if until is not None and until():
                return
        self.now = end

    def deliver(self, node: NodeId, sender: NodeId, message: WireMessage) -> None:
        """What the engine and the door would do with a message."""
        router = self.routers[node]
        self.delivered.append((sender, node, message))
        match message:
            case Push(envelope):
                admission = router.offered(sender, envelope, at(self.now))
                self.apply(node, admission.effects)
                if admission.judgement is None and admission.object_id is not None:
                    self.judged_bodies.append((node, envelope))
                    judgement = self.judge(node, sender, envelope) if signature_holds(envelope) else SIGNATURE_BROKEN
                    self.apply(node, router.judged(sender, admission.object_id, envelope, judgement, at(self.now)))
            case Announce() | Pull() | Graft() | Prune():
                self.apply(node, router.receive(sender, message, at(self.now)))
            case _:
                raise AssertionError(f"unexpected message {message}")

    def holders(self, object_id: MessageId) -> int:
        """How many routers hold a live object."""
        return sum(object_id in router.objects.live for router in self.routers.values())
