"""A provider's standing offer: made, renewed before it expires, and made anew when free slots change.

Law: no offer leaves while the provider could not honour it: no isolation, no models or no bond mean no offer, and the
reason is told. Sequences rise with the wall clock, so they rise over restarts too.
"""

from protocol.engine.events import NotSelling, OfferPublished
from protocol.engine.inputs import Serve
from protocol.messages.effects import Effect, Notify, Now, SetTimer, SignAndSend, TimerKey
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Offer
from protocol.primitives.codec import encode
from protocol.primitives.limits import TEXT_BYTES_MAX
from protocol.primitives.units import Amount, MonotonicMs, NodeId, SequenceNumber, TimestampMs, format_credits

RENEWALS_PER_LIFETIME = 3
"""Two renewals may be lost before an offer expires."""

CHANGE_MS = 500
"""Slots that change faster than this share one new offer."""

RENEW_TIMER = TimerKey("shop", "renew")


class Shop:
    """One provider's offer. Pure; effects are returned."""

    def __init__(self, node: NodeId) -> None:
        self._node = node
        self._serve: Serve | None = None
        self._slots_free = 0
        self._sequence = 0
        self._published_at: MonotonicMs | None = None
        self._silent_because = ""

    @property
    def silent_because(self) -> str:
        """Why there is no offer; empty while there is one."""
        return self._silent_because

    def serve(self, serve: Serve, slots_free: int, bond: Amount, bond_min: Amount, now: Now) -> list[Effect]:
        """The node can serve something else from now on."""
        self._serve = serve
        self._slots_free = slots_free
        self._published_at = None
        return self.renew(bond, bond_min, now)

    def slots_changed(self, slots_free: int, now: Now) -> list[Effect]:
        """Renew soon: at once if the last offer is old enough, else when it is."""
        if slots_free == self._slots_free:
            return []
        self._slots_free = slots_free
        if self._serve is None or self._published_at is None:
            return []
        return [SetTimer(RENEW_TIMER, MonotonicMs(max(now.monotonic_ms, self._published_at + CHANGE_MS)))]

    def bond_decided(self, bond: Amount, bond_min: Amount, now: Now) -> list[Effect]:
        """A block may have changed the bond: whoever has bonded enough offers at once, not at the next renewal."""
        if self._serve is None or self._obstacle(self._serve, bond, bond_min) == self._silent_because:
            return []
        return self.renew(bond, bond_min, now)

    def renew(self, bond: Amount, bond_min: Amount, now: Now) -> list[Effect]:
        """Make the offer anew, or say why there is none."""
        if self._serve is None:
            return []
        lifetime_ms = self._serve.lifetime_ms
        renew_ms = max(CHANGE_MS, lifetime_ms // RENEWALS_PER_LIFETIME)
        again = SetTimer(RENEW_TIMER, MonotonicMs(now.monotonic_ms + renew_ms))
        obstacle = self._obstacle(self._serve, bond, bond_min)
        if obstacle:
            told = [] if obstacle == self._silent_because else [Notify(NotSelling(obstacle[:TEXT_BYTES_MAX]))]
            self._silent_because = obstacle
            return [*told, again]
        self._silent_because = ""
        self._sequence = max(self._sequence + 1, now.wall_ms)
        self._published_at = now.monotonic_ms
        offer = Offer(
            node=self._node,
            sequence=SequenceNumber(self._sequence),
            expires_at=TimestampMs(now.wall_ms + lifetime_ms),
            addresses=self._serve.addresses,
            region=self._serve.region,
            isolation=self._serve.isolation,
            slots_total=self._serve.slots,
            slots_free=self._slots_free,
            models=self._serve.models,
        )
        published = OfferPublished(self._sequence, len(offer.models), offer.slots_free)
        return [SignAndSend(MessageKind.OFFER, encode(offer)), Notify(published), again]

    @staticmethod
    def _obstacle(serve: Serve, bond: Amount, bond_min: Amount) -> str:
        if not serve.models:
            return "no model is ready"
        if bond < bond_min:
            return f"bond is {format_credits(bond)} credits, {format_credits(bond_min)} are needed"
        return ""
