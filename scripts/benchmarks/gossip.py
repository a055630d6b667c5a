"""Gossip between two nodes: signed objects announced, pulled, checked and accepted.

Two processes linked by TLS on loopback, each with the real transport and router; the receiver checks every signature.
A peer's allowances are lifted, else they would be what is measured. Baseline of the same run: two routers in one
process that hand each other the same messages, without transport or signatures.
"""

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor

from node.clock import read_clock
from protocol.gossip.policy import GossipPolicy
from protocol.gossip.router import GossipRouter
from protocol.gossip.verdicts import ACCEPTED
from protocol.messages.effects import Effect, Send
from protocol.messages.envelope import envelope_id, open_envelope
from protocol.messages.wire import Announce, Graft, Prune, Pull, Push
from protocol.primitives.units import NodeId
from scripts.benchmarks.gossip_node import GENESIS_HASH, UNBOUND, GossipNode, objects
from scripts.benchmarks.measure import PAIRS, Report, note, run_loop
from scripts.benchmarks.python_process import python_process
from scripts.benchmarks.transfers import Purse

OBJECTS = 1000


class _Routers:
    """Two routers in one process."""

    def __init__(self) -> None:
        self._names = (NodeId(os.urandom(32)), NodeId(os.urandom(32)))
        self._routers = {name: GossipRouter(name, bytes(name), UNBOUND) for name in self._names}
        first, second = self._names
        self._pass(first, self._routers[first].link_up(second, read_clock()))
        self._pass(second, self._routers[second].link_up(first, read_clock()))

    def _pass(self, sender: NodeId, effects: list[Effect]) -> None:
        """Carry messages back and forth until neither has anything to say."""
        waiting = [(sender, effect) for effect in effects]
        while waiting:
            speaker, effect = waiting.pop()
            if not isinstance(effect, Send):
                continue
            listener, router = effect.to, self._routers[effect.to]
            match effect.message:
                case Push(received):
                    admission = router.offered(speaker, received, read_clock())
                    assert admission.judgement is None
                    assert admission.object_id is not None
                    answer = router.judged(speaker, admission.object_id, received, ACCEPTED, read_clock())
                case Announce() | Pull() | Graft() | Prune() as message:
                    answer = router.receive(speaker, message, read_clock())
                case _:
                    raise AssertionError(effect)
            waiting += [(listener, answered) for answered in answer]

    def carry(self, envelopes: list[bytes]) -> float:
        """Seconds to bring these objects from one router to the other."""
        first, second = self._names
        started = time.perf_counter()
        for received in envelopes:
            published = self._routers[first].publish(
                received, envelope_id(open_envelope(received)[0]), None, read_clock()
            )
            self._pass(first, published)
        seconds = time.perf_counter() - started
        assert all(self._routers[second].body(envelope_id(open_envelope(item)[0])) for item in envelopes)
        return seconds


async def _measure(report: Report, count: int) -> None:
    linked: list[float] = []
    alone: list[float] = []
    purse = Purse.open(GENESIS_HASH)
    with ThreadPoolExecutor(2) as threads, python_process("scripts.benchmarks.gossip_node") as publisher:
        async with GossipNode(threads) as receiver:
            node, address = (await publisher.heard()).split()
            receiver.transport.dial(NodeId(bytes.fromhex(node)), (address,))
            async with asyncio.timeout(30):
                await receiver.linked.wait()
            note(f"{PAIRS} pairs of {count} objects")
            for number in range(PAIRS + 1):
                routers, mine = _Routers(), objects(count, purse)
                before = count / routers.carry(mine) if number % 2 else 0.0
                publisher.say(str(count))
                assert await publisher.heard() == "ready"
                started = time.perf_counter()
                publisher.say("go")
                await receiver.until_accepted((number + 1) * count)
                linked.append(count / (time.perf_counter() - started))
                alone.append(before or count / routers.carry(mine))
    del linked[0], alone[0]  # both ends were cold
    report.add("gossip.objects_per_second/nodes=2,link=tls", sorted(linked)[len(linked) // 2], "objects/s")
    report.baseline("gossip.routers_alone.objects_per_second", sorted(alone)[len(alone) // 2], "objects/s")
    report.ratio("gossip.linked_to_routers_alone", linked, alone)


def measure(quick: bool) -> Report:
    """Objects per second from node to node."""
    report = Report.start("gossip of signed objects: announce, pull, body, signature check")
    run_loop(_measure(report, 50 if quick else OBJECTS))
    allowed = GossipPolicy().bodies_in
    report.notes.append(
        f"by default a node takes {allowed.per_second} objects a second from one peer, {allowed.burst} at once"
    )
    return report
