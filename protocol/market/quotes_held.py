"""The quotes that bind this provider, and the slots that wait for those who were promised one.

Law: a promise lasts from the seal until its time is over, is kept to the unit, and is good once. Bounded: so many
quotes, so many slots at once, so many a second for one account; whoever lets slots wait for nothing is promised none
for a while.
"""

from msgspec import Struct

from protocol.market.policies import QuotePolicy
from protocol.messages.effects import Now
from protocol.messages.market import Agreement, Prices
from protocol.primitives.limits import QUOTES_HELD_MAX
from protocol.primitives.units import AccountId, MessageId, ModelId, MonotonicMs, NodeId

HOLD_BURST = 4
HOLD_INTERVAL_MS = 10_000
"""Slots that may wait in vain for one account: four, and one more every ten seconds. One that is used is given back."""

ANSWER_BURST = 16
ANSWER_INTERVAL_MS = 100
"""Bids of one account that are answered: sixteen at once and ten a second."""

DIAL_BURST = 16
DIAL_INTERVAL_MS = 1_000
"""Buyers' nodes that are dialed to be told a quote: a bid may name any address, and nodes to dial are few."""

DIAL_BURST_EACH = 4
DIAL_INTERVAL_EACH_MS = 30_000
"""Of them, those of one account: it has one node or a few, and once that is linked nobody dials it."""

EVERYBODY = AccountId(bytes(32))
"""Whose allowance all share; nobody has a key to this account."""

ACCOUNTS_MAX = 1024
"""Accounts whose allowances are remembered."""

GRACE_MS = 1_000
"""A promise counts for the buyer from when the quote reached it: an agreement made in time comes so much later."""


class HeldQuote(Struct):
    """One quote: what was promised to whom for which bid, and until when."""

    id: MessageId
    bid: MessageId
    buyer: AccountId
    node: NodeId
    model: ModelId
    prices: Prices
    payload: bytes
    seal_payload: bytes
    slot_held: bool
    reveal_at: MonotonicMs
    until: MonotonicMs
    seal_sent: bool = False
    revealed: bool = False


class _Allowance(Struct):
    left: int
    since: MonotonicMs


class _Allowances:
    """A token bucket for each account, the last of them remembered."""

    def __init__(self, burst: int, interval_ms: int) -> None:
        self._burst = burst
        self._interval_ms = interval_ms
        self._buckets: dict[AccountId, _Allowance] = {}

    def take(self, account: AccountId, now: MonotonicMs) -> bool:
        """One of the account's, if there is one left."""
        bucket = self._bucket(account, now)
        if bucket.left == 0:
            return False
        bucket.left -= 1
        return True

    def give_back(self, account: AccountId, now: MonotonicMs) -> None:
        """One that was not wasted."""
        bucket = self._bucket(account, now)
        bucket.left = min(self._burst, bucket.left + 1)

    def _bucket(self, account: AccountId, now: MonotonicMs) -> _Allowance:
        bucket = self._buckets.pop(account, None) or _Allowance(self._burst, now)
        self._buckets[account] = bucket
        if len(self._buckets) > ACCOUNTS_MAX:
            del self._buckets[next(iter(self._buckets))]
        refill = (now - bucket.since) // self._interval_ms
        bucket.left = min(self._burst, bucket.left + refill)
        bucket.since = MonotonicMs(bucket.since + refill * self._interval_ms)
        return bucket


class QuotesHeld:
    """All quotes of one provider that are not over yet."""

    def __init__(self, policy: QuotePolicy, slots: int) -> None:
        self._slots_max = (
            min(slots, max(1, slots * policy.slots_held_permille // 1000)) if policy.slots_held_permille else 0
        )
        self._by_bid: dict[MessageId, HeldQuote] = {}
        self._by_id: dict[MessageId, HeldQuote] = {}
        self._holds = _Allowances(HOLD_BURST, HOLD_INTERVAL_MS)
        self._answers = _Allowances(ANSWER_BURST, ANSWER_INTERVAL_MS)
        self._dials = _Allowances(DIAL_BURST, DIAL_INTERVAL_MS)
        self._dials_each = _Allowances(DIAL_BURST_EACH, DIAL_INTERVAL_EACH_MS)

    def __len__(self) -> int:
        return len(self._by_bid)

    def full(self) -> bool:
        """True when no more quotes can be kept."""
        return len(self._by_bid) >= QUOTES_HELD_MAX

    def may_answer(self, account: AccountId, now: Now) -> bool:
        """Whether one more bid of an account is answered."""
        return self._answers.take(account, now.monotonic_ms)

    def may_dial(self, buyer: AccountId, now: Now) -> bool:
        """Whether a node that this buyer names is dialed: from an allowance of its own, and from one for all."""
        return self._dials_each.take(buyer, now.monotonic_ms) and self._dials.take(EVERYBODY, now.monotonic_ms)

    def may_hold(self, account: AccountId, slots_free: int, now: Now) -> bool:
        """Whether a slot may wait for an account: one at a time, a part of all slots, and not again and again."""
        held = [quote for quote in self._by_bid.values() if quote.slot_held]
        if len(held) >= min(self._slots_max, slots_free) or any(quote.buyer == account for quote in held):
            return False
        return self._holds.take(account, now.monotonic_ms)

    def slots_held(self) -> int:
        """Slots that wait for somebody."""
        return sum(quote.slot_held for quote in self._by_bid.values())

    def add(self, quote: HeldQuote) -> None:
        """One more promise."""
        self._by_bid[quote.bid] = quote
        self._by_id[quote.id] = quote

    def of_bid(self, bid: MessageId) -> HeldQuote | None:
        """What was quoted for a bid."""
        return self._by_bid.get(bid)

    def waiting_for(self, node: NodeId) -> tuple[HeldQuote, ...]:
        """Quotes for a buyer's node."""
        return tuple(quote for quote in self._by_bid.values() if quote.node == node)

    def named_by(self, agreement: Agreement, now: Now) -> HeldQuote | None:
        """The quote that an agreement names, if it is the one of its bid and buyer and its time is not over."""
        quote = self._by_id.get(agreement.offer)
        if quote is None or not quote.revealed or now.monotonic_ms >= quote.until:
            return None
        # [quote] for this very bid of this very buyer
        if (quote.bid, quote.buyer, quote.model) != (agreement.bid, agreement.buyer, agreement.model):
            return None
        return quote

    def used(self, quote: HeldQuote, now: Now) -> None:
        """The promise was kept; it is good once."""
        self._drop(quote)
        if quote.slot_held:
            self._holds.give_back(quote.buyer, now.monotonic_ms)

    def expire(self, bid: MessageId, now: Now) -> None:
        """The promise may be over."""
        quote = self._by_bid.get(bid)
        if quote is not None and now.monotonic_ms >= quote.until:
            self._drop(quote)

    def _drop(self, quote: HeldQuote) -> None:
        del self._by_bid[quote.bid]
        del self._by_id[quote.id]
