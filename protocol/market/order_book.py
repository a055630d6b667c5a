"""The live offers that this node has heard of.

Law: one offer a provider, the one with the highest sequence; nothing here outlives its expiry. Standing comes from the
ledger (a bonded account), and a failure of standing is never held against whoever relayed the offer: the judge may be
the one who lags.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from heapq import heappop, heappush

from msgspec import Struct

from protocol.market.catalogue import Catalogue
from protocol.market.ledger_view import LedgerView
from protocol.market.offer_index import OfferIndex
from protocol.market.pace import Paces
from protocol.market.ranking import Standing, Weights
from protocol.market.reputation import NEWCOMER_SCORE_MILLI, is_newcomer, score_milli
from protocol.messages.effects import Now
from protocol.messages.market import ModelOffer, Offer
from protocol.primitives.errors import AmountOutOfRange
from protocol.primitives.units import (
    AccountId,
    Amount,
    LedgerTimeMs,
    MessageId,
    ModelId,
    MonotonicMs,
    TimestampMs,
    format_credits,
)
from protocol.settlement.pricing import amount_due

OFFERS_MAX = 16_384
"""Offers of that many providers at about 2 KiB each are 32 MiB."""

OFFER_LIFETIME_MS_MAX = 3_600_000
"""An offer names at most the next hour: what nobody renews must go, and an hour is far above any renewal."""

OFFER_BURST = 8
OFFER_INTERVAL_MS = 250
"""An account may renew its offer eight times at once and then four times a second: slots change that fast, not more."""


GONE_MAX = 1024
GONE_MS = 600_000
"""Providers whose offers no longer count, and for how long a quote names them with the reason."""

_UNKNOWN = Standing(NEWCOMER_SCORE_MILLI, True)


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


class LiveOffer(Struct, frozen=True, gc=False):
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
    """All live offers, by provider and by model, and what is known of those who made them."""

    def __init__(self, offers_max: int = OFFERS_MAX) -> None:
        self._offers_max = offers_max
        self._offers: dict[AccountId, LiveOffer] = {}
        self._by_model: dict[ModelId, dict[AccountId, LiveOffer]] = {}
        self._expiries: list[tuple[TimestampMs, AccountId]] = []
        self._allowances: dict[AccountId, _Allowance] = {}
        self._indexes: dict[ModelId, OfferIndex] = {}
        """Made when a model is first asked for, kept up from then on."""
        self._gone: dict[AccountId, tuple[str, MonotonicMs]] = {}
        """Whose offer does not count any more, or never did, and why: the last of them."""
        self._ledger: LedgerView | None = None
        self._standings: dict[AccountId, Standing] = {}
        """Reputations that were asked for since the last block: each match asks for a few."""
        self._standings_at: LedgerTimeMs | None = None
        self.paces = Paces()
        self.catalogue = Catalogue()

    def judge_by(self, ledger: LedgerView) -> None:
        """Where reputations come from from now on. Each is read again whenever its offer is renewed."""
        self._ledger = ledger
        self._standings_at = None

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
            if held is None:
                self._remember_gone(account, _bond_too_low(bond, bond_min), now)
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

    def live(self) -> Iterable[LiveOffer]:
        """All offers, in the order in which they came."""
        return self._offers.values()

    def standing_of(self, account: AccountId) -> Standing:
        """A provider's reputation on the ledger."""
        if self._ledger is None:
            return _UNKNOWN
        now = self._ledger.ledger_time()
        if now != self._standings_at:  # the next block's time is another, but for blocks of one millisecond
            self._standings_at, self._standings = now, {}
        standing = self._standings.get(account)
        if standing is None:
            record = self._ledger.track_record(account)
            standing = self._standings[account] = Standing(score_milli(record, now), is_newcomer(record, now))
        return standing

    def index_of(self, model: ModelId, weights: Weights) -> OfferIndex:
        """The offers of one model, arranged for buyers who weigh them so."""
        index = self._indexes.get(model)
        if index is not None and index.weights == weights:
            return index
        index = OfferIndex(weights)
        for live in self._by_model.get(model, {}).values():
            self._arrange(index, live, model, self.standing_of(live.account))
        if model in self._by_model:
            self._indexes[model] = index
        return index

    def not_counting(self, now: Now) -> tuple[tuple[AccountId, str], ...]:
        """Providers whose offers do not count any more, or never did, and why."""
        oldest = now.monotonic_ms - GONE_MS
        return tuple((account, reason) for account, (reason, since) in self._gone.items() if since > oldest)

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
                self._remember_gone(account, "offer has expired", now)
                gone.append(account)
        return tuple(gone)

    def next_expiry(self) -> TimestampMs | None:
        """When ``expire`` will have something to do, at the earliest."""
        return self._expiries[0][0] if self._expiries else None

    def drop_unbonded(
        self, bond_of: Callable[[AccountId], Amount], bond_min: Amount, now: Now
    ) -> tuple[AccountId, ...]:
        """Drop the offers of accounts whose bond has fallen below the minimum; returns whose."""
        gone = tuple(account for account in self._offers if bond_of(account) < bond_min)
        for account in gone:
            self._drop(self._offers[account])
            self._remember_gone(account, _bond_too_low(bond_of(account), bond_min), now)
        return tuple(sorted(gone))

    def _remember_gone(self, account: AccountId, reason: str, now: Now) -> None:
        self._gone.pop(account, None)
        self._gone[account] = (reason, now.monotonic_ms)
        if len(self._gone) > GONE_MAX:
            del self._gone[next(iter(self._gone))]

    @staticmethod
    def _arrange(index: OfferIndex, live: LiveOffer, model: ModelId, standing: Standing) -> None:
        served = live.model(model)
        assert served is not None
        index.put(live.account, live.offer, served, standing)

    def _keep(self, entry: LiveOffer) -> None:
        held = self._offers.get(entry.account)
        if held is not None:
            self._unindex(held, {served.model: None for served in entry.offer.models})
        self._list_anew(held, entry)
        self._gone.pop(entry.account, None)
        self._offers[entry.account] = entry
        standing: Standing | None = None
        for served in entry.offer.models:
            self._by_model.setdefault(served.model, {})[entry.account] = entry
            index = self._indexes.get(served.model)
            if index is not None:
                standing = standing or self.standing_of(entry.account)
                index.put(entry.account, entry.offer, served, standing)
        heappush(self._expiries, (entry.offer.expires_at, entry.account))
        if len(self._expiries) > 64 + 4 * len(self._offers):
            self._expiries = sorted((live.offer.expires_at, live.account) for live in self._offers.values())

    def _list_anew(self, held: LiveOffer | None, entry: LiveOffer) -> None:
        """Most renewals change slots alone."""
        if held is not None and held.offer.models == entry.offer.models:
            return
        for served in entry.offer.models:
            self.catalogue.add(served)
        for served in held.offer.models if held is not None else ():
            self.catalogue.remove(served)

    def _drop(self, entry: LiveOffer) -> None:
        self._unindex(entry, {})
        for served in entry.offer.models:
            self.catalogue.remove(served)
        del self._offers[entry.account]
        self._allowances.pop(entry.account, None)

    def _unindex(self, entry: LiveOffer, kept: Mapping[ModelId, None]) -> None:
        """Take an offer's models out; those in ``kept`` are about to be offered anew."""
        for served in entry.offer.models:
            if served.model in kept:
                continue
            serving = self._by_model[served.model]
            del serving[entry.account]
            if served.model in self._indexes:
                self._indexes[served.model].remove(entry.account)
            if not serving:
                del self._by_model[served.model]
                self._indexes.pop(served.model, None)

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


def _bond_too_low(bond: Amount, bond_min: Amount) -> str:
    return f"bond of {format_credits(bond)} credits is below {format_credits(bond_min)}"


def malformed_offer(offer: Offer) -> str | None:
    """What no honest node would sign, or ``None``."""
    if not offer.models:
        return "offers no model"
    if offer.slots_free > offer.slots_total:
        return "more slots free than there are"
    if not all(is_address(address) for address in offer.addresses):
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


def is_address(address: str) -> bool:
    """True for what a node can be dialed at: ``HOST:PORT``."""
    host, separator, port = address.rpartition(":")
    return bool(separator and host) and port.isascii() and port.isdigit() and 0 < int(port) < 65536
