"""One router: time to live, caps, retries, mesh rules, standing of peers."""

import pytest

from protocol.gossip import verdicts
from protocol.gossip.objects import BoundedMemory, Objects
from protocol.gossip.policy import GossipPolicy
from protocol.gossip.router import HEARTBEAT_TIMER, PULL_TIMER, GossipRouter
from protocol.gossip.verdicts import Judgement, Verdict
from protocol.messages.effects import CancelTimer, Disconnect, Effect, Send, SetTimer
from protocol.messages.envelope import seal
from protocol.messages.kinds import MessageKind
from protocol.messages.wire import Announce, Graft, Prune, Pull, Push
from protocol.primitives.limits import ANNOUNCED_IDS_MAX, DISPATCH_BYTES_MAX, GOSSIP_LIFETIME_MS_MAX
from protocol.primitives.units import Hash, MessageId, NodeId, PublicKey, TimestampMs
from tests.gossip.network import WALL_START, at, bid, forged, node_id

POLICY = GossipPolicy()
A, B, C = node_id(1), node_id(2), node_id(3)


def router_with(*peers: NodeId) -> GossipRouter:
    """A router with links."""
    router = GossipRouter(node_id(0), b"seed")
    for peer in peers:
        router.link_up(peer, at(0))
    return router


def announced(router: GossipRouter, peer: NodeId, object_id: MessageId, now: int = 0) -> list[Effect]:
    """The peer announces one id."""
    return router.receive(peer, Announce((Hash(object_id),)), at(now))


def sends(effects: list[Effect]) -> list[Send]:
    """Only the sends."""
    return [effect for effect in effects if isinstance(effect, Send)]


def brought(router: GossipRouter, peer: NodeId, number: int, verdict: Judgement | Verdict, now: int) -> list[Effect]:
    """The peer announces an object, is asked, sends it, and it is judged."""
    envelope, object_id = bid(number)
    announced(router, peer, object_id, now)
    admission = router.offered(peer, envelope, at(now))
    assert admission.judgement is None
    return router.judged(peer, object_id, envelope, verdict, at(now))


def test_accepted_object_is_announced_to_the_mesh_but_not_to_those_who_hold_it() -> None:
    router = router_with(A, B, C)
    envelope, object_id = bid(1)
    announced(router, A, object_id)
    announced(router, B, object_id)
    router.offered(A, envelope, at(0))
    effects = router.judged(A, object_id, envelope, verdicts.ACCEPTED, at(0))
    assert sends(effects) == [Send(C, Announce((Hash(object_id),)))]


def test_object_is_served_until_it_expires_and_never_afterwards() -> None:
    router = router_with(A)
    envelope, object_id = bid(1, 2_000)
    router.publish(envelope, object_id, None, at(0))
    pull = Pull((Hash(object_id),))
    assert router.receive(A, pull, at(1_999)) == [Send(A, Push(envelope))]
    assert router.receive(A, pull, at(2_000)) == []
    router.timer(HEARTBEAT_TIMER, at(2_000))
    assert router.body(object_id) is None
    assert router.objects.live_bytes == 0
    assert announced(router, A, object_id, 3_000) == [], "what has expired is not pulled again"


def test_expired_object_is_not_kept_nor_announced() -> None:
    router = router_with(A)
    envelope, object_id = bid(1, 2_000)
    assert sends(router.publish(envelope, object_id, None, at(2_000))) == []


def test_no_object_outlives_the_longest_lifetime() -> None:
    objects = Objects()
    objects.add(MessageId(b"1" * 32), b"x", TimestampMs(2**47), TimestampMs(WALL_START), 0)
    objects.expire(TimestampMs(WALL_START + GOSSIP_LIFETIME_MS_MAX))
    assert objects.live == {}


def test_over_the_cap_the_next_to_expire_goes_first() -> None:
    objects = Objects(objects_max=3, bytes_max=100)
    for number, lifetime in enumerate((50, 10, 40, 30)):
        expiry = TimestampMs(WALL_START + lifetime)
        objects.add(MessageId(bytes((number,)) * 32), b"x" * 10, expiry, TimestampMs(WALL_START), 0)
    assert [key[0] for key in objects.live] == [0, 2, 3]
    objects.add(MessageId(b"9" * 32), b"x" * 80, TimestampMs(WALL_START + 99), TimestampMs(WALL_START), 0)
    assert objects.live_bytes <= 100


def test_bounded_memory_forgets_the_oldest() -> None:
    memory = BoundedMemory(2)
    for key in (b"a", b"b", b"c"):
        memory.add(key)
    assert [key in memory for key in (b"a", b"b", b"c")] == [False, True, True]


def test_new_link_is_told_of_all_live_ids_in_bounded_batches() -> None:
    router = router_with()
    ids = [bid(number)[1] for number in range(1_500)]
    for number, object_id in enumerate(ids):
        router.publish(bid(number)[0], object_id, None, at(0))
    first = sends(router.link_up(A, at(0)))
    told = [key for send in first if isinstance(send.message, Announce) for key in send.message.ids]
    assert len(told) == POLICY.backlog_ids_per_heartbeat
    assert all(len(send.message.ids) <= ANNOUNCED_IDS_MAX for send in first if isinstance(send.message, Announce))
    later = sends(router.timer(HEARTBEAT_TIMER, at(1_000)))
    told += [key for send in later if isinstance(send.message, Announce) for key in send.message.ids]
    assert sorted(dict.fromkeys(told)) == sorted(Hash(key) for key in ids)


def test_failure_of_standing_is_asked_for_again_later_and_costs_nothing() -> None:
    router = router_with(A)
    envelope, object_id = bid(1)
    brought(router, A, 1, verdicts.ignore("no bond yet", retryable=True), 0)
    assert router.peers.score(A) == 0
    again = router.timer(PULL_TIMER, at(POLICY.retry_ms))
    assert Send(A, Pull((Hash(object_id),))) in again
    assert router.offered(A, envelope, at(POLICY.retry_ms)).judgement is None
    router.judged(A, object_id, envelope, Verdict.ACCEPT, at(POLICY.retry_ms))
    assert router.body(object_id) == envelope


def test_object_that_never_gains_standing_is_given_up() -> None:
    router = router_with(A)
    envelope, object_id = bid(1)
    announced(router, A, object_id)
    for attempt in range(POLICY.retries_max + 1):
        now = attempt * POLICY.retry_ms
        router.timer(PULL_TIMER, at(now))
        assert router.offered(A, envelope, at(now)).judgement is None
        router.judged(A, object_id, envelope, Verdict.IGNORE, at(now))
    assert router.pulls.wanted == {}


def test_final_ignore_is_remembered_without_cost() -> None:
    router = router_with(A, B)
    _, object_id = bid(1)
    brought(router, A, 1, verdicts.EXPIRED, 0)
    assert router.peers.score(A) == 0
    assert announced(router, B, object_id) == []


def test_authentic_reject_costs_the_sender_and_is_not_pulled_from_others() -> None:
    router = router_with(A, B)
    _, object_id = bid(1)
    brought(router, A, 1, verdicts.reject("pays less than nothing"), 0)
    assert router.peers.score(A) == -POLICY.reject_cost
    assert announced(router, B, object_id) == []


def test_broken_signature_leaves_the_id_unseen_and_asks_the_next_announcer() -> None:
    router = router_with(A, B)
    envelope, object_id = bid(1)
    announced(router, A, object_id)
    announced(router, B, object_id)
    router.offered(A, forged(envelope), at(0))
    effects = router.judged(A, object_id, forged(envelope), verdicts.SIGNATURE_BROKEN, at(0))
    assert Send(B, Pull((Hash(object_id),))) in effects
    assert object_id not in router.objects.seen


def test_same_bytes_are_not_checked_twice_at_the_same_time() -> None:
    router = router_with(A, B)
    envelope, object_id = bid(1)
    announced(router, A, object_id)
    assert router.offered(A, envelope, at(0)).judgement is None
    assert router.offered(B, envelope, at(0)).judgement is verdicts.BYTES_SEEN
    assert router.peers.score(B) == 0


def test_body_from_a_peer_that_was_not_asked_is_not_verified() -> None:
    router = router_with(A, B)
    envelope, object_id = bid(1)
    announced(router, A, object_id)
    assert router.offered(B, envelope, at(0)).judgement is verdicts.NOT_ASKED_FOR
    assert router.offered(A, envelope, at(0)).judgement is None


def test_body_asked_on_a_link_that_was_replaced_costs_nothing_and_a_second_one_does() -> None:
    router = router_with(A)
    envelope, object_id = bid(1)
    announced(router, A, object_id)
    router.link_down(A, at(0))
    router.link_up(A, at(0))
    assert router.offered(A, envelope, at(0)).judgement is verdicts.NOT_ASKED_FOR
    assert router.peers.score(A) == 0
    router.offered(A, envelope, at(0))
    assert router.peers.score(A) < 0


def test_pull_that_times_out_goes_to_the_next_announcer_and_costs_the_first() -> None:
    router = router_with(A, B)
    _, object_id = bid(1)
    announced(router, A, object_id)
    announced(router, B, object_id, 1)
    announced(router, A, object_id, 1)
    effects = router.timer(PULL_TIMER, at(POLICY.pull_timeout_ms))
    assert Send(B, Pull((Hash(object_id),))) in effects
    assert router.peers.score(A) == -POLICY.failed_pull_cost
    router.timer(PULL_TIMER, at(2 * POLICY.pull_timeout_ms))
    assert router.pulls.wanted == {}


def test_slow_peer_that_sends_other_bodies_is_given_more_time() -> None:
    router = router_with(A)
    ids = [bid(number)[1] for number in range(2)]
    router.receive(A, Announce(tuple(Hash(key) for key in ids)), at(0))
    router.offered(A, bid(0)[0], at(POLICY.pull_timeout_ms - 100))
    router.timer(PULL_TIMER, at(POLICY.pull_timeout_ms))
    assert ids[1] in router.pulls.wanted
    assert router.peers.score(A) == 0


def test_link_down_moves_its_pulls_to_other_announcers_at_once() -> None:
    router = router_with(A, B)
    _, object_id = bid(1)
    announced(router, A, object_id)
    announced(router, B, object_id)
    assert Send(B, Pull((Hash(object_id),))) in router.link_down(A, at(1))
    assert router.pulls.in_flight == {B: 1}
    effects = router.link_down(B, at(2))
    assert router.pulls.wanted == {}
    assert sends(effects) == []


def test_score_outlives_the_link_and_decays() -> None:
    router = router_with(A)
    router.conduct.misbehaved(A, "sent nonsense")
    router.link_down(A, at(0))
    router.link_up(A, at(0))
    assert router.peers.score(A) == -POLICY.reject_cost
    for epoch in range(POLICY.reject_cost):
        router.timer(HEARTBEAT_TIMER, at(1_000 * epoch))
    assert router.scores == {}


def test_ban_is_asked_for_once() -> None:
    router = router_with(A)
    effects = [effect for _ in range(5) for effect in router.conduct.misbehaved(A, "sent nonsense")]
    assert len(effects) == 1
    assert isinstance(effects[0], Disconnect)
    assert effects[0].ban_ms == POLICY.ban_ms


def test_muted_peer_is_not_listened_to() -> None:
    router = router_with(A)
    router.peers.change_score(A, POLICY.mute_below - 1)
    assert announced(router, A, bid(1)[1]) == []


def test_mesh_stops_to_grow_at_its_cap() -> None:
    router = router_with(*(node_id(number) for number in range(1, 30)))
    assert len(router.peers.mesh()) == POLICY.degree_target
    answers = [router.receive(node_id(number), Graft(), at(0)) for number in range(1, 30)]
    assert len(router.peers.mesh()) == POLICY.degree_max
    assert sum(bool(answer) for answer in answers) == 29 - POLICY.degree_max


def test_graft_right_after_prune_is_refused_and_costs() -> None:
    router = router_with(A)
    router.receive(A, Prune(), at(0))
    assert router.receive(A, Graft(), at(1)) == [Send(A, Prune())]
    assert router.peers.score(A) == -POLICY.rule_broken_cost
    assert router.peers.mesh() == []


def test_peer_below_zero_leaves_the_mesh() -> None:
    router = router_with(A)
    router.peers.change_score(A, -10)
    assert Send(A, Prune()) in router.timer(HEARTBEAT_TIMER, at(1_000))


def test_peers_without_a_link_are_not_answered() -> None:
    router = router_with()
    for message in (Announce((Hash(b"1" * 32),)), Pull((Hash(b"1" * 32),)), Graft(), Prune()):
        assert router.receive(A, message, at(0)) == []


def test_pull_timer_is_cancelled_when_nothing_is_wanted() -> None:
    router = router_with(A)
    envelope, object_id = bid(1)
    assert any(isinstance(effect, SetTimer) for effect in announced(router, A, object_id))
    router.offered(A, envelope, at(0))
    router.judged(A, object_id, envelope, Verdict.ACCEPT, at(0))
    fired = router.timer(PULL_TIMER, at(POLICY.judging_timeout_ms))
    assert not any(isinstance(effect, SetTimer | CancelTimer) for effect in fired)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"x" * (DISPATCH_BYTES_MAX + 1), verdicts.TOO_LARGE),
        (b"not an envelope", verdicts.MALFORMED),
        (bid(1)[0][:-1], verdicts.MALFORMED),
        (seal(MessageKind.BID, b"\x90", PublicKey(b"k" * 32), b"s" * 64), verdicts.MALFORMED),
        (bid(2)[0], verdicts.NOT_ASKED_FOR),
    ],
)
def test_router_checks_by_label(body: bytes, expected: Judgement) -> None:
    router = router_with(A)
    admission = router.offered(A, body, at(0))
    assert admission.judgement is expected
    assert (router.peers.score(A) < 0) == (expected.verdict is Verdict.REJECT or expected is verdicts.NOT_ASKED_FOR)


def test_kinds_that_do_not_travel_by_gossip_are_rejected() -> None:
    router = GossipRouter(node_id(0), b"seed", kinds=(MessageKind.OFFER,))
    router.link_up(A, at(0))
    assert router.offered(A, bid(1)[0], at(0)).judgement is verdicts.KIND_NOT_GOSSIPED


def test_labels_name_verdict_and_reason_and_differ() -> None:
    labels = [judgement.label for judgement in verdicts.ROUTER_CHECKS]
    assert verdicts.ALREADY_SEEN.label == "[IGNORE] already seen"
    assert verdicts.SIGNATURE_BROKEN.label == "[REJECT] signature does not verify"
    assert len({*labels}) == len(labels)
