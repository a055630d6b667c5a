"""The checkers of money and evidence see what they are there for."""

import pytest

from node.simulation.checkers import Checkers, Violation
from node.simulation.keys import SimulatedKey, Verifier
from node.simulation.payments import Payments
from node.simulation.profiles import PROFILES
from node.simulation.world import Options, World
from protocol.messages.blocks import Block
from protocol.messages.consensus import FinalBody
from protocol.messages.kinds import MessageKind
from protocol.messages.transactions import EvidenceReport, Output, Transaction, Transfer
from protocol.primitives.codec import encode
from protocol.primitives.units import AccountId, Amount, BlockHash, Hash, Height, Nonce, View

GENESIS = Hash(bytes(32))
SENDER = SimulatedKey("sender")


def _transfer(nonce: int) -> bytes:
    action = Transfer((Output(AccountId(bytes(32)), Amount(1)),))
    return SENDER.seal(
        GENESIS, MessageKind.TRANSACTION, encode(Transaction(Nonce(nonce), Amount(1), Height(9), action))
    )


def _block(world: World, *transactions: bytes) -> Block:
    return Block(world.nodes[0].replica.state.tip, None, transactions)


@pytest.fixture
def world() -> World:
    world = World(1, Options(profile=PROFILES["none"]))
    world.begin()
    return world


@pytest.mark.parametrize("nonces", [(0, 0), (0, 2), (1,)], ids=["paid twice", "left out", "not begun"])
def test_nonces_that_do_not_rise_by_one_are_seen(world: World, nonces: tuple[int, ...]) -> None:
    with pytest.raises(Violation, match="nonce"):
        Payments().on_block(_block(world, *(_transfer(nonce) for nonce in nonces)))


def test_evidence_against_an_honest_key_is_seen_and_against_a_liar_is_remembered(world: World) -> None:
    key = world.nodes[0].keys.authority
    assert key is not None
    assert world.nodes[0].authority is not None
    said = [FinalBody(Height(1), View(1), block_hash) for block_hash in (None, BlockHash(bytes(32)))]
    first, second = (key.seal(world.genesis_hash, MessageKind.FINAL, encode(body)) for body in said)
    report = EvidenceReport(first, second)
    checkers = Checkers(world.genesis_hash, world.authorities, Verifier())
    with pytest.raises(Violation, match="signed nothing twice"):
        checkers._on_evidence(report)
    checkers.excuse(world.nodes[0].authority)
    checkers._on_evidence(report)
    assert list(checkers.proved) == [world.nodes[0].authority]
