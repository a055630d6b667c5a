"""After a restart: what was promised is promised, what was earned is earned, and receipts are whole."""

import pytest

from protocol.market.events import JobFailed, JobFinished
from protocol.market.records import BuyerLane, JobRecord, ReceiptRecord, SellerLane
from protocol.messages.effects import Table
from protocol.messages.market import Receipt, Voucher
from protocol.primitives.codec import Message, decode
from protocol.settlement.pricing import amount_due
from tests.market.town import PRICES, Person, Town, Worker, request


def lanes(town: Town) -> tuple[BuyerLane, SellerLane]:
    [bought] = [decode(row, BuyerLane) for row in town.buyer.rows(Table.BUYER_LANE)]
    [sold] = [decode(row, SellerLane) for row in town.seller.rows(Table.SELLER_LANE)]
    return bought, sold


def run_until(town: Town, kind: type[Message], count: int) -> None:
    """Until so many statements of a kind were signed."""
    seen = 0
    signed = town.watch.signed

    def counting(person: Person, payload: Message) -> None:
        nonlocal seen
        seen += isinstance(payload, kind)
        signed(person, payload)

    town.watch.signed = counting  # type: ignore[method-assign]
    while seen < count:
        town.busy()[0]()


def test_seller_that_restarts_keeps_its_best_voucher_and_says_that_the_job_failed() -> None:
    town = Town()
    town.start(request())
    run_until(town, Voucher, 2)
    while lanes(town)[1].position.sequence < 2:
        town.busy()[0]()
    before = lanes(town)[1]
    town.crash(town.seller)
    town.run()
    assert lanes(town)[1].voucher == before.voucher
    assert town.seller.seller.slots_free() == 4
    [lost] = [event for event in town.buyer.events if isinstance(event, JobFailed)]
    assert lost.first_reason == "provider restarted"
    [record] = [decode(row, JobRecord) for row in town.seller.rows(Table.JOB)]
    assert (record.state, record.reason) == ("failed", "this node restarted while the job was under way")
    assert record.paid == amount_due(PRICES, 10, 10)
    assert (record.input_units, record.output_units) == (10, 10), "nobody reads of a price without work"


def test_seller_that_restarts_before_the_final_voucher_still_completes_the_receipt() -> None:
    town = Town()
    town.start(request())
    town.on_send = lambda sender, payload: not isinstance(payload, Receipt)
    run_until(town, Receipt, 1)
    while not town.seller.rows(Table.RECEIPT):
        town.busy()[0]()
    town.on_send = None
    town.crash(town.seller)
    assert [record.state for record in town.seller.seller.jobs()] == ["awaiting the final voucher"]
    town.run()
    assert len(town.buyer.told(JobFinished)) == 1
    assert town.seller.seller.jobs() == ()
    [record] = [decode(row, ReceiptRecord) for row in town.seller.rows(Table.RECEIPT)]
    assert record.final_voucher
    assert lanes(town)[0].position == lanes(town)[1].position


def test_final_voucher_that_comes_after_the_deadline_completes_the_receipt_all_the_same() -> None:
    town = Town()
    town.start(request())
    town.on_send = lambda sender, payload: not (isinstance(payload, Voucher) and payload.receipts_count)
    town.run()
    town.wait(31_000)
    assert town.seller.seller.jobs() == ()
    town.crash(town.seller)
    town.on_send = None
    town.unlink(town.buyer, town.seller)
    town.link(town.buyer, town.seller)
    town.run()
    [record] = [decode(row, ReceiptRecord) for row in town.seller.rows(Table.RECEIPT)]
    assert record.final_voucher
    bought, sold = lanes(town)
    assert bought.position == sold.position
    assert sold.earned == sold.position.cumulative


def test_buyer_that_restarts_before_its_final_voucher_is_signed_signs_the_same_one() -> None:
    town = Town()
    town.start(request())
    while not town.buyer.rows(Table.RECEIPT):
        town.busy()[0]()
    town.buyer.returned.clear()
    town.crash(town.buyer)
    town.run()
    [record] = [decode(row, ReceiptRecord) for row in town.buyer.rows(Table.RECEIPT)]
    assert record.final_voucher
    assert lanes(town)[0].position.receipts_count == 1


def test_buyer_that_restarts_cancels_what_was_under_way_and_keeps_its_promises() -> None:
    town = Town()
    town.seller.worker = Worker(silent_from=2)
    town.start(request())
    town.run()
    promised = lanes(town)[0].position
    town.crash(town.buyer)
    town.run()
    assert lanes(town)[0].position == promised
    assert lanes(town)[0].job is None
    assert town.seller.seller.jobs() == ()
    [record] = [decode(row, JobRecord) for row in town.buyer.rows(Table.JOB)]
    assert (record.state, record.paid) == ("failed", amount_due(PRICES, 10, 10))
    assert (record.input_units, record.output_units) == (10, 10), "nobody reads of a price without work"
    assert [entry.cause for entry in record.history][-1] == "this node restarted while the job was under way"


def test_voucher_that_was_durable_but_never_sent_reaches_the_provider_after_the_restart() -> None:
    town = Town()
    town.start(request())
    run_until(town, Voucher, 1)
    while not town.buyer.returned or not town.links:
        town.busy()[0]()
    town.unlink(town.buyer, town.seller)
    town.crash(town.buyer)
    town.link(town.buyer, town.seller)
    town.run()
    bought, sold = lanes(town)
    assert bought.position == sold.position
    assert bought.position.cumulative == amount_due(PRICES, 10, 0)


def test_vouchers_of_channels_that_have_ended_are_not_said_again() -> None:
    """Channels come and go: what nobody can redeem any more would only be held against who sends it."""
    town = Town()
    town.start(request())
    town.run()
    said: list[Message] = []

    def heard(_sender: Person, payload: Message) -> bool:
        said.append(payload)
        return True

    town.on_send = heard
    for ended in (False, True):
        said.clear()
        if ended:
            town.ledger.channels.clear()
        town.unlink(town.buyer, town.seller)
        town.crash(town.buyer)
        town.link(town.buyer, town.seller)
        town.run()
        assert [type(each) for each in said] == ([] if ended else [Voucher])


@pytest.mark.parametrize("victim", ["buyer", "seller"])
def test_a_restart_with_nothing_under_way_changes_no_row(victim: str) -> None:
    town = Town()
    town.start(request())
    town.run()
    person = town.buyer if victim == "buyer" else town.seller
    before = dict(person.disk)
    town.crash(person)
    town.run()
    assert person.disk == before


def test_the_timeline_of_a_job_is_kept_on_both_sides() -> None:
    town = Town()
    town.start(request())
    town.run()
    [bought] = [decode(row, JobRecord) for row in town.buyer.rows(Table.JOB)]
    [sold] = [decode(row, JobRecord) for row in town.seller.rows(Table.JOB)]
    assert [entry.state for entry in bought.history] == [
        "choosing",
        "connecting",
        "opening channel",
        "offered",
        "prefilling",
        "streaming",
        "chunks",
        "settling",
        "done",
    ]
    assert sold.history[0].cause == "accepted"
    assert sold.history[-1].cause == "paid and receipt acknowledged"
    assert (bought.paid, sold.paid) == (amount_due(PRICES, 10, 25),) * 2
