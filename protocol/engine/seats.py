"""Who decides around the tip: the sets of three heights, and the nodes behind them.

Law: the set of a height never changes once it is known, so whatever is checked against the set of a message's own
height stays right however late the message is handled. Known are the tip and the two heights above it.
"""

from collections.abc import Iterator

from protocol.ledger.state import LedgerState
from protocol.messages.blocks import Header
from protocol.messages.quorum import AuthoritySet
from protocol.primitives.units import AuthorityId, Hash, Height, NodeId

HEIGHTS_KNOWN_AHEAD = 2
"""The tip's state names the sets of the next two heights and no more."""


class Seats:
    """The authorities of the heights around the tip. Follows the state; changes nothing."""

    def __init__(self, state: LedgerState, own_node: NodeId) -> None:
        self._state = state
        self._own_node = own_node
        self._seen: tuple[AuthoritySet, ...] = ()
        self._holders: dict[NodeId, dict[AuthorityId, None]] = {}

    def at(self, height: int) -> AuthoritySet | None:
        """The set that decides a height; ``None`` below the tip and from tip + 3 on."""
        return self._state.authorities_at(Height(height))

    @property
    def deciding(self) -> AuthoritySet:
        """The set that decides the open height, tip + 1."""
        found = self.at(self._state.height + 1)
        assert found is not None
        return found

    def around(self) -> tuple[AuthoritySet, ...]:
        """The sets of the tip and the two heights above it."""
        return self._state.sets_around

    def of_hash(self, wanted: Hash) -> AuthoritySet | None:
        """One of the sets around the tip by what headers call it; of two, the one of the higher height: the views that
        a recovery voids are those of its first height alone."""
        return next((found for found in reversed(self.around()) if found.hash() == wanted), None)

    def after(self, header: Header) -> AuthoritySet | None:
        """The set of the height after a decided header: the one that it names, or that of a recovery that names it."""
        named = self.of_hash(header.next_authorities_hash)
        recovery = self._state.recovery_after(header, named) if named is not None else None
        return named if recovery is None else AuthoritySet.of(recovery.membership, recovery.view_base)

    def seated(self, authority: AuthorityId) -> bool:
        """True for a member of any set around the tip."""
        return any(authority in found for found in self.around())

    # Nodes

    def _nodes(self) -> dict[NodeId, dict[AuthorityId, None]]:
        around = self._state.sets_around
        if around is not self._seen:  # asked for each message of each link
            self._seen, self._holders = around, {}
            for found in around:
                for record in found.records:
                    self._holders.setdefault(record.node, {})[record.authority] = None
        return self._holders

    def __contains__(self, node: object) -> bool:
        """True for the node of an authority in any set around the tip."""
        return node in self._nodes()

    def nodes(self) -> Iterator[NodeId]:
        """Nodes of other authorities in any set around the tip."""
        return (node for node in self._nodes() if node != self._own_node)

    def holds(self, node: NodeId, authority: AuthorityId) -> bool:
        """True if this is the node of this authority."""
        return authority in self._nodes().get(node, {})

    def deciding_nodes(self) -> Iterator[NodeId]:
        """Nodes of the other authorities that decide the open height, suspended ones included: they follow it."""
        return (record.node for record in self.deciding.records if record.node != self._own_node)
