"""Upkeep of the mesh: who is told of new objects at once.

Law: the degree stays between its bounds as long as there are peers in good standing; who goes and who comes is drawn
by hash, the best scores stay.
"""

from protocol.gossip.peers import Peers
from protocol.gossip.policy import GossipPolicy
from protocol.messages.effects import Effect, Send
from protocol.messages.wire import Graft, Prune
from protocol.primitives.units import MonotonicMs, NodeId


def maintain_mesh(peers: Peers, policy: GossipPolicy, epoch: int, now: MonotonicMs) -> list[Effect]:
    """One heartbeat's grafts and prunes."""
    effects: list[Effect] = []
    for peer in peers.mesh():
        if peers.score(peer) < 0:
            effects.append(_prune(peers, peer, policy, now))
    mesh = peers.mesh()
    if len(mesh) > policy.degree_max:
        by_score = sorted(mesh, key=lambda peer: (-peers.score(peer), peer))
        best, others = by_score[: policy.degree_target // 2], by_score[policy.degree_target // 2 :]
        kept = {*best, *peers.drawn(others, epoch, policy.degree_target - len(best))}
        effects += [_prune(peers, peer, policy, now) for peer in mesh if peer not in kept]
    elif len(mesh) < policy.degree_min:
        candidates = [
            peer
            for peer, state in peers.linked.items()
            if not state.in_mesh and not state.leaving and state.graft_after <= now and peers.score(peer) >= 0
        ]
        for peer in peers.drawn(candidates, epoch, policy.degree_target - len(mesh)):
            peers.linked[peer].in_mesh = True
            effects.append(Send(peer, Graft()))
    return effects


def _prune(peers: Peers, peer: NodeId, policy: GossipPolicy, now: MonotonicMs) -> Effect:
    state = peers.linked[peer]
    state.in_mesh = False
    state.graft_after = MonotonicMs(now + policy.prune_backoff_ms)
    return Send(peer, Prune())
