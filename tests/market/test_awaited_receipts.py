"""A job that was delivered whole has its result: what is missing is the receipt, which comes later and for nothing."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from protocol.market import awaited_receipts
from protocol.market.awaited_receipts import AWAITED_MAX, DIAL_MS, WAIT_MS
from protocol.market.buyer_delivery import RECEIPT_MISSING
from protocol.market.events import JobDelivered, JobFailed, JobFinished, JobReceipted
from protocol.market.records import AwaitedReceipt, JobRecord, ReceiptRecord, SellerLane, awaited_key
from protocol.messages.effects import Send, Table
from protocol.messages.envelope import open_as
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Chunk, Failure, FaultKind, FinishReason, Receipt, Voucher
from protocol.messages.wire import Direct
from protocol.primitives.codec import Message, decode, encode
from protocol.primitives.units import Amount, DurationMs, Hash, Salt
from tests.market.test_balances import WHOLE, assert_balances
from tests.market.test_restart import lanes
from tests.market.town import Person, Town, Worker, envelope_of, request


def without_receipt(town: Town) -> None:
    """Nothing is lost but receipts."""
    town.on_send = lambda sender, payload: not isinstance(payload, Receipt)


def died_before_the_receipt(wanted: int = 1) -> Town:
    """The provider sent the last chunk, and its process ended; it is not back yet."""
    town = Town()
    without_receipt(town)
    town.start(request(wanted))
    town.run()
    town.on_send = None
    town.unreachable.add(town.seller.node)
    town.unlink(town.buyer, town.seller)
    town.wait(3_000)
    return town


def comes_back(town: Town, crashed: bool = True) -> None:
    if crashed:
        town.crash(town.seller)
    town.unreachable.clear()
    town.publish()
    town.wait(DIAL_MS + 1_000)
    town.run()


def row_of_job(town: Town) -> JobRecord:
    [record] = [decode(row, JobRecord) for row in town.buyer.rows(Table.JOB)]
    return record


def is_whole(town: Town) -> None:
    """One receipt, acknowledged on both sides, and the price paid once."""
    for person in (town.buyer, town.seller):
        [record] = [decode(row, ReceiptRecord) for row in person.rows(Table.RECEIPT)]
        assert record.final_voucher
    bought, sold = lanes(town)
    assert bought.position == sold.position
    assert (bought.position.cumulative, bought.position.receipts_count, bought.job) == (WHOLE, 1, None)
    assert (row_of_job(town).state, row_of_job(town).paid, row_of_job(town).reason) == ("done", WHOLE, "")
    assert not [key for table, key in town.buyer.disk if table is Table.JOB_STATEMENT]
    assert len(town.buyer.told(JobReceipted)) == len(town.buyer.told(JobDelivered)) == 1
    assert_balances(town, WHOLE)


def test_a_job_whose_provider_died_before_the_receipt_has_its_result_and_says_what_is_missing() -> None:
    town = died_before_the_receipt()
    [told] = [event for event in town.buyer.events if isinstance(event, JobDelivered)]
    assert (told.paid, told.amount, told.output_units, told.chunks) == (WHOLE, WHOLE, 25, 4)
    assert (told.finish, told.fault) == (FinishReason.STOP, FaultKind.NETWORK)
    assert told.reason.startswith(RECEIPT_MISSING)
    assert not town.buyer.told(JobFailed)
    assert (row_of_job(town).state, row_of_job(town).paid) == ("delivered", WHOLE)
    assert town.buyer.buyer.jobs() == ()


@pytest.mark.parametrize("crashed", [True, False])
@pytest.mark.parametrize("buyer_restarts", [True, False])
def test_the_receipt_comes_when_the_provider_is_back_and_nothing_is_paid_twice(
    crashed: bool, buyer_restarts: bool
) -> None:
    town = died_before_the_receipt()
    if buyer_restarts:
        town.crash(town.buyer)
    comes_back(town, crashed)
    is_whole(town)


def test_a_stalled_provider_that_was_paid_without_its_receipt_is_asked_for_it() -> None:
    town = Town()
    without_receipt(town)
    town.start(request())
    town.run()
    town.wait(30_000)
    town.run()
    assert [record.state for record in town.seller.seller.jobs()] == []
    assert lanes(town)[1].position.receipts_count == 0
    town.on_send = None
    town.wait(DIAL_MS + 1_000)
    town.run()
    is_whole(town)


def test_a_provider_that_missed_the_voucher_without_the_receipt_takes_the_one_with_it() -> None:
    town = Town()
    town.on_send = lambda sender, payload: (
        not (isinstance(payload, Receipt) or (isinstance(payload, Voucher) and payload.cumulative == WHOLE))
    )
    town.start(request(stall_ms=DurationMs(10_000)))
    town.run()
    town.seller.timers.clear()
    town.wait(10_000)
    town.run()
    assert town.buyer.told(JobDelivered)
    assert len(town.seller.seller.jobs()) == 1
    town.on_send = None
    town.wait(DIAL_MS)
    town.run()
    assert lanes(town)[1].position.sequence == 5
    is_whole(town)


def test_other_jobs_go_on_meanwhile_and_leave_the_lane_to_the_receipt() -> None:
    town = Town(sellers=1)
    without_receipt(town)
    town.start(request())
    town.run()
    town.wait(30_000)
    town.run()
    town.on_send = lambda sender, payload: not (isinstance(payload, Receipt) and payload.lane == 0)
    town.start(request(2))
    town.run()
    assert len(town.buyer.told(JobFinished)) == 1
    assert {agreement.lane for agreement in town.watch.agreements.values()} == {0, 1}
    town.on_send = None
    town.wait(DIAL_MS + 1_000)
    town.run()
    assert town.buyer.told(JobReceipted)
    assert all(lane.position.receipts_count == 1 and lane.job is None for lane in town.buyer.buyer.books.lanes())
    assert_balances(town, 2 * WHOLE)


def test_the_providers_word_that_there_is_no_receipt_ends_the_wait_and_the_output_stays() -> None:
    town = died_before_the_receipt()
    for key in [key for key in town.seller.disk if key[0] is Table.RECEIPT]:
        del town.seller.disk[key]  # an old backup
    [lane_row] = [key for key in town.seller.disk if key[0] is Table.SELLER_LANE]
    row = decode(town.seller.disk[lane_row], SellerLane)
    town.seller.disk[lane_row] = encode(replace(row, pending=None, pending_job=None))
    comes_back(town)
    [lane] = town.buyer.buyer.books.lanes()
    assert (lane.job, lane.position.cumulative, lane.position.receipts_count) == (None, WHOLE, 0)
    job = row_of_job(town).job
    assert row_of_job(town).state == "delivered"
    kept = decode(town.buyer.disk[(Table.JOB_STATEMENT, awaited_key(job))], AwaitedReceipt)
    assert kept.output == Worker().output()
    town.start(request(2))
    town.run()
    assert town.buyer.told(JobFinished)
    assert_balances(town, 2 * WHOLE)


def test_the_wait_ends_with_time_and_with_the_channel() -> None:
    town = died_before_the_receipt()
    town.wait(WAIT_MS - 10_000)
    [lane] = town.buyer.buyer.books.lanes()
    assert lane.job is not None
    town.wait(10_000 + DIAL_MS)
    [lane] = town.buyer.buyer.books.lanes()
    assert lane.job is None
    gone = died_before_the_receipt()
    gone.ledger.channels.clear()
    gone.wait(DIAL_MS)
    assert [lane.job for lane in gone.buyer.buyer.books.lanes()] in ([], [None])


LIES: list[Callable[[Receipt], Receipt]] = [
    lambda good: replace(good, amount=Amount(good.amount + 1)),
    lambda good: replace(good, output_commitment=good.job),
    lambda good: replace(good, chunks=good.chunks + 1),
    lambda good: replace(good, accepted_at=good.accepted_at + 1),
]


@pytest.mark.parametrize("lie", LIES)
def test_a_late_receipt_that_is_not_the_jobs_is_not_acknowledged(lie: Callable[[Receipt], Receipt]) -> None:
    town = Town()
    receipts: list[Receipt] = []

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Receipt):
            receipts.append(payload)
        return not isinstance(payload, Receipt)

    town.on_send = heard
    town.start(request())
    town.run()
    town.wait(30_000)
    town.run()
    before = lanes(town)[0]
    false = lie(receipts[0])
    town.hand(town.buyer, town.seller.node, envelope_of(town.seller, MessageKind.RECEIPT, false)[2])
    town.hand(town.buyer, town.seller.node, envelope_of(town.buyer, MessageKind.RECEIPT, receipts[0])[2])
    assert lanes(town)[0] == before
    town.hand(town.buyer, town.seller.node, envelope_of(town.seller, MessageKind.RECEIPT, receipts[0])[2])
    town.run()
    is_whole(town)


def test_the_last_chunk_leaves_no_earlier_than_what_its_receipt_is_judged_by_is_on_the_disk() -> None:
    for steps in range(60):
        town = Town()

        def heard(sender: Person, payload: Message) -> bool:
            if isinstance(payload, Chunk) and payload.finish is not FinishReason.NONE:
                assert sender.rows(Table.RECEIPT), "whoever has all of the output can get its receipt"
            return True

        town.on_send = heard
        town.crash_after = steps
        town.start(request())
        town.run()
        town.wait(100_000)
        town.run()


@pytest.mark.parametrize("steps", range(0, 24, 2))
def test_a_provider_that_dies_at_any_step_behind_the_last_chunk_hands_its_receipt_over_in_the_end(steps: int) -> None:
    town = Town()
    town.start(request())
    while not any(chunk.finish for chunks in town.watch.delivered.values() for chunk in chunks.values()):
        town.busy()[0]()
    for _ in range(steps):
        if town.busy():
            town.busy()[0]()
    town.unreachable.add(town.seller.node)
    town.crash(town.seller)
    town.run()
    town.wait(5_000)
    town.unreachable.clear()
    town.link(town.buyer, town.seller)
    town.run()
    assert len(town.buyer.told(JobFinished)) + len(town.buyer.told(JobDelivered)) == 1
    bought, sold = lanes(town)
    assert bought.position == sold.position
    assert bought.position.receipts_count == 1
    assert row_of_job(town).state == "done"
    assert_balances(town, WHOLE)


def stalled() -> Town:
    """The provider is linked, was paid without its receipt and still has it."""
    town = Town(sellers=2)
    without_receipt(town)
    town.start(request(provider=town.seller.account))
    town.run()
    town.wait(30_000)
    town.run()
    return town


def test_only_the_buyers_node_is_given_the_receipt() -> None:
    town = stalled()
    [standing] = [town.buyer.buyer._awaited._standing(each) for each in town.buyer.buyer._awaited._awaited.values()]
    stranger = town.sellers[1]
    town.wait(2_000)
    for peer, given in ((stranger.node, 0), (town.buyer.node, 1)):
        effects = town.seller.seller.compare(peer, (standing,), town.now)
        sent = [effect for effect in effects if isinstance(effect, Send) and isinstance(effect.message, Direct)]
        assert len(sent) == given
        assert all(effect.to == town.buyer.node for effect in sent)


def test_only_the_provider_and_only_one_that_knows_nothing_of_the_job_ends_the_wait() -> None:
    town = stalled()
    [job] = town.buyer.buyer._awaited._awaited
    stranger = town.sellers[1]
    for person, chunks, waits in ((stranger, 0, True), (town.seller, 4, True), (town.seller, 0, False)):
        failure = Failure(job, FaultKind.NETWORK, chunks, "not under way here")
        town.hand(town.buyer, person.node, envelope_of(person, MessageKind.FAILURE, failure)[2])
        assert (job in town.buyer.buyer._awaited) is waits
    [lane] = town.buyer.buyer.books.lanes()
    assert (lane.job, lane.position.cumulative) == (None, WHOLE)


@pytest.mark.parametrize("buyer_restarts", [True, False])
def test_a_lane_that_is_kept_for_a_receipt_keeps_no_more_of_the_deposit_than_was_paid(buyer_restarts: bool) -> None:
    town = stalled()
    if buyer_restarts:
        town.crash(town.buyer)
    [lane] = town.buyer.buyer.books.lanes()
    assert lane.job is not None
    assert town.buyer.buyer.books.committed(lane.channel) == lane.position.cumulative == WHOLE


def test_false_receipts_make_this_node_hash_the_output_once_and_those_of_strangers_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    town = stalled()
    [job] = town.buyer.buyer._awaited._awaited
    hashed: list[bytes] = []

    def false_commitment(salt: Salt, output: bytes) -> Hash:
        hashed.append(output)
        return Hash(job)

    monkeypatch.setattr(awaited_receipts, "output_commitment", false_commitment)
    receipts = [decode(row, ReceiptRecord).receipt for row in town.seller.rows(Table.RECEIPT)]
    receipt = open_as(receipts[0], MessageKind.RECEIPT)[1]
    assert isinstance(receipt, Receipt)
    stranger = town.sellers[1]
    town.hand(town.buyer, stranger.node, envelope_of(stranger, MessageKind.RECEIPT, receipt)[2])
    assert hashed == []
    false = replace(receipt, amount=Amount(receipt.amount + 1))
    for _ in range(3):
        town.hand(town.buyer, town.seller.node, envelope_of(town.seller, MessageKind.RECEIPT, false)[2])
    assert len(hashed) == 1
    assert job in town.buyer.buyer._awaited


@pytest.mark.parametrize("steps", range(8))
def test_a_buyer_that_dies_at_any_row_of_a_late_receipt_still_acknowledges_it_once(steps: int) -> None:
    town = stalled()
    [row] = town.seller.rows(Table.RECEIPT)
    town.on_send = None
    town.crash_after = steps
    town.hand(town.buyer, town.seller.node, decode(row, ReceiptRecord).receipt)
    town.run()
    town.crash_after = None
    town.link(town.buyer, town.seller)
    town.wait(DIAL_MS + 1_000)
    town.run()
    bought, sold = lanes(town)
    assert bought.position == sold.position
    assert (bought.job, bought.position.cumulative, bought.position.receipts_count) == (None, WHOLE, 1)
    for person in (town.buyer, town.seller):
        assert [decode(kept, ReceiptRecord).final_voucher != b"" for kept in person.rows(Table.RECEIPT)] == [True]
    assert row_of_job(town).state in ("done", "delivered")


def test_receipts_that_are_waited_for_are_bounded() -> None:
    town = Town()
    without_receipt(town)
    awaited = town.buyer.buyer._awaited
    town.start(request())
    town.run()
    town.wait(30_000)
    town.run()
    [(job, each)] = awaited._awaited.items()
    for number in range(AWAITED_MAX - 1):
        awaited._awaited[type(job)(number.to_bytes(32, "big"))] = each
    town.start(request(2))
    town.run()
    town.wait(30_000)
    assert len(awaited._awaited) == AWAITED_MAX
    assert job not in awaited


def test_so_are_their_inputs_and_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awaited_receipts, "AWAITED_BYTES_MAX", 100)
    town = Town()
    without_receipt(town)
    for number in (1, 2, 3):
        town.start(request(number))
    town.run()
    town.wait(30_000)
    town.run()
    assert len(town.buyer.told(JobDelivered)) == 3
    awaited = town.buyer.buyer._awaited
    held = [len(each.row.input) + len(each.row.output) for each in awaited._awaited.values()]
    assert 0 < sum(held) == awaited._bytes <= 100
    assert len([lane for lane in town.buyer.buyer.books.lanes() if lane.job is not None]) == len(held) < 3
    town.on_send = None
    town.wait(DIAL_MS + 1_000)
    town.run()
    assert (awaited._bytes, awaited._awaited) == (0, {})
