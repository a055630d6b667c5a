"""Whom to ask for decided blocks, and whom to answer how often.

Law: what a peer says about its tip only chooses whom to ask; blocks are stored by the height that their certificate
proves. Authorities are asked in turn before strangers, who may be any number and come back under new names.
"""

from collections.abc import Container

from protocol.primitives.units import Height, MonotonicMs, NodeId

ANSWER_TIMEOUT_MS = 2000
"""A peer that does not answer a request for blocks for so long is passed over."""
ANSWERS_BURST = 32
ANSWERS_PER_SECOND = 32
"""Block answers for one peer: up to 512 blocks a second, far above what a ledger makes."""
GRACE_MS = 400
"""A message of a height decided less than this ago was on its way already; a peer that is still undecided repeats
itself after a second and is answered then."""
_COMMITS_REMEMBERED = 64


class CatchUp:
    """Hints of linked peers and the one request that is under way."""

    def __init__(self, authorities: Container[NodeId] = ()) -> None:
        self._authorities = authorities
        self._hints: dict[NodeId, Height] = {}
        self._asked: tuple[NodeId, MonotonicMs] | None = None
        self._failures: dict[NodeId, int] = {}
        """How often a peer promised blocks and gave none: a boaster must not hold the others up."""
        self._turns: dict[NodeId, int] = {}
        """When a linked peer was asked last: one that gives a block at a time must not be the only one asked."""
        self._turn = 0
        self._first: dict[NodeId, Height] = {}
        """Peers that keep blocks from a height on only."""
        self._try_anybody = False
        """The authority asked last gave nothing: once somebody else may."""

    def hint(self, peer: NodeId, height: Height) -> None:
        """The peer seems to have decided this height."""
        self._hints[peer] = max(self._hints.get(peer, Height(0)), height)

    def forget(self, peer: NodeId) -> None:
        """The link is gone."""
        self._hints.pop(peer, None)
        self._failures.pop(peer, None)
        self._turns.pop(peer, None)
        self._first.pop(peer, None)
        if self._asked is not None and self._asked[0] == peer:
            self._asked = None

    def has_asked(self, peer: NodeId) -> bool:
        """True if this peer was asked for blocks on the link that stands; its answer may come late."""
        return peer in self._turns

    def answered(self, peer: NodeId, tip: Height | None) -> None:
        """The peer has sent blocks that were of use and says what its tip is, or ``None``: nothing of use."""
        asked = self._asked is not None and self._asked[0] == peer
        if asked:
            self._asked = None
        if tip is not None:
            self._failures.pop(peer, None)
            self.hint(peer, tip)
        elif asked:
            self._failed(peer)

    def lacks(self, peer: NodeId, first: Height, tip: Height) -> None:
        """The peer has blocks from ``first`` on only and its tip is ``tip``: there may be a snapshot of it."""
        if self._asked is not None and self._asked[0] == peer:
            self._asked = None
        self._first[peer] = first
        self.hint(peer, tip)

    def pruned(self, tip: Height) -> tuple[NodeId, ...]:
        """Peers that are ahead of us and lack the block that comes next."""
        return tuple(peer for peer, height in self._hints.items() if height > tip and not self._has_next(peer, tip))

    def nobody_has_next(self, tip: Height) -> bool:
        """True if there are peers ahead of us and all of them lack the block that comes next."""
        ahead = [peer for peer, height in self._hints.items() if height > tip]
        return bool(ahead) and not any(self._has_next(peer, tip) for peer in ahead)

    def _has_next(self, peer: NodeId, tip: Height) -> bool:
        return self._first.get(peer, Height(0)) <= tip + 1

    def _failed(self, peer: NodeId) -> None:
        self._hints.pop(peer, None)
        self._failures[peer] = self._failures.get(peer, 0) + 1
        self._try_anybody = peer in self._authorities

    def behind(self, tip: Height) -> bool:
        """True if some peer seems to know more."""
        return any(height > tip for height in self._hints.values())

    def lags(self, tip: Height) -> bool:
        """True if some authority seems to know more: what a stranger claims excuses nobody."""
        return any(height > tip and peer in self._authorities for peer, height in self._hints.items())

    def next_peer(self, tip: Height, now: MonotonicMs) -> NodeId | None:
        """Whom to ask now, or ``None`` while an answer is awaited or nobody knows more.

        A peer whose time is up loses its hint. Authorities take turns; if there is none, or the last one failed, it is
        among all peers the one that failed least, was asked longest ago, and has the highest tip.
        """
        if self._asked is not None:
            peer, asked_at = self._asked
            if now - asked_at < ANSWER_TIMEOUT_MS:
                return None
            self._asked = None
            self._failed(peer)
        for peer, height in list(self._hints.items()):
            if height <= tip:
                del self._hints[peer]
        usable = [peer for peer in self._hints if self._has_next(peer, tip)]
        if not usable:
            return None
        authorities = [peer for peer in usable if peer in self._authorities]
        if authorities and not self._try_anybody:
            best = min(authorities, key=lambda peer: (self._turns.get(peer, 0), -self._hints[peer], peer))
        else:
            best = min(usable, key=self._merit)
        self._try_anybody = False
        self._turn += 1
        self._turns[best] = self._turn
        self._asked = (best, now)
        return best

    def _merit(self, peer: NodeId) -> tuple[int, int, int, NodeId]:
        return self._failures.get(peer, 0), self._turns.get(peer, 0), -self._hints[peer], peer


class AnswerLimits:
    """How often each peer gets decided blocks from us."""

    def __init__(self) -> None:
        self._buckets: dict[NodeId, tuple[int, MonotonicMs]] = {}
        self._commits: dict[Height, MonotonicMs] = {}

    def committed(self, height: Height, now: MonotonicMs) -> None:
        """A height was closed here just now."""
        self._commits[height] = now
        if len(self._commits) > _COMMITS_REMEMBERED:
            del self._commits[next(iter(self._commits))]

    def recently_committed(self, height: Height, now: MonotonicMs) -> bool:
        """True while a message of this height may simply have crossed our decision."""
        committed_at = self._commits.get(height)
        return committed_at is not None and now - committed_at < GRACE_MS

    def allow(self, peer: NodeId, now: MonotonicMs) -> bool:
        """Take one answer from the peer's bucket."""
        level, filled_at = self._buckets.get(peer, (ANSWERS_BURST, now))
        refill = (now - filled_at) * ANSWERS_PER_SECOND // 1000
        if refill > 0:
            level, filled_at = min(ANSWERS_BURST, level + refill), now
        if level == 0:
            return False
        self._buckets[peer] = (level - 1, filled_at)
        return True

    def forget(self, peer: NodeId) -> None:
        """The link is gone."""
        self._buckets.pop(peer, None)
