"""Operators of authorities who bring in, replace and remove one another by vote.

Law: each acts through its own node alone, from what that node's ledger says; all approve of whatever is proposed. One
change at a time is on its way.
"""

import random
from hashlib import blake2b
from typing import TYPE_CHECKING

from node.simulation.engine_participant import EngineParticipant
from protocol.ledger.charter import Motion, MotionStatus
from protocol.messages.genesis import AuthorityRecord
from protocol.messages.governance import AuthorityChange
from protocol.messages.transactions import Action, MotionOpen, MotionVote
from protocol.primitives.units import AccountId, AuthorityId, Hash, NodeId

if TYPE_CHECKING:
    from node.simulation.member import MemberKeys, SimulatedNode
    from node.simulation.world import World

POLL_MS = 500
"""Operators look at their ledgers this often."""
PROPOSAL_SHARE = 0.15
"""How often an operator who finds the agenda empty proposes something."""
AUTHORITIES_MIN = 4
"""Below so many a lost disk needs an operator; the ledger of a network that is no toy keeps them."""


def record_of(keys: "MemberKeys", name: str) -> AuthorityRecord:
    """How the ledger names an authority."""
    assert keys.authority is not None
    return AuthorityRecord(
        AuthorityId(keys.authority.public), AccountId(keys.account.public), NodeId(keys.node.public), name
    )


class Operators:
    """The people behind all nodes that have an authority key, in office or not."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._dice: random.Random = world.dice
        self._voted: dict[tuple[NodeId, int, int], None] = {}
        """(node, its life, motion) that was voted on: an earlier life's wish may have been lost with it."""
        self.changes = 0
        """Motions opened."""

    def begin(self) -> None:
        """Act from now on; once the network is healed they only bring to its end what is under way."""
        self._world.timeline.after(POLL_MS, self._poll)

    def _poll(self) -> None:
        for node in self._world.authority_nodes:
            if node.up and node.honest and self._world.timeline.now_ms >= node.paused_until:
                self._act(node)
        self.begin()

    def _act(self, node: "SimulatedNode") -> None:
        state = node.replica.state
        agenda = [each for each in state.motions() if each.status in (MotionStatus.OPEN, MotionStatus.PASSED)]
        for motion in agenda:
            self._vote(node, motion)
        seated = node.authority is not None and state.authorities.counts(node.authority)
        if seated and not agenda and not self._world.healed and self._dice.random() < PROPOSAL_SHARE:
            change = self._change(node)
            if change is not None:
                self.changes += 1
                self._world.around.struck("change of authorities proposed")
                self._want(node, MotionOpen(node.authority, change), b"open %d" % self.changes)

    def _vote(self, node: "SimulatedNode", motion: Motion) -> None:
        key = (node.id, node.life, int(motion.number))
        may = any(elector.authority == node.authority for elector in motion.electorate)
        done = any(vote.authority == node.authority for vote in motion.votes) or key in self._voted
        if may and not done and motion.status is MotionStatus.OPEN and node.authority is not None:
            self._voted[key] = None
            self._want(node, MotionVote(motion.number, node.authority, True), b"vote %d" % motion.number)

    def _change(self, node: "SimulatedNode") -> AuthorityChange | None:
        """Bring in a spare, take a member out, or both."""
        members = node.replica.state.authorities
        spares = [
            each
            for each in self._world.authority_nodes
            if each.honest and each.authority is not None and each.authority not in members
        ]
        others = [record.authority for record in members.records if record.authority != node.authority]
        remove = self._dice.random() < 0.6
        add = bool(spares) and self._dice.random() < 0.8
        if not add and (not remove or members.n <= AUTHORITIES_MIN):
            return None
        newcomer = self._dice.choice(spares) if add else None
        added = (record_of(newcomer.keys, newcomer.name),) if newcomer is not None else ()
        return AuthorityChange((self._dice.choice(others),) if remove else (), added)

    def _want(self, node: "SimulatedNode", action: Action, what: bytes) -> None:
        participant = node.participant
        if participant is None:
            return  # What was wanted before has met its crash.
        assert isinstance(participant, EngineParticipant)
        request = Hash(blake2b(what + bytes(node.id) + bytes([node.life % 256]), digest_size=32).digest())
        node.carry_out(participant.want(request, action, node.now()))
