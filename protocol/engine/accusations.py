"""What this authority saw a key sign twice, until the ledger knows it.

Law: a key is accused once, by a transaction of whoever noticed. All who noticed wait for their turn, so that as a rule
one of them pays: it starts with the seat behind the accused one, and whatever is decided meanwhile ends the matter. A
report that failed is brought up again as long as the ledger would take it.
"""

from collections.abc import Iterator
from typing import NamedTuple

from protocol.consensus.outputs import Equivocation
from protocol.ledger.evidence import is_reportable, may_be_reported_later
from protocol.ledger.state import LedgerState
from protocol.messages.quorum import AuthoritySet
from protocol.messages.transactions import EvidenceReport
from protocol.primitives.hashing import Domain, digest
from protocol.primitives.limits import AUTHORITIES_MAX
from protocol.primitives.units import AuthorityId, DurationMs, Hash, MonotonicMs

TURN_MS = DurationMs(2_000)
"""Each authority waits so much longer than the one before it: several blocks' time."""
RETRY_MS = DurationMs(15_000)
"""A report of ours that failed, or that nobody has decided, is made anew after so long."""
NOTICED_MAX = 2 * AUTHORITIES_MAX
"""Keys noticed and not yet reported; a set has at most half as many members."""


class _Noticed(NamedTuple):
    evidence: Equivocation
    due: MonotonicMs


class Accusations:
    """Evidence on its way into the ledger, one piece for each key."""

    def __init__(self) -> None:
        self._noticed: dict[AuthorityId, _Noticed] = {}

    def notice(self, evidence: Equivocation, own: AuthorityId, authorities: AuthoritySet, now: MonotonicMs) -> None:
        """A key was seen to sign twice. Nothing comes of it for our own key: its operator is told by the event."""
        accused = AuthorityId(evidence.authority)
        if accused == own or accused in self._noticed or len(self._noticed) >= NOTICED_MAX:
            return
        ours, theirs = authorities.index_of(own), authorities.index_of(accused)
        turn = (ours - theirs - 1) % authorities.n if ours is not None and theirs is not None else authorities.n
        self._noticed[accused] = _Noticed(evidence, MonotonicMs(now + turn * TURN_MS))

    def due(self, state: LedgerState, now: MonotonicMs) -> Iterator[tuple[Hash, EvidenceReport]]:
        """Reports to make now, each with the name of the wish; those that the ledger would never take are forgotten."""
        for accused, noticed in list(self._noticed.items()):
            if noticed.due > now:
                continue
            first, second = noticed.evidence.first, noticed.evidence.second
            if not is_reportable(state, first, second):
                if may_be_reported_later(state, first, second):
                    self._noticed[accused] = noticed._replace(due=MonotonicMs(now + RETRY_MS))
                else:
                    del self._noticed[accused]
                continue
            self._noticed[accused] = noticed._replace(due=MonotonicMs(now + RETRY_MS))
            yield digest(Domain.EVIDENCE_WISH, now.to_bytes(8, "big"), accused), EvidenceReport(first, second)
