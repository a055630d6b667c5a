"""The statements of one class, VOTE or FINAL, that authorities have made at one height.

Law: the first statement of a key in a view is the one that counts; a different second one is evidence and counts for
nothing.
"""

from enum import Enum

from protocol.messages.consensus import Certificate, CertificateKind
from protocol.primitives.units import BlockHash, Height, Signature, View

Statement = tuple[BlockHash | None, Signature]
"""What was said, ``None`` for ⊥, and the signature under it."""


class Count(Enum):
    """What became of a statement."""

    NEW = 1
    KNOWN = 2
    CONFLICT = 3


class Tally:
    """First statement of each authority, by view and position in the set. Views are bounded by the caller."""

    __slots__ = ("_views",)

    def __init__(self) -> None:
        self._views: dict[View, dict[int, Statement]] = {}

    def add(self, view: View, signer: int, block_hash: BlockHash | None, signature: Signature) -> Count:
        """Count a verified statement."""
        said = self._views.setdefault(view, {})
        first = said.get(signer)
        if first is None:
            said[signer] = (block_hash, signature)
            return Count.NEW
        return Count.KNOWN if first[0] == block_hash else Count.CONFLICT

    def said(self, view: View, signer: int) -> Statement | None:
        """The statement that counts for this key in this view."""
        return self._views.get(view, {}).get(signer)

    def signatures(self, view: View, block_hash: BlockHash | None) -> dict[int, Signature]:
        """Everybody who said exactly this, by rising position."""
        said = self._views.get(view, {})
        return {signer: said[signer][1] for signer in sorted(said) if said[signer][0] == block_hash}

    def views_of(self, signer: int) -> list[View]:
        """Views in which this key has spoken, highest first."""
        return sorted((view for view, said in self._views.items() if signer in said), reverse=True)

    def copy(self) -> "Tally":
        """An independent tally with the same statements."""
        twin = Tally()
        twin._views = {view: dict(said) for view, said in self._views.items()}
        return twin

    def fingerprint(self) -> tuple[tuple[View, tuple[tuple[int, BlockHash | None], ...]], ...]:
        """Hashable summary: who said what, signatures left out."""
        return tuple(
            (view, tuple((signer, statement[0]) for signer, statement in sorted(said.items())))
            for view, said in sorted(self._views.items())
        )


def assemble(
    kind: CertificateKind,
    height: Height,
    view: View,
    block_hash: BlockHash | None,
    signatures: dict[int, Signature],
    quorum: int,
) -> Certificate | None:
    """A certificate of the first ``quorum`` signatures, or ``None`` while there are fewer."""
    if len(signatures) < quorum:
        return None
    signers = tuple(sorted(signatures))[:quorum]
    return Certificate(kind, height, view, block_hash, signers, tuple(signatures[signer] for signer in signers))
