"""Care for the buyer's channels in the background: filled up before they run dry, closed when nobody uses them, and
forgotten once the ledger has ended them.

Law: what a person did not ask for costs little and comes back. A channel is filled up only behind use, one transaction
at a time and the same that a job would wait for; a channel that nobody uses is closed, so that no deposit is forgotten,
and no job is begun on a channel whose close is under way. What a provider owes on a channel that has ended can't be set
against a job any more: it is ranked last for a while of ledger time, not for good.
"""

from msgspec import Struct

from protocol.market.buyer_core import BuyerCore, Funding
from protocol.market.buyer_opening import Opening
from protocol.market.ledger_view import ChannelFacts
from protocol.market.records import buyer_debt, lane_key
from protocol.market.requests import MarketEffect, WantTransaction
from protocol.messages.effects import Delete, Now, Table
from protocol.messages.transactions import ChannelClose, ChannelTopUp
from protocol.primitives.units import AccountId, ChannelId, MonotonicMs

LOOK_MS = 5_000
"""Between two looks: use and rest are measured in hours."""

CLOSE_RETRY_MS = 60_000
"""A close that no block shows by then is asked for again, if the channel is still unused."""

ENDED_MS = 600_000
"""A channel that the ledger lacks for so long has ended: a node that catches up may only not have seen it yet."""

LOW_SHARE = 4
"""A channel is filled up once less than this part of a deposit is free."""


class _Look(Struct, frozen=True):
    """What a channel was like: all that its lanes have a claim on, and when it was last seen in use."""

    committed: int
    used_at: MonotonicMs


class ChannelCare:
    """Decides which channels to fill up or to close."""

    def __init__(self, core: BuyerCore, opening: Opening) -> None:
        self._core = core
        self._opening = opening
        self._looks: dict[ChannelId, _Look] = {}
        self._missing: dict[ChannelId, MonotonicMs] = {}
        """Channels that the ledger does not have → since when."""
        self._next = MonotonicMs(0)

    def due(self, now: Now) -> list[MarketEffect]:
        """What is to be done now; called every second. A restarted node counts from its start."""
        if now.monotonic_ms < self._next:
            return []
        self._next = MonotonicMs(now.monotonic_ms + LOOK_MS)
        core = self._core
        core.leaving = {channel: until for channel, until in core.leaving.items() if until > now.monotonic_ms}
        awaited = {job.match.live.account: None for job in core.requests.values() if job.match is not None}
        looks: dict[ChannelId, _Look] = {}
        effects: list[MarketEffect] = []
        for facts in core.ledger.channels_paid_by(core.own):
            if facts.closing:
                continue
            before, committed = self._looks.get(facts.channel), core.books.committed(facts.channel)
            moved = before is not None and committed != before.committed
            in_use = moved or facts.payee in awaited or core.books.in_use(facts.channel)
            used_at = now.monotonic_ms if in_use or before is None else before.used_at
            look = looks[facts.channel] = _Look(committed, used_at)
            if moved:
                effects += self._fill_up(facts)
            elif self._is_forgotten(facts, look, now):
                core.leaving[facts.channel] = MonotonicMs(now.monotonic_ms + CLOSE_RETRY_MS)
                effects.append(WantTransaction(ChannelClose(facts.channel), facts.channel))
        self._looks = looks
        return [*effects, *self._forget_ended(now)]

    def _forget_ended(self, now: Now) -> list[MarketEffect]:
        """Rows of lanes go; the channel's history and its receipts stay where people and proofs look for them."""
        core = self._core
        gone = [channel for channel in core.books.channels() if core.ledger.channel(channel) is None]
        self._missing = {channel: self._missing.get(channel, now.monotonic_ms) for channel in gone}
        effects: list[MarketEffect] = []
        for channel, since in self._missing.items():
            if now.monotonic_ms - since < ENDED_MS or core.books.in_use(channel):
                continue
            for lane in core.books.forget_ended(channel):
                effects.append(Delete(Table.BUYER_LANE, lane_key(channel, lane.lane)))
                core.unconfirmed.get(lane.node, {}).pop((channel, lane.lane), None)
                if buyer_debt(lane):
                    core.backoff.left_owing(lane.provider, core.ledger.ledger_time())
        return effects

    def _fill_up(self, facts: ChannelFacts) -> list[MarketEffect]:
        core, policy = self._core, self._core.policy
        provider = AccountId(facts.payee)
        # [low] the next jobs would have to wait for the ledger
        if core.books.left(facts) * LOW_SHARE >= policy.channel_deposit:
            return []
        # [once] a funding of this provider's is under way
        if provider in core.funding:
            return []
        # [money] never the account's last: a job can still decide to take that
        if core.ledger.balance(core.own) < policy.channel_top_up or policy.channel_top_up == 0:
            return []
        core.funding[provider] = Funding(self._opening.deposits(provider))
        return [WantTransaction(ChannelTopUp(facts.channel, policy.channel_top_up), provider)]

    def _is_forgotten(self, facts: ChannelFacts, look: _Look, now: Now) -> bool:
        idle_ms = self._core.policy.channel_idle_ms
        return (
            idle_ms > 0
            and now.monotonic_ms - look.used_at >= idle_ms
            and facts.channel not in self._core.leaving
            and AccountId(facts.payee) not in self._core.funding
        )
