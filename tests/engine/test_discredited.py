"""A peer that gave something false beside its link: it is told, costs points, and ends in a cut."""

from protocol.engine.events import PeerMisbehaved
from protocol.engine.inputs import Discredited
from protocol.messages.effects import Disconnect, Notify
from tests.engine.test_hostile_input import PEER, at, begin, make_engine


def test_a_wrong_piece_is_held_against_its_giver_and_a_second_one_cuts_it_off() -> None:
    engine = make_engine("follower")
    begin(engine)
    found = Discredited(PEER, "sent a corrupt piece")
    assert engine.step(found, at(1)) == [Notify(PeerMisbehaved(PEER, "sent a corrupt piece"))]
    score = engine.gossip.peers.score(PEER)
    assert score < 0
    effects = engine.step(found, at(2))
    assert any(isinstance(effect, Disconnect) and effect.peer == PEER for effect in effects)
    assert engine.gossip.peers.score(PEER) == 2 * score
