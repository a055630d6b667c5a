"""A request that waits for an offer is heard by gossip, and only then."""

from protocol.engine.engine import Engine
from protocol.engine.inputs import BodyOffered, Received, Signed, StartJob
from protocol.market.agreement import JobRequest
from protocol.messages.effects import Effect, Send, SignAndSend
from protocol.messages.envelope import envelope_id, open_envelope
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Bid, JobPayload
from protocol.messages.wire import Announce, Push
from protocol.primitives.codec import decode, encode
from protocol.primitives.units import Amount, DurationMs, Hash, ModelId, Salt, WorkUnits
from tests.engine.test_hostile_input import PEER, at, begin, make_engine
from tests.ledger.world import account_of, sealed

WANTED = ModelId(b"w" * 32)


def request(wait_ms: int, ceiling: int = 500) -> JobRequest:
    return JobRequest(
        request=Hash(b"r" * 32),
        model=WANTED,
        payload=encode(JobPayload("text", b"hello", ())),
        salt=Salt(b"s" * 32),
        unique=Hash(b"u" * 32),
        input_units_max=WorkUnits(5),
        output_units_max=WorkUnits(5),
        price_ceiling=Amount(ceiling),
        choose_ms=DurationMs(wait_ms),
    )


def bids_signed(effects: list[Effect]) -> list[Bid]:
    return [decode(e.payload, Bid) for e in effects if isinstance(e, SignAndSend) and e.kind is MessageKind.BID]


def announced(effects: list[Effect]) -> list[Hash]:
    return [each for e in effects if isinstance(e, Send) and isinstance(e.message, Announce) for each in e.message.ids]


def heard(engine: Engine, envelope: bytes) -> list[Bid]:
    """Let a node that was told of the envelope pull and judge it; the bids that it knows then."""
    engine.step(Received(PEER, Announce((Hash(envelope_id(open_envelope(envelope)[0])),))), at(100))
    engine.step(BodyOffered(PEER, envelope), at(110))
    assert engine.body_wanted
    engine.step(Received(PEER, Push(envelope)), at(110))
    return [bid for _, bid in engine.bids(at(120))]


def test_a_waiting_request_is_announced_and_heard_by_others() -> None:
    buyer, other = make_engine("follower"), make_engine("auth0")
    begin(buyer)
    begin(other)
    (bid,) = bids_signed(buyer.step(StartJob(request(5_000)), at(50)))
    envelope = sealed(buyer.replica.state.genesis_hash, "alice", MessageKind.BID, bid)
    assert announced(buyer.step(Signed(envelope), at(60))) == [Hash(envelope_id(open_envelope(envelope)[0]))]
    assert heard(other, envelope) == [bid]
    assert other.bids(at(10_000_000)) == [], "an expired bid is no demand"


def test_a_request_that_does_not_wait_is_not_gossiped() -> None:
    buyer = make_engine("follower")
    begin(buyer)
    assert bids_signed(buyer.step(StartJob(request(0)), at(50))) == []


def test_a_bid_that_its_buyer_can_not_pay_is_not_passed_on() -> None:
    buyer, other = make_engine("follower"), make_engine("auth0")
    begin(buyer)
    begin(other)
    (bid,) = bids_signed(buyer.step(StartJob(request(5_000, ceiling=10**15)), at(50)))
    envelope = sealed(buyer.replica.state.genesis_hash, "alice", MessageKind.BID, bid)
    assert heard(other, envelope) == []


def test_the_payer_is_the_account_that_signed() -> None:
    other = make_engine("auth0")
    begin(other)
    buyer = make_engine("follower")
    begin(buyer)
    (bid,) = bids_signed(buyer.step(StartJob(request(5_000)), at(50)))
    envelope = sealed(other.replica.state.genesis_hash, "bob", MessageKind.BID, bid)
    assert heard(other, envelope) == [bid]
    assert other.bids(at(120))[0][0] == account_of("bob")
