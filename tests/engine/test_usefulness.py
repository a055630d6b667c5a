"""What an engine makes of messages that are valid and of no use: free for a while, then the peer is left."""

import pytest

from protocol.engine.engine import Engine
from protocol.engine.inputs import Input, LinkUp, Received, Unexpected
from protocol.engine.judging import Judge
from protocol.engine.ledger_facts import LedgerFacts
from protocol.engine.usefulness import DoorWork, Use
from protocol.gossip.policy import GossipPolicy
from protocol.messages import wire
from protocol.messages.consensus import VoteBody
from protocol.messages.effects import Disconnect, Effect
from protocol.messages.envelope import open_envelope
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Bid, QuoteSeal, Voucher
from protocol.messages.peers import NodeRecord
from protocol.messages.transactions import Output, Transaction, Transfer
from protocol.primitives.codec import encode
from protocol.primitives.units import (
    Amount,
    BlockHash,
    ChannelId,
    Hash,
    Height,
    Lane,
    MessageId,
    NodeId,
    Nonce,
    SequenceNumber,
    TimestampMs,
    View,
    WorkUnits,
)
from tests.engine.test_hostile_input import MODEL, PEER, at, begin, make_engine
from tests.engine.village import Village, node_of
from tests.fuzz.live_engine import honest_words
from tests.ledger.world import START_MS, account_of, make_genesis, sealed

POLICY = GossipPolicy()
NAMES = ("auth0", "auth1", "auth2", "auth3")
GENESIS = make_engine("follower").replica.state.genesis_hash
CHECKED, KNOWN = DoorWork(1, 1), DoorWork(0, 0)


def _voucher(number: int) -> wire.Direct:
    body = Voucher(
        ChannelId(b"c" * 32), account_of("alice"), Lane(0), SequenceNumber(number + 1), Amount(1), Hash(bytes(32)), 0
    )
    return wire.Direct(sealed(GENESIS, "bob", MessageKind.VOUCHER, body))


def _transfer(number: int, nonce: int) -> wire.Transactions:
    action = Transfer((Output(account_of("carol"), Amount(1 + number)),))
    body = Transaction(Nonce(nonce), Amount(10), Height(1_000), action)
    return wire.Transactions((sealed(GENESIS, "bob", MessageKind.TRANSACTION, body),))


def _replay(kind: type[wire.WireMessage]) -> wire.WireMessage:
    return next(message for message in honest_words()[0] if isinstance(message, kind))


def _left_after_ms(engine: Engine, happened: list[Input], every_ms: int, limit_ms: int) -> int | None:
    """When the peer is left that sends these in turn, one every so many ms."""
    now_ms, turn, heartbeat = 0, 0, POLICY.heartbeat_ms
    while now_ms < limit_ms:
        now_ms += every_ms
        effects: list[Effect] = engine.step(happened[turn % len(happened)], at(now_ms))
        turn += 1
        if any(isinstance(effect, Disconnect) and effect.peer == PEER for effect in effects):
            return now_ms
        if now_ms >= heartbeat:
            heartbeat += POLICY.heartbeat_ms
            engine.gossip.peers.decay_scores()
    return None


@pytest.mark.parametrize(
    ("happened", "every_ms"),
    [
        ([Received(PEER, _voucher(number), CHECKED) for number in range(64)], 50),
        ([Received(PEER, _transfer(number, nonce=9), CHECKED) for number in range(64)], 50),
        ([Unexpected(PEER, _replay(wire.CertificateNotice))], 1),
        ([Unexpected(PEER, _replay(wire.Blocks))], 1),
        ([Received(PEER, _replay(wire.Ballot), KNOWN)], 1),
        ([Received(PEER, wire.TipNotice(Height(0)))], 1),
        ([Received(PEER, wire.BlocksRequest(Height(5)))], 1),
    ],
    ids=[
        "statements of no job",
        "transfers that can't be paid",
        "certificates from a stranger",
        "blocks that nobody asked for",
        "old ballots",
        "the same tip again",
        "requests without an answer",
    ],
)
def test_peer_that_is_of_no_use_for_ever_is_left_within_a_minute(happened: list[Input], every_ms: int) -> None:
    engine = make_engine("follower")
    begin(engine)
    assert _left_after_ms(engine, happened, every_ms, 60_000) is not None


def test_providers_that_answer_every_bid_in_vain_are_not_left() -> None:
    """A bid names the node that its quotes go to: whoever answers as it was asked has done nothing wrong."""
    engine = make_engine("follower")
    begin(engine)
    seals = [
        sealed(GENESIS, "bob", MessageKind.QUOTE_SEAL, QuoteSeal(MessageId(bytes((number,)) * 32), Hash(bytes(32))))
        for number in range(64)
    ]
    answered: list[Input] = [Received(PEER, wire.Direct(seal), CHECKED) for seal in seals]
    assert _left_after_ms(engine, answered, 20, 600_000) is None
    assert _left_after_ms(engine, answered, 1, 60_000) is not None, "no honest provider has so much to say"


def test_peer_that_is_of_no_use_now_and_then_is_never_left() -> None:
    engine = make_engine("follower")
    begin(engine)
    happened: list[Input] = [Received(PEER, _voucher(0), CHECKED), Received(PEER, wire.TipNotice(Height(0)))]
    assert _left_after_ms(engine, happened, 1_000, 3_600_000) is None


def test_same_transactions_from_many_peers_are_nobodys_fault() -> None:
    engine = make_engine("follower")
    begin(engine)
    engine.step(Received(PEER, _transfer(0, nonce=0), CHECKED), at(1))
    first = engine.usefulness.last
    engine.step(Received(NodeId(b"q" * 32), _transfer(0, nonce=0), DoorWork(1, 0)), at(2))
    assert (first, engine.usefulness.last) == (Use.USEFUL, Use.NEUTRAL)


def test_useful_messages_make_up_for_useless_ones() -> None:
    engine = make_engine("follower")
    begin(engine)
    for number in range(20 * POLICY.useless.burst):
        engine.step(Received(PEER, _voucher(number % 64), CHECKED), at(number))
        if number % POLICY.useful_refund == 0:
            engine.gossip.conduct.useful(PEER, at(number).monotonic_ms)
    assert engine.gossip.peers.score(PEER) >= 0


def test_what_a_lagging_judge_misses_is_held_against_nobody() -> None:
    engine = make_engine("follower")
    begin(engine)
    authority = NodeId(account_of("auth0-node"))
    expiry = TimestampMs(START_MS + 60_000)
    body = Bid(MODEL, WorkUnits(1), WorkUnits(1), Amount(2**62), expiry, "none", 1, Hash(bytes(32)))
    envelope_bytes = sealed(GENESIS, "bob", MessageKind.BID, body)
    envelope, payload = open_envelope(envelope_bytes)
    judge = Judge(engine.replica, engine.book, LedgerFacts(engine.replica.state))
    assert not judge.judge(PEER, envelope, payload, envelope_bytes, at(1)).judgement.excused
    engine.step(Received(PEER, wire.TipNotice(Height(9))), at(2))
    assert not judge.judge(PEER, envelope, payload, envelope_bytes, at(3)).judgement.excused, "a stranger's claim"
    engine.step(LinkUp(authority, NodeRecord(1, TimestampMs(START_MS), (), account_of("auth0-account")), 0), at(4))
    engine.step(Received(authority, wire.TipNotice(Height(9))), at(4))
    assert judge.judge(PEER, envelope, payload, envelope_bytes, at(5)).judgement.excused


@pytest.mark.parametrize("far", [False, True], ids=["another block each time", "another view each time"])
def test_an_authority_that_signs_without_end_what_counts_for_nothing_is_left(far: bool) -> None:
    """Each of its statements has a fresh signature that has to be checked."""
    village = Village(make_genesis(), NAMES)
    village.begin()
    village.run(500)
    victim, liar = village["auth0"].engine, node_of("auth1")
    height = Height(victim.replica.tip + 1)
    assert victim.replica._machine is not None
    uses: list[Use] = []
    for number in range(1_000):
        view, block_hash = (1_000 + number, b"x" * 32) if far else (1, number.to_bytes(32, "big"))
        body = encode(VoteBody(height, View(view), BlockHash(block_hash)))
        ballot = wire.Ballot(village.seal("auth1", MessageKind.VOTE, body))
        effects = victim.step(Received(liar, ballot, CHECKED), village.now())
        uses.append(victim.usefulness.last)
        if any(isinstance(effect, Disconnect) for effect in effects):
            break
    assert uses[0] is (Use.USELESS if far else Use.USEFUL)
    assert all(use is Use.USELESS for use in uses[1:])
    assert len(uses) < POLICY.useless.burst + 100


def test_first_statements_of_a_view_within_reach_are_of_use() -> None:
    village = Village(make_genesis(), NAMES)
    village.begin()
    village.run(500)
    victim = village["auth0"].engine
    height = Height(victim.replica.tip + 1)
    for view in range(1, 9):
        body = encode(VoteBody(height, View(view), BlockHash(b"x" * 32)))
        ballot = wire.Ballot(village.seal("auth1", MessageKind.VOTE, body))
        victim.step(Received(node_of("auth1"), ballot, CHECKED), village.now())
        assert victim.usefulness.last is Use.USEFUL
