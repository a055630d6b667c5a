"""A link that carries nothing for a while, and then everything at once: nobody is at fault, and nobody is cut off."""

from protocol.gossip import verdicts
from protocol.gossip.router import HEARTBEAT_TIMER, PULL_TIMER
from protocol.messages.effects import Disconnect, Effect, Send
from protocol.messages.wire import Announce, Pull
from protocol.primitives.units import Hash
from tests.gossip.network import at, bid
from tests.gossip.test_router import POLICY, A, B, router_with

OBJECTS = 200
"""More than a ban's worth of failed pulls, and within what one peer may be asked at once."""
IDS = tuple(Hash(bid(number)[1]) for number in range(OBJECTS))


def bans(effects: list[Effect]) -> list[Disconnect]:
    """Links that gossip wants to cut."""
    return [effect for effect in effects if isinstance(effect, Disconnect)]


def test_many_bodies_owed_by_a_silent_link_count_once() -> None:
    router = router_with(A)
    router.receive(A, Announce(IDS), at(0))
    effects = router.timer(PULL_TIMER, at(POLICY.pull_timeout_ms))
    assert bans(effects) == []
    assert router.peers.score(A) == -POLICY.silence_cost


def test_silent_peer_is_not_asked_until_it_says_something() -> None:
    router = router_with(A, B)
    router.receive(A, Announce(IDS[:1]), at(0))
    router.timer(PULL_TIMER, at(POLICY.pull_timeout_ms))
    later = POLICY.pull_timeout_ms + 1
    router.receive(B, Announce(IDS[1:2]), at(later))
    assert router.pulls.in_flight == {B: 1}
    asked = router.receive(A, Announce(IDS[2:3]), at(later))
    assert Send(A, Pull(IDS[2:3])) in asked


def test_peer_that_speaks_and_does_not_send_is_cut_off() -> None:
    router = router_with(A)
    router.receive(A, Announce(IDS), at(0))
    cut: list[Effect] = []
    for second in range(16):
        moment = second * POLICY.heartbeat_ms
        router.receive(A, Announce(IDS), at(moment + 1))
        cut += bans(router.timer(PULL_TIMER, at(moment + POLICY.pull_timeout_ms)))
        router.timer(HEARTBEAT_TIMER, at(moment + POLICY.pull_timeout_ms))
    assert len(cut) == 1


def test_peer_that_falls_silent_after_each_announcement_is_soon_not_listened_to() -> None:
    router = router_with(A)
    asked = 0
    for round_number in range(OBJECTS):
        now = round_number * (POLICY.pull_timeout_ms + 1)
        ids = IDS[round_number : round_number + 1]
        asked += Send(A, Pull(ids)) in router.receive(A, Announce(ids), at(now))
        router.timer(PULL_TIMER, at(now + POLICY.pull_timeout_ms))
        router.timer(HEARTBEAT_TIMER, at(now + POLICY.pull_timeout_ms))
    assert asked < OBJECTS / 3


def test_every_answer_to_a_body_asked_for_twice_is_owed() -> None:
    router = router_with(A)
    router.receive(A, Announce(IDS), at(0))
    router.timer(PULL_TIMER, at(POLICY.pull_timeout_ms))
    healed = 10 * POLICY.pull_timeout_ms
    router.receive(A, Announce(IDS), at(healed))  # the second time each is asked for; now both answers come
    for number in range(OBJECTS):
        envelope, object_id = bid(number)
        assert router.offered(A, envelope, at(healed)).judgement is None
        router.judged(A, object_id, envelope, verdicts.ignore("no standing yet", retryable=True), at(healed))
        assert bans(router.offered(A, envelope, at(healed)).effects) == []
    assert router.peers.score(A) >= -POLICY.silence_cost
    assert router.offered(A, bid(0)[0], at(healed)).judgement is verdicts.NOT_ASKED_FOR
    assert router.peers.score(A) == -POLICY.unasked_cost, "what came late was made good"
