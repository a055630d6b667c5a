"""What comes before a job is taken: bid, agreement and input, in any order, judged together.

Law: everything held here is bounded, by count, by bytes and by time, and no peer can fill it for others; what a lagging
ledger may cure waits for the next block, what nothing can cure is refused at once, with the fault named.
"""

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from protocol.market.events import SaleAccepted, SaleRefused
from protocol.market.matching import NO_FREE_SLOTS
from protocol.market.records import seller_debt
from protocol.market.requests import MarketEffect
from protocol.market.seller_core import ROOM, SellerCore
from protocol.market.seller_job import SellerJob
from protocol.market.terms import (
    TOO_MANY_WAIT,
    Proposal,
    TermsRefused,
    check_bid,
    check_channel,
    check_input,
    check_lane,
    check_pace,
    check_parties,
    check_service,
)
from protocol.messages.effects import (
    CancelTimer,
    Notify,
    Now,
    OpenWork,
    PullWork,
    Put,
    Send,
    SetTimer,
    SignAndSend,
    Table,
    TimerKey,
)
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Acceptance, Agreement, Bid, FaultKind, Refusal
from protocol.messages.wire import Direct, JobInput
from protocol.primitives.codec import encode
from protocol.primitives.limits import TEXT_BYTES_MAX
from protocol.primitives.units import AccountId, Amount, MessageId, MonotonicMs, NodeId

BIDS_HELD_MAX = 1024
"""Bids whose agreement has not come yet; 256 bytes each."""

ARRIVALS_MAX = 256
"""Agreements that wait for their input or their channel."""

EARLY_INPUTS_MAX = 16
"""Inputs that overtook their agreement: with 1 MiB each at most 16 MiB."""

EARLY_INPUTS_PER_PEER_MAX = 4


_TOO_MANY = TermsRefused(FaultKind.CAPACITY, TOO_MANY_WAIT)


class HeldBid(Struct, frozen=True):
    """A bid, who sent and who signed it, and its envelope."""

    peer: NodeId
    bid: Bid
    signer: AccountId
    envelope_bytes: bytes


class Arrival(Struct):
    """An agreement that is not decided yet."""

    job: MessageId
    peer: NodeId
    agreement: Agreement
    signer: AccountId
    envelope_bytes: bytes
    job_input: JobInput | None
    until: MonotonicMs


class Intake:
    """Steps before PREFILL."""

    def __init__(self, core: SellerCore) -> None:
        self._core = core
        self._bids: dict[MessageId, HeldBid] = {}
        self._arrivals: dict[MessageId, Arrival] = {}
        self._inputs: dict[tuple[NodeId, MessageId], JobInput] = {}

    def holds(self, job: MessageId) -> bool:
        """True while an agreement is not decided yet."""
        return job in self._arrivals

    def waiting(self) -> int:
        """Agreements that are not decided yet."""
        return len(self._arrivals)

    def bid(
        self, bid_id: MessageId, peer: NodeId, bid: Bid, signer: AccountId, envelope_bytes: bytes, now: Now
    ) -> list[MarketEffect]:
        """A bid came straight from its buyer. A full table loses the oldest bid of the peer that has most in it."""
        if len(self._bids) >= BIDS_HELD_MAX and bid_id not in self._bids:
            crowd, _ = _crowd(held.peer for held in self._bids.values())
            del self._bids[next(held_id for held_id, held in self._bids.items() if held.peer == crowd)]
        self._bids[bid_id] = HeldBid(peer, bid, signer, envelope_bytes)
        effects: list[MarketEffect] = []
        for arrival in tuple(self._arrivals.values()):
            if arrival.agreement.bid == bid_id:
                effects += self._consider(arrival, now)
        return effects

    def agreement(
        self, job: MessageId, peer: NodeId, agreement: Agreement, signer: AccountId, envelope_bytes: bytes, now: Now
    ) -> list[MarketEffect]:
        """An agreement came."""
        under_way = self._core.jobs.get(job)
        if under_way is not None:
            return [Send(peer, Direct(sent)) for sent in under_way.unanswered] if _is_buyer(under_way, peer) else []
        if job in self._arrivals:
            return []
        until = MonotonicMs(now.monotonic_ms + min(self._core.policy.hold_ms, agreement.accept_ms))
        arrival = Arrival(job, peer, agreement, signer, envelope_bytes, self._inputs.pop((peer, job), None), until)
        effects: list[MarketEffect] = []
        if len(self._arrivals) >= ARRIVALS_MAX:
            # No peer keeps others out: the one with most agreements here gives up its latest.
            crowd, size = _crowd(waiting.peer for waiting in self._arrivals.values())
            if size <= 1 + sum(waiting.peer == peer for waiting in self._arrivals.values()):
                return self._refuse(arrival, _TOO_MANY)
            latest = next(waiting for waiting in reversed(self._arrivals.values()) if waiting.peer == crowd)
            effects += [*self._settle(latest), *self._refuse(latest, _TOO_MANY)]
        self._arrivals[job] = arrival
        return [*effects, *self._consider(arrival, now)]

    def job_input(self, peer: NodeId, job_input: JobInput, now: Now) -> list[MarketEffect]:
        """An input came, before or after its agreement."""
        arrival = self._arrivals.get(job_input.job)
        if arrival is not None:
            if arrival.peer != peer or arrival.job_input is not None:
                return []
            arrival.job_input = job_input
            return self._consider(arrival, now)
        if job_input.job in self._core.jobs:
            return []
        of_peer = [key for key in self._inputs if key[0] == peer]
        if len(of_peer) >= EARLY_INPUTS_PER_PEER_MAX:
            del self._inputs[of_peer[0]]
        while len(self._inputs) >= EARLY_INPUTS_MAX:
            del self._inputs[next(iter(self._inputs))]
        self._inputs[(peer, job_input.job)] = job_input
        return []

    def forget_peer(self, peer: NodeId) -> None:
        """Its link is gone: inputs without an agreement go with it."""
        for key in tuple(self._inputs):
            if key[0] == peer:
                del self._inputs[key]

    def cancelled(self, job: MessageId, signer: AccountId) -> list[MarketEffect]:
        """The buyer has given up waiting."""
        arrival = self._arrivals.get(job)
        if arrival is None or arrival.signer != signer:
            return []
        return self._settle(arrival)

    def expired(self, job: MessageId, now: Now) -> list[MarketEffect]:
        """An arrival has waited long enough."""
        arrival = self._arrivals.get(job)
        return self._consider(arrival, now) if arrival is not None else []

    def block_decided(self, now: Now) -> list[MarketEffect]:
        """The ledger may have caught up."""
        effects: list[MarketEffect] = []
        for arrival in tuple(self._arrivals.values()):
            effects += self._consider(arrival, now)
        return effects

    def _consider(self, arrival: Arrival, now: Now) -> list[MarketEffect]:
        patient = now.monotonic_ms < arrival.until
        held = self._bids.get(arrival.agreement.bid)
        try:
            # Judged once, when all is here; what stays incomplete is judged by what there is.
            if held is not None and (arrival.job_input is not None or not patient):
                self._check(arrival, held, now)
            if held is not None and arrival.job_input is not None:
                return self._accept(arrival, held, arrival.job_input, now)
            refusal = TermsRefused(FaultKind.NETWORK, "bid or input did not come", may_wait=True)
        except TermsRefused as reason:
            refusal = reason
        if refusal.may_wait and patient:
            return [SetTimer(_hold_key(arrival), arrival.until)]
        return [*self._settle(arrival), *self._refuse(arrival, refusal)]

    def _check(self, arrival: Arrival, held: HeldBid, now: Now) -> None:
        """All checks in order, cheapest first. Raises ``TermsRefused``."""
        core, agreement = self._core, arrival.agreement
        proposal = Proposal(arrival.job, arrival.peer, agreement, arrival.signer, held.bid, held.signer)
        check_parties(proposal, core.own, core.own_node)
        check_bid(proposal, now, core.policy)
        served, quote = core.models.get(agreement.model), core.quotes.named_by(agreement, now)
        if served is not None and quote is not None:
            served = replace(served, prices=quote.prices)
        check_service(agreement, served, core.policy)
        kept = core.kept
        check_pace(
            agreement, kept.first_output_ms(agreement.model), kept.stall_ms(agreement.model, agreement.chunk_units)
        )
        # [CAPACITY] a slot is free, be it one that waits for this buyer
        if core.slots_unpromised() == 0 and (quote is None or not quote.slot_held):
            raise TermsRefused(FaultKind.CAPACITY, NO_FREE_SLOTS)
        lane = core.books.lane(agreement.channel, agreement.lane)
        # [USER] the lane was this buyer's before
        if lane is not None and lane.buyer != agreement.buyer:
            raise TermsRefused(FaultKind.USER, "channel is not between this buyer and this provider")
        check_lane(agreement, lane)
        facts = core.ledger.channel(agreement.channel)
        redeemed = facts.redeemed if facts is not None else ()
        check_channel(agreement, facts, core.books.reserved_elsewhere(agreement.channel, agreement.lane, redeemed))
        if arrival.job_input is not None:
            check_input(agreement, arrival.job_input)

    def _accept(self, arrival: Arrival, held: HeldBid, job_input: JobInput, now: Now) -> list[MarketEffect]:
        core, agreement = self._core, arrival.agreement
        job = SellerJob(
            arrival.job,
            agreement,
            arrival.envelope_bytes,
            held.envelope_bytes,
            job_input.salt,
            job_input.payload,
            now,
        )
        settled = self._settle(arrival)
        self._bids.pop(agreement.bid, None)  # whoever offers it here again sends it again
        if (quote := core.quotes.named_by(agreement, now)) is not None:
            core.quotes.used(quote, now)
        job.model_name = core.models[agreement.model].name
        core.jobs[job.job] = job
        core.pending.pop((agreement.channel, agreement.lane), None)
        core.unpaid.pop((agreement.channel, agreement.lane), None)
        job.note(now.wall_ms, "accepted")
        job.pulling = True
        acceptance = Acceptance(job.job, job.accepted_at)
        return [
            # The worker may begin while the promise goes to disk: it releases nothing by itself.
            OpenWork(
                job=job.job,
                model=agreement.model,
                payload=job_input.payload,
                chunk_units=agreement.chunk_units,
                output_units_max=agreement.output_units_max,
                seed=agreement.seed,
                temperature_milli=agreement.temperature_milli,
                deadline_ms=agreement.total_ms,
                buyer=agreement.buyer,
            ),
            PullWork(job.job),
            core.books.begin(agreement, job.job),
            Put(Table.JOB, job.job, encode(job.record())),
            *settled,
            SignAndSend(MessageKind.ACCEPTANCE, encode(acceptance)),
            SetTimer(TimerKey(ROOM, "deadline", job.job), job.deadline),
            Notify(SaleAccepted(job.job, agreement.buyer, agreement.model, agreement.price_ceiling)),
            core.take_slot(),
        ]

    def _settle(self, arrival: Arrival) -> list[MarketEffect]:
        self._arrivals.pop(arrival.job, None)
        return [CancelTimer(_hold_key(arrival))]

    def _refuse(self, arrival: Arrival, refused: TermsRefused) -> list[MarketEffect]:
        agreement = arrival.agreement
        last_voucher: bytes | None = None
        debt = Amount(0)
        lane = self._core.books.lane(agreement.channel, agreement.lane)
        if refused.books and lane is not None:
            last_voucher = lane.voucher or None
            debt = seller_debt(lane)
        reason = refused.reason[:TEXT_BYTES_MAX]
        refusal = Refusal(arrival.job, refused.fault, reason, last_voucher, debt)
        return [
            SignAndSend(MessageKind.REFUSAL, encode(refusal), (arrival.peer,)),
            Notify(SaleRefused(arrival.job, arrival.signer, refused.fault, reason)),
        ]


def _crowd(peers: Iterable[NodeId]) -> tuple[NodeId, int]:
    """The peer that occurs most often, the first one of equals, and how often it does."""
    counts: dict[NodeId, int] = {}
    for peer in peers:
        counts[peer] = counts.get(peer, 0) + 1
    crowd = max(counts, key=counts.__getitem__)
    return crowd, counts[crowd]


def _is_buyer(job: SellerJob, peer: NodeId) -> bool:
    return job.agreement.buyer_node == peer


def _hold_key(arrival: Arrival) -> TimerKey:
    return TimerKey(ROOM, "hold", arrival.job)
