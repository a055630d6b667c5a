"""Bad people on either side: after everything is redeemed and closed, both balances are right to the unit."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from protocol.market.events import JobDelivered, JobFailed, JobFinished, SaleAccepted, SaleEnded, SaleRefused
from protocol.market.records import SellerLane, buyer_debt, seller_debt
from protocol.market.requests import WantTransaction
from protocol.messages.effects import Table
from protocol.messages.kinds import MessageKind
from protocol.messages.market import (
    Acceptance,
    Bid,
    Cancellation,
    Chunk,
    FaultKind,
    Receipt,
    Voucher,
)
from protocol.messages.transactions import ChannelRedeem
from protocol.messages.wire import JobInput
from protocol.primitives.codec import Message, decode
from protocol.primitives.units import Amount, ChannelId, Hash, Lane, SequenceNumber, TimestampMs, WorkUnits
from protocol.settlement.accumulator import EMPTY_ROOT
from protocol.settlement.pricing import amount_due
from protocol.settlement.vouchers import SequenceNotRising
from tests.market.town import PRICES, Carried, Person, Town, Worker, envelope_of, request

START = 1_000_000_000
PREFILL, WHOLE = amount_due(PRICES, 10, 0), amount_due(PRICES, 10, 25)
CHUNKS_DUE = (PREFILL, amount_due(PRICES, 10, 10), amount_due(PRICES, 10, 20), WHOLE)
"""What the job has cost with each of its chunks."""


def settle(town: Town) -> None:
    """Time passes, everybody redeems what they hold, channels close, deposits come back."""
    town.on_send = None
    for _ in range(3):
        town.run()
        town.wait(700_000)
    town.run()
    for seller in town.sellers:
        for channel in seller.seller.books.channels():
            town.do(seller, seller.seller.redeem_now(channel, town.now))
    town.decide()
    for channel in tuple(town.ledger.channels):
        close(town, channel)
    assert sum(town.ledger.balances.values()) == START * len(town.buyers), "no credit appears or vanishes"


def close(town: Town, channel: ChannelId) -> None:
    """The challenge window is over: what nobody redeemed is the payer's again."""
    facts = town.ledger.channels.pop(channel)
    left = facts.deposit - sum(position.cumulative for position in facts.redeemed)
    assert left >= 0
    town.ledger.balances[facts.payer] += left


def assert_balances(town: Town, sold: int) -> None:
    """The one seller has exactly this, the one buyer the rest."""
    settle(town)
    assert town.ledger.balances.get(town.seller.account, 0) == sold
    assert town.ledger.balances[town.buyer.account] == START - sold


def debts(town: Town) -> tuple[int, int]:
    """What the seller owes, by the buyer's books and by its own."""
    bought = sum(buyer_debt(lane) for lane in town.buyer.buyer.books.lanes())
    books = town.seller.seller.books
    return bought, sum(seller_debt(lane) for channel in books.channels() for lane in books.lanes_of(channel))


# Providers


@pytest.mark.parametrize("chunks", [0, 1, 2, 3])
@pytest.mark.parametrize("how", ["stalls", "dies", "vanishes"])
def test_provider_that_takes_the_money_and_stops_has_what_it_delivered(chunks: int, how: str) -> None:
    town = Town()
    town.seller.worker = Worker(fails_at=chunks) if how == "dies" else Worker(silent_from=chunks)
    town.start(request())
    town.run()
    if how == "vanishes":
        town.unreachable.add(town.seller.node)
        town.unlink(town.buyer, town.seller)
        town.wait(3_000)
    else:
        town.wait(60_000)
    town.run()
    [lost] = [event for event in town.buyer.events if isinstance(event, JobFailed)]
    paid = CHUNKS_DUE[chunks - 1] if chunks else 0
    assert lost.paid == paid
    town.unreachable.clear()
    assert_balances(town, paid)
    # Who took the price of the input alone owes it; that its own deadline passed, too, it knows but by then.
    assert debts(town)[0] == (PREFILL if chunks == 1 else 0)
    assert debts(town)[1] in (debts(town)[0], 0)


@pytest.mark.parametrize("silent", [Acceptance, Receipt])
def test_provider_that_is_silent_where_no_money_moves_gains_nothing_by_it(silent: type[Message]) -> None:
    town = Town()
    town.on_send = lambda sender, payload: not isinstance(payload, silent)
    town.start(request())
    town.run()
    town.wait(700_000)
    assert_balances(town, 0 if silent is Acceptance else WHOLE)
    assert len(town.buyer.told(JobFailed if silent is Acceptance else JobDelivered)) == 1


@pytest.mark.parametrize("index", [0, 1, 2, 3])
@pytest.mark.parametrize("more", [1, 10_000])
def test_overcharging_on_any_chunk_gets_what_was_delivered_before_it(index: int, more: int) -> None:
    town = Town()

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Chunk) and payload.index == index:
            lie = envelope_of(sender, MessageKind.CHUNK, replace(payload, due=Amount(payload.due + more)))[2]
            town.links[(sender.node, town.buyer.node)].append(lie)
            return False
        return True

    town.on_send = heard
    town.start(request())
    town.run()
    [lost] = [event for event in town.buyer.events if isinstance(event, JobFailed)]
    paid = CHUNKS_DUE[index - 1] if index else 0
    assert (lost.paid, lost.first_fault) == (paid, FaultKind.PROVIDER)
    assert_balances(town, paid)


@pytest.mark.parametrize("index", [1, 2])
def test_metering_more_units_than_were_agreed_for_a_chunk_gets_nothing_for_it(index: int) -> None:
    town = Town()

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Chunk) and payload.index == index:
            units = WorkUnits(payload.output_units + 1)
            lie = replace(payload, output_units=units, due=amount_due(PRICES, 10, units))
            town.links[(sender.node, town.buyer.node)].append(envelope_of(sender, MessageKind.CHUNK, lie)[2])
            return False
        return True

    town.on_send = heard
    town.start(request())
    town.run()
    assert_balances(town, CHUNKS_DUE[index - 1])


def test_old_voucher_redeems_nothing_after_a_better_one() -> None:
    town = Town()
    vouchers: list[bytes] = []

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Voucher):
            vouchers.append(envelope_of(sender, MessageKind.VOUCHER, payload)[2])
        return True

    town.on_send = heard
    town.start(request())
    town.run()
    [channel] = town.ledger.channels
    town.do(town.seller, town.seller.seller.redeem_now(channel, town.now))
    town.decide()
    for voucher in vouchers:
        again = WantTransaction(ChannelRedeem(channel, (voucher,)), channel)
        town.ledger.waiting.append((town.seller.account, again))
        with pytest.raises(SequenceNotRising):
            town.ledger.decide()
        town.ledger.waiting.clear()
    assert_balances(town, WHOLE)


def statements_of(town: Town, kind: type[Message]) -> list[Message]:
    """Statements of a kind, as they are signed from now on."""
    kept: list[Message] = []

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, kind):
            kept.append(payload)
        return True

    town.on_send = heard
    return kept


def test_receipt_of_an_earlier_job_is_acknowledged_for_no_other() -> None:
    town = Town()
    receipts = statements_of(town, Receipt)
    town.start(request(1))
    town.run()
    [old] = receipts

    def replayed(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Receipt):
            job = payload.job
            for lie in (old, replace(old, job=job)):
                town.links[(sender.node, town.buyer.node)].append(envelope_of(sender, MessageKind.RECEIPT, lie)[2])
            return False
        return True

    town.on_send = replayed
    town.start(request(2))
    town.run()
    assert len(town.buyer.told(JobFinished)) == len(town.buyer.told(JobDelivered)) == 1
    assert [lane.position.receipts_count for lane in town.buyer.buyer.books.lanes()] == [1]
    # What was delivered is paid all the same; it is the receipt that is not acknowledged.
    assert_balances(town, 2 * WHOLE)


@pytest.mark.parametrize("first", ["good", "false"])
def test_two_receipts_for_one_job_are_never_both_acknowledged_and_pay_nothing_more(first: str) -> None:
    town = Town()

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Receipt):
            more = replace(payload, output_units=WorkUnits(30), amount=amount_due(PRICES, 10, 30))
            for said in (payload, more) if first == "good" else (more, payload):
                town.links[(sender.node, town.buyer.node)].append(envelope_of(sender, MessageKind.RECEIPT, said)[2])
            return False
        return True

    town.on_send = heard
    town.start(request())
    town.run()
    ended = JobFinished if first == "good" else JobDelivered
    assert len(town.buyer.told(ended)) == 1
    [lane] = town.buyer.buyer.books.lanes()
    assert lane.position.receipts_count == (1 if first == "good" else 0)
    assert_balances(town, WHOLE)


@pytest.mark.parametrize("times", [1, 3, 10])
def test_taking_chunk_0_and_dying_again_and_again_costs_one_chunk_0_in_all(times: int) -> None:
    town = Town()
    for number in range(1, times + 1):
        town.seller.worker = Worker(fails_at=1)
        town.start(request(number))
        town.run()
        assert debts(town) == (PREFILL, PREFILL)
    assert len(town.buyer.told(JobFailed)) == times
    assert town.buyer.buyer.books.debtors() == (town.seller.account,)
    assert_balances(town, PREFILL)


def disputing(town: Town, seller: Person) -> None:
    """Its worker dies after each input, and it says that it owes nothing."""
    seller.worker = Worker(fails_at=1)
    books = seller.seller.books
    for channel in books.channels():
        for lane in books.lanes_of(channel):
            if lane.job is None:
                books._keep(replace(lane, earned=lane.position.cumulative))


def test_provider_that_disputes_what_it_owes_gets_nothing_more_while_there_is_another_one() -> None:
    town = Town(sellers=2)
    for number in range(1, 9):
        for seller in town.sellers:
            seller.worker = Worker()
        disputing(town, town.seller)
        town.start(request(number))
        town.run()
        town.wait(20_000)
        town.publish()
    assert len(town.buyer.told(JobFinished)) == 8
    settle(town)
    other = town.sellers[1]
    assert town.ledger.balances[town.seller.account] == PREFILL
    assert town.ledger.balances[other.account] == 8 * WHOLE
    assert town.ledger.balances[town.buyer.account] == START - PREFILL - 8 * WHOLE


def test_provider_that_disputes_and_is_the_only_one_waits_twice_as_long_for_each_further_chunk_0() -> None:
    town = Town()
    paid = []
    for number in range(1, 200):
        disputing(town, town.seller)
        town.start(request(number))
        town.run()
        paid.append(sum(lane.position.cumulative for lane in town.buyer.buyer.books.lanes()))
        town.wait(10_000)
        town.publish()
    assert paid[0] == PREFILL
    # In half an hour: once for the first claim that is dropped, then after 15 s, 30 s, 60 s, …, 960 s.
    assert paid[-1] == 9 * PREFILL
    assert_balances(town, 9 * PREFILL)


def test_debt_is_worked_off_by_the_next_good_job_and_costs_nobody_anything() -> None:
    town = Town()
    for number in range(1, 4):
        town.seller.worker = Worker(fails_at=1)
        town.start(request(number))
        town.run()
    town.seller.worker = Worker()
    town.start(request(9))
    town.run()
    assert debts(town) == (0, 0)
    assert town.buyer.buyer.books.debtors() == ()
    assert_balances(town, WHOLE)


def test_jobs_side_by_side_lose_a_chunk_0_each_at_most_and_never_a_second_one() -> None:
    town = Town()
    for round_number in range(4):
        town.seller.worker = Worker(fails_at=1)
        for number in range(4):
            town.start(request(10 * round_number + number))
        town.run()
        assert debts(town) == (4 * PREFILL, 4 * PREFILL)
    assert_balances(town, 4 * PREFILL)


def test_who_owes_is_asked_last_until_it_is_worked_off() -> None:
    town = Town(sellers=2)
    for seller in town.sellers:
        seller.worker = Worker(fails_at=1)
    town.start(request(1))
    town.run()
    town.wait(1_000_000)  # what was forgotten with time is not what is owed
    owing = set(town.buyer.buyer.books.debtors())
    assert owing == {seller.account for seller in town.sellers}
    for seller in town.sellers:
        seller.worker = Worker()
    town.publish()
    town.start(request(2))
    town.run()
    [worked_off] = owing - set(town.buyer.buyer.books.debtors())
    for number in range(3, 8):
        town.start(request(number))
        town.run()
    asked = [agreement.provider for agreement in town.watch.agreements.values()][3:]
    assert set(asked) == {worked_off}


# Buyers


@pytest.mark.parametrize("sequence", [1, 2, 3, 4])
def test_buyer_that_withholds_a_voucher_has_one_chunk_unpaid_and_no_more(sequence: int) -> None:
    town = Town()
    town.on_send = lambda sender, payload: not (isinstance(payload, Voucher) and payload.sequence >= sequence)
    town.start(request())
    town.run()
    town.buyer.timers.clear()  # it is gone for good
    town.unreachable.add(town.buyer.node)
    town.unlink(town.buyer, town.seller)
    town.wait(60_000)
    [ended] = [event for event in town.seller.events if isinstance(event, SaleEnded)]
    paid = CHUNKS_DUE[sequence - 2] if sequence > 1 else 0
    assert ended.earned == paid
    released = max(chunk.due for chunks in town.watch.chunks.values() for chunk in chunks.values())
    assert released == CHUNKS_DUE[sequence - 1], "exactly one chunk is out and unpaid"
    assert_balances(town, paid)
    assert town.seller.seller.slots_free() == 4


def test_deposit_that_covers_one_job_is_never_spent_on_two_at_once() -> None:
    """Two lanes of one channel, each within the deposit, together above it: the second one gets no work."""
    town = Town()
    town.seller.worker = Worker(silent_from=1)
    town.start(request(1))
    town.run()
    [(job, first)] = town.watch.agreements.items()
    channel = first.channel
    tight = replace(town.ledger.channels[channel], deposit=Amount(2 * first.price_ceiling - 1))
    town.ledger.balances[town.buyer.account] += town.ledger.channels[channel].deposit - tight.deposit
    town.ledger.channels[channel] = tight
    second = replace(first, lane=Lane(1), seed=7)
    town.watch.agreements[town.job_of(town.buyer, second)] = second
    bid = decode(next(iter(bids_of(town))), Bid)
    town.hand(town.seller, town.buyer.node, envelope_of(town.buyer, MessageKind.BID, bid)[2])
    town.hand(town.seller, town.buyer.node, envelope_of(town.buyer, MessageKind.AGREEMENT, second)[2])
    job_input = JobInput(town.job_of(town.buyer, second), request(1).salt, request(1).payload)
    town.do(town.seller, town.seller.seller.receive_input(town.buyer.node, job_input, town.now))
    town.wait(5_000)
    [refused] = [event for event in town.seller.events if isinstance(event, SaleRefused)]
    assert "does not cover the ceiling" in refused.reason
    assert [event.job for event in town.seller.events if isinstance(event, SaleAccepted)] == [job]
    assert_balances(town, PREFILL)


def bids_of(town: Town) -> list[bytes]:
    """Payloads of the bids that the buyer's requests have made."""
    return [job.bid_payload for job in town.buyer.buyer._core.requests.values()]


def test_replayed_bid_agreement_and_input_get_no_second_job() -> None:
    town = Town()
    kept: list[Carried] = []
    town.start(request())
    while not kept:
        town.busy()[0]()
        queue = town.links.get((town.buyer.node, town.seller.node))
        kept = list(queue) if queue is not None and len(queue) == 3 else []
    town.run()
    assert len(town.buyer.told(JobFinished)) == 1
    for later in (0, 1_000, 3_600_000):
        town.wait(later)
        town.links[(town.buyer.node, town.seller.node)].extend(kept)
        town.run()
    assert len(town.seller.told(SaleAccepted)) == 1
    assert len(town.seller.told(SaleRefused)) == 3
    assert_balances(town, WHOLE)


def test_flood_of_bids_without_money_takes_no_slot_and_keeps_nobody_else_out() -> None:
    town = Town(buyers=2)
    poor = town.buyers[1]
    town.ledger.balances[poor.account] = 0
    town.ledger.balances[town.buyer.account] += START
    town.start(request(1))
    town.run()
    [agreement] = town.watch.agreements.values()
    town.link(poor, town.seller)
    for number in range(400):
        unique, until = Hash(number.to_bytes(32, "big")), TimestampMs(town.now.wall_ms + 60_000)
        bid = Bid(agreement.model, WorkUnits(10), WorkUnits(40), Amount(10**9), until, "none", 1, unique)
        town.hand(town.seller, poor.node, envelope_of(poor, MessageKind.BID, bid)[2])
        flood = replace(
            agreement, buyer=poor.account, buyer_node=poor.node, channel=ChannelId(number.to_bytes(32, "big")),
            seed=number, created_at=town.now.wall_ms, sequence_start=SequenceNumber(0), cumulative_start=Amount(0),
        )  # fmt: skip
        town.watch.agreements[town.job_of(poor, flood)] = flood
        town.hand(town.seller, poor.node, envelope_of(poor, MessageKind.AGREEMENT, flood)[2])
    assert town.seller.seller.slots_free() == 4
    town.start(request(2))
    town.run()
    assert len(town.buyer.told(JobFinished)) == 2
    town.wait(10_000)
    assert {event.buyer for event in town.seller.events if isinstance(event, SaleAccepted)} == {town.buyer.account}
    settle(town)
    assert town.ledger.balances[town.seller.account] == 2 * WHOLE
    assert town.ledger.balances[poor.account] == 0


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_buyer_that_closes_the_channel_under_way_pays_what_was_delivered_and_work_stops(chunks: int) -> None:
    town = Town()

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Chunk) and payload.index == chunks - 1:
            for channel, facts in town.ledger.channels.items():
                town.ledger.channels[channel] = replace(facts, closing=True)
        return True

    town.on_send = heard
    town.start(request())
    town.run()
    [ended] = [event for event in town.seller.events if isinstance(event, SaleEnded)]
    assert ended.reason == "the buyer has closed the channel"
    assert ended.earned == CHUNKS_DUE[chunks - 1]
    assert len(town.watch.chunks[next(iter(town.watch.agreements))]) == chunks
    [lost] = [event for event in town.buyer.events if isinstance(event, JobFailed)]
    assert (lost.fault, lost.paid) == (FaultKind.USER, CHUNKS_DUE[chunks - 1])
    town.wait(1_000)
    town.do(town.seller, town.seller.seller.block_decided(town.now))
    assert any(isinstance(wanted.action, ChannelRedeem) for _, wanted in town.ledger.waiting), "redeemed in time"
    assert_balances(town, CHUNKS_DUE[chunks - 1])


def test_cancelling_again_and_again_pays_each_time_what_was_delivered() -> None:
    town = Town()
    for number in range(1, 6):
        town.seller.worker = Worker(silent_from=2)
        town.start(request(number))
        town.run()
        town.do(town.buyer, town.buyer.buyer.cancel(request(number).request, "enough", town.now))
        town.run()
    assert debts(town) == (0, 0)
    assert_balances(town, 5 * CHUNKS_DUE[1])


def test_cancellation_that_claims_less_than_was_delivered_changes_no_book() -> None:
    town = Town()
    town.seller.worker = Worker(silent_from=3)
    town.start(request())
    town.run()
    [job] = town.watch.agreements
    false = envelope_of(town.buyer, MessageKind.CANCELLATION, Cancellation(job, 0, "nothing came"))[2]
    town.hand(town.seller, town.buyer.node, false)
    assert_balances(town, CHUNKS_DUE[2])


LIES: list[Callable[[Voucher], Voucher]] = [
    lambda voucher: replace(voucher, cumulative=Amount(voucher.cumulative - 1)),
    lambda voucher: replace(voucher, sequence=SequenceNumber(voucher.sequence + 7)),
    lambda voucher: replace(voucher, receipts_root=EMPTY_ROOT, receipts_count=9),
]


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("sequence", [2, 3])
def test_false_voucher_mid_stream_ends_the_job_with_one_chunk_at_risk(
    lie: Callable[[Voucher], Voucher], sequence: int
) -> None:
    town = Town()

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Voucher) and payload.sequence == sequence:
            told = envelope_of(sender, MessageKind.VOUCHER, lie(payload))[2]
            town.links[(sender.node, town.seller.node)].append(told)
        return not (isinstance(payload, Voucher) and payload.sequence >= sequence)

    town.on_send = heard
    town.start(request())
    town.run()
    town.buyer.timers.clear()
    town.unreachable.add(town.buyer.node)
    town.unlink(town.buyer, town.seller)
    assert_balances(town, CHUNKS_DUE[sequence - 2])
    [row] = [decode(row, SellerLane) for row in town.seller.rows(Table.SELLER_LANE)]
    assert row.earned == CHUNKS_DUE[sequence - 1]
