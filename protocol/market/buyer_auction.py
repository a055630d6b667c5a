"""The buyer's way through an auction: tell everybody the bid, take seals, take quotes, then choose as without one.

Law: an auction never makes a request wait longer than its two windows, and ends without an answer in posted prices.
The bid that was told is the bid of the agreement. Providers that rank best by their posted prices are dialed meanwhile:
whoever can't be dialed itself is so reached all the same.
"""

from msgspec.structs import replace

from protocol.market.agreement import make_bid
from protocol.market.auction import Auction
from protocol.market.buyer_core import BuyerCore, timer_key
from protocol.market.buyer_job import BuyerJob, BuyerState
from protocol.market.buyer_opening import Opening
from protocol.market.events import AuctionClosed, QuoteRevealed, QuoteSealed
from protocol.market.matching import NO_FREE_SLOTS, Match, match_offer
from protocol.market.offer_search import best_offer
from protocol.market.order_book import LiveOffer
from protocol.market.requests import MarketEffect
from protocol.messages.effects import Dial, Notify, Now, SetTimer, SignAndSend
from protocol.messages.envelope import message_id
from protocol.messages.kinds import MessageKind
from protocol.messages.market import AuctionTerms, Quote, QuoteSeal
from protocol.primitives.codec import encode
from protocol.primitives.errors import AmountOutOfRange
from protocol.primitives.units import AMOUNT_MAX, AccountId, Amount, DurationMs, MonotonicMs
from protocol.settlement.pricing import amount_due

SILENT_MS = 60_000
SILENT_MAX = 1024
"""Nobody waits for the quotes of an account that did not reveal one of its last minute's; so many are remembered."""

DIALED_MAX = 4
"""Providers dialed for an auction: the likeliest to win it."""


class Bidding:
    """Steps of AUCTIONING."""

    def __init__(self, core: BuyerCore, opening: Opening) -> None:
        self._core = core
        self._opening = opening
        self._silent: dict[AccountId, MonotonicMs] = {}
        """Who sealed a quote and never revealed it → until when its quotes are not waited for."""

    def begin(self, job: BuyerJob, now: Now) -> list[MarketEffect]:
        """Let everybody know what is wanted; a request without an auction goes on at once."""
        core, request = self._core, job.request
        if not request.auction_ms:
            return self._opening.choose(job, now)
        window_ms = DurationMs(max(1, request.auction_ms // 2))
        terms = AuctionTerms(core.own_node, request.auction_addresses, window_ms, window_ms)
        job.bid_payload = encode(replace(make_bid(request, now.wall_ms), auction=terms))
        job.bid = message_id(MessageKind.BID, core.own, job.bid_payload)
        job.auction = Auction(job.bid, request.model, window_ms, window_ms)
        core.by_bid[job.bid] = job
        entered = core.enter(job, BuyerState.AUCTIONING, "bid is told to all providers", now)
        bid = SignAndSend(MessageKind.BID, job.bid_payload)
        return [bid, *entered, *self._dial(job, now), *core.keep_waiting(job)]

    def bid_signed(self, job: BuyerJob, now: Now) -> list[MarketEffect]:
        """The bid goes out now: from now on seals are taken."""
        auction = job.auction
        if job.state is not BuyerState.AUCTIONING or auction is None or auction.opened:
            return []
        auction.open(now)
        job.deadline = min(auction.sealed_until, job.total_until)
        return [SetTimer(timer_key(job), job.deadline)]

    def sealed(self, provider: AccountId, seal: QuoteSeal, now: Now) -> list[MarketEffect]:
        """A seal came; one that is refused changes nothing and is of no use."""
        job = self._auctioned(seal)
        if job is None or job.auction is None:
            return []
        live = self._core.order_book.offer_of(provider)
        # [fit] its offer would do but for its price: others would only take the room of those that do
        if live is not None and not self._fits(job, live, now):
            return []
        awaited = self._silent.get(provider, MonotonicMs(0)) <= now.monotonic_ms
        if job.auction.seal(provider, seal, live, now, awaited=awaited):
            return []
        return [Notify(QuoteSealed(job.request.request, provider))]

    def revealed(self, provider: AccountId, quote: Quote, now: Now) -> list[MarketEffect]:
        """A quote came; the last one ends the auction."""
        job = self._auctioned(quote)
        if job is None or job.auction is None:
            return []
        if job.auction.reveal(provider, quote, self._core.order_book.offer_of(provider), now):
            return []
        request = job.request
        try:
            at_limits = amount_due(quote.prices, request.input_units_max, request.output_units_max)
        except AmountOutOfRange:  # its offer's limits have shrunk since the seal: it will not be chosen
            at_limits = Amount(AMOUNT_MAX)
        told = QuoteRevealed(
            request.request,
            provider,
            at_limits,
            quote.slot_held,
            quote.first_output_ms,
            quote.output_unit_us,
        )
        return [Notify(told), *(self._close(job, now) if job.auction.complete(now) else [])]

    def window_over(self, job: BuyerJob, now: Now) -> list[MarketEffect]:
        """A window has passed: the first one leads into the second, the second one to a choice."""
        auction = job.auction
        assert auction is not None
        if auction.opened and not auction.complete(now) and now.monotonic_ms < job.total_until:
            job.deadline = min(auction.revealed_until, job.total_until)
            return [SetTimer(timer_key(job), job.deadline)]
        return self._close(job, now)

    def _auctioned(self, answer: QuoteSeal | Quote) -> BuyerJob | None:
        job = self._core.by_bid.get(answer.bid)
        return job if job is not None and job.state is BuyerState.AUCTIONING else None

    def _close(self, job: BuyerJob, now: Now) -> list[MarketEffect]:
        auction = job.auction
        assert auction is not None
        quotes = len(auction.quoted(now))
        for provider in auction.unrevealed():
            self._silent.pop(provider, None)
            self._silent[provider] = MonotonicMs(now.monotonic_ms + SILENT_MS)
            if len(self._silent) > SILENT_MAX:
                del self._silent[next(iter(self._silent))]
        cause = f"auction is over: {auction.seals} sealed, {quotes} revealed"
        entered = self._core.enter(job, BuyerState.CHOOSING, cause, now)
        closed = Notify(AuctionClosed(job.request.request, auction.seals, quotes))
        return [*entered, closed, *self._opening.choose(job, now)]

    def _fits(self, job: BuyerJob, live: LiveOffer, now: Now) -> bool:
        want = self._opening.want(job, now)
        outcome = match_offer(live, replace(want, price_ceiling=Amount(AMOUNT_MAX)))
        return isinstance(outcome, Match) or outcome.reason == NO_FREE_SLOTS

    def _dial(self, job: BuyerJob, now: Now) -> list[MarketEffect]:
        want = self._opening.want(job, now)
        effects: list[MarketEffect] = []
        for _ in range(DIALED_MAX):
            match = best_offer(self._core.order_book, want, now)
            if match is None:
                break
            offer = match.live.offer
            if offer.node not in self._core.linked:
                effects.append(Dial(offer.node, offer.addresses))
            want = replace(want, excluded=(*want.excluded, match.live.account))
        return effects
