"""Bodies that are wanted: who announced each, who is being asked, until when.

Law: one peer at a time is asked for a body; when it does not send in time, or sends something else, the next announcer
is asked. Every pull has a deadline and ends.
"""

from heapq import heappop, heappush

import msgspec

from protocol.primitives.limits import GOSSIP_ANNOUNCERS_MAX, GOSSIP_PULLS_MAX
from protocol.primitives.units import MessageId, MonotonicMs, NodeId

INITIATOR_SHARE = 4
"""One peer's announcements may begin a quarter of all pulls."""


def _decrement(counts: dict[NodeId, int], peer: NodeId) -> None:
    left = counts.get(peer, 0) - 1
    if left > 0:
        counts[peer] = left
    else:
        counts.pop(peer, None)


class PullState(msgspec.Struct):
    """One wanted body."""

    initiator: NodeId
    """Who announced it first."""
    announcers: dict[NodeId, None]
    """Peers that hold it and have not been asked in this round."""
    asked: dict[NodeId, None]
    """Peers that have been asked; an answer of any of them counts."""
    waiting_for: NodeId | None
    deadline: MonotonicMs
    asked_at: MonotonicMs = MonotonicMs(0)
    """When ``waiting_for`` was asked."""
    judging: bool = False
    """A body has arrived and its verdict is awaited."""
    retries: int = 0
    extensions: int = 0


class Pulls:
    """All wanted bodies with their deadlines."""

    def __init__(self, pulls_max: int = GOSSIP_PULLS_MAX) -> None:
        self.wanted: dict[MessageId, PullState] = {}
        self.in_flight: dict[NodeId, int] = {}
        """For each peer, bodies asked of it and not yet received."""
        self._initiated: dict[NodeId, int] = {}
        """For each peer, pulls that began with its announcement: nobody fills the table alone."""
        self._pulls_max = pulls_max
        self._deadlines: list[tuple[MonotonicMs, MessageId]] = []

    def want(self, object_id: MessageId, announcer: NodeId, now: MonotonicMs) -> PullState | None:
        """Note that ``announcer`` holds a body; the pull if it is a new one, due at once. None when known or full."""
        known = self.wanted.get(object_id)
        if known is not None:
            if len(known.announcers) + len(known.asked) < GOSSIP_ANNOUNCERS_MAX and announcer not in known.asked:
                known.announcers[announcer] = None
            return None
        initiated = self._initiated.get(announcer, 0)
        if len(self.wanted) >= self._pulls_max or initiated >= self._pulls_max // INITIATOR_SHARE:
            return None
        self._initiated[announcer] = initiated + 1
        pull = self.wanted[object_id] = PullState(announcer, {announcer: None}, {}, None, now)
        return pull

    def schedule(self, object_id: MessageId, pull: PullState, deadline: MonotonicMs) -> None:
        """Look at the pull again at ``deadline``."""
        pull.deadline = deadline
        heappush(self._deadlines, (deadline, object_id))

    def wait_for(
        self, object_id: MessageId, pull: PullState, peer: NodeId, now: MonotonicMs, deadline: MonotonicMs
    ) -> None:
        """The peer is being asked."""
        pull.announcers.pop(peer, None)
        pull.asked[peer] = None
        pull.waiting_for = peer
        pull.asked_at = now
        pull.extensions = 0
        self.in_flight[peer] = self.in_flight.get(peer, 0) + 1
        self.schedule(object_id, pull, deadline)

    def settle(self, pull: PullState) -> NodeId | None:
        """Nobody is being asked any more; who it was."""
        peer = pull.waiting_for
        pull.waiting_for = None
        if peer is not None:
            _decrement(self.in_flight, peer)
        return peer

    def begin_again(self, object_id: MessageId, pull: PullState, at: MonotonicMs) -> None:
        """Ask all announcers anew from ``at`` on."""
        self.settle(pull)
        pull.announcers = {**pull.announcers, **pull.asked}
        pull.asked = {}
        pull.judging = False
        pull.retries += 1
        self.schedule(object_id, pull, at)

    def end(self, object_id: MessageId) -> PullState | None:
        """Forget a pull."""
        pull = self.wanted.pop(object_id, None)
        if pull is not None:
            self.settle(pull)
            _decrement(self._initiated, pull.initiator)
        return pull

    def forget_peer(self, peer: NodeId, now: MonotonicMs) -> None:
        """The peer is gone: what it was asked for is due at once."""
        for object_id, pull in self.wanted.items():
            pull.announcers.pop(peer, None)
            if pull.waiting_for == peer:
                self.settle(pull)
                pull.asked.pop(peer, None)
                self.schedule(object_id, pull, now)
        self.in_flight.pop(peer, None)

    def due(self, now: MonotonicMs) -> list[tuple[MessageId, PullState]]:
        """Pulls whose deadline has come, in order."""
        due: list[tuple[MessageId, PullState]] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, object_id = heappop(self._deadlines)
            pull = self.wanted.get(object_id)
            if pull is not None and pull.deadline == deadline:
                pull.deadline = MonotonicMs(-1)
                due.append((object_id, pull))
        return due

    def next_deadline(self) -> MonotonicMs | None:
        """When to look again; stale entries may make it too early, never too late."""
        return self._deadlines[0][0] if self._deadlines else None
