"""Whatever well-typed nonsense a peer sends, the engine answers or blames the peer, and goes on."""

import random

import pytest

from protocol.engine.engine import Engine
from protocol.engine.inputs import LinkUp, Received, Serve, Started, TimerFired
from protocol.engine.ledger_facts import LedgerFacts
from protocol.engine.own_transactions import OwnTransactions
from protocol.engine.replica import Replica
from protocol.engine.restored import RestoredConsensus
from protocol.gossip.router import GossipRouter
from protocol.ledger.mempool import Mempool
from protocol.ledger.state import LedgerState
from protocol.market.buyer import Buyer
from protocol.market.order_book import OrderBook
from protocol.market.seller import Seller
from protocol.messages import wire
from protocol.messages.effects import Now, TimerKey
from protocol.messages.envelope import Envelope
from protocol.messages.kinds import MessageKind, payload_type
from protocol.messages.market import ModelOffer, Prices
from protocol.messages.peers import NodeRecord
from protocol.primitives.codec import encode
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.units import (
    Amount,
    AuthorityId,
    Hash,
    ModelId,
    MonotonicMs,
    NodeId,
    PublicKey,
    Signature,
    TimestampMs,
    WorkUnits,
)
from tests.engine.generated import Generator
from tests.ledger.world import START_MS, account_of, make_genesis

PEER = NodeId(b"p" * 32)
MODEL = ModelId(b"m" * 32)
ADDRESSES = ("127.0.0.1:7400",)


def make_engine(own: str) -> Engine:
    """An engine that sells one model, buys, and decides blocks if it is an authority."""
    genesis = make_genesis()
    state = LedgerState.from_genesis(genesis)
    authority = AuthorityId(account_of(own)) if own.startswith("auth") else None
    node = NodeId(account_of(f"{own}-node"))
    facts, book, account = LedgerFacts(state), OrderBook(), account_of("alice" if authority is None else own)
    replica = Replica(genesis, state, Mempool(genesis), authority, node, RestoredConsensus(), None)
    return Engine(
        node=node,
        account=account,
        replica=replica,
        gossip=GossipRouter(node, b"seed"),
        book=book,
        buyer=Buyer(account, node, facts, book),
        seller=Seller(account, node, facts),
        own=OwnTransactions(account),
    )


def at(time_ms: int) -> Now:
    return Now(MonotonicMs(time_ms), TimestampMs(START_MS + time_ms))


def begin(engine: Engine) -> None:
    engine.step(Started(Hash(b"n" * 32)), at(0))
    record = NodeRecord(1, TimestampMs(START_MS), ADDRESSES, account_of("bob"))
    engine.step(LinkUp(PEER, record, 0), at(0))
    prices = Prices(Amount(1), Amount(1), Amount(1))
    served = ModelOffer(MODEL, "model", "echo", "echo 1", "", prices, WorkUnits(100), WorkUnits(100))
    engine.step(Serve((served,), 1, "strong", "", ADDRESSES), at(0))


def known_ids(engine: Engine) -> dict[int, list[bytes]]:
    """Ids that mean something here: a hostile peer knows them too."""
    state = engine.replica.state
    keys = [account_of(name) for name in ("alice", "bob", "carol", "auth0", "auth1", "auth2", "auth3")]
    return {32: [MODEL, PEER, bytes(32), state.tip_hash, *keys]}


def hostile_message(generator: Generator, dice: random.Random, keys: list[bytes]) -> wire.WireMessage:
    """A wire message of any kind whose envelopes hold well-typed payloads of any kind."""
    kind = dice.choice(list(wire.WireMessage.__args__))
    message = generator.value(kind)
    if not hasattr(message, "envelope") and not isinstance(message, wire.Transactions):
        return message  # type: ignore[no-any-return]
    signed_kind = dice.choice(list(MessageKind))
    if isinstance(message, wire.Ballot):
        signed_kind = dice.choice((MessageKind.VOTE, MessageKind.FINAL))
    payload = encode(generator.value(payload_type(signed_kind)))
    envelope = encode(Envelope(signed_kind, payload, PublicKey(dice.choice(keys)), Signature(bytes(64))))
    match message:
        case wire.Transactions():
            return wire.Transactions((envelope,))
        case wire.Push():
            return wire.Push(envelope)
        case wire.Direct():
            return wire.Direct(envelope)
        case wire.Ballot():
            return wire.Ballot(envelope)
        case wire.Proposal():
            return wire.Proposal(envelope, message.block, message.certificates)
    raise AssertionError(message)


@pytest.mark.parametrize("own", ["auth0", "follower"])
@pytest.mark.parametrize("seed", range(12))
def test_any_well_typed_message_gives_effects_or_the_peers_error(own: str, seed: int) -> None:
    dice = random.Random(f"{own}/{seed}")
    engine = make_engine(own)
    begin(engine)
    ids = known_ids(engine)
    generator = Generator(dice, ids)
    handled = 0
    for step in range(400):
        message = hostile_message(generator, dice, ids[32])
        try:
            engine.checks(message)
            if isinstance(message, wire.Push):
                engine.gossip.offered(PEER, message.envelope, at(step * 50))
            engine.step(Received(PEER, message), at(step * 50))
            handled += 1
        except RemoteProtocolError:
            continue
    assert handled > 50, "most nonsense is well-formed enough to be looked at"
    # It still works: time passes without an error.
    for effect_time in range(25_000, 40_000, 1_000):
        engine.step(TimerFired(TimerKey("engine", "housekeeping")), at(effect_time))
