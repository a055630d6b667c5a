"""A buyer that lies or goes silent: at most one chunk is ever at risk, and never a slot."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from protocol.market.events import SaleEnded, SaleRefused
from protocol.market.records import JobRecord, SellerLane
from protocol.messages.effects import Table
from protocol.messages.envelope import open_envelope
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Agreement, Bid, Cancellation, Chunk, FaultKind, FinishReason, Voucher
from protocol.messages.wire import JobInput
from protocol.primitives.codec import Message, decode, encode
from protocol.primitives.units import AccountId, Amount, ChannelId, Hash, MessageId, NodeId, SequenceNumber
from protocol.settlement.pricing import amount_due
from tests.market.plain_ledger import PlainLedger
from tests.market.test_intake import opening
from tests.market.town import PRICES, Person, Town, Worker, envelope_of, request

Lie = Callable[[Voucher], Voucher | None]


def run_with(lie: Lie, at_sequence: int) -> Town:
    """The buyer's voucher of this sequence reaches the seller changed, or not at all."""
    town = Town()

    def heard(sender: Person, payload: Message) -> bool:
        if not isinstance(payload, Voucher) or payload.sequence != at_sequence:
            return True
        changed = lie(payload)
        if changed is not None:
            lied = envelope_of(town.buyer, MessageKind.VOUCHER, changed)[2]
            town.links[(town.buyer.node, town.seller.node)].append(lied)
        return False

    town.on_send = heard
    town.start(request())
    town.run()
    return town


def released(town: Town) -> int:
    [chunks] = town.watch.chunks.values()
    return len(chunks)


def lane_paid(town: Town) -> int:
    [channel] = town.seller.seller.books.channels()
    [lane] = town.seller.seller.books.lanes_of(channel)
    return lane.position.cumulative


@pytest.mark.parametrize("sequence", [1, 2, 3])
@pytest.mark.parametrize(
    "lie",
    [
        lambda voucher: None,
        lambda voucher: replace(voucher, cumulative=Amount(voucher.cumulative - 1)),
        lambda voucher: replace(voucher, cumulative=Amount(voucher.cumulative + 1)),
        lambda voucher: replace(voucher, sequence=SequenceNumber(voucher.sequence + 1)),
        lambda voucher: replace(voucher, payee=AccountId(bytes(32))),
        lambda voucher: replace(voucher, channel=ChannelId(bytes(32))),
        lambda voucher: replace(voucher, receipts_root=Hash(b"x" * 32)),
        lambda voucher: replace(voucher, receipts_root=Hash(b"x" * 32), receipts_count=1),
    ],
)
def test_without_the_exact_voucher_no_further_chunk_is_released(lie: Lie, sequence: int) -> None:
    town = run_with(lie, sequence)
    assert released(town) == sequence
    assert lane_paid(town) == (0 if sequence == 1 else amount_due(PRICES, 10, 10 * (sequence - 2)))
    town.wait(31_000)
    [ended] = [event for event in town.seller.events if isinstance(event, SaleEnded)]
    assert ended.state == "failed"
    assert town.seller.seller.slots_free() == 4
    assert town.seller.work == {}


def test_final_voucher_with_another_receipt_is_not_taken() -> None:
    town = run_with(lambda voucher: replace(voucher, receipts_root=Hash(b"x" * 32)), 4)
    [ended] = [event for event in town.seller.events if isinstance(event, SaleEnded)]
    assert (ended.state, ended.earned) == ("failed", amount_due(PRICES, 10, 20))


def test_voucher_signed_by_another_account_is_ignored() -> None:
    town = Town(buyers=2)
    forged: list[bytes] = []

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Voucher):
            forged.append(envelope_of(town.buyers[1], MessageKind.VOUCHER, payload)[2])
            return False
        return True

    town.on_send = heard
    town.start(request())
    town.run()
    town.hand(town.seller, town.buyer.node, forged[0])
    town.run()
    assert (released(town), lane_paid(town)) == (1, 0)


def test_voucher_beyond_the_deposit_is_not_taken() -> None:
    town = Town()
    town.start(request())
    while not town.watch.chunks:
        town.busy()[0]()
    # The seller's ledger shows a smaller deposit than the buyer's.
    poorer = PlainLedger(channels=dict(town.ledger.channels))
    [channel] = poorer.channels
    poorer.channels[channel] = replace(poorer.channels[channel], deposit=Amount(amount_due(PRICES, 10, 0) - 1))
    town.seller.seller._core.ledger = poorer
    town.run()
    assert (released(town), lane_paid(town)) == (1, 0)
    [ended] = [event for event in town.seller.events if isinstance(event, SaleEnded)]
    assert "of a deposit of 199" in ended.reason


def test_voucher_before_its_chunk_is_out_is_ignored() -> None:
    town = Town()
    town.seller.worker = Worker(silent_from=1)
    town.start(request())
    town.run()
    [lane] = town.watch.vouchers.values()
    early = replace(lane[SequenceNumber(1)], sequence=SequenceNumber(2), cumulative=Amount(10_000))
    town.hand(town.seller, town.buyer.node, envelope_of(town.buyer, MessageKind.VOUCHER, early)[2])
    assert lane_paid(town) == amount_due(PRICES, 10, 0)
    assert [record.state for record in town.seller.seller.jobs()] == ["working"]


def test_voucher_that_comes_twice_changes_nothing() -> None:
    town = Town()
    again: list[bytes] = []

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Voucher):
            again.append(envelope_of(town.buyer, MessageKind.VOUCHER, payload)[2])
        return True

    town.on_send = heard
    town.start(request())
    while town.busy():
        town.busy()[0]()
        for envelope_bytes in again:
            if town.seller.rows(Table.SELLER_LANE) and lane_row(town).position.sequence >= sequence_of(envelope_bytes):
                town.hand(town.seller, town.buyer.node, envelope_bytes)
    [ended] = [event for event in town.seller.events if isinstance(event, SaleEnded)]
    assert ended.state == "done"


def lane_row(town: Town) -> SellerLane:
    [row] = town.seller.rows(Table.SELLER_LANE)
    return decode(row, SellerLane)


def sequence_of(envelope_bytes: bytes) -> int:
    voucher = open_envelope(envelope_bytes)[1]
    assert isinstance(voucher, Voucher)
    return voucher.sequence


def test_piece_computed_ahead_is_held_until_the_chunk_before_is_paid() -> None:
    town = run_with(lambda voucher: None, 1)
    # Chunk 0 is out and unpaid; the worker was pulled once more, and what it gave stays inside.
    assert released(town) == 1
    [work] = town.seller.work.values()
    assert work == 2


def test_without_work_ahead_the_worker_waits_for_the_voucher() -> None:
    town = Town()
    town.seller.seller_policy = replace(town.seller.seller_policy, work_ahead=False)
    town.crash(town.seller)
    town.on_send = lambda sender, payload: not isinstance(payload, Voucher)
    town.start(request())
    town.run()
    [work] = town.seller.work.values()
    assert work == 1
    assert released(town) == 1


def test_worker_that_oversteps_the_agreement_fails_the_job_before_anything_goes_out() -> None:
    town = Town()
    town.seller.worker = Worker(pieces=(11, 5))
    town.start(request())
    town.run()
    assert released(town) == 1
    [ended] = [event for event in town.seller.events if isinstance(event, SaleEnded)]
    assert "worker broke the agreement" in ended.reason


def test_piece_that_nobody_asked_for_fails_the_job() -> None:
    town = Town()
    town.on_send = lambda sender, payload: not isinstance(payload, Voucher)
    town.start(request())
    town.run()
    [job] = town.watch.agreements
    town.do(town.seller, town.seller.seller.work_piece(job, b"more", 1, FinishReason.NONE, town.now))
    assert [type(event) for event in town.seller.events].count(SaleEnded) == 1
    assert released(town) == 1


@pytest.mark.parametrize("order", ["bai", "bia", "abi", "aib", "iab", "iba"])
def test_bid_agreement_and_input_may_overtake_each_other(order: str) -> None:
    town = Town()
    agreement, bid, job_input = opening(town)
    for letter in order:
        if letter == "i":
            town.do(town.seller, town.seller.seller.receive_input(town.buyer.node, job_input, town.now))
        else:
            kind, payload = (MessageKind.BID, bid) if letter == "b" else (MessageKind.AGREEMENT, agreement)
            town.hand(town.seller, town.buyer.node, envelope_of(town.buyer, kind, payload)[2])
    assert [record.state for record in town.seller.seller.jobs()] == ["processing the input"]


def test_agreement_whose_input_never_comes_is_refused_and_forgotten() -> None:
    town = Town()
    agreement, bid, _ = opening(town)
    town.hand(town.seller, town.buyer.node, envelope_of(town.buyer, MessageKind.BID, bid)[2])
    town.hand(town.seller, town.buyer.node, envelope_of(town.buyer, MessageKind.AGREEMENT, agreement)[2])
    town.wait(5_000)
    [refusal] = [event for event in town.seller.events if isinstance(event, SaleRefused)]
    assert (refusal.fault, refusal.reason) == (FaultKind.NETWORK, "bid or input did not come")


def test_input_from_another_node_is_not_taken_for_the_buyers() -> None:
    town = Town(buyers=2)
    agreement, bid, job_input = opening(town)
    stranger = town.buyers[1].node
    wrong = JobInput(job_input.job, job_input.salt, b"poison")
    town.do(town.seller, town.seller.seller.receive_input(stranger, wrong, town.now))
    town.hand(town.seller, town.buyer.node, envelope_of(town.buyer, MessageKind.BID, bid)[2])
    town.hand(town.seller, town.buyer.node, envelope_of(town.buyer, MessageKind.AGREEMENT, agreement)[2])
    town.do(town.seller, town.seller.seller.receive_input(stranger, wrong, town.now))
    town.do(town.seller, town.seller.seller.receive_input(town.buyer.node, job_input, town.now))
    assert len(town.seller.seller.jobs()) == 1


def test_input_that_is_no_job_payload_is_the_users_fault() -> None:
    town = Town()
    town.start(request(payload=b"\xc1"))
    town.run()
    [refusal] = [event for event in town.seller.events if isinstance(event, SaleRefused)]
    assert (refusal.fault, refusal.reason) == (FaultKind.USER, "input is no job payload")


def test_slots_are_never_oversold_and_come_back() -> None:
    town = Town()
    town.seller.worker = Worker(silent_from=0)
    for number in range(1, 7):
        town.start(request(number))
    town.run()
    assert (len(town.seller.seller.jobs()), town.seller.seller.slots_free()) == (4, 0)
    refusals = [event for event in town.seller.events if isinstance(event, SaleRefused)]
    assert [(refusal.fault, refusal.reason) for refusal in refusals] == [(FaultKind.CAPACITY, "no free slots")] * 2
    town.wait(61_000)
    assert town.seller.seller.slots_free() == 4


def test_cancellation_frees_the_slot_and_is_heard_from_the_buyer_alone() -> None:
    town = Town(buyers=2)
    town.seller.worker = Worker(silent_from=1)
    town.start(request())
    town.run()
    [job] = town.watch.agreements
    cancellation = Cancellation(job, 0, "enough")
    town.hand(town.seller, town.buyers[1].node, envelope_of(town.buyers[1], MessageKind.CANCELLATION, cancellation)[2])
    assert len(town.seller.seller.jobs()) == 1
    town.do(town.buyer, town.buyer.buyer.cancel(request().request, "enough", town.now))
    town.run()
    assert town.seller.seller.jobs() == ()
    assert town.seller.seller.slots_free() == 4
    assert town.buyer.buyer.jobs() == ()


def test_floods_of_openings_stay_bounded() -> None:
    town = Town()
    seller = town.seller.seller
    for number in range(3_000):
        peer = NodeId(number.to_bytes(32, "big"))
        stray = JobInput(MessageId(encode(number).rjust(32, b"x")), request().salt, b"x")
        seller.receive_input(peer, stray, town.now)
        bid = Bid(request().model, 1, 1, 1, town.now.wall_ms, "", 1, Hash(number.to_bytes(32, "big")))  # type: ignore[arg-type]
        envelope, payload, envelope_bytes = envelope_of(town.buyer, MessageKind.BID, bid)
        seller.receive(peer, envelope, payload, envelope_bytes, town.now)
    intake = seller._intake
    assert len(intake._inputs) == 16
    assert len(intake._bids) == 1024
    for number in range(300):
        agreement = replace(opening_agreement(town), created_at=number)
        envelope, payload, envelope_bytes = envelope_of(town.buyer, MessageKind.AGREEMENT, agreement)
        seller.receive(town.buyer.node, envelope, payload, envelope_bytes, town.now)
    assert intake.waiting() == 256


def opening_agreement(town: Town) -> Agreement:
    other = Town()
    agreement, _, _ = opening(other)
    assert other.buyer.account == town.buyer.account
    return agreement


def test_chunk_is_never_released_to_anyone_but_the_buyers_node() -> None:
    town = Town(buyers=2)
    heard: list[NodeId] = []

    def listen(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Chunk):
            heard.append(sender.node)
        return True

    town.on_send = listen
    town.start(request())
    town.run()
    assert heard == [town.seller.node] * 4


@pytest.mark.parametrize("steps_back", [0, 1])
def test_a_voucher_that_comes_after_the_jobs_end_is_told_in_the_jobs_row_once(steps_back: int) -> None:
    kept: list[Voucher] = []

    def keep(voucher: Voucher) -> None:
        kept.append(voucher)

    town = run_with(keep, 3)
    town.buyer.timers.clear()
    town.wait(30_000)
    [ended] = [event for event in town.seller.events if isinstance(event, SaleEnded)]
    released_due, paid_before = amount_due(PRICES, 10, 20), amount_due(PRICES, 10, 10)
    assert (ended.state, ended.earned) == ("failed", paid_before)
    town.on_send = None
    for _ in range(2):
        late = replace(kept[0], cumulative=Amount(kept[0].cumulative - steps_back))
        town.hand(town.seller, town.buyer.node, envelope_of(town.buyer, MessageKind.VOUCHER, late)[2])
    [record] = [decode(row, JobRecord) for row in town.seller.rows(Table.JOB)]
    assert record.paid == released_due - steps_back == lane_paid(town)
    assert [entry.state for entry in record.history].count("paid late") == 1
    assert (record.state, record.history[-1].paid) == ("failed", record.paid)


def test_what_a_later_job_on_the_lane_is_paid_is_not_told_of_the_one_before() -> None:
    town = run_with(lambda voucher: None, 3)
    town.buyer.timers.clear()
    town.wait(30_000)
    [name] = town.seller.seller._core.unpaid
    [before] = town.seller.rows(Table.JOB)
    town.seller.seller._core.unpaid[name] = replace(town.seller.seller._core.unpaid[name], due=Amount(10**9))
    town.on_send = None
    town.unlink(town.buyer, town.seller)
    town.link(town.buyer, town.seller)
    town.wait(60_000)
    town.publish()
    town.start(request(2))
    town.run()
    assert town.seller.seller._core.unpaid == {}
    [first] = [record for record in map(job_row, town.seller.rows(Table.JOB)) if record.job == job_row(before).job]
    assert first.paid <= amount_due(PRICES, 10, 20)


def job_row(row: bytes) -> JobRecord:
    return decode(row, JobRecord)
