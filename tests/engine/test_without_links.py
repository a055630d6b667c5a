"""Authorities without a link to each other take part by gossip: they start, decide, and recover from lost leaders."""

from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from protocol.engine.inputs import Received
from protocol.engine.judging import BALLOTS_PER_AUTHORITY_MAX, DISPATCH_BYTES, DISPATCH_OBJECTS, Judge
from protocol.engine.replica_gossip import BLOCK_BYTES_ALWAYS
from protocol.engine.standing import StandingInquiry, open_attestation
from protocol.gossip.verdicts import ACCEPTED, Verdict
from protocol.messages import consensus, wire
from protocol.messages.consensus import Attestation, Certificate, CertificateKind, Dispatch, FinalBody, Inquiry
from protocol.messages.envelope import open_envelope
from protocol.messages.kinds import MessageKind
from protocol.messages.transactions import Output, Transfer
from protocol.primitives.codec import encode
from protocol.primitives.units import (
    Amount,
    AuthorityId,
    BlockHash,
    Hash,
    Height,
    MessageId,
    NodeId,
    PublicKey,
    Signature,
    TimestampMs,
    View,
)
from tests.engine.village import Village, holds, node_of
from tests.ledger.world import account_of, make_genesis

NAMES = ("auth0", "auth1", "auth2", "auth3")
RELAYS = ("relay0", "relay1", "relay2", "relay3")
RING = [(NAMES[i], RELAYS[i]) for i in range(4)] + [(RELAYS[i], NAMES[(i + 1) % 4]) for i in range(4)]
LINE = RING[:-1]
STAR = [(name, "relay0") for name in NAMES]


def make_village(pairs: list[tuple[str, str]], **parameters: int) -> Village:
    accounts = tuple(f"{name}-account" for name in NAMES)
    numbers = {"heartbeat_ms": 3_000, **parameters}
    village = Village(make_genesis(names=accounts, **numbers), NAMES, RELAYS)
    village.begin(pairs)
    return village


@pytest.mark.parametrize("pairs", [RING, LINE, STAR], ids=["ring", "line", "star"])
def test_authorities_that_are_linked_through_followers_alone_decide(pairs: list[tuple[str, str]]) -> None:
    village = make_village(pairs)
    used = [name for name in village.villagers if any(name in pair for pair in pairs)]
    assert village.run_until(lambda: min(village.tips(*used)) >= 6, 120_000), village.tips()
    assert all(len({position.height for position in village[name].guard}) >= 5 for name in NAMES)
    assert not any(villager.blamed or villager.halted for villager in village.villagers.values())


@pytest.mark.parametrize("lost", NAMES)
def test_without_links_a_lost_leader_costs_a_view_and_no_more(lost: str) -> None:
    village = make_village(STAR)
    assert village.run_until(lambda: min(village.tips(*NAMES)) >= 2, 60_000)
    village[lost].stop()
    others = [name for name in NAMES if name != lost]
    before = max(village.tips(*others))
    assert village.run_until(lambda: min(village.tips(*others)) >= before + 5, 120_000), village.tips()


def test_a_silence_longer_than_any_dispatch_lives_is_made_good() -> None:
    """What was gossiped on either side has ended before the two sides meet: it has to be said again."""
    village = make_village(STAR)
    assert village.run_until(lambda: min(village.tips(*NAMES)) >= 2, 60_000)
    for name in NAMES[:2]:
        village.unlink(village[name], village["relay0"])
        village.link(village[name], village["relay1"])
    village.run(20_000)
    stuck = max(village.tips(*NAMES))
    village.link(village["relay0"], village["relay1"])
    assert village.run_until(lambda: min(village.tips(*NAMES)) >= stuck + 3, 60_000), village.tips()


def test_one_authority_without_links_signs_like_the_others() -> None:
    pairs = [(one, other) for one in NAMES[:3] for other in NAMES[:3] if one < other]
    village = make_village([*pairs, *STAR])
    assert village.run_until(lambda: min(village.tips(*NAMES)) >= 9, 120_000), village.tips()
    assert len({position.height for position in village["auth3"].guard}) >= 8


def test_a_large_block_reaches_those_without_links_when_it_is_needed() -> None:
    village = make_village(STAR, heartbeat_ms=60_000)
    village.run(8_000)
    outputs = tuple(Output(account_of(f"somebody{number}"), Amount(1)) for number in range(250))
    for name in NAMES:
        for _ in range(5):
            village[name].want(Transfer(outputs))
    assert village.run_until(lambda: min(village.tips(*NAMES)) >= 1, 60_000)
    village.run(20_000)
    assert max(len(decided.block) for decided in village["auth1"].blocks.values()) > BLOCK_BYTES_ALWAYS
    assert len(set(village.tips(*NAMES))) == 1


def test_one_authority_s_dispatches_are_relayed_so_often_and_so_large_and_not_more() -> None:
    village = make_village(STAR)
    relay = village["relay0"].engine
    judge: Judge = relay._judge
    verdicts = []
    for number in range(DISPATCH_OBJECTS.burst + 5):
        final = village.seal("auth1", MessageKind.FINAL, encode(FinalBody(Height(1), View(1), None)))
        dispatch = Dispatch(Height(1), TimestampMs(number), b"", b"", (), (final,))
        received = village.seal("auth1", MessageKind.DISPATCH, encode(dispatch))
        envelope, payload = open_envelope(received)
        ruled = judge.judge(node_of("auth2"), envelope, payload, received, village.now())
        verdicts.append(ruled.judgement)
    assert verdicts.count(ACCEPTED) == DISPATCH_OBJECTS.burst
    assert DISPATCH_BYTES.burst < 5 * 1024 * 1024


@pytest.mark.parametrize(
    ("signer", "height", "speaker"), [("auth2", 1, "auth1"), ("auth1", 2, "auth1"), ("auth1", 1, "relay0")]
)
def test_a_dispatch_speaks_for_its_author_at_its_height_alone(signer: str, height: int, speaker: str) -> None:
    village = make_village(STAR)
    final = village.seal(signer, MessageKind.FINAL, encode(FinalBody(Height(height), View(1), None)))
    dispatch = Dispatch(Height(1), TimestampMs(1), b"", b"", (), (final,))
    received = village.seal(speaker, MessageKind.DISPATCH, encode(dispatch))
    envelope, payload = open_envelope(received)
    judge = village["auth0"].engine._judge
    ruled = judge.judge(node_of("relay0"), envelope, payload, received, village.now())
    assert ruled.judgement.verdict is Verdict.REJECT
    assert ruled.effects == []


def test_a_dispatch_of_a_height_whose_authorities_are_unknown_goes_no_further_than_a_hint() -> None:
    village = make_village(STAR)
    village.run(3_000)
    far = Height(village["auth0"].tip + 3)
    final = village.seal("auth1", MessageKind.FINAL, encode(FinalBody(far, View(1), None)))
    dispatch = Dispatch(far, TimestampMs(1), b"", b"", (), (final,))
    _, payload = open_envelope(village.seal("auth1", MessageKind.DISPATCH, encode(dispatch)))
    judge = village["auth0"].engine._judge
    verdict = judge.out_of_reach(payload)
    assert verdict is not None
    assert verdict.verdict is Verdict.IGNORE
    assert judge.hint_in(payload) == far - 1


def test_what_is_relayed_is_checked_whole_also_by_those_who_know_it_already() -> None:
    """Else they would relay broken signatures that others, who don't know the certificate, hold against them."""
    village = make_village(STAR)
    auth0 = village["auth0"]
    assert village.run_until(lambda: min(village.tips(*NAMES)) >= 1, 60_000)
    lost = next(name for name in NAMES[1:] if village[name].key == auth0.replica.authorities.leader(Height(3), View(1)))
    assert village.run_until(lambda: auth0.tip >= 2, 60_000)
    village[lost].stop()

    def held() -> tuple[Certificate, ...]:
        machine = auth0.replica._machine
        return machine.held.all() if machine is not None else ()

    assert village.run_until(lambda: bool(held()), 60_000)
    broken = replace(held()[0], signatures=tuple(Signature(bytes(64)) for _ in held()[0].signatures))
    author = next(name for name in NAMES[1:] if name != lost)
    dispatch = Dispatch(Height(auth0.tip + 1), TimestampMs(1), b"", b"", (broken,), ())
    push = wire.Push(village.seal(author, MessageKind.DISPATCH, encode(dispatch)))
    assert not all(holds(check) for check in auth0.engine.checks(push))
    assert auth0.engine.checks(wire.CertificateNotice(broken)) == [], "of a link nobody else will be told"


def _testimony(village: Village, author: str, inquiry: StandingInquiry, proof: Certificate) -> bytes:
    attestation = Attestation(inquiry.nonce, PublicKey(inquiry.own), proof.height, proof.block_hash or BlockHash(b""))
    attested = village.seal(author, MessageKind.ATTESTATION, encode(attestation))
    testimony = consensus.Testimony(PublicKey(inquiry.own), attested, proof, ())
    return village.seal(author, MessageKind.TESTIMONY, encode(testimony))


def test_a_false_proof_in_an_answer_about_our_standing_counts_for_nothing_and_blames_no_relay() -> None:
    village = make_village(STAR)
    assert village.run_until(lambda: min(village.tips(*NAMES)) >= 2, 60_000)
    asker = village["auth3"]
    asker.stop()
    assert village.run_until(lambda: min(village.tips(*NAMES[:3])) >= asker.tip + 2, 60_000)
    asker.restart()
    inquiry = asker.replica.inquiry
    assert inquiry is not None
    true = village["auth0"].blocks[Height(asker.tip + 1)].certificate
    broken = replace(true, signatures=tuple(Signature(bytes(64)) for _ in true.signatures))
    voted = replace(true, kind=CertificateKind.VOTED)
    other = replace(true, view=View(true.view + 1))
    for proof, counted in ((broken, False), (voted, False), (other, False), (true, True)):
        received = _testimony(village, "auth1", inquiry, proof)
        envelope, payload = open_envelope(received)
        assert all(holds(check) for check in asker.engine.checks(wire.Push(received)))
        ruled = asker.engine._judge.judge(node_of("relay0"), envelope, payload, received, village.now())
        assert ruled.judgement is ACCEPTED
        assert (village["auth1"].key in inquiry._tips) is counted


@pytest.mark.parametrize("kind", [MessageKind.INQUIRY, MessageKind.FINAL])
def test_an_authority_that_tells_everybody_something_else_gets_no_relay_into_disrepute(kind: MessageKind) -> None:
    """Each relay passed on what was within bounds where it was heard first; together it is too much for the next."""
    village = make_village([*STAR, ("relay0", "relay1")])
    village.run(100)
    relay = village["relay0"]
    height = Height(relay.tip + 1)
    judged = {}
    for peer in (node_of("relay1"), node_of("auth1")):
        for number in range(1, 2 * max(BALLOTS_PER_AUTHORITY_MAX, DISPATCH_OBJECTS.burst)):
            final = encode(FinalBody(height, View(number), None))
            inquiry = encode(Inquiry(Hash(bytes(32)), TimestampMs(number)))
            received = village.seal("auth1", kind, final if kind is MessageKind.FINAL else inquiry)
            envelope, payload = open_envelope(received)
            judged[peer] = relay.engine._judge.judge(peer, envelope, payload, received, village.now()).judgement
    router = relay.engine.gossip
    before = router.peers.allowances(node_of("relay1"), village.now().monotonic_ms).useless.parts
    for peer, blamed in ((node_of("relay1"), False), (node_of("auth1"), True)):
        assert judged[peer].verdict is Verdict.IGNORE
        assert judged[peer].excused is not blamed
        assert router.judged(peer, MessageId(bytes(32)), b"", judged[peer], village.now()) == []
    assert router.peers.allowances(node_of("relay1"), village.now().monotonic_ms).useless.parts == before
    assert router.peers.allowances(node_of("auth1"), village.now().monotonic_ms).useless.parts < before


def test_a_replica_that_takes_a_snapshot_passes_on_no_ballot_of_a_stranger() -> None:
    village = make_village(STAR)
    relay = village["relay0"]
    relay.replica.snapshots.installing = True
    received = village.seal("relay1", MessageKind.FINAL, encode(FinalBody(Height(1), View(1), None)))
    envelope, payload = open_envelope(received)
    ruled = relay.engine._judge.judge(node_of("auth1"), envelope, payload, received, village.now())
    assert ruled.judgement.verdict is Verdict.REJECT


def test_whoever_asks_with_the_nonce_of_another_gets_its_own_answer_and_not_the_other_s() -> None:
    pairs = [(one, other) for one in NAMES for other in NAMES if one < other]
    village = make_village(pairs)
    village.run(500)
    sent: list[tuple[NodeId, wire.WireMessage]] = []

    def alters(peer: NodeId, message: wire.WireMessage) -> Iterable[wire.WireMessage]:
        sent.append((peer, message))
        return (message,)

    village["auth0"].alters = alters
    for name in ("auth1", "auth2"):
        request = wire.StandingRequest(Hash(b"n" * 32), AuthorityId(account_of(name)))
        village["auth0"].step(Received(node_of(name), request))
    village.run(20)
    answers = [(peer, message) for peer, message in sent if isinstance(message, wire.Standing)]
    assert [peer for peer, _ in answers] == [node_of("auth1"), node_of("auth2")]
    for peer, message in answers:
        asker = open_attestation(message.attestation).asker
        assert peer == node_of(next(name for name in NAMES if bytes(account_of(name)) == bytes(asker)))


def test_answers_that_an_asker_can_t_use_yet_are_no_fault_of_who_relays_them() -> None:
    """A node that catches up for minutes gets some each second, perhaps all over one link."""
    village = make_village(STAR)
    assert village.run_until(lambda: min(village.tips(*NAMES)) >= 1, 60_000)
    asker = village["auth3"]
    inquiry = asker.replica.inquiry
    assert inquiry is not None
    far = replace(village["auth0"].blocks[Height(1)].certificate, height=Height(asker.tip + 3))
    _, payload = open_envelope(_testimony(village, "auth1", inquiry, far))
    verdict = asker.engine._judge.out_of_reach(payload)
    assert verdict is not None
    assert (verdict.verdict, verdict.excused) == (Verdict.IGNORE, True)
