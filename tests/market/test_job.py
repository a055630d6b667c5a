"""One job from the request to the receipt, both machines joined without sockets."""

from protocol.market.events import JobAgreed, JobFinished, JobText
from protocol.market.records import ReceiptRecord, lane_key
from protocol.messages.effects import Table
from protocol.messages.envelope import open_envelope
from protocol.messages.market import Receipt, Voucher
from protocol.primitives.codec import decode
from protocol.primitives.limits import CHUNK_PAYLOAD_BYTES_MAX
from protocol.primitives.units import WorkUnits
from protocol.settlement.accumulator import verify_membership
from protocol.settlement.pricing import amount_due
from tests.market.test_balances import assert_balances
from tests.market.town import PRICES, Town, Worker, request


class LargeResult(Worker):
    """One unit of output that is longer than a chunk: only its last piece is metered."""

    def payload(self, number: int) -> bytes:
        return b"r" * CHUNK_PAYLOAD_BYTES_MAX if number < 2 else b"rest"


def test_a_job_is_delivered_paid_and_receipted() -> None:
    town = Town()
    town.start(request())
    town.run()
    [finished] = town.buyer.told(JobFinished)
    assert isinstance(finished, JobFinished)
    due = amount_due(PRICES, 10, 25)
    assert finished.paid == due == finished.receipt.amount
    texts = [event for event in town.buyer.events if isinstance(event, JobText)]
    assert b"".join(text.payload for text in texts) == town.seller.worker.output()
    [agreed] = town.buyer.told(JobAgreed)
    assert isinstance(agreed, JobAgreed)
    bought = town.buyer.buyer.books.lane(agreed.channel, agreed.lane)
    sold = town.seller.seller.books.lane(agreed.channel, agreed.lane)
    assert bought is not None
    assert sold is not None
    assert bought.position == sold.position
    assert bought.position.cumulative == due
    assert (bought.job, sold.job, town.seller.seller.slots_free()) == (None, None, 4)
    for person in (town.buyer, town.seller):
        record = decode(person.disk[(Table.RECEIPT, finished.job)], ReceiptRecord)
        _, voucher = open_envelope(record.final_voucher)
        assert isinstance(voucher, Voucher)
        assert verify_membership(voucher.receipts_root, voucher.receipts_count, record.leaf, record.proof)
        assert isinstance(open_envelope(record.receipt)[1], Receipt)
        assert record.bid
        assert record.acceptance
        assert record.output == town.seller.worker.output()
    assert (Table.BUYER_LANE, lane_key(agreed.channel, agreed.lane)) in town.buyer.disk


def test_a_unit_of_output_that_is_longer_than_a_chunk_is_delivered_in_several_and_paid_with_the_last() -> None:
    town = Town()
    town.seller.worker = LargeResult(pieces=(0, 0, 1))
    town.start(request(chunk_units=1, output_units_max=WorkUnits(1)))
    town.run()
    [finished] = town.buyer.told(JobFinished)
    assert isinstance(finished, JobFinished)
    assert finished.paid == amount_due(PRICES, 10, 1) == finished.receipt.amount
    texts = [event for event in town.buyer.events if isinstance(event, JobText)]
    assert b"".join(text.payload for text in texts) == b"r" * (2 * CHUNK_PAYLOAD_BYTES_MAX) + b"rest"
    assert_balances(town, finished.paid)
