"""One auction: quotes are sealed first and revealed after, so that nobody can ask a unit less than what it has seen.

Law: a quote counts only if its commitment came while seals were taken, from the same account, and it is revealed while
quotes are taken; what is late, doubled, above the provider's standing offer or for another bid changes nothing. All
checks are here, labelled, cheapest first; each says why it refuses. Bounded: one seal and one quote an account, and
``AUCTION_SEALS_MAX`` seals.

Seals and quotes go straight to the buyer over a link: one short message a provider and window, where gossip would carry
each of them to everybody. What seals protect from are other providers and whoever listens; a buyer that runs changed
software can believe what it likes, and all that providers lose by it is a job that they did not get.
"""

from protocol.market.matching import NO_FREE_SLOTS, Quoted
from protocol.market.order_book import LiveOffer
from protocol.messages.effects import Now
from protocol.messages.envelope import message_id
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Prices, Quote, QuoteSeal
from protocol.primitives.codec import encode
from protocol.primitives.hashing import Domain, digest
from protocol.primitives.limits import AUCTION_SEALS_MAX
from protocol.primitives.units import AccountId, DurationMs, Hash, MessageId, ModelId, MonotonicMs

QUOTE_VALID_MS_MAX = 60_000
"""What a quote promises for longer is not relied on."""


def quote_commitment(account: AccountId, quote: Quote) -> Hash:
    """What seals a quote: the account is inside, so that a copied seal is worth nothing to whoever copies it."""
    return digest(Domain.QUOTE_SEAL, account, encode(quote))


class Auction:
    """What has come for one bid."""

    def __init__(self, bid: MessageId, model: ModelId, seal_ms: DurationMs, reveal_ms: DurationMs) -> None:
        self.bid = bid
        self._model = model
        self._seal_ms = seal_ms
        self._reveal_ms = reveal_ms
        self._opened_at: MonotonicMs | None = None
        self._seals: dict[AccountId, Hash] = {}
        self._quotes: dict[AccountId, Quoted] = {}
        self._awaited: dict[AccountId, None] = {}

    def open(self, now: Now) -> None:
        """The bid goes out."""
        self._opened_at = now.monotonic_ms

    @property
    def opened(self) -> bool:
        """True once the bid has gone out."""
        return self._opened_at is not None

    @property
    def sealed_until(self) -> MonotonicMs:
        """When the last seal counts."""
        assert self._opened_at is not None
        return MonotonicMs(self._opened_at + self._seal_ms)

    @property
    def revealed_until(self) -> MonotonicMs:
        """When the last quote counts."""
        return MonotonicMs(self.sealed_until + self._reveal_ms)

    @property
    def seals(self) -> int:
        """How many providers have sealed a quote."""
        return len(self._seals)

    def complete(self, now: Now) -> bool:
        """True once nothing more is waited for: every awaited quote is revealed, or time is over."""
        if now.monotonic_ms >= self.revealed_until:
            return True
        return now.monotonic_ms >= self.sealed_until and self._awaited.keys() <= self._quotes.keys()

    def unrevealed(self) -> tuple[AccountId, ...]:
        """Who has sealed a quote and not revealed it."""
        return tuple(provider for provider in self._seals if provider not in self._quotes)

    def quoted(self, now: Now) -> tuple[Quoted, ...]:
        """Quotes that still bind their providers."""
        return tuple(quoted for quoted in self._quotes.values() if quoted.until > now.monotonic_ms)

    def lapsed(self, terms: MessageId, now: Now) -> bool:
        """True for the id of a quote that no longer binds."""
        quoted = self._quote_of(terms)
        return quoted is not None and now.monotonic_ms >= quoted.until

    def promised(self, terms: MessageId, reason: str) -> bool:
        """True if whoever refuses, for want of capacity, what an agreement names breaks a promise: the price was bound,
        and so was a slot unless the quote held none."""
        quoted = self._quote_of(terms)
        return quoted is not None and (quoted.slot_held or reason != NO_FREE_SLOTS)

    def _quote_of(self, terms: MessageId) -> Quoted | None:
        return next((quoted for quoted in self._quotes.values() if quoted.terms == terms), None)

    def seal(
        self, provider: AccountId, seal: QuoteSeal, live: LiveOffer | None, now: Now, *, awaited: bool = True
    ) -> str:
        """Take a seal signed by ``provider``, whose standing offer is ``live``. Returns why not, or nothing.

        ``awaited`` off: its quote counts if it comes, but the auction does not last longer for it.
        """
        # [window] seals are taken now
        if not self.opened or now.monotonic_ms >= self.sealed_until:
            return "seal came after the last moment for seals"
        # [once] one seal an account: the first holds
        if provider in self._seals:
            return "a second seal of the same account"
        # [room] as many as can be looked after
        if len(self._seals) >= AUCTION_SEALS_MAX:
            return f"{AUCTION_SEALS_MAX} providers have sealed quotes already"
        # [standing] a bonded provider with an offer of this model
        if live is None or live.model(self._model) is None:
            return "seal of an account without an offer of this model"
        self._seals[provider] = seal.commitment
        if awaited:
            self._awaited[provider] = None
        return ""

    def reveal(self, provider: AccountId, quote: Quote, live: LiveOffer | None, now: Now) -> str:
        """Take a quote signed by ``provider``, whose standing offer is ``live``. Returns why not, or nothing."""
        # [window] quotes are taken now
        if not self.opened or now.monotonic_ms < self.sealed_until:
            return "quote came before the last moment for seals"
        if now.monotonic_ms >= self.revealed_until:
            return "quote came after the last moment for quotes"
        # [bid] for this bid
        if quote.bid != self.bid:
            return "quote is for another bid"
        # [seal] of an account that sealed one
        sealed = self._seals.get(provider)
        if sealed is None:
            return "quote without a seal"
        # [once] revealed already
        if provider in self._quotes:
            return "a second quote of the same account"
        # [offer] its standing offer still stands
        served = live.model(self._model) if live is not None else None
        if served is None:
            return "quote of an account without an offer of this model"
        # [price] no dearer than that offer, in any part
        if not no_dearer(quote.prices, served.prices):
            return "quote is above the provider's standing offer"
        # [commitment] what was sealed, by the same account
        if quote_commitment(provider, quote) != sealed:
            return "quote is not what was sealed"
        self._quotes[provider] = Quoted(
            account=provider,
            terms=message_id(MessageKind.QUOTE, provider, encode(quote)),
            prices=quote.prices,
            until=MonotonicMs(now.monotonic_ms + min(quote.valid_ms, QUOTE_VALID_MS_MAX)),
            slot_held=quote.slot_held,
        )
        return ""


def no_dearer(prices: Prices, posted: Prices) -> bool:
    """True if no part of one list of prices is above the other's."""
    return (
        prices.request <= posted.request
        and prices.input_per_thousand <= posted.input_per_thousand
        and prices.output_per_thousand <= posted.output_per_thousand
    )
