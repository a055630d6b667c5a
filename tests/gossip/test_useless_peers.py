"""Who sends valid data of no use for ever is cut off within a minute; honest peers never are, whatever links do."""

import random
from collections.abc import Callable

import pytest

from protocol.gossip.policy import GossipPolicy
from protocol.gossip.verdicts import ACCEPTED, Judgement, ignore
from protocol.messages.effects import Disconnect, Effect
from protocol.messages.wire import Announce, Prune, Pull, Push
from protocol.primitives.units import Hash, NodeId
from tests.gossip.network import Network, at, bid

POLICY = GossipPolicy()
MESSAGES_PER_SECOND = 20
CUT_OFF_WITHIN_MS = 60_000
OLD = tuple(Hash(number.to_bytes(32, "big")) for number in range(256))

STALE = ignore("an older offer than the one that is known")
UNFUNDED = ignore("buyer can't pay the ceiling", retryable=True)


class _Meeting:
    """A victim, an honest peer that brings something now and then, and one that is of no use."""

    def __init__(self, judgement: Judgement) -> None:
        self.network = Network(3, 1, delay_ms=(5, 40))
        self.victim, self.honest, self.useless = self.network.nodes
        self.network.link(self.victim, self.honest)
        self.network.judge = lambda node, peer, envelope: judgement if peer == self.useless else ACCEPTED
        for position in range(256):
            self.network.routers[self.victim].objects.seen.add(OLD[position], 0)
        self.network.run(2 * POLICY.old_epochs * POLICY.heartbeat_ms)
        self.network.link(self.victim, self.useless)
        self.number = 0

    def cut_off_after_ms(self, send: Callable[["_Meeting"], None], limit_ms: int) -> int | None:
        """How long it takes until the useless peer is gone, sending at the given rate."""
        began = self.network.now
        while self.network.now - began < limit_ms:
            self.number += 1
            if self.number % 10 == 0:
                self.network.publish(self.honest, 10_000 + self.number)
            send(self)
            self.network.run(1_000 // MESSAGES_PER_SECOND)
            if self.useless not in self.network.links[self.victim]:
                return self.network.now - began
        return None


def _publish(meeting: _Meeting) -> None:
    meeting.network.publish(meeting.useless, meeting.number)


def _deliver(message: Callable[[_Meeting], Announce | Push | Pull | Prune]) -> Callable[[_Meeting], None]:
    def send(meeting: _Meeting) -> None:
        meeting.network.deliver(meeting.victim, meeting.useless, message(meeting))

    return send


def _known(meeting: _Meeting) -> Push:
    meeting.network.routers[meeting.victim].publish(*bid(1), None, at(meeting.network.now))
    return Push(bid(1)[0])


@pytest.mark.parametrize(
    ("judgement", "send", "limit_ms"),
    [
        (STALE, _publish, CUT_OFF_WITHIN_MS),
        (UNFUNDED, _publish, CUT_OFF_WITHIN_MS),
        (ACCEPTED, _deliver(_known), CUT_OFF_WITHIN_MS),
        (ACCEPTED, _deliver(lambda meeting: Announce(OLD)), 2 * CUT_OFF_WITHIN_MS),
        (ACCEPTED, _deliver(lambda meeting: Push(bid(meeting.number)[0])), CUT_OFF_WITHIN_MS),
    ],
    ids=["stale offers", "bids that nobody can pay", "duplicates", "old announcements", "unasked bodies"],
)
def test_peer_that_is_of_no_use_for_ever_is_cut_off_in_time_and_the_honest_one_stays(
    judgement: Judgement, send: Callable[[_Meeting], None], limit_ms: int
) -> None:
    meeting = _Meeting(judgement)
    took = meeting.cut_off_after_ms(send, limit_ms)
    assert took is not None, meeting.network.routers[meeting.victim].scores
    assert [(node, peer) for node, peer, _ in meeting.network.disconnected] == [(meeting.victim, meeting.useless)]
    assert meeting.honest in meeting.network.links[meeting.victim]


def test_ban_is_limited_and_the_reason_told() -> None:
    meeting = _Meeting(STALE)
    router = meeting.network.routers[meeting.victim]
    effects: list[Effect] = []
    while not effects:
        effects = router.conduct.useless(meeting.useless, "a test", at(meeting.network.now).monotonic_ms)
    (cut,) = effects
    assert isinstance(cut, Disconnect)
    assert cut.ban_ms == POLICY.ban_ms == 60_000
    assert "of no use" in cut.reason


def test_new_link_does_not_renew_an_allowance_that_was_used_up() -> None:
    meeting = _Meeting(STALE)
    victim, useless, now = meeting.victim, meeting.useless, at(meeting.network.now).monotonic_ms
    router = meeting.network.routers[victim]
    for _ in range(POLICY.useless.burst):
        assert router.conduct.useless(useless, "a test", now) == []
    before = router.peers.score(useless)
    meeting.network.unlink(victim, useless)
    meeting.network.link(victim, useless)
    router.conduct.useless(useless, "a test", now)
    assert router.peers.score(useless) == before - POLICY.useless_cost


def _honest_network(seed: int) -> Network:
    """Links that lose up to a third and delay up to three seconds; judges that find a third of everything stale or
    without standing, each its own third."""
    dice = random.Random(seed)
    network = Network(8, seed, loss_percent=dice.randint(0, 33), delay_ms=(1, dice.choice((50, 500, 3_000))))

    def judge(node: NodeId, peer: NodeId, envelope: bytes) -> Judgement:
        lot = (node[0] + envelope[-1]) % 6
        return (STALE, UNFUNDED, ACCEPTED, ACCEPTED, ACCEPTED, ACCEPTED)[lot]

    network.judge = judge
    network.link_randomly(4)
    for number in range(dice.randint(100, 200)):
        network.publish(dice.choice(network.nodes), number)
        network.run(dice.choice((0, 10, 500)))
        if number % 40 == 0:  # links break and come back
            node = dice.choice(network.nodes)
            other = dice.choice([*network.links[node]] or [node])
            if other != node:
                network.unlink(node, other)
                network.link(node, other)
    network.run(60_000)
    return network


@pytest.mark.parametrize("seed", range(5))
def test_no_honest_peer_is_ever_cut_off_on_links_that_lose_and_delay(seed: int) -> None:
    assert _honest_network(seed).disconnected == []


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5, 150))
def test_no_honest_peer_is_ever_cut_off_in_many_networks(seed: int) -> None:
    assert _honest_network(seed).disconnected == []
