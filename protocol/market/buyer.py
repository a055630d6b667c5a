"""The buyer's side of all jobs of this node.

Law: one input, one step: each method takes what happened and the time, changes the state, and returns the effects in
the order in which they must be carried out. Signatures are settled before anything gets here, and messages of one link
arrive in the order in which they were sent (or not at all).

    start_job(request, now)                                   raises RequestInvalid
    cancel(request, reason, now)                              unknown or finished requests: no effects
    receive(peer, envelope, payload, envelope_bytes, now)     ACCEPTANCE, REFUSAL, CHUNK, RECEIPT, FAILURE
    signed(envelope, payload, envelope_bytes, now)            own BID, AGREEMENT, VOUCHER, CANCELLATION handed back
    timer(key, now)                                           keys with room == "buyer"
    link_up(peer, now), link_down(peer, now)
    unreachable(peer, now)                                    a dial of this node gave no link
    compare(peer, selling, now)                               the peer's part of an OpenJobs
    housekeeping(now)                                         every second
    block_decided(now)                                        LedgerView shows a new block
    transaction_rejected(subject, reason, now, code)          a WantTransaction will not be taken
    book_changed(now)                                         the order book took an offer
    restore(lane_rows, row, now)                              once, before anything else
"""

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from protocol.market.agreement import JobRequest
from protocol.market.awaited_receipts import AwaitedReceipts
from protocol.market.buyer_auction import Bidding
from protocol.market.buyer_books import BuyerBooks
from protocol.market.buyer_channels import ChannelCare
from protocol.market.buyer_core import ROOM, BuyerCore, timer_key
from protocol.market.buyer_delivery import Delivery
from protocol.market.buyer_job import (
    EXPIRIES,
    HEARD,
    TIME_LIMIT_OVER,
    BuyerJob,
    BuyerState,
    RequestInvalid,
    check_request,
)
from protocol.market.buyer_opening import Opening
from protocol.market.comparison import BuyerComparison
from protocol.market.ledger_view import LedgerView
from protocol.market.order_book import OrderBook
from protocol.market.policies import BuyerPolicy
from protocol.market.records import (
    BACKOFF_KEY,
    WAITING_PREFIX,
    BuyerLane,
    JobRecord,
    ReceiptRecord,
    ended_by_restart,
    waiting_ended,
)
from protocol.market.requests import MarketEffect
from protocol.messages.effects import Delete, Dial, Now, Put, Send, SetTimer, SignAndSend, Table, TimerKey
from protocol.messages.envelope import Envelope, envelope_id
from protocol.messages.kinds import MessageKind
from protocol.messages.market import (
    Acceptance,
    Agreement,
    Bid,
    Cancellation,
    Chunk,
    Failure,
    FaultKind,
    Quote,
    QuoteSeal,
    Receipt,
    Refusal,
    Voucher,
)
from protocol.messages.wire import Direct, JobInput, JobStanding
from protocol.primitives.codec import Message, decode, encode
from protocol.primitives.units import AccountId, ChannelId, Hash, MessageId, MonotonicMs, NodeId

REPLICA_OF = "replica of"
"""Beginning of the first cause in the timeline of a request that belongs to a group; the group's id follows."""

_OPENING = (BuyerState.CHOOSING, BuyerState.CONNECTING, BuyerState.OPENING_CHANNEL)


class Buyer:
    """Dispatches inputs to the steps of ``Opening`` and ``Delivery``."""

    def __init__(
        self,
        own: AccountId,
        own_node: NodeId,
        ledger: LedgerView,
        order_book: OrderBook,
        policy: BuyerPolicy | None = None,
    ) -> None:
        self._core = BuyerCore(own, own_node, ledger, order_book, policy or BuyerPolicy())
        self._opening = Opening(self._core)
        self._awaited = AwaitedReceipts(self._core)
        self._delivery = Delivery(self._core, self._opening, self._awaited)
        self._bidding = Bidding(self._core, self._opening)
        self._comparison = BuyerComparison(self._core, self._awaited)
        self._care = ChannelCare(self._core, self._opening)

    def start_job(self, request: JobRequest, now: Now) -> list[MarketEffect]:
        """Begin a request. Raises ``RequestInvalid`` when it can't be one, or too many are under way."""
        core = self._core
        check_request(request)
        if request.request in core.requests:
            raise RequestInvalid("a request with this id is under way")
        if len(core.requests) >= core.policy.jobs_max:
            raise RequestInvalid(f"{core.policy.jobs_max} requests are under way already")
        job = BuyerJob(request, now)
        core.requests[request.request] = job
        asked = "requested" if request.group is None else f"{REPLICA_OF} {request.group.hex()}"
        job.note(now.wall_ms, job.state.value, asked)
        return self._bidding.begin(job, now)

    def cancel(self, request: Hash, reason: str, now: Now) -> list[MarketEffect]:
        """The asker wants no more. Too late once everything was delivered: then the job ends as it would have."""
        job = self._core.requests.get(request)
        if job is None or job.state is BuyerState.SETTLING:
            return []
        return self._core.finish_cancelled(job, reason, now)

    def receive(
        self, peer: NodeId, envelope: Envelope, payload: Message, envelope_bytes: bytes, now: Now
    ) -> list[MarketEffect]:
        """A provider's statement; outside an auction only the agreement's provider is listened to."""
        match payload:
            case QuoteSeal():
                return self._bidding.sealed(AccountId(envelope.sender), payload, now)
            case Quote():
                return self._bidding.revealed(AccountId(envelope.sender), payload, now)
            case _:
                pass
        if not isinstance(payload, Acceptance | Refusal | Chunk | Receipt | Failure):
            return []
        job = self._core.by_job.get(payload.job)
        if job is None and payload.job in self._awaited:
            return self._late(payload, envelope, envelope_bytes, now)
        if job is None or (attempt := job.attempt) is None or AccountId(envelope.sender) != attempt.agreement.provider:
            return []
        if type(payload) not in HEARD[job.state]:
            return []
        match payload:
            case Chunk():
                return self._delivery.chunk(job, attempt, payload, envelope, envelope_bytes, now)
            case Acceptance():
                return self._delivery.accepted(job, attempt, payload, envelope_bytes, now)
            case Receipt():
                return self._delivery.receipt(job, attempt, payload, envelope, envelope_bytes, now)
            case Refusal():
                attempt.ending_bytes = envelope_bytes
                return self._delivery.refused(job, attempt, payload, now)
            case Failure():
                attempt.ending_bytes = envelope_bytes
                return self._delivery.failed(job, payload, now)

    def _late(
        self,
        payload: Acceptance | Refusal | Chunk | Receipt | Failure,
        envelope: Envelope,
        envelope_bytes: bytes,
        now: Now,
    ) -> list[MarketEffect]:
        """A statement about a job that only waits for its receipt."""
        match payload:
            case Receipt():
                return self._awaited.received(payload, envelope, envelope_bytes, now)
            case Failure():
                return self._awaited.provider_failed(payload, AccountId(envelope.sender))
            case _:
                return []

    def signed(self, envelope: Envelope, payload: Message, envelope_bytes: bytes, now: Now) -> list[MarketEffect]:
        """A statement of our own, signed: kept for the receipt and for sending it again."""
        match payload:
            case Bid():
                bidder = self._core.by_bid.get(envelope_id(envelope))
                if bidder is not None:
                    bidder.bid_bytes = envelope_bytes
                    return self._bidding.bid_signed(bidder, now)
            case Agreement():
                job = self._core.by_job.get(envelope_id(envelope))
                if job is not None and job.attempt is not None:
                    job.attempt.agreement_bytes = envelope_bytes
            case Voucher():
                return self._sealed(payload, envelope_bytes)
            case _:
                pass
        return []

    def timer(self, key: TimerKey, now: Now) -> list[MarketEffect]:
        """A deadline passed: the state's default outcome."""
        job = self._core.requests.get(Hash(key.subject))
        if key.room != ROOM or job is None:
            return []
        if now.monotonic_ms < job.due_at():
            return [SetTimer(key, job.due_at())]
        if now.monotonic_ms < job.deadline:
            return self._delivery.link_stays_lost(job, now)
        expiry = EXPIRIES[job.state] if now.monotonic_ms < job.total_until else TIME_LIMIT_OVER
        if job.state is BuyerState.AUCTIONING:
            return self._bidding.window_over(job, now)
        if job.state is BuyerState.CHOOSING:
            return self._opening.look_again(job, now)
        if job.state not in _OPENING:
            return self._delivery.expired(job, expiry, now)
        assert job.match is not None
        if job.state is BuyerState.OPENING_CHANNEL:
            self._core.funding.pop(job.match.live.account, None)
        if now.monotonic_ms >= job.total_until:
            return self._core.finish_failed(job, expiry.fault, expiry.reason, now)
        return self._opening.unavailable(job, expiry.fault, expiry.reason, now)

    def link_up(self, peer: NodeId, now: Now) -> list[MarketEffect]:
        """A link stands: go on where one was missing, and say again what may have been lost with the last one."""
        core = self._core
        core.linked[peer] = None
        effects = self._comparison.link_up(peer)
        for cancellation in core.to_cancel.pop(peer, []):
            effects.append(SignAndSend(MessageKind.CANCELLATION, encode(cancellation), (peer,)))
        for channel, number in core.unconfirmed.get(peer, {}):
            lane = core.books.lane(channel, number)
            voucher = core.books.last_voucher(lane) if lane is not None and lane.job is None else None
            if voucher is not None and core.ledger.channel(channel) is not None:
                effects.append(core.send_voucher(voucher, peer))
        for job in tuple(core.requests.values()):
            if job.attempt is not None and job.attempt.node == peer:
                job.lost_until = None
                effects += self._say_again(job)
                job.deadline = job.deadline_of(job.state, core.policy, now)
            elif job.state is BuyerState.CONNECTING and job.match is not None and job.match.live.offer.node == peer:
                effects += self._opening.advance(job, now)
        return effects

    def link_down(self, peer: NodeId, now: Now) -> list[MarketEffect]:
        """A link is lost: jobs on it get a short time to have it back."""
        core = self._core
        core.linked.pop(peer, None)
        self._comparison.link_down(peer)
        effects: list[MarketEffect] = []
        for job in tuple(core.requests.values()):
            if job.attempt is None or job.attempt.node != peer or job.match is None:
                continue
            if not effects:
                effects.append(Dial(peer, job.match.live.offer.addresses))
            job.lost_since = now.monotonic_ms
            job.lost_until = MonotonicMs(now.monotonic_ms + core.policy.failover_ms)
            effects.append(SetTimer(timer_key(job), job.due_at()))
        return effects

    def unreachable(self, peer: NodeId, now: Now) -> list[MarketEffect]:
        """A node was dialed in vain: whoever waits for it looks for somebody else at once, if anybody would do."""
        effects: list[MarketEffect] = []
        for job in tuple(self._core.requests.values()):
            if job.match is None or job.match.live.offer.node != peer or peer in self._core.linked:
                continue
            if job.attempt is not None and job.lost_until is not None:
                effects += self._delivery.link_stays_lost(job, now)
            elif job.state is BuyerState.CONNECTING and self._opening.another(job, now):
                expiry = EXPIRIES[BuyerState.CONNECTING]
                effects += self._opening.unavailable(job, expiry.fault, expiry.reason, now)
        return effects

    def compare(self, peer: NodeId, selling: tuple[JobStanding, ...], now: Now) -> list[MarketEffect]:
        """A provider's node names the jobs that it has open with us."""
        return self._comparison.heard(peer, selling, now)

    def housekeeping(self, now: Now) -> list[MarketEffect]:
        """A second has passed: quiet jobs are compared with their providers', channels are looked after."""
        effects = [*self._comparison.due(now), *self._awaited.due(now), *self._care.due(now)]
        return [*effects, *self._core.backoff.unsaved(now)]

    def block_decided(self, now: Now) -> list[MarketEffect]:
        """Go on with jobs whose channel the ledger may have funded."""
        core = self._core
        for provider, funding in tuple(core.funding.items()):
            if self._opening.deposits(provider) != funding.deposits:
                del core.funding[provider]
        effects: list[MarketEffect] = []
        for job in tuple(core.requests.values()):
            if job.state is BuyerState.OPENING_CHANNEL:
                effects += self._opening.advance(job, now)
        return effects

    def transaction_rejected(self, subject: bytes, reason: str, now: Now, code: str = "") -> list[MarketEffect]:
        """The ledger will not take a channel's funding: the jobs that wait for it look elsewhere."""
        core = self._core
        if core.leaving.pop(ChannelId(subject), None) is not None:
            return []
        provider = AccountId(subject)
        if core.funding.pop(provider, None) is None:
            return []
        effects: list[MarketEffect] = []
        for job in tuple(core.requests.values()):
            waits = job.state is BuyerState.OPENING_CHANNEL and job.match is not None
            if waits and job.match is not None and job.match.live.account == provider:
                effects += self._opening.unavailable(job, FaultKind.USER, f"channel not funded: {reason}", now)
        return effects

    def book_changed(self, now: Now) -> list[MarketEffect]:
        """An offer came: requests that wait for one look again, the oldest first."""
        effects: list[MarketEffect] = []
        invited: dict[MessageId, int] = {}
        for job in tuple(self._core.requests.values()):
            if job.state is BuyerState.CHOOSING:
                effects += self._opening.offer_came(job, invited, now)
        return effects

    def restore(
        self,
        lane_rows: Iterable[bytes],
        row: Callable[[Table, bytes], bytes | None],
        now: Now,
        standing: Iterable[tuple[bytes, bytes]] = (),
    ) -> list[MarketEffect]:
        """Take up the books after a restart. Jobs that were under way have failed; what was promised stays promised.

        ``lane_rows`` are the values of ``Table.BUYER_LANE``; ``row`` reads one row of another table; ``standing`` are
        the rows of ``Table.STANDING``.
        """
        core = self._core
        lanes = [decode(value, BuyerLane) for value in lane_rows]
        core.books = BuyerBooks(lanes)
        effects: list[MarketEffect] = []
        for lane in lanes:
            if lane.position.sequence:
                core.unconfirmed.setdefault(lane.node, {})[(lane.channel, lane.lane)] = None
            effects += self._restore_receipt(lane, row)
            if lane.job is not None and not self._awaited.restore(lane, row, now):
                effects.append(core.books.end(lane.channel, lane.lane, owed_back=False))
                stored = row(Table.JOB, lane.job)
                if stored is not None:
                    effects.append(_failed_by_restart(decode(stored, JobRecord), lane, now))
                core.to_cancel.setdefault(lane.node, []).append(Cancellation(lane.job, 0, "buyer restarted"))
                effects.append(Dial(lane.node, ()))
        for key, value in standing:
            if key == BACKOFF_KEY:
                core.backoff.restore(value, now)
            elif key.startswith(WAITING_PREFIX):
                ended = waiting_ended(decode(value, JobRecord), now.wall_ms)
                effects += [Put(Table.JOB, ended.request, encode(ended)), Delete(Table.STANDING, key)]
        return effects

    def jobs(self) -> tuple[JobRecord, ...]:
        """Requests under way, as their rows would be now."""
        return tuple(job.record(self._core.own) for job in self._core.requests.values())

    def attempt(self, job: MessageId) -> JobRecord | None:
        """The attempt under way by its agreement."""
        known = self._core.by_job.get(job)
        return known.record(self._core.own) if known is not None else None

    def job(self, request: Hash) -> JobRecord | None:
        """One request under way."""
        job = self._core.requests.get(request)
        return job.record(self._core.own) if job is not None else None

    def chooses(self, request: Hash) -> bool:
        """True while a request waits for an offer."""
        job = self._core.requests.get(request)
        return job is not None and job.state is BuyerState.CHOOSING

    @property
    def own(self) -> AccountId:
        """The account that buys."""
        return self._core.own

    @property
    def policy(self) -> BuyerPolicy:
        """How this node buys."""
        return self._core.policy

    @property
    def books(self) -> BuyerBooks:
        """What was promised on every lane; to be read only."""
        return self._core.books

    def demoted(self, now: Now) -> tuple[AccountId, ...]:
        """Providers that failed lately and rank last."""
        return self._core.backoff.demoted(now)

    def _say_again(self, job: BuyerJob) -> list[MarketEffect]:
        attempt = job.attempt
        assert attempt is not None
        if job.state is BuyerState.OFFERED:
            if not (job.bid_bytes and attempt.agreement_bytes):
                return []
            return [
                Send(attempt.node, Direct(attempt.agreement_bytes)),
                Send(attempt.node, Direct(job.bid_bytes)),
                Send(attempt.node, JobInput(attempt.job, job.request.salt, job.asked.request.payload)),
            ]
        lane = self._core.books.lane(attempt.agreement.channel, attempt.agreement.lane)
        voucher = self._core.books.last_voucher(lane) if lane is not None else None
        return [self._core.send_voucher(voucher, attempt.node)] if voucher is not None else []

    def _sealed(self, voucher: Voucher, envelope_bytes: bytes) -> list[MarketEffect]:
        proving = self._core.voucher_signed(voucher, envelope_bytes)
        record = self._core.unsealed.get((voucher.channel, voucher.lane))
        if record is None or voucher.receipts_count != record.proof.index + 1:
            return proving
        del self._core.unsealed[(voucher.channel, voucher.lane)]
        return [*proving, Put(Table.RECEIPT, record.job, encode(replace(record, final_voucher=envelope_bytes)))]

    def _restore_receipt(self, lane: BuyerLane, row: Callable[[Table, bytes], bytes | None]) -> list[MarketEffect]:
        stored = row(Table.RECEIPT, lane.last_receipt) if lane.last_receipt is not None else None
        record = decode(stored, ReceiptRecord) if stored is not None else None
        voucher = self._core.books.last_voucher(lane)
        if record is None or record.final_voucher or voucher is None:
            return []
        self._core.unsealed[(lane.channel, lane.lane)] = record
        return [self._core.send_voucher(voucher, lane.node)]


def _failed_by_restart(record: JobRecord, lane: BuyerLane, now: Now) -> Put:
    reason, asked = "this node restarted while the job was under way", record.history[0].cause if record.history else ""
    if asked.startswith(REPLICA_OF):
        reason += f"; it was a {asked}"
    failed = ended_by_restart(record, lane, BuyerState.FAILED.value, FaultKind.NETWORK, reason, now.wall_ms)
    return Put(Table.JOB, record.job, encode(failed))
