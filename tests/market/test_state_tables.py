"""Every state of both machines times everything that can happen: only what the tables say, and money always right."""

from collections.abc import Callable
from itertools import product

import pytest
from msgspec.structs import replace

from protocol.market.buyer_job import EXPIRIES, HEARD, LASTS, TRANSITIONS, BuyerState, Payout
from protocol.market.events import JobCancelled, JobDelivered, JobFailed, JobFinished, SaleEnded
from protocol.market.records import SellerLane, buyer_debt, seller_debt
from protocol.market.seller_job import SALE_EXPIRIES, SALE_LASTS, SALES, TAKES, Earning, SaleInput, SellerState
from protocol.messages.effects import TimerKey
from protocol.messages.kinds import MessageKind
from protocol.messages.market import (
    Acceptance,
    Cancellation,
    Chunk,
    Failure,
    FaultKind,
    FinishReason,
    Receipt,
    Refusal,
    Voucher,
)
from protocol.messages.wire import JobStanding
from protocol.primitives.codec import Message
from protocol.primitives.units import Amount, ChannelId, DurationMs, Hash, Lane, MessageId, SequenceNumber, WorkUnits
from protocol.settlement.accumulator import EMPTY_ROOT
from protocol.settlement.pricing import amount_due
from tests.market.test_failover import refuse_all
from tests.market.town import PRICES, Town, Worker, envelope_of, request

PREFILL, WHOLE = amount_due(PRICES, 10, 0), amount_due(PRICES, 10, 25)
STRANGE = MessageId(bytes(32))
ENDS = (JobFinished, JobDelivered, JobFailed, JobCancelled)


def test_every_state_that_is_no_end_has_a_deadline_an_outcome_and_a_way_on() -> None:
    live = {state for state, leads_to in TRANSITIONS.items() if leads_to}
    assert set(EXPIRIES) == set(LASTS) == live
    assert set(HEARD) <= live
    sold = {state for state, leads_to in SALES.items() if leads_to}
    assert set(SALE_EXPIRIES) == set(SALE_LASTS) == set(TAKES) == sold


# The buyer's side


def deaf_to(town: Town, *kinds: type[Message]) -> None:
    town.on_send = lambda sender, payload: not isinstance(payload, kinds)


def buyer_in(state: BuyerState) -> Town:
    """A request that stands in a state, and in which nothing more happens by itself."""
    town = Town()
    wanted = request(choose_ms=DurationMs(3_000))
    match state:
        case BuyerState.AUCTIONING | BuyerState.CHOOSING:
            if state is BuyerState.AUCTIONING:
                wanted = request(auction_ms=DurationMs(2_000))
            town.buyer.book = type(town.buyer.book)()
            town.buyer.buyer._core.order_book = town.buyer.book
        case BuyerState.CONNECTING:
            town.unreachable.add(town.seller.node)
        case BuyerState.OFFERED:
            deaf_to(town, Acceptance)
        case BuyerState.PREFILLING:
            deaf_to(town, Chunk)
        case BuyerState.STREAMING:
            town.seller.worker = Worker(silent_from=2)
        case BuyerState.SETTLING:
            deaf_to(town, Receipt)
        case _:
            assert state is BuyerState.OPENING_CHANNEL
    town.start(wanted)
    if state is BuyerState.OPENING_CHANNEL:
        while [choice for choice in town.busy() if choice != town.decide]:
            town.busy()[0]()
    else:
        town.run()
    [record] = town.buyer.buyer.jobs()
    assert record.state == state.value
    return town


def statements(town: Town) -> dict[str, tuple[MessageKind, Message]]:
    """What a provider can say about the job, each as it would be right in some state."""
    job = next(iter(town.watch.agreements), STRANGE)
    agreement = town.watch.agreements.get(job)
    delivered = town.watch.delivered.get(job, {})
    [record] = town.buyer.buyer.jobs()
    attempt = town.buyer.buyer._core.by_job[job].attempt if agreement is not None else None
    last = attempt.progress.last_chunk if attempt is not None else Hash(job)
    units = 10 * record.chunks
    chunk = Chunk(
        job,
        record.chunks,
        last,
        WorkUnits(10),
        WorkUnits(units),
        amount_due(PRICES, 10, units),
        FinishReason.NONE,
        b"next" if record.chunks else b"",
    )
    said: dict[str, tuple[MessageKind, Message]] = {
        "acceptance": (MessageKind.ACCEPTANCE, Acceptance(job, town.now.wall_ms)),
        "chunk": (MessageKind.CHUNK, chunk),
        "dear chunk": (MessageKind.CHUNK, replace(chunk, due=Amount(chunk.due + 1))),
        "old chunk": (MessageKind.CHUNK, delivered.get(0, chunk)),
    }
    for fault in FaultKind:
        name = fault.name.lower()
        said[f"refusal {name}"] = (MessageKind.REFUSAL, Refusal(job, fault, "no", None, Amount(0)))
        said[f"failure {name}"] = (MessageKind.FAILURE, Failure(job, fault, 0, "no more"))
    if agreement is not None:
        receipt = Receipt(
            job=job,
            bid=agreement.bid,
            buyer=agreement.buyer,
            provider=agreement.provider,
            model=agreement.model,
            runtime_build=agreement.runtime_build,
            settings=agreement.settings,
            input_commitment=agreement.input_commitment,
            output_commitment=Hash(bytes(32)),
            input_units=WorkUnits(10),
            output_units=WorkUnits(25),
            chunks=4,
            last_chunk=Hash(bytes(32)),
            amount=Amount(WHOLE),
            finish=FinishReason.STOP,
            channel=agreement.channel,
            lane=agreement.lane,
            accepted_at=town.now.wall_ms,
            finished_at=town.now.wall_ms,
        )
        said["false receipt"] = (MessageKind.RECEIPT, receipt)
    return said


STATEMENTS = (
    "acceptance",
    "chunk",
    "dear chunk",
    "old chunk",
    "false receipt",
    *(f"refusal {fault.name.lower()}" for fault in FaultKind),
    *(f"failure {fault.name.lower()}" for fault in FaultKind),
)
HAPPENINGS: dict[str, Callable[[Town], None]] = {
    "cancel": lambda town: town.do(town.buyer, town.buyer.buyer.cancel(request().request, "enough", town.now)),
    "link up": lambda town: town.do(town.buyer, town.buyer.buyer.link_up(town.seller.node, town.now)),
    "link down": lambda town: town.do(town.buyer, town.buyer.buyer.link_down(town.seller.node, town.now)),
    "block": lambda town: town.do(town.buyer, town.buyer.buyer.block_decided(town.now)),
    "offer": lambda town: town.do(town.buyer, town.buyer.buyer.book_changed(town.now)),
    "housekeeping": lambda town: town.do(town.buyer, town.buyer.buyer.housekeeping(town.now)),
    "funding refused": lambda town: town.do(
        town.buyer, town.buyer.buyer.transaction_rejected(town.seller.account, "no", town.now)
    ),
    "early timer": lambda town: town.do(
        town.buyer, town.buyer.buyer.timer(TimerKey("buyer", "deadline", request().request), town.now)
    ),
    "comparison": lambda town: town.do(
        town.buyer, town.buyer.buyer.compare(town.seller.node, (_standing(STRANGE, 0),), town.now)
    ),
}
BUYER_STATES = tuple(EXPIRIES)


def _standing(job: MessageId, chunks: int) -> JobStanding:
    return JobStanding(job, ChannelId(bytes(32)), Lane(0), chunks, SequenceNumber(0))


def ended_as(town: Town) -> BuyerState:
    """The state in which the request has just ended."""
    [end] = [event for event in town.buyer.events if isinstance(event, ENDS)]
    return BuyerState.DELIVERED if isinstance(end, JobDelivered) else BuyerState.FAILED


def ends_right(town: Town) -> None:
    """Whatever happened: the request ends once, with a reason, and both books say the same."""
    town.on_send = None
    for _ in range(4):
        town.run()
        town.wait(700_000)
    town.run()
    assert town.buyer.buyer.jobs() == ()
    assert town.seller.seller.jobs() == ()
    [end] = [event for event in town.buyer.events if isinstance(event, ENDS)]
    if not isinstance(end, JobFinished):
        assert end.reason
    promised = max(
        (voucher.cumulative for lane in town.watch.vouchers.values() for voucher in lane.values()), default=0
    )
    assert end.paid == promised
    for bought in town.buyer.buyer.books.lanes():
        sold = town.seller.seller.books.lane(bought.channel, bought.lane)
        assert sold is None or sold.position.cumulative <= bought.position.cumulative


@pytest.mark.parametrize(("state", "said"), list(product(BUYER_STATES, STATEMENTS)), ids=str)
def test_buyer_listens_in_each_state_to_what_the_table_says_and_to_nothing_else(state: BuyerState, said: str) -> None:
    town = buyer_in(state)
    found = statements(town).get(said)
    if found is None:
        assert state not in HEARD, "before an agreement there is nothing to receipt"
        return
    kind, payload = found
    [before] = town.buyer.buyer.jobs()
    envelope, opened, envelope_bytes = envelope_of(town.seller, kind, payload)
    if isinstance(payload, Chunk):
        town.watch.delivered.setdefault(payload.job, {}).setdefault(payload.index, payload)
    effects = town.buyer.buyer.receive(town.seller.node, envelope, opened, envelope_bytes, town.now)
    after = town.buyer.buyer.jobs()
    if type(payload) not in HEARD.get(state, ()):
        assert (effects, after) == ([], (before,))
        return
    town.do(town.buyer, effects)
    now = BuyerState(after[0].state) if after else ended_as(town)
    assert now is state or now in TRANSITIONS[state]
    ends_right(town)


@pytest.mark.parametrize(("state", "happens"), list(product(BUYER_STATES, HAPPENINGS)), ids=str)
def test_whatever_else_happens_in_a_state_the_request_ends_right(state: BuyerState, happens: str) -> None:
    town = buyer_in(state)
    HAPPENINGS[happens](town)
    after = town.buyer.buyer.jobs()
    if after:
        now = BuyerState(after[0].state)
        assert now is state or now in TRANSITIONS[state]
    ends_right(town)


@pytest.mark.parametrize("state", BUYER_STATES, ids=str)
def test_default_payout_of_each_state_is_what_the_table_says_to_the_unit(state: BuyerState) -> None:
    town = buyer_in(state)
    [record] = town.buyer.buyer.jobs()
    job = town.buyer.buyer._core.requests[request().request]
    town.wait(job.deadline - town.now.monotonic_ms)
    [lost] = [event for event in town.buyer.events if isinstance(event, JobFailed | JobDelivered)]
    assert lost.reason
    owed = sum(buyer_debt(lane) for lane in town.buyer.buyer.books.lanes() if lane.job is None)
    match EXPIRIES[state].payout:
        case Payout.NOTHING:
            assert (lost.paid, owed) == (0, 0)
        case Payout.VERIFIED:
            assert (lost.paid, owed) == (amount_due(PRICES, 10, 10 * (record.chunks - 1)), 0)
        case Payout.WHOLE:
            assert (lost.paid, owed) == (WHOLE, 0)


def test_default_payout_after_the_input_alone_is_a_debt() -> None:
    town = Town()
    town.seller.worker = Worker(silent_from=1)
    town.start(request())
    town.run()
    town.wait(30_000)
    [lost] = [event for event in town.buyer.events if isinstance(event, JobFailed)]
    assert (lost.paid, town.buyer.buyer.books.debt(town.seller.account)) == (PREFILL, PREFILL)


# The seller's side


def seller_in(state: SellerState) -> Town:
    """A sale that stands in a state, its buyer silent."""
    town = Town()
    match state:
        case SellerState.PREFILL:
            town.seller.worker = Worker(silent_from=0)
        case SellerState.WORKING:
            town.seller.worker = Worker(silent_from=2)
        case SellerState.AWAIT_VOUCHER:
            deaf_to(town, Voucher)
        case _:
            assert state is SellerState.AWAIT_FINAL
            town.on_send = lambda sender, payload: not (isinstance(payload, Voucher) and payload.receipts_count)
    town.start(request())
    town.run()
    [record] = town.seller.seller.jobs()
    assert record.state == state.value
    town.buyer.timers.clear()
    return town


def lanes_sold(town: Town) -> list[SellerLane]:
    books = town.seller.seller.books
    return [lane for channel in books.channels() for lane in books.lanes_of(channel)]


def sale_input(town: Town, happens: SaleInput) -> None:
    [job] = town.watch.agreements
    seller = town.seller
    agreement = town.watch.agreements[job]
    match happens:
        case SaleInput.VOUCHER:
            lane = seller.seller.books.lane(agreement.channel, agreement.lane)
            assert lane is not None
            due = town.watch.chunks[job][max(town.watch.chunks[job])].due if town.watch.chunks.get(job) else Amount(0)
            sequence = SequenceNumber(lane.position.sequence + 1)
            voucher = Voucher(agreement.channel, seller.account, agreement.lane, sequence, due, EMPTY_ROOT, 0)
            town.hand(seller, town.buyer.node, envelope_of(town.buyer, MessageKind.VOUCHER, voucher)[2])
        case SaleInput.CANCELLATION:
            cancellation = Cancellation(job, 0, "enough")
            town.hand(seller, town.buyer.node, envelope_of(town.buyer, MessageKind.CANCELLATION, cancellation)[2])
        case SaleInput.PREFILLED:
            town.do(seller, seller.seller.work_prefilled(job, 10, town.now))
        case SaleInput.PIECE:
            town.do(seller, seller.seller.work_piece(job, b"piece", 10, FinishReason.NONE, town.now))
        case SaleInput.WORK_FAILED:
            town.do(seller, seller.seller.work_failed(job, FaultKind.PROVIDER, "worker died", town.now))


@pytest.mark.parametrize(("state", "happens"), list(product(SALE_EXPIRIES, SaleInput)), ids=str)
def test_seller_takes_in_each_state_what_the_table_says_and_nothing_else(
    state: SellerState, happens: SaleInput
) -> None:
    town = seller_in(state)
    [before] = town.seller.seller.jobs()
    books = [
        lane for channel in town.seller.seller.books.channels() for lane in town.seller.seller.books.lanes_of(channel)
    ]
    sale_input(town, happens)
    after = town.seller.seller.jobs()
    if happens not in TAKES[state]:
        assert (after, lanes_sold(town)) == ((before,), books)
    else:
        ended = [event for event in town.seller.events if isinstance(event, SaleEnded)]
        now = SellerState(after[0].state if after else ended[0].state)
        assert now is state or now in SALES[state]
    town.on_send = None
    for _ in range(3):
        town.run()
        town.wait(700_000)
    assert town.seller.seller.jobs() == ()
    assert town.seller.seller.slots_free() == town.seller.seller_policy.slots
    assert town.seller.work == {}
    assert len([event for event in town.seller.events if isinstance(event, SaleEnded)]) == 1


@pytest.mark.parametrize("state", SALE_EXPIRIES, ids=str)
def test_default_earning_of_each_sale_is_what_the_table_says_to_the_unit(state: SellerState) -> None:
    town = seller_in(state)
    [record] = town.seller.seller.jobs()
    deadline = town.seller.seller._core.jobs[record.job].deadline
    town.wait(deadline - town.now.monotonic_ms)
    [ended] = [event for event in town.seller.events if isinstance(event, SaleEnded)]
    [channel] = town.seller.seller.books.channels()
    [lane] = town.seller.seller.books.lanes_of(channel)
    match SALE_EXPIRIES[state].earning:
        case Earning.NOTHING:
            assert (ended.earned, lane.earned, seller_debt(lane)) == (0, 0, 0)
        case Earning.PAID:
            paid = amount_due(PRICES, 10, 10)
            assert (ended.earned, lane.earned, seller_debt(lane)) == (paid, paid, 0)
        case Earning.RELEASED:
            last = town.watch.chunks[record.job][record.chunks - 1].due
            before = town.watch.chunks[record.job][record.chunks - 2].due if record.chunks > 1 else 0
            assert (ended.earned, lane.earned, seller_debt(lane)) == (before, last, 0)


def test_faults_of_each_kind_count_against_a_provider_as_the_kind_says() -> None:
    for fault, demoted, asked in (
        (FaultKind.USER, False, 1),
        (FaultKind.PROVIDER, True, 2),
        (FaultKind.CAPACITY, False, 2),
        (FaultKind.NETWORK, True, 2),
    ):
        town = Town(sellers=2)
        refuse_all(town, town.sellers, fault, "no")
        town.start(request())
        town.run()
        assert len(town.watch.agreements) == asked
        assert bool(town.buyer.buyer.demoted(town.now)) is demoted
        [lost] = [event for event in town.buyer.events if isinstance(event, JobFailed)]
        assert (lost.first_fault, lost.first_reason) == (fault, "no")
