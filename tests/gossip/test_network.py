"""Whole networks: convergence under loss, liars don't block, forgeries don't censor, floods stay small."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.gossip.policy import GossipPolicy, Rate
from protocol.messages.wire import Announce, Pull, Push, WireMessage
from protocol.primitives.limits import GOSSIP_PULLS_MAX
from protocol.primitives.units import Hash, NodeId
from tests.gossip.network import Network, at, bid, forged

POLICY = GossipPolicy()


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), loss_percent=st.integers(0, 30))
def test_fifty_routers_on_lossy_links_all_converge(seed: int, loss_percent: int) -> None:
    network = Network(50, seed, loss_percent=loss_percent)
    network.link_randomly(8)
    ids = [network.publish(network.dice.choice(network.nodes), number) for number in range(20)]
    network.run(60_000, until=lambda: network.now % 1_000 < 5 and all(network.holders(key) == 50 for key in ids))
    assert [network.holders(key) for key in ids] == [50] * len(ids)
    assert network.disconnected == []


def test_one_object_reaches_everybody_in_few_hops_and_is_pulled_once_each() -> None:
    network = Network(50, 7, delay_ms=(10, 10))
    network.link_randomly(8)
    network.run(5_000)
    object_id = network.publish(network.nodes[0], 1)
    network.delivered.clear()
    network.run(200)
    assert network.holders(object_id) == 50
    bodies = [message for _, _, message in network.delivered if isinstance(message, Push)]
    assert len(bodies) == 49


def test_mesh_degrees_settle_within_their_bounds() -> None:
    network = Network(40, 11)
    network.link_randomly(20)
    network.run(30_000)
    degrees = [len(router.peers.mesh()) for router in network.routers.values()]
    assert POLICY.degree_min <= min(degrees) <= max(degrees) <= POLICY.degree_max


def test_same_seed_gives_the_same_trace_byte_for_byte() -> None:
    def trace(seed: int) -> str:
        network = Network(20, seed, loss_percent=10)
        network.link_randomly(6)
        for number in range(10):
            network.publish(network.nodes[number], number)
        network.run(10_000)
        return network.trace.hexdigest()

    assert trace(3) == trace(3)
    assert trace(3) != trace(4)


def test_peer_that_announces_and_never_serves_delays_but_does_not_block() -> None:
    liar: NodeId

    def silent(sender: NodeId, recipient: NodeId, message: WireMessage) -> list[WireMessage]:
        return [] if sender == liar and isinstance(message, Push) else [message]

    network = Network(4, 1, twist=silent)
    victim, liar, honest, source = network.nodes
    network.link(victim, liar)
    network.link(liar, source)
    object_id = network.publish(source, 1)
    network.run(500)
    assert network.holders(object_id) == 2, "source and liar hold it, the victim was promised it"
    network.link(victim, honest)
    network.link(honest, source)
    network.run(5_000)
    assert object_id in network.routers[victim].objects.live
    assert network.routers[victim].peers.score(liar) <= 0


def test_forged_first_copy_does_not_censor_the_true_one() -> None:
    forger: NodeId

    def forge(sender: NodeId, recipient: NodeId, message: WireMessage) -> list[WireMessage]:
        if sender == forger and isinstance(message, Push):
            return [Push(forged(message.envelope))]
        return [message]

    network = Network(4, 1, twist=forge, delay_ms=(1, 1))
    victim, forger, honest, source = network.nodes
    for left, right in ((victim, forger), (victim, honest), (forger, source)):
        network.link(left, right)
    object_id = network.publish(source, 1)
    network.run(300)
    envelope, _ = bid(1)
    assert (victim, forged(envelope)) in network.judged_bodies, "the forged copy came first"
    assert object_id not in network.routers[victim].objects.seen
    network.link(honest, source)
    network.run(3_000)
    assert network.routers[victim].body(object_id) == envelope
    assert network.routers[victim].peers.score(forger) < 0


def test_forged_copy_is_checked_once_however_often_it_comes() -> None:
    network = Network(2, 1)
    victim, forger = network.nodes
    network.link(victim, forger)
    envelope, object_id = bid(1)
    for _ in range(3):
        network.deliver(victim, forger, Announce((Hash(object_id),)))
        network.deliver(victim, forger, Push(forged(envelope)))
    assert network.judged_bodies == [(victim, forged(envelope))]


def test_repeated_forgeries_end_the_link_with_a_ban() -> None:
    network = Network(2, 1)
    victim, forger = network.nodes
    network.link(victim, forger)
    for number in range(2):
        envelope, object_id = bid(number)
        network.deliver(victim, forger, Announce((Hash(object_id),)))
        network.deliver(victim, forger, Push(forged(envelope)))
    assert [(node, peer) for node, peer, _ in network.disconnected] == [(victim, forger)]
    assert "signature does not verify" in network.disconnected[0][2]


def test_flood_of_invented_ids_stays_bounded_and_ends_the_link() -> None:
    network = Network(2, 1, delay_ms=(1, 1))
    victim, flooder = network.nodes
    network.link(victim, flooder)
    router = network.routers[victim]
    most_wanted = 0
    for batch in range(400):
        ids = tuple(Hash(bytes(24) + (batch * 256 + position).to_bytes(8, "big")) for position in range(256))
        if flooder in network.links[victim]:
            network.deliver(victim, flooder, Announce(ids))
        most_wanted = max(most_wanted, len(router.pulls.wanted))
        network.run(50)
    asked = sum(len(m.ids) for _, node, m in network.delivered if node == flooder and isinstance(m, Pull))
    assert most_wanted <= GOSSIP_PULLS_MAX // 4
    assert asked <= POLICY.in_flight_max * 3
    assert [peer for _, peer, _ in network.disconnected] == [flooder]
    network.run(30_000)
    assert router.pulls.wanted == {}
    assert router.pulls.in_flight == {}


def test_bodies_nobody_asked_for_are_never_verified() -> None:
    network = Network(2, 1)
    victim, flooder = network.nodes
    network.link(victim, flooder)
    for number in range(200):
        if flooder in network.links[victim]:
            network.deliver(victim, flooder, Push(bid(number)[0]))
    assert network.judged_bodies == []
    assert [peer for _, peer, _ in network.disconnected] == [flooder]


def test_greedy_puller_gets_no_more_than_its_allowance() -> None:
    policy = GossipPolicy()
    network = Network(2, 1, policy=policy)
    source, greedy = network.nodes
    network.link(source, greedy)
    object_id = network.publish(source, 1)
    network.run(100)
    served = 0
    for _ in range(20_000):
        effects = network.routers[source].receive(greedy, Pull((Hash(object_id),) * 256), at(network.now))
        served += len(effects)
    assert served == policy.bodies_out.burst


def test_greedy_puller_of_large_bodies_is_bounded_in_bytes() -> None:
    body, object_id = bid(1)
    network = Network(2, 1, policy=GossipPolicy(bytes_out=Rate(1, 10 * len(body))))
    source, greedy = network.nodes
    network.routers[source].publish(body, object_id, None, at(0))
    network.link(source, greedy)
    pulls = [network.routers[source].receive(greedy, Pull((Hash(object_id),)), at(0)) for _ in range(50)]
    assert sum(map(len, pulls)) == 10


@pytest.mark.parametrize("loss_percent", [0, 20])
def test_partition_heals_by_reconciliation(loss_percent: int) -> None:
    network = Network(12, 5, loss_percent=loss_percent)
    left, right = network.nodes[:6], network.nodes[6:]
    for group in (left, right):
        for position, node in enumerate(group):
            network.link(node, group[(position + 1) % 6])
    ids = [network.publish(left[0], 1), network.publish(right[0], 2)]
    network.run(30_000)
    assert [network.holders(key) for key in ids] == [6, 6]
    network.link(left[3], right[3])
    network.run(60_000)
    assert [network.holders(key) for key in ids] == [12, 12]
