"""The live offers that this node has heard of.

Law: one offer a provider, the one with the highest sequence; nothing here outlives its expiry. Standing comes from the
ledger (a bonded account), and a failure of standing is never held against whoever relayed the offer: the judge may be
the one who lags.
"""

from collections.abc import Callable
from enum import Enum
from heapq import heappop, heappush

from msgspec import Struct

from protocol.messages.effects import Now
from protocol.messages.market import ModelOffer, Offer
from protocol.primitives.errors import AmountOutOfRange
from protocol.primitives.units import AccountId, Amount, MessageId, ModelId, TimestampMs
from protocol.settlement.pricing import amount_due

OFFERS_MAX = 16_384
"""Offers of that many providers at about 2 KiB each are 32 MiB."""

OFFER_LIFETIME_MS_MAX = 3_600_000
"""An offer names at most the next hour: what nobody renews must go, and an hour is far above any renewal."""

OFFER_BURST = 8
OFFER_INTERVAL_MS = 250
"""An account may renew its offer eight times at once and then four times a second: slots change that fast, not more."""


class Ruling(Enum):
    """What gossip does with an object: pass it on, drop it without blame, or hold it against the sender."""

    ACCEPT = "accept"
    IGNORE = "ignore"
    REJECT = "reject"


class Judgement(Struct, frozen=True):
    """A ruling with the label of the check that decided. ``retryable``: it may well be accepted later."""

    ruling: Ruling
    reason: str
    retryable: bool = False


class LiveOffer(Struct, frozen=True):
    """An offer that counts, with the account that signed it."""

    id: MessageId
    account: AccountId
    offer: Offer

    def model(self, model: ModelId) -> ModelOffer | None:
        """The terms for one model, if it is served."""
        for served in self.offer.models:
            if served.model == model:
                return served
        return None


class _Allowance(Struct):
    tokens: int
    refilled_at: int


class OrderBook:
    """All live offers, by provider and by model."""

    def __init__(self, offers_max: int = OFFERS_MAX) -> None:
        self._offers_max = offers_max
        self._offers: dict[AccountId, LiveOffer] = {}
        self._by_model: dict[ModelId, dict[AccountId, LiveOffer]] = {}
        self._expiries: list[tuple[TimestampMs, AccountId]] = []
        self._allowances: dict[AccountId, _Allowance] = {}

    def __len__(self) -> int:
        return len(self._offers)

    def consider_offer(
        self, offer_id: MessageId, offer: Offer, account: AccountId, bond: Amount, bond_min: Amount, now: Now
    ) -> Judgement:
        """Judge an offer whose signature by ``account`` holds, and keep it if it counts. Cheapest check first."""
        held = self._offers.get(account)
        # [IGNORE] the very offer that is held
        if held is not None and held.id == offer_id:
            return Judgement(Ruling.IGNORE, "already held")
        # [IGNORE] expired
        if offer.expires_at <= now.wall_ms:
            return Judgement(Ruling.IGNORE, "expired")
        # [IGNORE] lives too long: the judge's clock may be the one that is wrong
        if offer.expires_at > now.wall_ms + OFFER_LIFETIME_MS_MAX:
            return Judgement(Ruling.IGNORE, "expires too far ahead", retryable=True)
        # [IGNORE] not newer than the one that is held
        if held is not None and offer.sequence <= held.offer.sequence:
            return Judgement(Ruling.IGNORE, "older than the offer that is held")
        # [REJECT] malformed
        if (fault := malformed_offer(offer)) is not None:
            return Judgement(Ruling.REJECT, fault)
        # [IGNORE] bond below the minimum (retryable: this node may lag)
        if bond < bond_min:
            return Judgement(Ruling.IGNORE, "bond below minimum", retryable=True)
        # [IGNORE] renewed too often
        if not self._allow(account, now):
            return Judgement(Ruling.IGNORE, "renewed too often", retryable=True)
        # [IGNORE] the book is full
        if held is None and len(self._offers) >= self._offers_max:
            self.expire(now)
            if len(self._offers) >= self._offers_max:
                return Judgement(Ruling.IGNORE, "order book is full", retryable=True)
        self._keep(LiveOffer(offer_id, account, offer))
        return Judgement(Ruling.ACCEPT, "accepted")

    def offer_of(self, account: AccountId) -> LiveOffer | None:
        """The offer of one provider; it may have expired since the last ``expire``."""
        return self._offers.get(account)

    def offers(self) -> tuple[LiveOffer, ...]:
        """All offers in the order of their accounts."""
        return tuple(self._offers[account] for account in sorted(self._offers))

    def offers_for(self, model: ModelId) -> tuple[LiveOffer, ...]:
        """The offers that serve a model, in the order in which they came."""
        return tuple(self._by_model.get(model, {}).values())

    def models(self) -> tuple[ModelId, ...]:
        """Every model that somebody serves, sorted."""
        return tuple(sorted(self._by_model))

    def expire(self, now: Now) -> tuple[AccountId, ...]:
        """Drop what has expired; returns whose offers went."""
        gone: list[AccountId] = []
        while self._expiries and self._expiries[0][0] <= now.wall_ms:
            expires_at, account = heappop(self._expiries)
            held = self._offers.get(account)
            if held is not None and held.offer.expires_at == expires_at:
                self._drop(held)
                gone.append(account)
        return tuple(gone)

    def next_expiry(self) -> TimestampMs | None:
        """When ``expire`` will have something to do, at the earliest."""
        return self._expiries[0][0] if self._expiries else None

    def drop_unbonded(self, bond_of: Callable[[AccountId], Amount], bond_min: Amount) -> tuple[AccountId, ...]:
        """Drop the offers of accounts whose bond has fallen below the minimum; returns whose."""
        gone = tuple(account for account in sorted(self._offers) if bond_of(account) < bond_min)
        for account in gone:
            self._drop(self._offers[account])
        return gone

    def _keep(self, entry: LiveOffer) -> None:
        held = self._offers.get(entry.account)
        if held is not None:
            self._unindex(held)
        self._offers[entry.account] = entry
        for served in entry.offer.models:
            self._by_model.setdefault(served.model, {})[entry.account] = entry
        heappush(self._expiries, (entry.offer.expires_at, entry.account))
        if len(self._expiries) > 64 + 4 * len(self._offers):
            self._expiries = sorted((live.offer.expires_at, live.account) for live in self._offers.values())

    def _drop(self, entry: LiveOffer) -> None:
        self._unindex(entry)
        del self._offers[entry.account]
        self._allowances.pop(entry.account, None)

    def _unindex(self, entry: LiveOffer) -> None:
        for served in entry.offer.models:
            serving = self._by_model[served.model]
            del serving[entry.account]
            if not serving:
                del self._by_model[served.model]

    def _allow(self, account: AccountId, now: Now) -> bool:
        allowance = self._allowances.get(account)
        if allowance is None:
            if account not in self._offers and len(self._allowances) >= self._offers_max:
                return True  # the book is full anyway; the next check says so
            allowance = self._allowances[account] = _Allowance(OFFER_BURST, now.monotonic_ms)
        refill = (now.monotonic_ms - allowance.refilled_at) // OFFER_INTERVAL_MS
        if refill > 0:
            allowance.tokens = min(OFFER_BURST, allowance.tokens + refill)
            allowance.refilled_at += refill * OFFER_INTERVAL_MS
        if allowance.tokens == 0:
            return False
        allowance.tokens -= 1
        return True


def malformed_offer(offer: Offer) -> str | None:
    """What no honest node would sign, or ``None``."""
    if not offer.models:
        return "offers no model"
    if offer.slots_free > offer.slots_total:
        return "more slots free than there are"
    if not all(_is_address(address) for address in offer.addresses):
        return "address is not host:port"
    seen: dict[ModelId, None] = {}
    for served in offer.models:
        if served.model in seen:
            return "a model is offered twice"
        seen[served.model] = None
        if served.output_units_max == 0:
            return "a model without output"
        try:
            amount_due(served.prices, served.input_units_max, served.output_units_max)
        except AmountOutOfRange:
            return "prices beyond all money"
    return None


def _is_address(address: str) -> bool:
    host, separator, port = address.rpartition(":")
    return bool(separator and host) and port.isascii() and port.isdigit() and 0 < int(port) < 65536
