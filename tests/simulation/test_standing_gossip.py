"""An authority's own question about its standing comes back to it by gossip after a restart: it answers nobody."""

from node.simulation.profiles import PROFILES
from node.simulation.world import Options, World
from protocol.messages import wire
from protocol.messages.consensus import Attestation, Inquiry
from protocol.messages.effects import SignAndSend
from protocol.messages.kinds import MessageKind
from protocol.primitives.codec import encode
from protocol.primitives.units import Hash, Height, PublicKey


def _world() -> World:
    world = World(1, Options(profile=PROFILES["none"]))
    world.begin()
    world.timeline.run_until(3_000)
    return world


def test_the_question_of_an_earlier_life_is_not_answered_by_the_one_who_asked() -> None:
    node = _world().nodes[0]
    assert node.authority is not None
    asked = Inquiry(Hash(b"n" * 32), node.now().wall_ms)
    assert not [
        effect
        for effect in node.replica.overheard(node.authority, asked, node.now())
        if isinstance(effect, SignAndSend)
    ]


def test_an_own_answer_to_somebody_else_is_blamed_on_nobody() -> None:
    world = _world()
    node, other = world.nodes[:2]
    key = node.keys.authority
    assert key is not None
    assert other.authority is not None
    replica = node.replica
    attestation = Attestation(Hash(b"n" * 32), PublicKey(other.authority), replica.tip, replica.state.tip_hash)
    envelope = key.seal(world.genesis_hash, MessageKind.ATTESTATION, encode(attestation))
    assert replica.inquiry is not None
    assert not replica.inquiry.answer(wire.Standing(envelope, None, ()), replica.tip)


def test_an_answer_of_an_authority_that_has_no_seat_in_sight_is_a_hint_and_blamed_on_nobody() -> None:
    world = _world()
    node, stranger = world.nodes[0], world.clients[0].key
    assert node.authority is not None
    attestation = Attestation(Hash(b"n" * 32), PublicKey(node.authority), Height(99), node.replica.state.tip_hash)
    envelope = stranger.seal(world.genesis_hash, MessageKind.ATTESTATION, encode(attestation))
    assert node.replica.readable(wire.Standing(envelope, None, ())) == wire.TipNotice(Height(99))
