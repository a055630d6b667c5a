"""The seller's side of all jobs of this node.

Law: one input, one step: each method takes what happened and the time, changes the state, and returns the effects in
the order in which they must be carried out. Signatures are settled before anything gets here, and messages of one link
arrive in the order in which they were sent (or not at all); only BID, AGREEMENT and input may overtake each other.

    restore(lane_rows, row, now)                              once, before anything else
    start(now)                                                sets the timer of redemptions
    set_models(models)                                        what is sold from now on, and on which terms
    receive(peer, envelope, payload, envelope_bytes, now)     BID, AGREEMENT, VOUCHER, CANCELLATION
    receive_input(peer, job_input, now)                       a JobInput
    signed(envelope, payload, envelope_bytes, now)            own ACCEPTANCE, CHUNK, RECEIPT handed back
    work_prefilled(job, input_units, now)                     answers the first PullWork
    work_piece(job, payload, units, finish, now)              answers each later one
    work_failed(job, fault, reason, now)
    timer(key, now)                                           keys with room == "seller"
    link_up(peer, now, account), link_down(peer, now)
    compare(peer, buying, now)                                the peer's part of an OpenJobs
    housekeeping(now)                                         every second
    block_decided(now)                                        LedgerView shows a new block
    transaction_rejected(subject, reason, now, code)          a WantTransaction will not be taken
    redeem_now(channel, now)                                  the owner asks for it
"""

from collections.abc import Callable, Iterable

from protocol.market.comparison import SellerComparison
from protocol.market.ledger_view import ChannelFacts, LedgerView
from protocol.market.policies import SellerPolicy
from protocol.market.records import (
    JobRecord,
    ReceiptRecord,
    SellerLane,
    ended_by_restart,
    lane_key,
)
from protocol.market.redemption import Redeemable, Redemption
from protocol.market.requests import MarketEffect
from protocol.market.seller_books import SellerBooks
from protocol.market.seller_core import ROOM, SellerCore
from protocol.market.seller_delivery import Selling
from protocol.market.seller_intake import Intake
from protocol.market.seller_job import SALE_EXPIRIES, TAKES, TIME_LIMIT_OVER, Piece, SaleInput, SellerJob, SellerState
from protocol.market.seller_quoting import QUOTE_TIMER, Quoting
from protocol.messages.effects import Delete, Now, Put, Send, SetTimer, SignAndSend, Table, TimerKey
from protocol.messages.envelope import Envelope, envelope_id, open_as
from protocol.messages.kinds import MessageKind
from protocol.messages.market import (
    Acceptance,
    Agreement,
    Bid,
    Cancellation,
    Chunk,
    Failure,
    FaultKind,
    FinishReason,
    ModelOffer,
    Receipt,
    Voucher,
)
from protocol.messages.wire import Direct, JobInput, JobStanding
from protocol.primitives.codec import Message, decode, encode
from protocol.primitives.units import (
    AccountId,
    Amount,
    ChannelId,
    Hash,
    MessageId,
    MonotonicMs,
    NodeId,
)
from protocol.settlement.chunks import Progress

_REDEEM_TIMER = TimerKey(ROOM, "redeem")
_REDEEM_LOOK_MS_MAX = 60_000
_REDEEM_LOOK_MS_MIN = 1_000
"""Blocks may come every 20 ms; channels are not all looked through that often."""
_RESTARTED = "this node restarted while the job was under way"


class Seller:
    """Dispatches inputs to the steps of ``Intake``, ``Selling`` and ``Redemption``."""

    def __init__(
        self, own: AccountId, own_node: NodeId, ledger: LedgerView, policy: SellerPolicy | None = None
    ) -> None:
        self._core = SellerCore(own, own_node, ledger, policy or SellerPolicy())
        self._intake = Intake(self._core)
        self._selling = Selling(self._core)
        self._comparison = SellerComparison(self._core, self._intake)
        self._redemption = Redemption(self._core.books, self._core.policy)
        self._quoting = Quoting(self._core)
        self._to_tell: dict[NodeId, list[Failure]] = {}
        self._looked_at: MonotonicMs | None = None
        """When channels were last looked through for redemptions."""

    def set_models(self, models: Iterable[ModelOffer]) -> None:
        """What is sold from now on. Jobs under way go on by their agreements."""
        self._core.models = {served.model: served for served in models}

    def slots_free(self) -> int:
        """How many more jobs this node takes now."""
        return self._core.slots_free()

    def start(self, now: Now, secret: Hash | None = None) -> list[MarketEffect]:
        """Begin to look after redemptions. Without a ``secret``, random bytes of this process, no quote is sealed."""
        if secret is not None:
            self._quoting.start(secret)
        return [self._redeem_timer(now)]

    def receive(
        self, peer: NodeId, envelope: Envelope, payload: Message, envelope_bytes: bytes, now: Now
    ) -> list[MarketEffect]:
        """A buyer's statement."""
        signer = AccountId(envelope.sender)
        match payload:
            case Voucher():
                return self._selling.voucher(payload, signer, envelope_bytes, now)
            case Bid():
                return self._intake.bid(envelope_id(envelope), peer, payload, signer, envelope_bytes, now)
            case Agreement():
                return self._intake.agreement(envelope_id(envelope), peer, payload, signer, envelope_bytes, now)
            case Cancellation():
                job = self._core.jobs.get(payload.job)
                if job is None:
                    return self._intake.cancelled(payload.job, signer)
                if job.agreement.buyer != signer:
                    return []
                job.ending_bytes = envelope_bytes
                return self._selling.cancelled(job, payload.reason, now)
            case _:
                return []

    def bid_heard(self, bid_id: MessageId, bid: Bid, buyer: AccountId, now: Now) -> list[MarketEffect]:
        """A bid came by gossip, from an account that can pay it."""
        return self._quoting.heard(bid_id, bid, buyer, now)

    def receive_input(self, peer: NodeId, job_input: JobInput, now: Now) -> list[MarketEffect]:
        """The input of an agreement that came, or is about to."""
        return self._intake.job_input(peer, job_input, now)

    def signed(self, envelope: Envelope, payload: Message, envelope_bytes: bytes, now: Now) -> list[MarketEffect]:
        """A statement of our own, signed: kept for the receipt and for sending it again."""
        if not isinstance(payload, Acceptance | Chunk | Receipt):
            return []
        job = self._core.jobs.get(payload.job)
        if job is None:
            return []
        match payload:
            case Receipt():
                return self._selling.signed_receipt(job, envelope_bytes)
            case Chunk():
                if payload.index == job.progress.chunks - 1 and job.chunks_paid < job.progress.chunks:
                    job.unanswered.append(envelope_bytes)
            case Acceptance():
                job.acceptance_bytes = envelope_bytes
                job.unanswered.insert(0, envelope_bytes)
                # Nobody acts on an acceptance: a job's buyer waits for the chunk that follows.
                return [Send(job.agreement.buyer_node, Direct(envelope_bytes), patient=True)]
        return []

    def work_prefilled(self, job: MessageId, input_units: int, now: Now) -> list[MarketEffect]:
        """The worker has processed the input and metered it."""
        known = self._core.jobs.get(job)
        if known is None or SaleInput.PREFILLED not in TAKES[known.state]:
            return []
        self._quoting.job_prefilled(known, now)
        return self._selling.prefilled(known, input_units, now)

    def work_piece(
        self, job: MessageId, payload: bytes, units: int, finish: FinishReason, now: Now
    ) -> list[MarketEffect]:
        """The worker has one more piece of output: ``units`` of it since the last piece."""
        known = self._core.jobs.get(job)
        if known is None or SaleInput.PIECE not in TAKES[known.state]:
            return []
        self._quoting.job_advanced(job, units, finish is not FinishReason.NONE, now)
        return self._selling.piece(known, Piece(payload, units, finish), now)

    def work_failed(self, job: MessageId, fault: FaultKind, reason: str, now: Now) -> list[MarketEffect]:
        """The worker can't go on with a job."""
        known = self._core.jobs.get(job)
        if known is None or SaleInput.WORK_FAILED not in TAKES[known.state]:
            return []
        if fault is FaultKind.PROVIDER and known.out_of_time(now):
            fault, reason = FaultKind.USER, TIME_LIMIT_OVER  # the worker has the same limit
        return self._core.fail(known, fault, reason, now, ours=True)

    def timer(self, key: TimerKey, now: Now) -> list[MarketEffect]:
        """A deadline passed: the state's default outcome."""
        if key.room != ROOM:
            return []
        if key.name == _REDEEM_TIMER.name:
            return [*self._due_redemptions(now), self._redeem_timer(now)]
        job_id = MessageId(key.subject)
        if key.name == QUOTE_TIMER:
            return self._quoting.timer(job_id, now)
        if key.name == "hold":
            return self._intake.expired(job_id, now)
        job = self._core.jobs.get(job_id)
        if job is None:
            return []
        if now.monotonic_ms < job.deadline:
            return [SetTimer(key, job.deadline)]
        if job.gathering_since is not None and now.monotonic_ms < job.total_until:
            return self._selling.release_input(job, now)
        expiry = SALE_EXPIRIES[job.state]
        if expiry.ours and job.out_of_time(now):
            return self._core.fail(job, FaultKind.USER, TIME_LIMIT_OVER, now, ours=True)
        if expiry.ours:
            self._selling.missed(job, now)
        return self._core.fail(job, expiry.fault, expiry.reason, now, ours=expiry.ours)

    def link_up(self, peer: NodeId, now: Now, account: AccountId | None = None) -> list[MarketEffect]:
        """A link stands to whose node ``account`` says: say again what may have been lost with the last one."""
        effects: list[MarketEffect] = []
        for failure in self._to_tell.pop(peer, []):
            effects.append(SignAndSend(MessageKind.FAILURE, encode(failure), (peer,)))
        for job in self._core.jobs.values():
            if job.agreement.buyer_node == peer:
                effects.extend(Send(peer, Direct(sent)) for sent in job.unanswered)
        return [*effects, *self._comparison.link_up(peer), *self._quoting.link_up(peer, account, now)]

    def link_down(self, peer: NodeId, now: Now) -> list[MarketEffect]:
        """A link is lost: jobs on it run into their deadlines unless it comes back."""
        self._intake.forget_peer(peer)
        self._comparison.link_down(peer)
        self._quoting.link_down(peer)
        return []

    def compare(self, peer: NodeId, buying: tuple[JobStanding, ...], now: Now) -> list[MarketEffect]:
        """A buyer's node names the jobs that it has open with us."""
        return self._comparison.heard(peer, buying, now)

    def housekeeping(self, now: Now) -> list[MarketEffect]:
        """A second has passed: jobs that have been quiet are compared with their buyers'."""
        return self._comparison.due(now)

    def block_decided(self, now: Now) -> list[MarketEffect]:
        """Agreements that waited for the ledger are judged again; channels that are due are redeemed."""
        effects = self._intake.block_decided(now)
        if self._looked_at is None or now.monotonic_ms - self._looked_at >= _REDEEM_LOOK_MS_MIN:
            effects += self._due_redemptions(now)
        return effects

    def transaction_rejected(self, subject: bytes, reason: str, now: Now, code: str = "") -> list[MarketEffect]:
        """A redemption will not be taken: it is asked for again, how soon depends on why (``code``)."""
        channel = ChannelId(subject)
        again_at = self._redemption.rejected(channel, code, now)
        if again_at is not None and again_at <= now.monotonic_ms:
            return self.redeem_now(channel, now)
        return [SetTimer(_REDEEM_TIMER, min(again_at, self._redeem_timer(now).at))] if again_at is not None else []

    def redeem_now(self, channel: ChannelId, now: Now) -> list[MarketEffect]:
        """Redeem what waits on a channel, however little."""
        facts = self._core.ledger.channel(channel)
        return [*self._redemption.now(facts, now)] if facts is not None else []

    def redeemable(self, channel: ChannelId) -> Redeemable | None:
        """What waits on a channel; ``None`` when the ledger does not have it."""
        facts = self._core.ledger.channel(channel)
        return self._redemption.redeemable(facts) if facts is not None else None

    def job(self, job: MessageId) -> JobRecord | None:
        """One job under way."""
        known = self._core.jobs.get(job)
        return known.record() if known is not None else None

    def jobs(self) -> tuple[JobRecord, ...]:
        """Jobs under way, as their rows would be now."""
        return tuple(job.record() for job in self._core.jobs.values())

    @property
    def books(self) -> SellerBooks:
        """The best vouchers and what was worked for; to be read only."""
        return self._core.books

    def restore(
        self, lane_rows: Iterable[bytes], row: Callable[[Table, bytes], bytes | None], now: Now
    ) -> list[MarketEffect]:
        """Take up the books after a restart.

        A job that only waits for its final voucher goes on waiting. Others have failed: what was paid for output stays
        earned, what was paid for the input alone is owed. ``lane_rows`` are the values of ``Table.SELLER_LANE``;
        ``row`` reads one row of another table.
        """
        core = self._core
        lanes = [decode(value, SellerLane) for value in lane_rows]
        core.books = SellerBooks(lanes)
        self._redemption = Redemption(core.books, core.policy)
        effects: list[MarketEffect] = []
        for lane in lanes:
            stored = row(Table.RECEIPT, lane.pending_job) if lane.pending_job is not None else None
            if stored is not None:
                core.pending[(lane.channel, lane.lane)] = decode(stored, ReceiptRecord)
            if lane.job is None:
                continue
            if stored is not None and lane.pending_job == lane.job:
                effects.append(self._resume(lane.job, core.pending[(lane.channel, lane.lane)], lane, row, now))
            else:
                effects += self._fail_restored(lane, lane.job, row, now)
        return effects

    def _resume(
        self,
        job_id: MessageId,
        record: ReceiptRecord,
        lane: SellerLane,
        row: Callable[[Table, bytes], bytes | None],
        now: Now,
    ) -> MarketEffect:
        _, agreement = open_as(record.agreement, MessageKind.AGREEMENT)
        _, receipt = open_as(record.receipt, MessageKind.RECEIPT)
        assert isinstance(agreement, Agreement)
        assert isinstance(receipt, Receipt)
        job = SellerJob(job_id, agreement, record.agreement, record.bid, record.salt, record.input, now)
        job.acceptance_bytes = record.acceptance
        job.accepted_at = receipt.accepted_at
        job.state = SellerState.AWAIT_FINAL
        job.working = False
        job.progress = Progress(
            receipt.chunks,
            receipt.last_chunk,
            receipt.input_units,
            receipt.output_units,
            receipt.amount,
            receipt.finish,
        )
        job.paid = lane.paid
        job.chunks_paid = receipt.chunks - 1
        job.output = [record.output]
        job.unanswered = [record.last_chunk, record.receipt] if record.last_chunk else [record.receipt]
        if receipt.chunks == 1:  # nothing was answered yet
            job.unanswered.insert(0, record.acceptance)
        stored = row(Table.JOB, job_id)
        if stored is not None:
            before = decode(stored, JobRecord)
            job.history, job.model_name = list(before.history), before.model_name
        job.note(now.wall_ms, "resumed after a restart")
        job.deadline = job.deadline_of(job.state, now)
        self._core.jobs[job_id] = job
        return SetTimer(TimerKey(ROOM, "deadline", job_id), job.deadline)

    def _fail_restored(
        self, lane: SellerLane, job: MessageId, row: Callable[[Table, bytes], bytes | None], now: Now
    ) -> list[MarketEffect]:
        output_paid = lane.output_units > 0 or lane.position.sequence > lane.sequence_start + 1
        effects: list[MarketEffect] = [
            self._core.books.end(lane.channel, lane.lane, lane.paid if output_paid else Amount(0))
        ]
        failure = Failure(job, FaultKind.PROVIDER, lane.position.sequence - lane.sequence_start, "provider restarted")
        self._to_tell.setdefault(lane.node, []).append(failure)
        stored = row(Table.JOB, job)
        if stored is not None:
            record = decode(stored, JobRecord)
            failed = ended_by_restart(
                record, lane, SellerState.FAILED.value, FaultKind.PROVIDER, _RESTARTED, now.wall_ms
            )
            effects.append(Put(Table.JOB, job, encode(failed)))
        return effects

    def _due_redemptions(self, now: Now) -> list[MarketEffect]:
        core = self._core
        self._looked_at = now.monotonic_ms
        known: list[ChannelFacts] = []
        ended: list[MarketEffect] = []
        for channel in core.books.channels():
            facts = core.ledger.channel(channel)
            if facts is not None:
                known.append(facts)
                continue
            # Nothing can be redeemed on a channel that is no more: its lanes would stay for ever.
            for lane in core.books.forget_ended(channel):
                core.pending.pop((channel, lane.lane), None)
                core.unpaid.pop((channel, lane.lane), None)
                ended.append(Delete(Table.SELLER_LANE, lane_key(channel, lane.lane)))
        return [*ended, *self._redemption.due(now, tuple(known))]

    def _redeem_timer(self, now: Now) -> SetTimer:
        look_ms = max(1, min(_REDEEM_LOOK_MS_MAX, self._core.policy.redeem_age_ms // 4))
        return SetTimer(_REDEEM_TIMER, MonotonicMs(now.monotonic_ms + look_ms))
