"""When a provider turns vouchers into money.

Law: a voucher is redeemed once: only what is above the ledger's own position of the lane is asked for, and a channel
with a redemption under way is left alone until the ledger shows it or its time to wait is over. Work goes on meanwhile.
"""

from msgspec import Struct

from protocol.market.ledger_view import ChannelFacts
from protocol.market.policies import SellerPolicy
from protocol.market.records import SellerLane
from protocol.market.requests import WantTransaction
from protocol.market.seller_books import SellerBooks
from protocol.messages.effects import Now, Put
from protocol.messages.transactions import ChannelRedeem
from protocol.primitives.units import Amount, ChannelId, Lane, MonotonicMs
from protocol.settlement.vouchers import LanePosition


class Redeemable(Struct, frozen=True):
    """What waits on one channel: lanes with a better voucher than the ledger has, and their worth in base units."""

    lanes: tuple[SellerLane, ...]
    worth: Amount


class _Asked(Struct, frozen=True):
    """A redemption that was asked for: over at ``until``, or once the ledger's lanes are not ``before`` any more.

    ``refused`` counts how often in a row it was refused meanwhile.
    """

    until: MonotonicMs
    before: tuple[LanePosition, ...]
    refused: int = 0


_OVERTAKEN = ("nonce_used", "nonce_gap", "nonce_mismatch", "state_moved", "duplicate", "voucher_refused")
"""The ledger has moved on since it was made: made anew from what the ledger shows now, it may be right."""
_CROWDED = ("fee_too_low", "mempool_full", "replacement_fee", "sender_cap")
"""No room, though the fee was raised as far as it goes (``own_transactions``): there may be some in a moment."""
AT_ONCE_MAX = 3
"""Refusals in a row after which nothing is tried at once any more."""
CROWDED_MS = 1_000
"""Pause after the first refusal for want of room; twice as long after each further one."""


class Redemption:
    """Decides which channels to redeem."""

    def __init__(self, books: SellerBooks, policy: SellerPolicy) -> None:
        self._books = books
        self._policy = policy
        self._asked: dict[ChannelId, _Asked] = {}
        """Redemptions under way."""

    def redeemable(self, facts: ChannelFacts) -> Redeemable:
        """What the ledger would still pay on a channel."""
        redeemed = {position.lane: position for position in facts.redeemed}
        lanes = tuple(lane for lane in self._books.lanes_of(facts.channel) if _worth(lane, redeemed) > 0)
        return Redeemable(lanes, Amount(sum(_worth(lane, redeemed) for lane in lanes)))

    def due(self, now: Now, channels: tuple[ChannelFacts, ...]) -> list[WantTransaction | Put]:
        """Redemptions that are due, closing channels first, then by worth; and rows of channels that are paid out."""
        wanted: list[tuple[bool, int, ChannelFacts, Redeemable]] = []
        settled: list[WantTransaction | Put] = []
        for facts in channels:
            found = self.redeemable(facts)
            if not found.lanes:
                self._asked.pop(facts.channel, None)
                settled.extend(self._books.redeemed(facts.channel))
            elif not self._is_under_way(facts, now) and self._is_due(found, facts, now):
                wanted.append((not facts.closing, -found.worth, facts, found))
        wanted.sort(key=lambda entry: (entry[0], entry[1], entry[2].channel))
        return [*settled, *(self._ask(facts, found, now) for _, _, facts, found in wanted)]

    def now(self, facts: ChannelFacts, now: Now) -> list[WantTransaction]:
        """Redeem a channel because its owner says so; nothing if nothing waits or it is under way."""
        found = self.redeemable(facts)
        if not found.lanes or self._is_under_way(facts, now):
            return []
        return [self._ask(facts, found, now)]

    def rejected(self, channel: ChannelId, code: str, now: Now) -> MonotonicMs | None:
        """The ledger did not take it. Returns when to ask again; ``None`` if it was not asked for.

        What was overtaken by a block is made anew at once, what found no room after a pause that doubles; anything
        else (no balance for the fee, a channel that is no more) only time can cure.
        """
        asked = self._asked.get(channel)
        if asked is None:
            return None
        pause_ms: int = self._policy.redeem_retry_ms
        if code in _OVERTAKEN and asked.refused < AT_ONCE_MAX:
            pause_ms = 0
        elif code in _CROWDED:
            pause_ms = min(CROWDED_MS << min(asked.refused, 16), pause_ms)
        until = MonotonicMs(now.monotonic_ms + pause_ms)
        self._asked[channel] = _Asked(until, asked.before, asked.refused + 1)
        return until

    def _is_under_way(self, facts: ChannelFacts, now: Now) -> bool:
        asked = self._asked.get(facts.channel)
        return asked is not None and asked.before == facts.redeemed and now.monotonic_ms < asked.until

    def _is_due(self, found: Redeemable, facts: ChannelFacts, now: Now) -> bool:
        policy = self._policy
        # [worth] not for less than the fee: a buyer could make this node pay it again and again
        if found.worth < policy.redeem_worth_min:
            return False
        # [closing] what is not redeemed in the challenge window is lost
        if facts.closing:
            return True
        # [amount] so much is not left at risk
        if found.worth >= policy.redeem_amount:
            return True
        # [age] nor for so long
        since = min(lane.unredeemed_since for lane in found.lanes)
        return now.wall_ms - since >= policy.redeem_age_ms

    def _ask(self, facts: ChannelFacts, found: Redeemable, now: Now) -> WantTransaction:
        until = MonotonicMs(now.monotonic_ms + self._policy.redeem_retry_ms)
        before = self._asked.get(facts.channel)
        refused = before.refused if before is not None and before.before == facts.redeemed else 0
        self._asked[facts.channel] = _Asked(until, facts.redeemed, refused)
        vouchers = tuple(lane.voucher for lane in found.lanes)
        return WantTransaction(ChannelRedeem(facts.channel, vouchers), facts.channel)


def _worth(lane: SellerLane, redeemed: dict[Lane, LanePosition]) -> int:
    last = redeemed.get(lane.lane)
    if last is None:
        return lane.position.cumulative
    if lane.position.sequence <= last.sequence:
        return 0
    return max(0, lane.position.cumulative - last.cumulative)
