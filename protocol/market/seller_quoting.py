"""A provider's part in auctions: hear of a bid, make up a price, seal it, and reveal it once no more seals are taken.

Law: a quote is never above the posted price and never below this provider's floors; it is revealed ``seal_ms`` after
the bid came, so never before the buyer has stopped to take seals. What is random in it is made from a secret of this
process. Whom to answer is decided by labelled checks, cheapest first.
"""

from msgspec import Struct

from protocol.market.auction import no_dearer, quote_commitment
from protocol.market.pace import Pace, Paces
from protocol.market.quotes_held import GRACE_MS, HeldQuote
from protocol.market.requests import MarketEffect
from protocol.market.seller_core import ROOM, SellerCore
from protocol.market.seller_job import SellerJob
from protocol.messages.effects import Dial, Now, SetTimer, SignAndSend, TimerKey
from protocol.messages.envelope import message_id
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Bid, ModelOffer, Prices, Quote, QuoteSeal
from protocol.primitives.codec import encode
from protocol.primitives.errors import AmountOutOfRange
from protocol.primitives.hashing import Domain, digest
from protocol.primitives.units import AccountId, Amount, Hash, MessageId, ModelId, MonotonicMs, NodeId
from protocol.settlement.pricing import amount_due

QUOTE_TIMER = "quote"


WATCHED_MAX = 1024
"""Jobs whose pace is being measured: more than a provider has slots."""


class _Work(Struct):
    model: ModelId
    first_ms: int
    prefilled_at: MonotonicMs
    units: int = 0


class Quoting:
    """Steps of one provider in all auctions."""

    def __init__(self, core: SellerCore) -> None:
        self._core = core
        self._secret: Hash | None = None
        self._linked: dict[NodeId, AccountId | None] = {}
        """Nodes that are reached, and whose they say they are."""
        self._paces = Paces()
        self._work: dict[MessageId, _Work] = {}

    def start(self, secret: Hash) -> None:
        """What nonces are made from: random bytes that nobody outside this process sees."""
        self._secret = secret

    def heard(self, bid_id: MessageId, bid: Bid, buyer: AccountId, now: Now) -> list[MarketEffect]:
        """A bid that asks for quotes came by gossip, from an account that can pay it."""
        core, terms = self._core, bid.auction
        served = core.models.get(bid.model)
        if terms is None or self._secret is None or served is None or self.why_silent(bid_id, bid, buyer, now):
            return []
        free = core.slots_unpromised()
        slot_held = core.quotes.may_hold(buyer, free, now)
        pace = self._paces.of(bid.model).get(core.own, Pace(0, 0, 0))
        quote = Quote(
            bid=bid_id,
            prices=self.prices(served, free),
            valid_ms=core.policy.quotes.valid_ms,
            slot_held=slot_held,
            first_output_ms=min(pace.first_ms, 2**32),
            output_unit_us=min(pace.unit_us, 2**32),
            nonce=digest(Domain.QUOTE_NONCE, self._secret, bid_id),
        )
        payload = encode(quote)
        reveal_at = MonotonicMs(now.monotonic_ms + terms.seal_ms)
        held = HeldQuote(
            id=message_id(MessageKind.QUOTE, core.own, payload),
            bid=bid_id,
            buyer=buyer,
            node=terms.node,
            model=bid.model,
            prices=quote.prices,
            payload=payload,
            seal_payload=encode(QuoteSeal(bid_id, quote_commitment(core.own, quote))),
            slot_held=slot_held,
            reveal_at=reveal_at,
            until=MonotonicMs(reveal_at + quote.valid_ms + GRACE_MS),
        )
        core.quotes.add(held)
        timer = SetTimer(TimerKey(ROOM, QUOTE_TIMER, bid_id), reveal_at)
        if terms.node in self._linked:
            return [*self._seal(held), timer]
        return [Dial(terms.node, terms.addresses, once=True), timer]

    def why_silent(self, bid_id: MessageId, bid: Bid, buyer: AccountId, now: Now) -> str:
        """Why a bid is not answered; empty if it is."""
        core = self._core
        served = core.models.get(bid.model)
        # [policy] this provider takes part
        if not core.policy.quotes.answer:
            return "auctions are not answered here"
        # [self] nobody buys from itself
        if buyer == core.own:
            return "own bid"
        # [once] a bid is answered once
        if core.quotes.of_bid(bid_id) is not None:
            return "answered already"
        # [model], [limits], [verification] it could be served
        if served is None:
            return "model not served"
        if bid.input_units_max > served.input_units_max or bid.output_units_max > served.output_units_max:
            return "larger than is served here"
        if bid.verification not in core.policy.verifications:
            return "verification is not offered here"
        # [slots] there is room
        free = core.slots_unpromised()
        if free == 0:
            return "no free slots"
        # [price] the buyer would pay it
        try:
            at_limits = amount_due(self.prices(served, free), bid.input_units_max, bid.output_units_max)
        except AmountOutOfRange:
            return "price above ceiling"
        if at_limits > bid.price_ceiling:
            return "price above ceiling"
        assert bid.auction is not None
        # [node] the quote would go to the buyer's own node: nobody is told what it has not asked for
        if not self._is_of(bid.auction.node, buyer):
            return "quotes would go to somebody else's node"
        # [room] not too many promises at once
        if core.quotes.full():
            return "too many quotes are open"
        # [rate] not too often for one account
        if not core.quotes.may_answer(buyer, now):
            return "too many bids of this account"
        # [reach] its node is linked, or one more may be dialed
        reached = bid.auction.node in self._linked or core.quotes.may_dial(buyer, now)
        return "" if reached else "too many nodes are dialed"

    def prices(self, served: ModelOffer, slots_free: int) -> Prices:
        """What is asked now: less, the more slots are free, but never less than the floors nor more than is posted."""
        policy, posted, slots = self._core.policy.quotes, served.prices, max(1, self._core.policy.slots)
        kept = max(policy.floor_permille, 1000 - policy.discount_permille * min(slots_free, slots) // slots)

        def asked(price: Amount, floor: Amount) -> Amount:
            return Amount(min(price, max(floor, -(-price * kept // 1000))))

        quoted = Prices(
            asked(posted.request, policy.request_floor),
            asked(posted.input_per_thousand, policy.input_per_thousand_floor),
            asked(posted.output_per_thousand, policy.output_per_thousand_floor),
        )
        assert no_dearer(quoted, posted)
        return quoted

    def timer(self, bid: MessageId, now: Now) -> list[MarketEffect]:
        """Time to reveal a quote, or to forget it."""
        quotes = self._core.quotes
        held = quotes.of_bid(bid)
        if held is None:
            return []
        if now.monotonic_ms >= held.until or (now.monotonic_ms >= held.reveal_at and not held.seal_sent):
            held.until = min(held.until, now.monotonic_ms)  # whoever was not reached in time was promised nothing
            quotes.expire(bid, now)
            return []
        key = TimerKey(ROOM, QUOTE_TIMER, bid)
        if now.monotonic_ms < held.reveal_at:
            return [SetTimer(key, held.reveal_at)]
        again = SetTimer(key, held.until)
        if held.revealed:
            return [again]
        held.revealed = True
        return [SignAndSend(MessageKind.QUOTE, held.payload, (held.node,)), again]

    def link_up(self, peer: NodeId, account: AccountId | None, now: Now) -> list[MarketEffect]:
        """A buyer's node is reached: seals that waited for it go out."""
        self._linked[peer] = account
        waiting = [
            held for held in self._core.quotes.waiting_for(peer) if not held.seal_sent and self._is_of(peer, held.buyer)
        ]
        return [effect for held in waiting if now.monotonic_ms < held.reveal_at for effect in self._seal(held)]

    def link_down(self, peer: NodeId) -> None:
        """The link is gone."""
        self._linked.pop(peer, None)

    def _is_of(self, node: NodeId, buyer: AccountId) -> bool:
        """False if a linked node has said that it is another account's."""
        return self._linked.get(node) in (None, buyer)

    def _seal(self, held: HeldQuote) -> list[MarketEffect]:
        held.seal_sent = True
        return [SignAndSend(MessageKind.QUOTE_SEAL, held.seal_payload, (held.node,))]

    # What this provider expects of itself

    def job_prefilled(self, job: SellerJob, now: Now) -> None:
        """A job's input is processed."""
        first_ms = max(0, now.wall_ms - job.accepted_at)
        self._work[job.job] = _Work(job.agreement.model, first_ms, now.monotonic_ms)
        if len(self._work) > WATCHED_MAX:
            del self._work[next(iter(self._work))]

    def job_advanced(self, job: MessageId, units: int, ended: bool, now: Now) -> None:
        """Some output is there; the last of it tells how fast it was."""
        work = self._work.get(job)
        if work is None:
            return
        work.units += units
        if ended:
            del self._work[job]
            if work.units:
                unit_us = (now.monotonic_ms - work.prefilled_at) * 1000 // work.units
                self._paces.learn(work.model, self._core.own, work.first_ms, unit_us)
