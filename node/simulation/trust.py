"""How many authorities may be worthless at a time.

Law: at most f, as the protocol allows: liars and twins for good, an authority with a lost or old disk until the heights
at which it may have signed before are closed, one with a wrong clock until that is right again.
"""

from protocol.messages.quorum import AuthoritySet
from protocol.primitives.units import AuthorityId


class Trust:
    """Who is distrusted now."""

    def __init__(self, authorities: AuthoritySet) -> None:
        self._allowed = authorities.f
        self._distrusted: dict[AuthorityId, str] = {}

    @property
    def room(self) -> bool:
        """True if one more authority may become worthless."""
        return len(self._distrusted) < self._allowed

    def take(self, authority: AuthorityId, reason: str) -> bool:
        """Distrust this authority too; False if that would be one too many, or it is distrusted already."""
        if not self.room or authority in self._distrusted:
            return False
        self._distrusted[authority] = reason
        return True

    def give_back(self, authority: AuthorityId) -> None:
        """The authority is as good as any other again."""
        del self._distrusted[authority]
