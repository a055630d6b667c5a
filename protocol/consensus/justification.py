"""The certificates held for one open height, and what they justify.

Law: at most one VC and one SC a view. A proposal in view ``v`` that builds on ``w`` is justified by VC_w (w > 0) and
SC_y for every ``w < y < v``: each skip certificate proves that nothing was or will be decided in its view.
"""

from protocol.messages.consensus import Certificate, CertificateKind
from protocol.messages.quorum import NO_VIEW
from protocol.primitives.limits import JUSTIFICATION_CERTIFICATES_MAX
from protocol.primitives.units import View


class HeldCertificates:
    """VC and SC by view."""

    __slots__ = ("_base", "skipped", "voted")

    def __init__(self, view_base: View = NO_VIEW) -> None:
        """Views up to ``view_base`` are void: they need no certificate."""
        self._base = view_base
        self.voted: dict[View, Certificate] = {}
        self.skipped: dict[View, Certificate] = {}

    def of(self, kind: CertificateKind) -> dict[View, Certificate]:
        """The shelf of one kind; DECIDED has none, since it closes the height."""
        assert kind is not CertificateKind.DECIDED
        return self.voted if kind is CertificateKind.VOTED else self.skipped

    def at(self, view: View) -> tuple[Certificate, ...]:
        """Whatever is held for one view."""
        return tuple(shelf[view] for shelf in (self.voted, self.skipped) if view in shelf)

    def highest(self) -> View:
        """The highest view with a certificate, 0 if there is none."""
        return max((*self.voted, *self.skipped), default=NO_VIEW)

    def base(self, view: View) -> tuple[View, tuple[View, ...]]:
        """What a proposal in ``view`` has to build on: the highest VC below it (0: none), and the views between
        whose SC is missing."""
        gaps: list[View] = []
        for below in range(view - 1, self._base, -1):
            if below in self.voted:
                return View(below), tuple(gaps)
            if below not in self.skipped:
                gaps.append(View(below))
        return View(0), tuple(gaps)

    def gaps(self, voted_view: View, view: View) -> tuple[View, ...]:
        """Views strictly between the two whose SC is missing."""
        return tuple(View(y) for y in range(max(voted_view, self._base) + 1, view) if y not in self.skipped)

    def justification(self, voted_view: View, view: View) -> tuple[Certificate, ...]:
        """VC of ``voted_view`` (if any) and the SCs up to ``view``, newest kept where the cap cuts.

        What is cut off is pulled by (height, view).
        """
        base = (self.voted[voted_view],) if voted_view in self.voted else ()
        room = JUSTIFICATION_CERTIFICATES_MAX - len(base)
        above = max(voted_view, self._base) + 1
        skips = [self.skipped[View(y)] for y in range(above, view) if y in self.skipped]
        return base + tuple(skips[-room:])

    def all(self) -> tuple[Certificate, ...]:
        """Everything held, VCs first, by rising view."""
        return tuple(shelf[view] for shelf in (self.voted, self.skipped) for view in sorted(shelf))

    def copy(self) -> "HeldCertificates":
        """An independent shelf with the same certificates."""
        twin = HeldCertificates(self._base)
        twin.voted, twin.skipped = dict(self.voted), dict(self.skipped)
        return twin
