"""A provider stops mid-stream: the next one goes on, the text has no gap, and everyone is paid for its own chunks."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from protocol.market.events import AttemptFailed, JobFailed, JobFinished, JobText, SaleRefused
from protocol.market.policies import SellerPolicy
from protocol.market.records import JobRecord, JobStatements, ReceiptRecord
from protocol.market.terms import TermsRefused, check_service
from protocol.messages.effects import Table
from protocol.messages.envelope import open_as
from protocol.messages.kinds import MessageKind
from protocol.messages.market import (
    Agreement,
    Chunk,
    Continuation,
    FaultKind,
    FinishReason,
    JobPayload,
    ModelOffer,
    OutputForm,
    Voucher,
)
from protocol.messages.wire import JobInput
from protocol.primitives.codec import Message, decode, encode
from protocol.primitives.units import Amount, Lane, WorkUnits
from protocol.settlement.continuation import check_link, check_prefix
from protocol.settlement.pricing import amount_due
from tests.market.town import PRICES, SERVED, Person, Town, Worker, envelope_of, request

PIECES = (10, 10, 10, 5)
WHOLE = Worker(pieces=PIECES)


def texts(town: Town) -> list[JobText]:
    return [event for event in town.buyer.events if isinstance(event, JobText)]


def paid_to(town: Town, seller: Person) -> int:
    """What vouchers promise a seller, all lanes together."""
    return sum(
        max(voucher.cumulative for voucher in lane.values())
        for lane in town.watch.vouchers.values()
        if next(iter(lane.values())).payee == seller.account
    )


def first_is(worker: Worker, *, served: ModelOffer = SERVED, sellers: int = 2, **changes: object) -> Town:
    """Whoever is asked first has this worker, the others a sound one. Everything runs until time has to pass."""
    town = Town(sellers=sellers, served=served)
    for seller in town.sellers:
        seller.worker = WHOLE

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Agreement) and len(town.watch.agreements) == 1:
            seller_of(town, payload).worker = worker
        return True

    town.on_send = heard
    town.start(request(1, **changes))
    town.run()
    return town


def seller_of(town: Town, agreement: Agreement) -> Person:
    return next(seller for seller in town.sellers if seller.account == agreement.provider)


def first_and_second(town: Town) -> tuple[Agreement, Agreement]:
    [first, second] = town.watch.agreements.values()
    return first, second


def finished(town: Town) -> JobFinished:
    [done] = [event for event in town.buyer.events if isinstance(event, JobFinished)]
    return done


def is_whole(town: Town) -> bool:
    """The text came once, in order, and both providers have to the unit what their own chunks cost."""
    shown, done = texts(town), finished(town)
    first, second = first_and_second(town)
    before = second.continues.output_units if second.continues is not None else 0
    assert paid_to(town, seller_of(town, first)) == (amount_due(PRICES, 10, before) if before else 0)
    assert paid_to(town, seller_of(town, second)) == amount_due(PRICES, 10 + before, 35 - before)
    assert done.paid == paid_to(town, seller_of(town, first)) + paid_to(town, seller_of(town, second))
    assert [text.index for text in shown] == [1, 2, 3, 4]
    assert [text.output_units for text in shown] == [10, 20, 30, 35]
    return b"".join(text.payload for text in shown) == WHOLE.output()


@pytest.mark.parametrize("stops_at", [2, 3, 4])
def test_next_provider_goes_on_behind_the_last_verified_chunk(stops_at: int) -> None:
    town = first_is(Worker(pieces=PIECES, fails_at=stops_at))
    assert is_whole(town)
    before = 10 * (stops_at - 1)
    [first, _] = town.watch.agreements
    one, other = first_and_second(town)
    assert other.continues is not None
    assert (other.continues.job, other.continues.output_units) == (first, before)
    assert (other.output_units_max, other.chunk_units) == (40 - before, one.chunk_units)
    done = finished(town)
    assert (done.output_units, done.chunks, done.receipt.output_units) == (35, 5, 35 - before)
    assert town.buyer.buyer.books.debtors() == ()


def test_provider_that_stalls_is_left_at_the_stall_deadline_of_its_agreement_and_not_before() -> None:
    town = first_is(Worker(pieces=PIECES, silent_from=3))
    town.wait(29_999)
    town.run()
    assert len(town.watch.agreements) == 1
    town.wait(1)
    town.run()
    assert is_whole(town)


def test_lost_link_is_waited_for_a_moment_when_somebody_else_would_do() -> None:
    town = first_is(Worker(pieces=PIECES, silent_from=3))
    seller = seller_of(town, next(iter(town.watch.agreements.values())))
    town.unreachable.add(seller.node)
    town.unlink(town.buyer, seller)
    town.wait(299)
    town.run()
    assert len(town.watch.agreements) == 1
    town.wait(1)
    town.run()
    assert is_whole(town)
    assert town.buyer.buyer.demoted(town.now) == (seller.account,)


def test_link_that_only_blinked_changes_nothing() -> None:
    town = first_is(Worker(pieces=PIECES, silent_from=3))
    seller = seller_of(town, next(iter(town.watch.agreements.values())))
    town.unlink(town.buyer, seller)  # the buyer dials again at once
    town.wait(5_000)
    town.run()
    assert len(town.watch.agreements) == 1
    assert [record.state for record in town.buyer.buyer.jobs()] == ["streaming"]


def test_returned_providers_late_chunks_are_not_shown_and_never_paid_twice() -> None:
    town = first_is(Worker(pieces=PIECES, silent_from=3))
    first = next(iter(town.watch.agreements.values()))
    seller, [job] = seller_of(town, first), town.watch.agreements
    town.unreachable.add(seller.node)
    town.unlink(town.buyer, seller)
    town.wait(300)
    town.run()
    assert is_whole(town)
    paid = paid_to(town, seller)
    town.do(seller, seller.seller.work_piece(job, WHOLE.payload(2), 10, FinishReason.NONE, town.now))
    town.unreachable.clear()
    town.link(town.buyer, seller)
    town.run()
    assert is_whole(town)
    assert paid_to(town, seller) == paid
    assert seller.seller.jobs() == (), "told at once that nobody waits for it"
    assert seller.seller.slots_free() == 4


def test_provider_that_asks_for_more_mid_stream_is_left_before_anything_of_it_is_paid() -> None:
    town = Town(sellers=2)
    for seller in town.sellers:
        seller.worker = WHOLE
    lied: list[Chunk] = []

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Chunk) and payload.index == 3 and not lied:
            lied.append(replace(payload, due=Amount(payload.due + 1)))
            lie = envelope_of(sender, MessageKind.CHUNK, lied[0])[2]
            town.links[(sender.node, town.buyer.node)].append(lie)
            return False
        return True

    town.on_send = heard
    town.start(request())
    town.run()
    assert is_whole(town)
    [attempt] = [event for event in town.buyer.events if isinstance(event, AttemptFailed)]
    assert (attempt.fault, attempt.reason) == (FaultKind.PROVIDER, "chunk 3 asks for 1701, 1700 is due")


@pytest.mark.parametrize("missing", [1, 0])
def test_going_on_stays_under_the_bids_ceiling_with_all_that_was_paid_before(missing: int) -> None:
    """At its limits the second agreement may cost the prompt, 20 bytes of prefix, and the 20 units that are left."""
    at_limits = amount_due(PRICES, 10 + 20, 40 - 20)
    ceiling = amount_due(PRICES, 10, 20) + at_limits - missing
    assert ceiling >= amount_due(PRICES, 10, 40)
    town = first_is(Worker(pieces=PIECES, fails_at=3), price_ceiling=Amount(ceiling))
    if missing:
        [lost] = [event for event in town.buyer.events if isinstance(event, JobFailed)]
        assert (lost.paid, lost.output_units) == (amount_due(PRICES, 10, 20), 20)
        assert lost.first_reason == "worker died"
    else:
        assert is_whole(town)


def test_three_providers_in_a_row_each_go_on_behind_all_before_them() -> None:
    town = Town(sellers=4)
    for seller in town.sellers:
        seller.worker = WHOLE
    agreed: list[Agreement] = []

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Agreement):
            agreed.append(payload)
            worker = Worker(pieces=PIECES, fails_at=2) if len(agreed) < 4 else WHOLE
            seller_of(town, payload).worker = worker
        return True

    town.on_send = heard
    town.start(request())
    town.run()
    assert b"".join(text.payload for text in texts(town)) == WHOLE.output()
    assert [text.index for text in texts(town)] == [1, 2, 3, 4]
    behind = [agreement.continues.output_units for agreement in agreed if agreement.continues is not None]
    assert behind == [10, 20, 30]
    paid = [paid_to(town, seller_of(town, agreement)) for agreement in agreed]
    assert paid == [amount_due(PRICES, 10 + units, 10) for units in (0, 10, 20)] + [amount_due(PRICES, 40, 5)]
    assert finished(town).paid == sum(paid)


def test_second_provider_that_takes_the_input_and_fails_owes_it_and_the_third_goes_on_behind_the_first() -> None:
    town = Town(sellers=3)
    agreed: list[Agreement] = []

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Agreement):
            agreed.append(payload)
            fails = {1: 3, 2: 1, 3: None}[len(agreed)]
            seller_of(town, payload).worker = Worker(pieces=PIECES, fails_at=fails)
        return True

    town.on_send = heard
    town.start(request())
    town.run()
    assert b"".join(text.payload for text in texts(town)) == WHOLE.output()
    owed = amount_due(PRICES, 10 + 20, 0)
    assert town.buyer.buyer.books.debt(agreed[1].provider) == owed
    assert [paid_to(town, seller_of(town, agreement)) for agreement in agreed] == [
        amount_due(PRICES, 10, 20),
        owed,
        amount_due(PRICES, 30, 15),
    ]
    assert [agreement.continues is not None and agreement.continues.output_units for agreement in agreed[1:]] == [
        20,
        20,
    ]
    assert finished(town).paid == amount_due(PRICES, 10, 20) + owed + amount_due(PRICES, 30, 15)


WHOLE_OUTPUT = replace(SERVED, runtime="onnx")
PLAIN_STREAM = replace(SERVED, runtime="something else")


def test_output_that_is_one_thing_starts_again_and_is_shown_when_it_is_whole() -> None:
    town = first_is(Worker(pieces=PIECES, fails_at=3), served=WHOLE_OUTPUT)
    first, second = first_and_second(town)
    assert second.continues is None
    assert b"".join(text.payload for text in texts(town)) == WHOLE.output()
    assert [text.index for text in texts(town)] == [1, 2, 3, 4]
    assert {text.job for text in texts(town)} == {town.job_of(town.buyer, second)}
    assert paid_to(town, seller_of(town, first)) == amount_due(PRICES, 10, 20)
    assert paid_to(town, seller_of(town, second)) == amount_due(PRICES, 10, 35)
    assert (finished(town).output_units, finished(town).chunks) == (35, 5)


def test_output_that_is_one_thing_is_shown_as_far_as_it_came_when_nobody_will_make_it_whole() -> None:
    town = first_is(Worker(pieces=PIECES, fails_at=3), served=WHOLE_OUTPUT, sellers=1)
    [lost] = [event for event in town.buyer.events if isinstance(event, JobFailed)]
    assert b"".join(text.payload for text in texts(town)) == WHOLE.output(2)
    assert lost.paid == amount_due(PRICES, 10, 20)


@pytest.mark.parametrize(
    ("served", "payload"),
    [
        (PLAIN_STREAM, JobPayload("chat", b"hello there", ())),
        (SERVED, JobPayload("chat", b"hello there", (), output=OutputForm.TOKENS)),
        (SERVED, JobPayload("chat", bytes(1024 * 1024 - 25), ())),
    ],
    ids=["a runtime that takes no prefix", "lines about tokens", "no room for the prefix"],
)
def test_what_nobody_can_go_on_from_ends_with_what_was_delivered(served: ModelOffer, payload: JobPayload) -> None:
    town = first_is(Worker(pieces=PIECES, fails_at=3), served=served, payload=encode(payload))
    [lost] = [event for event in town.buyer.events if isinstance(event, JobFailed)]
    assert (lost.output_units, lost.paid) == (20, amount_due(PRICES, 10, 20))
    assert len(town.watch.agreements) == 1


def test_all_units_without_an_end_leave_nothing_to_ask_for() -> None:
    town = first_is(Worker(pieces=(10, 10, 10, 10, 10), fails_at=5), sellers=2)
    [lost] = [event for event in town.buyer.events if isinstance(event, JobFailed)]
    assert (lost.output_units, lost.paid) == (40, amount_due(PRICES, 10, 40))
    assert len(town.watch.agreements) == 1


def test_a_users_own_prefix_stays_before_the_output() -> None:
    payload = JobPayload("chat", b"hello there", (), b"")
    town = first_is(Worker(pieces=PIECES, fails_at=2), payload=encode(payload))
    assert is_whole(town)
    [record] = [decode(row, ReceiptRecord) for row in town.buyer.rows(Table.RECEIPT)]
    assert decode(record.input, JobPayload).prefix == WHOLE.output(1)


def test_what_shows_the_earlier_part_is_kept_and_fits_the_agreement_that_goes_on() -> None:
    town = first_is(Worker(pieces=PIECES, fails_at=3))
    first, second = first_and_second(town)
    [job, _] = town.watch.agreements
    kept = decode(town.buyer.disk[(Table.JOB_STATEMENT, job)], JobStatements)
    _, agreement = open_as(kept.agreement, MessageKind.AGREEMENT)
    chunk_envelope, chunk = open_as(kept.chunk, MessageKind.CHUNK)
    _, voucher = open_as(kept.voucher, MessageKind.VOUCHER)
    assert isinstance(chunk, Chunk)
    assert isinstance(voucher, Voucher)
    assert agreement == first
    assert voucher.cumulative == chunk.due == amount_due(PRICES, 10, 20)
    check_link(second, first, job, chunk, chunk_envelope.payload)
    assert second.continues is not None
    check_prefix(second.continues, request().salt, WHOLE.output(2))
    assert decode(town.buyer.disk[(Table.JOB, job)], JobRecord).paid == amount_due(PRICES, 10, 20)


def test_providers_of_a_continued_job_hold_a_good_receipt_of_their_own_part() -> None:
    town = first_is(Worker(pieces=PIECES, fails_at=3))
    _, second = first_and_second(town)
    [sold] = [decode(row, ReceiptRecord) for row in seller_of(town, second).rows(Table.RECEIPT)]
    [bought] = [decode(row, ReceiptRecord) for row in town.buyer.rows(Table.RECEIPT)]
    assert (sold.output, bought.output) == (WHOLE.output()[len(WHOLE.output(2)) :],) * 2
    assert sold.final_voucher == bought.final_voucher != b""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda continues: replace(continues, output_commitment=bytes(32)), "prefix is not the output"),
        (lambda continues: replace(continues, output_bytes=10**6), "prefix has"),
        (lambda continues: replace(continues, output_units=WorkUnits(21)), "limits are above its bid's"),
    ],
)
def test_provider_refuses_a_continuation_that_its_input_or_bid_does_not_bear_out(
    change: Callable[[Continuation], Continuation], reason: str
) -> None:
    town = first_is(Worker(pieces=PIECES, fails_at=3))
    _, agreed = first_and_second(town)
    seller = seller_of(town, agreed)
    assert agreed.continues is not None
    lied = replace(agreed, continues=change(agreed.continues), lane=Lane(9), cumulative_start=0, sequence_start=0)
    job = town.job_of(town.buyer, lied)
    town.watch.agreements[job] = lied
    [record] = [decode(row, ReceiptRecord) for row in town.buyer.rows(Table.RECEIPT)]
    town.hand(seller, town.buyer.node, record.bid)
    town.hand(seller, town.buyer.node, envelope_of(town.buyer, MessageKind.AGREEMENT, lied)[2])
    town.do(seller, seller.seller.receive_input(town.buyer.node, JobInput(job, record.salt, record.input), town.now))
    [refused] = [event for event in seller.events if isinstance(event, SaleRefused)]
    assert reason in refused.reason
    assert refused.fault is FaultKind.USER


def test_provider_whose_runtime_takes_no_prefix_refuses_as_want_of_capacity() -> None:
    town = first_is(Worker(pieces=PIECES, fails_at=3))
    _, agreed = first_and_second(town)
    with pytest.raises(TermsRefused, match="can't go on") as refusal:
        check_service(agreed, replace(SERVED, runtime="wasm"), SellerPolicy())
    assert refusal.value.fault is FaultKind.CAPACITY


def test_output_that_makes_the_input_larger_than_anybody_takes_ends_the_job_with_what_was_delivered() -> None:
    """Input of 10 units, then 20 of output: a next provider would meter 30."""
    for most, agreements in ((29, 1), (30, 2)):
        served = replace(SERVED, input_units_max=WorkUnits(most))
        town = first_is(Worker(pieces=PIECES, fails_at=3), served=served)
        assert len(town.watch.agreements) == agreements
        if agreements == 2:
            assert is_whole(town)
        else:
            [lost] = [event for event in town.buyer.events if isinstance(event, JobFailed)]
            assert (lost.fault, lost.reason) == (FaultKind.PROVIDER, "worker died")
            assert (lost.output_units, lost.paid) == (20, amount_due(PRICES, 10, 20))
