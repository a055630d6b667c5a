"""What gossip knows of each linked peer: allowances, score, place in the mesh.

Law: a score outlives the link, so that coming back does not wash it clean; it decays towards zero.
"""

from collections import deque

import msgspec

from protocol.gossip.policy import GossipPolicy
from protocol.gossip.token_bucket import TokenBucket
from protocol.primitives.hashing import Domain, digest
from protocol.primitives.limits import PEERS_STORED_MAX
from protocol.primitives.units import Hash, MonotonicMs, NodeId


class Allowances(msgspec.Struct):
    """How much of no use a peer may still send; outlives the link as its score does."""

    useless: TokenBucket
    chatter: TokenBucket
    old_ids: TokenBucket
    undelivered: int = 0
    """Points that bodies which did not come in time have cost and later ones have not given back."""
    undelivered_now: int = 0
    """Those since the last heartbeat."""


class PeerState(msgspec.Struct):
    """One linked peer."""

    ids_in: TokenBucket
    bodies_in: TokenBucket
    bytes_in: TokenBucket
    bodies_out: TokenBucket
    bytes_out: TokenBucket
    backlog: deque[Hash]
    """Live ids that a new link has not been told of yet."""
    in_mesh: bool = False
    graft_after: MonotonicMs = MonotonicMs(0)
    last_body: MonotonicMs = MonotonicMs(-(2**40))
    """When it last sent a body."""
    last_heard: MonotonicMs = MonotonicMs(-(2**40))
    """When it last sent anything of gossip."""
    silent: bool = False
    """Nothing has come since a body was asked for in vain: it is not asked for more."""
    leaving: bool = False
    """Its disconnection has been asked for."""

    def heard(self, now: MonotonicMs) -> None:
        """Something came."""
        self.last_heard = now
        self.silent = False


class Peers:
    """Linked peers in order of arrival, and the scores of past ones."""

    def __init__(self, own: NodeId, seed: bytes, policy: GossipPolicy) -> None:
        self.linked: dict[NodeId, PeerState] = {}
        self.scores: dict[NodeId, int] = {}
        """Peers whose score is not zero, linked or not."""
        self._allowances: dict[NodeId, Allowances] = {}
        """Of linked peers and of those that left last."""
        self._own = own
        self._seed = seed
        self._policy = policy

    def add(self, peer: NodeId, backlog: deque[Hash], now: MonotonicMs) -> PeerState:
        """A link stands."""
        policy = self._policy
        state = self.linked[peer] = PeerState(
            TokenBucket.full(policy.ids_in, now),
            TokenBucket.full(policy.bodies_in, now),
            TokenBucket.full(policy.bytes_in, now),
            TokenBucket.full(policy.bodies_out, now),
            TokenBucket.full(policy.bytes_out, now),
            backlog,
        )
        return state

    def allowances(self, peer: NodeId, now: MonotonicMs) -> Allowances:
        """The peer's, taken up from its last link if it had one."""
        held = self._allowances.pop(peer, None)
        if held is None:
            policy = self._policy
            held = Allowances(
                TokenBucket.full(policy.useless, now),
                TokenBucket.full(policy.chatter_authority, now),
                TokenBucket.full(policy.old_ids_in, now),
            )
        self._allowances[peer] = held
        if len(self._allowances) > PEERS_STORED_MAX:
            del self._allowances[next(iter(self._allowances))]
        return held

    def score(self, peer: NodeId) -> int:
        """Standing of a peer: above zero useful, below zero harmful."""
        return self.scores.get(peer, 0)

    def change_score(self, peer: NodeId, points: int) -> int:
        """Add points; the new score."""
        score = min(self._policy.score_max, self.score(peer) + points)
        if score == 0:
            self.scores.pop(peer, None)
        else:
            self.scores[peer] = score
            if len(self.scores) > PEERS_STORED_MAX:
                mildest = min(self.scores, key=lambda node: (abs(self.scores[node]), node))
                del self.scores[mildest]
        return score

    def decay_scores(self) -> None:
        """One heartbeat's step towards zero."""
        for peer, score in list(self.scores.items()):
            step = max(1, abs(score) >> self._policy.decay_shift)
            self.change_score(peer, step if score < 0 else -step)
        for allowances in self._allowances.values():
            allowances.undelivered = max(0, allowances.undelivered - 1)
            allowances.undelivered_now = 0

    def mesh(self) -> list[NodeId]:
        """Peers that are told of new objects at once."""
        return [peer for peer, state in self.linked.items() if state.in_mesh]

    def drawn(self, candidates: list[NodeId], epoch: int, count: int) -> list[NodeId]:
        """Up to ``count`` of the candidates, drawn by hash: fair over epochs, and the same in every run."""
        turn = epoch.to_bytes(8, "big", signed=True)
        return sorted(candidates, key=lambda peer: digest(Domain.GOSSIP_DRAW, self._own, self._seed, turn, peer))[
            :count
        ]
