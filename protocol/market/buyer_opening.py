"""The buyer's way to an agreement: choose a provider, reach it, fund a channel, make the offer.

Law: nothing is deposited for a provider that cannot be reached, and all attempts of a request together stay under its
ceiling: each one is offered only what the earlier ones left.
"""

from protocol.market.agreement import make_agreement, make_bid
from protocol.market.buyer_core import BuyerCore, Funding, timer_key
from protocol.market.buyer_job import Attempt, BuyerJob, BuyerState, clip
from protocol.market.continuation import Asked, Continuity, asked_behind, continuity_of
from protocol.market.ledger_view import ChannelFacts
from protocol.market.matching import NO_FREE_SLOTS, Match, NoMatch, Want, match_offer
from protocol.market.offer_search import best_offer, quote
from protocol.market.records import attempt_key
from protocol.market.requests import MarketEffect, WantTransaction
from protocol.messages.effects import Dial, Now, Put, Send, SetTimer, SignAndSend, Table
from protocol.messages.envelope import message_id
from protocol.messages.kinds import MessageKind
from protocol.messages.market import FaultKind
from protocol.messages.transactions import ChannelOpen, ChannelTopUp
from protocol.messages.wire import Direct, JobInput
from protocol.primitives.codec import encode
from protocol.primitives.units import AccountId, Amount, ChannelId, DurationMs, Lane, MessageId, MonotonicMs


class Opening:
    """Steps from CHOOSING to OFFERED."""

    def __init__(self, core: BuyerCore) -> None:
        self._core = core

    def choose(self, job: BuyerJob, now: Now) -> list[MarketEffect]:
        """Take the best offer that is left, or wait for one, or fail with the reasons."""
        core, request = self._core, job.request
        want = self.want(job, now)
        match = best_offer(core.order_book, want, now) if now.monotonic_ms < job.total_until else None
        if match is not None:
            return self._take(job, match, now)
        lacks_room = self._lacks_room(job, want)
        until = self._waits_until(job, lacks_room, now)
        if now.monotonic_ms < until:
            return self._wait(job, lacks_room, until, now)
        if job.first_error is not None:
            fault, reason = job.first_error
            return core.finish_failed(job, fault, f"{reason}; no other provider would do", now)
        refused = quote(core.order_book, want, now, whole_book=False).refused
        return core.finish_failed(job, FaultKind.CAPACITY, _why_nobody(refused, request.provider), now)

    def _take(self, job: BuyerJob, match: Match, now: Now) -> list[MarketEffect]:
        job.match = match
        # Whatever state the last provider left it in: this one is dialed and funded anew, in its own time.
        job.state = BuyerState.CHOOSING
        return self.advance(job, now)

    def _lacks_room(self, job: BuyerJob, want: Want) -> bool:
        """True if somebody would do but for a free slot: somebody who said so, or whose offer does."""
        if job.full:
            return True
        offered = self._core.order_book.offers_for(job.request.model)
        return any(
            isinstance(answer := match_offer(live, want), NoMatch) and answer.reason == NO_FREE_SLOTS
            for live in offered
            if not live.offer.slots_free
        )

    def _waits_until(self, job: BuyerJob, lacks_room: bool, now: Now) -> MonotonicMs:
        """How long a request that nobody takes stays: room comes back, so a want of it is waited for by itself."""
        until = job.choose_until
        if lacks_room and job.request.patient:
            job.room_until = job.room_until or MonotonicMs(now.monotonic_ms + self._core.policy.patience_ms)
            until = max(until, job.room_until)
        return min(until, job.total_until)

    def _wait(self, job: BuyerJob, lacks_room: bool, until: MonotonicMs, now: Now) -> list[MarketEffect]:
        """Nobody would do now. Whoever had no room is asked again after a while, each time a longer one."""
        core = self._core
        cause = "waiting for a free slot" if lacks_room else "waiting for an offer that would do"
        effects = core.enter(job, BuyerState.CHOOSING, cause, now)
        job.deadline = until
        if job.full:
            pause_ms = min(core.policy.full_ms << min(job.refusals, 16), core.policy.full_ms_max)
            job.deadline = MonotonicMs(min(until, now.monotonic_ms + pause_ms))
        return [*effects, SetTimer(timer_key(job), job.deadline), *core.keep_waiting(job)]

    def look_again(self, job: BuyerJob, now: Now) -> list[MarketEffect]:
        """A wait is over: those that had no room may have some now."""
        self._readmit(job, tuple(job.full))
        return self.choose(job, now)

    def offer_came(self, job: BuyerJob, invited: dict[MessageId, int], now: Now) -> list[MarketEffect]:
        """A waiting request takes an offer that would do now, unless requests before it take all of its slots.

        ``invited`` counts them by offer, over all requests that look at the same time: more would only be refused.
        """
        core, waited_for = self._core, tuple(job.full)
        offers = {account: core.order_book.offer_of(account) for account in job.full}
        anew = (account for account, live in offers.items() if live is not None and live.id != job.full[account])
        self._readmit(job, tuple(anew))
        while (match := best_offer(core.order_book, self.want(job, now), now)) is not None:
            live = match.live
            count = invited.get(live.id, 0)
            # A price that a quote betters may come with a slot that waits for this buyer.
            if count < max(live.offer.slots_free, int(match.terms != live.id)):
                invited[live.id] = count + 1
                return self._take(job, match, now)
            job.excluded = (*job.excluded, live.account)
            job.full[live.account] = live.id
        return [] if tuple(job.full) == waited_for else self.choose(job, now)

    @staticmethod
    def _readmit(job: BuyerJob, accounts: tuple[AccountId, ...]) -> None:
        job.excluded = tuple(account for account in job.excluded if account not in accounts)
        for account in accounts:
            del job.full[account]

    def behind(self, job: BuyerJob) -> Asked | None:
        """What the next provider would be asked for if the attempt ended now; ``None`` if there can be no next one."""
        attempt = job.attempt
        if attempt is None or not attempt.delivered or attempt.continuity is Continuity.STARTS_AGAIN:
            return job.asked
        if attempt.continuity is Continuity.ENDS:
            return None
        offered = self._core.order_book.offers_for(job.request.model)
        served = [live.model(job.request.model) for live in offered]
        widest = max((one.input_units_max for one in served if one is not None), default=0)
        output = b"".join(attempt.output)
        return asked_behind(job.asked, job.request, attempt.job, attempt.progress, output, widest)

    def another(self, job: BuyerJob, now: Now) -> bool:
        """True if somebody else would take the job over now."""
        if job.state is BuyerState.SETTLING:
            return False  # everything is here but the receipt, which nobody else can give
        asked = self.behind(job)
        if asked is None or job.match is None or job.exhausted(self._core.policy):
            return False
        want = self._want(job, asked, (*job.excluded, job.match.live.account), now)
        return best_offer(self._core.order_book, want, now) is not None

    def want(self, job: BuyerJob, now: Now) -> Want:
        """The request as the order book is asked for it."""
        return self._want(job, job.asked, job.excluded, now)

    def _want(self, job: BuyerJob, asked: Asked, excluded: tuple[AccountId, ...], now: Now) -> Want:
        core, request = self._core, asked.request
        backoff = core.backoff
        owe = (*core.books.debtors(), *backoff.owing(core.ledger.ledger_time()))
        last = dict.fromkeys((*backoff.demoted(now), *backoff.crowded(now), *owe))
        return Want(
            buyer=core.own,
            model=request.model,
            input_units_max=request.input_units_max,
            output_units_max=request.output_units_max,
            input_units_expected=request.input_units_expected or request.input_units_max,
            output_units_expected=request.output_units_expected or request.output_units_max,
            price_ceiling=Amount(request.price_ceiling - job.paid()),
            unique=request.unique,
            region=request.region,
            isolation=request.isolation,
            provider=request.provider,
            excluded=excluded,
            demoted=tuple(last),
            quoted=job.auction.quoted(now) if job.auction is not None else (),
            weights=core.policy.weights,
            region_preferred=core.policy.region_preferred,
        )

    def advance(self, job: BuyerJob, now: Now) -> list[MarketEffect]:
        """Go on with the chosen provider as far as links and ledger allow."""
        core, match = self._core, job.match
        assert match is not None
        offer = match.live.offer
        if offer.node not in core.linked:
            if job.state is BuyerState.CONNECTING:
                return []
            effects = core.enter(job, BuyerState.CONNECTING, "no link to the provider yet", now)
            return [*effects, Dial(offer.node, offer.addresses), *core.keep_waiting(job)]
        if job.auction is not None and job.auction.lapsed(match.terms, now):
            return self.choose(job, now)  # the ledger took longer than the quote lasts: by posted prices, then
        lane = self._find_lane(job, match.live.account, match.price_at_limits)
        if lane is not None:
            return self._offer(job, *lane, now)
        return self._fund(job, match.live.account, match.price_at_limits, now)

    def unavailable(self, job: BuyerJob, fault: FaultKind, reason: str, now: Now) -> list[MarketEffect]:
        """The chosen provider can't be had, for a reason on our own side: try the others."""
        assert job.attempt is None
        assert job.match is not None
        job.first_error = job.first_error or (fault, reason)
        job.excluded = (*job.excluded, job.match.live.account)
        if job.state is BuyerState.CONNECTING:
            self._core.backoff.failed(job.match.live.account, now)
        event = self._core.attempt_event(job, fault, reason)
        return [event, *self.choose(job, now)]

    def _find_lane(self, job: BuyerJob, provider: AccountId, ceiling: int) -> tuple[ChannelId, Lane] | None:
        for channel, reconciled in job.reconciled[-1:]:
            known = self._core.ledger.channel(channel)
            fits = known is not None and not known.closing and channel not in self._core.leaving
            fits = fits and known is not None and known.payee == provider
            if fits and known is not None and self._core.books.lane_fits(known, reconciled, ceiling):
                return channel, reconciled
        free: tuple[ChannelId, Lane] | None = None
        for facts in self._open_channels(provider):
            lane = self._core.books.free_lane(facts, ceiling)
            if lane is not None:
                # What a provider owes is set against its next job, whatever channel it owes it on.
                if self._core.books.owes(facts.channel, lane):
                    return facts.channel, lane
                free = free or (facts.channel, lane)
        return free

    def _open_channels(self, provider: AccountId) -> tuple[ChannelFacts, ...]:
        between = self._core.ledger.channels_between(self._core.own, provider)
        return tuple(facts for facts in between if not facts.closing and facts.channel not in self._core.leaving)

    def deposits(self, provider: AccountId) -> Amount:
        """What all open channels to a provider hold."""
        return Amount(sum(facts.deposit for facts in self._open_channels(provider)))

    def _fund(self, job: BuyerJob, provider: AccountId, ceiling: Amount, now: Now) -> list[MarketEffect]:
        core = self._core
        wanted: list[MarketEffect] = []
        if provider not in core.funding:
            action = self._funding_action(provider, ceiling)
            if isinstance(action, str):
                return self.unavailable(job, FaultKind.USER, action, now)
            core.funding[provider] = Funding(self.deposits(provider))
            wanted.append(WantTransaction(action, provider))
        if job.state is BuyerState.OPENING_CHANNEL:
            return wanted
        entered = core.enter(job, BuyerState.OPENING_CHANNEL, "the channel needs a deposit", now)
        return [*entered, *wanted, *core.keep_waiting(job)]

    def _funding_action(self, provider: AccountId, ceiling: Amount) -> ChannelOpen | ChannelTopUp | str:
        core = self._core
        balance = core.ledger.balance(core.own)
        for facts in self._open_channels(provider):
            # A lane for a job that costs nothing: is there one at all?
            if core.books.free_lane(facts, min(0, core.books.left(facts))) is None:
                continue
            least = Amount(ceiling - core.books.left(facts))
            if balance < least:
                return f"balance of {balance} base units does not cover a top-up of {least}"
            return ChannelTopUp(facts.channel, Amount(min(balance, max(least, core.policy.channel_top_up))))
        if balance < ceiling or balance == 0:
            return f"balance of {balance} base units does not cover a deposit of {ceiling}"
        return ChannelOpen(provider, Amount(min(balance, max(ceiling, core.policy.channel_deposit))))

    def _offer(self, job: BuyerJob, channel: ChannelId, lane: Lane, now: Now) -> list[MarketEffect]:
        core, request, match = self._core, job.asked.request, job.match
        assert match is not None
        assert job.paid() + match.price_at_limits <= request.price_ceiling, "attempts together stay under the ceiling"
        messages: list[MarketEffect] = []
        node = match.live.offer.node
        if not job.bid_payload:
            job.bid_payload = encode(make_bid(job.request, now.wall_ms))
            job.bid = message_id(MessageKind.BID, core.own, job.bid_payload)
            core.by_bid[job.bid] = job
        if job.bid_bytes:
            messages.append(Send(node, Direct(job.bid_bytes)))
        else:
            messages.append(SignAndSend(MessageKind.BID, job.bid_payload, (node,)))
        terms = core.books.terms(channel, lane)
        agreement = make_agreement(
            request,
            match,
            bid=job.bid,
            buyer=core.own,
            buyer_node=core.own_node,
            lane=terms,
            chunk_units=request.chunk_units,
            total_ms=DurationMs(max(1, job.total_until - now.monotonic_ms)),
            now=now.wall_ms,
            continues=job.asked.continues,
        )
        payload = encode(agreement)
        continuity = continuity_of(match.served.runtime)
        attempt = Attempt(message_id(MessageKind.AGREEMENT, core.own, payload), agreement, continuity)
        job.attempt = attempt
        job.attempts += 1
        core.by_job[attempt.job] = job
        lane_put = core.books.begin(terms, agreement.provider, node, attempt.job, agreement.price_ceiling)
        behind = f", behind {job.asked.units} units" if job.asked.continues is not None else ""
        entered = core.enter(job, BuyerState.OFFERED, f"agreement sent, attempt {job.attempts}{behind}", now)
        return [
            lane_put,
            *core.waits_no_more(job),
            core.put_record(job),
            Put(Table.JOB_OF_REQUEST, attempt_key(request.request, job.attempts), attempt.job),
            SignAndSend(MessageKind.AGREEMENT, payload, (node,)),
            *messages,  # behind the agreement: a bid that nobody waits for is of no use to a provider
            Send(node, JobInput(attempt.job, request.salt, request.payload)),
            *entered,
        ]


def _why_nobody(refused: tuple[NoMatch, ...], provider: AccountId | None) -> str:
    if not refused:
        return "no live offer serves this model"
    reasons: dict[str, int] = {}
    for refusal in refused:
        if provider is None or refusal.account == provider:
            reasons[refusal.reason] = reasons.get(refusal.reason, 0) + 1
    if not reasons:
        return "the provider that was asked for has no live offer of this model"
    counted = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return clip("no offer would do: " + "; ".join(f"{count} × {reason}" for reason, count in counted))
