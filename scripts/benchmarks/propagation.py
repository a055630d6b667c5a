"""How offers spread: the real gossip routers of up to a thousand nodes under a virtual clock, every link 100 ms long.

Law: a function of the seed alone. Nothing is lost, and judging takes no time, so what is measured is the protocol: how
many turns an offer takes, and what its turns cost. Bytes are those of the messages that a node sends, before TLS.
Every node dials until it has the links that a node keeps by default, so degrees are those of a real network.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from heapq import heappop, heappush
from statistics import fmean

from node.transport.policy import DialPolicy
from protocol.gossip.policy import GossipPolicy
from protocol.gossip.router import GossipRouter
from protocol.gossip.verdicts import ACCEPTED
from protocol.messages.effects import CancelTimer, Effect, Now, Send, SetTimer, TimerKey
from protocol.messages.envelope import envelope_id, open_envelope, seal
from protocol.messages.kinds import MessageKind
from protocol.messages.market import ModelOffer, Offer, Prices
from protocol.messages.wire import Announce, Graft, Prune, Pull, Push
from protocol.primitives.codec import encode
from protocol.primitives.hashing import content_hash
from protocol.primitives.units import (
    Amount,
    MessageId,
    ModelId,
    MonotonicMs,
    NodeId,
    PublicKey,
    SequenceNumber,
    TimestampMs,
    WorkUnits,
)
from scripts.benchmarks.measure import Report, note, percentile

NODES = 1_000
LINKS = DialPolicy().links_target
LINK_MS = 100
RENEWAL_MS = 20_000
"""A provider renews its offer so often: three times in its lifetime."""
SHARE_PERCENT = 99
_SEED = 20_260_131
_WALL_START = 1_700_000_000_000
_WARM_UP_MS = 5_000
_SETTLE_MS = 5_000
_FEW_OFFERS = 100

GossipMessage = Announce | Pull | Push | Graft | Prune


def _at(milliseconds: int) -> Now:
    return Now(MonotonicMs(milliseconds), TimestampMs(_WALL_START + milliseconds))


def offer(number: int) -> tuple[bytes, MessageId]:
    """An offer of one model as a provider makes it, and its id; nobody checks its signature here."""
    account = content_hash(b"provider %d" % number)
    served = ModelOffer(
        ModelId(content_hash(b"model")),
        "smollm2-135m",
        "gguf",
        "llama.cpp b11549",
        "threads=1 batch=512 avx2 fma f16c",
        Prices(Amount(100), Amount(10_000), Amount(50_000 + number)),
        WorkUnits(2_048),
        WorkUnits(1_024),
    )
    made = Offer(
        node=NodeId(content_hash(b"node %d" % number)),
        sequence=SequenceNumber(_WALL_START + number),
        expires_at=TimestampMs(_WALL_START + 3_600_000),
        addresses=("203.0.113.7:4001",),
        region="eu",
        isolation="strong",
        slots_total=4,
        slots_free=3,
        models=(served,),
    )
    envelope = seal(MessageKind.OFFER, encode(made), PublicKey(account), content_hash(account) * 2)
    return envelope, envelope_id(open_envelope(envelope)[0])


@lru_cache(maxsize=4096)
def _size(message: GossipMessage) -> int:
    return len(encode(message))


class Swarm:
    """Nodes with nothing but gossip, and what each has sent."""

    def __init__(self, nodes: int, links: int, seed: int, policy: GossipPolicy | None = None) -> None:
        """``links`` are what a node dials for; whoever is dialled has one more."""
        self.now = 0
        self.nodes = nodes
        self.sent: Counter[str] = Counter()
        """Bytes by message."""
        self.messages: Counter[str] = Counter()
        self.arrivals: dict[MessageId, list[int]] = {}
        """For each object when it was accepted, in ms."""
        self._dice = random.Random(seed)
        self._names = [NodeId(content_hash(b"node %d" % number)) for number in range(nodes)]
        self._routers = {name: GossipRouter(name, bytes(name), policy) for name in self._names}
        self._queue: list[tuple[int, int, NodeId, NodeId | None, GossipMessage | TimerKey]] = []
        self._sequence = 0
        self._timers: dict[tuple[NodeId, TimerKey], int] = {}
        self.links = self._dialled(links)

    def _dialled(self, wanted: int) -> int:
        """Link every node; the number of links."""
        held: dict[NodeId, dict[NodeId, None]] = {name: {} for name in self._names}
        for name in self._names:
            # Nodes start one after the other: their heartbeats don't beat as one.
            self.now += self._dice.randrange(3)
            while len(held[name]) < min(wanted, len(self._names) - 1):
                other = self._dice.choice(self._names)
                if other != name and other not in held[name]:
                    held[name][other] = held[other][name] = None
                    self._apply(name, self._routers[name].link_up(other, _at(self.now)))
                    self._apply(other, self._routers[other].link_up(name, _at(self.now)))
        return sum(map(len, held.values())) // 2

    def publish(self, number: int, by: int) -> MessageId:
        """A node publishes an offer."""
        envelope, object_id = offer(number)
        name = self._names[by]
        self.arrivals[object_id] = [self.now]
        self._apply(name, self._routers[name].publish(envelope, object_id, None, _at(self.now)))
        return object_id

    def forget_what_was_sent(self) -> None:
        """Count from here on."""
        self.sent.clear()
        self.messages.clear()

    def run(self, milliseconds: int) -> None:
        """Let time pass."""
        end = self.now + milliseconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, name, sender, what = heappop(self._queue)
            router = self._routers[name]
            if isinstance(what, TimerKey):
                if self._timers.get((name, what)) == self.now:
                    del self._timers[name, what]
                    self._apply(name, router.timer(what, _at(self.now)))
            elif isinstance(what, Push):
                assert sender is not None
                self._body(name, router, sender, what.envelope)
            else:
                assert sender is not None
                self._apply(name, router.receive(sender, what, _at(self.now)))
        self.now = end

    def _body(self, name: NodeId, router: GossipRouter, sender: NodeId, envelope: bytes) -> None:
        admission = router.offered(sender, envelope, _at(self.now))
        self._apply(name, admission.effects)
        if admission.judgement is None and admission.object_id is not None:
            self.arrivals[admission.object_id].append(self.now)
            expires_at = admission.payload.expires_at if isinstance(admission.payload, Offer) else None
            judged = router.judged(sender, admission.object_id, envelope, ACCEPTED, _at(self.now), expires_at)
            self._apply(name, judged)

    def _apply(self, name: NodeId, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(to, (Announce() | Pull() | Push() | Graft() | Prune()) as message):
                    kind = type(message).__name__.lower()
                    self.sent[kind] += _size(message)
                    self.messages[kind] += 1
                    self._push(self.now + LINK_MS, to, name, message)
                case SetTimer(key, at):
                    self._timers[name, key] = at
                    self._push(at, name, None, key)
                case CancelTimer(key):
                    self._timers.pop((name, key), None)
                case _:
                    raise AssertionError(effect)

    def _push(self, at: int, name: NodeId, sender: NodeId | None, what: GossipMessage | TimerKey) -> None:
        self._sequence += 1
        heappush(self._queue, (at, self._sequence, name, sender, what))

    def spread_ms(self, nodes: int) -> Iterator[int]:
        """For each object, the time until so many nodes hold it."""
        for moments in self.arrivals.values():
            assert len(moments) >= nodes, f"{len(moments)} nodes hold an object, not {nodes}"
            yield sorted(moments)[nodes - 1] - moments[0]


def spread(nodes: int, offers: int, links: int = LINKS, policy: GossipPolicy | None = None) -> Swarm:
    """So many offers, each of another node, published at moments spread over one renewal; then all is quiet."""
    swarm = Swarm(nodes, links, _SEED, policy)
    swarm.run(_WARM_UP_MS)
    swarm.forget_what_was_sent()
    dice = random.Random(_SEED)
    moments = sorted(dice.randrange(RENEWAL_MS) for _ in range(offers))
    start = swarm.now
    for number, (moment, by) in enumerate(zip(moments, dice.sample(range(nodes), offers), strict=True)):
        swarm.run(start + moment - swarm.now)
        swarm.publish(number, by)
    swarm.run(start + RENEWAL_MS + _SETTLE_MS - swarm.now)
    return swarm


def _bytes_per_offer(swarm: Swarm) -> float:
    return sum(swarm.sent.values()) / swarm.nodes / len(swarm.arrivals)


def _by_nodes(report: Report, quick: bool) -> None:
    """The same offers among more and more nodes: what each node sends must not grow."""
    offers = 10 if quick else _FEW_OFFERS
    sizes = (20, 40) if quick else (NODES // 4, NODES // 2, NODES)
    costs = []
    for nodes in sizes:
        note(f"{offers} offers among {nodes} nodes")
        swarm = spread(nodes, offers)
        costs.append(_bytes_per_offer(swarm))
        report.add(f"gossip.offer.bytes_per_node/nodes={nodes},offers={offers}", costs[-1], "bytes")
        times = list(swarm.spread_ms(-(-nodes * SHARE_PERCENT // 100)))
        report.add(f"gossip.offer.spread.p50/nodes={nodes},offers={offers}", percentile(times, 50), "ms")
    report.add("gossip.offer.bytes_per_node.most_to_least/by=nodes", max(costs) / min(costs), "times")
    report.target("gossip.offer.bytes_per_node.most_to_least/by=nodes", "<=", 1.1)


def _by_degree(report: Report, quick: bool) -> None:
    """More peers that are told at once: more bytes, fewer turns."""
    nodes, offers = (20, 10) if quick else (NODES // 4, _FEW_OFFERS)
    for degree in (4, 6, 10):
        policy = GossipPolicy(degree_min=degree - 1, degree_target=degree, degree_max=degree + 4)
        note(f"{offers} offers among {nodes} nodes that tell {degree} peers at once")
        swarm = spread(nodes, offers, degree + 2, policy)
        key = f"nodes={nodes},offers={offers},degree={degree}"
        report.add(f"gossip.offer.bytes_per_node/{key}", _bytes_per_offer(swarm), "bytes")
        times = list(swarm.spread_ms(-(-nodes * SHARE_PERCENT // 100)))
        report.add(f"gossip.offer.spread.p50/{key}", percentile(times, 50), "ms")


def _by_offers(report: Report, quick: bool) -> None:
    """More live offers: what a node sends grows with them, what it sends for each does not."""
    nodes = 20 if quick else NODES // 4
    for offers in (5, 10, 20) if quick else (_FEW_OFFERS // 2, _FEW_OFFERS * 2):
        note(f"{offers} offers among {nodes} nodes")
        cost = _bytes_per_offer(spread(nodes, offers))
        report.add(f"gossip.offer.bytes_per_node/nodes={nodes},offers={offers}", cost, "bytes")


def _everybody(report: Report, quick: bool) -> None:
    """Every node of the network offers something: how long each offer takes, and what a node's bytes are made of."""
    nodes = 40 if quick else NODES
    note(f"every one of {nodes} nodes offers something{'' if quick else ': three or four minutes'}")
    swarm = spread(nodes, nodes)
    times = list(swarm.spread_ms(-(-nodes * SHARE_PERCENT // 100)))
    key = f"nodes={nodes},offers={nodes}"
    for share in (50, 99, 100):
        report.add(f"gossip.offer.spread.p{share}/{key}", percentile(times, share), "ms")
    report.target(f"gossip.offer.spread.p100/{key}", "<=", 2_000.0)
    report.add(f"gossip.links_per_node/{key}", 2 * swarm.links / nodes, "links")
    report.add(f"gossip.offer.bytes_per_node/{key}", _bytes_per_offer(swarm), "bytes")
    for kind in ("announce", "pull", "push", "graft", "prune"):
        report.add(f"gossip.offer.bytes_per_node/{key},message={kind}", swarm.sent[kind] / nodes / nodes, "bytes")
        report.add(
            f"gossip.offer.messages_per_node/{key},message={kind}", swarm.messages[kind] / nodes / nodes, "messages"
        )
    sent = sum(swarm.sent.values()) / nodes / (RENEWAL_MS + _SETTLE_MS) * 1000
    report.add(f"gossip.bytes_per_second_of_node/{key}", sent, "bytes/s")
    # Whoever floods sends every body over every link but the one that it came by.
    body = fmean(len(encode(Push(offer(number)[0]))) for number in range(nodes))
    flooded = (2 * swarm.links - (nodes - 1)) * body / nodes
    report.baseline("gossip.offer.bytes_per_node.if_flooded", flooded, "bytes")


def measure_spread(report: Report, quick: bool = False) -> None:
    """Add to a report how fast offers spread and what that costs each node."""
    _by_nodes(report, quick)
    _by_degree(report, quick)
    _by_offers(report, quick)
    _everybody(report, quick)
    report.notes.append(
        f"offers spread in simulation: links of {LINK_MS} ms, nothing lost, judging takes no time; "
        f"spread is the time until {SHARE_PERCENT} % of the nodes hold an offer"
    )
