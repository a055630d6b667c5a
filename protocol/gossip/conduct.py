"""How a peer behaves: what helps earns points, what breaks rules costs them, what is of no use is free for a while.

Law: an honest peer is never cut off, whatever links lose and delay; one that sends valid but useless data for ever is,
once its allowance is used up. Scores decay, allowances refill, bans end.
"""

from protocol.gossip.peers import Peers
from protocol.gossip.policy import GossipPolicy
from protocol.messages.effects import Disconnect, Effect
from protocol.primitives.units import DurationMs, MonotonicMs, NodeId


class Conduct:
    """Points for and against peers."""

    def __init__(self, peers: Peers, policy: GossipPolicy) -> None:
        self._peers = peers
        self._policy = policy

    def useful(self, peer: NodeId, now: MonotonicMs) -> None:
        """The peer sent something that helped: it makes up for much that did not."""
        allowance = self._peers.allowances(peer, now).useless
        allowance.available(self._policy.useless, now)
        allowance.give(self._policy.useless, self._policy.useful_refund)

    def failed_to_deliver(self, peer: NodeId, points: int, reason: str, now: MonotonicMs) -> list[Effect]:
        """A body that was asked of the peer did not come in time."""
        allowances = self._peers.allowances(peer, now)
        points = min(points, self._policy.undelivered_points_per_heartbeat - allowances.undelivered_now)
        allowances.undelivered += points
        allowances.undelivered_now += points
        return self.penalise(peer, points, reason)

    def in_flight_max(self, peer: NodeId, now: MonotonicMs) -> int:
        """How many bodies may be asked of the peer at a time."""
        cut = self._policy.in_flight_cut * self._peers.allowances(peer, now).undelivered
        return max(self._policy.in_flight_min, self._policy.in_flight_max - cut)

    def delivered(self, peer: NodeId, late_points: int, now: MonotonicMs) -> None:
        """The peer sent a body that was asked of it: what its lateness cost is made good, and something of what was
        lost on the way to it or back; never more than missing bodies have cost."""
        allowances = self._peers.allowances(peer, now)
        repair = min(late_points + self._policy.delivery_repair, allowances.undelivered)
        allowances.undelivered -= repair
        self._peers.change_score(peer, max(0, min(repair, -self._peers.score(peer))))

    def useless(self, peer: NodeId, reason: str, now: MonotonicMs) -> list[Effect]:
        """The peer sent something valid that was of no use: free within its allowance, then it costs points."""
        if self._peers.allowances(peer, now).useless.take(self._policy.useless, now, 1):
            return []
        return self.penalise(peer, self._policy.useless_cost, f"sends what is of no use: {reason}")

    def chatter(self, peer: NodeId, reason: str, now: MonotonicMs, *, authority: bool = False) -> list[Effect]:
        """The peer sent something that was dropped without a check; cheap, and so allowed more often."""
        rate = self._policy.chatter_authority if authority else self._policy.chatter
        if self._peers.allowances(peer, now).chatter.take(rate, now, 1):
            return []
        return self.penalise(peer, self._policy.useless_cost, f"floods: {reason}")

    def repeated(self, peer: NodeId, old_ids: int, now: MonotonicMs) -> list[Effect]:
        """The peer announced ids that have long been known: a new link's are due, the same for ever are not."""
        if not old_ids or self._peers.allowances(peer, now).old_ids.take(self._policy.old_ids_in, now, old_ids):
            return []
        return self.useless(peer, "announces again and again what has long been known", now)

    def misbehaved(self, peer: NodeId, reason: str) -> list[Effect]:
        """The peer sent what can't be right in any state."""
        return self.penalise(peer, self._policy.reject_cost, reason)

    def penalise(self, peer: NodeId, points: int, reason: str) -> list[Effect]:
        """Take points away; a linked peer that falls too low is cut off for a while."""
        score = self._peers.change_score(peer, -points)
        state = self._peers.linked.get(peer)
        if state is None or state.leaving or score >= self._policy.ban_below:
            return []
        state.leaving = True
        state.in_mesh = False
        return [Disconnect(peer, f"score too low: {reason}", DurationMs(self._policy.ban_ms))]
