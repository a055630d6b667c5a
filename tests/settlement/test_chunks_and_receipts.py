"""Chunks and receipts against an agreement: each rule has a row that breaks it alone."""

import pytest
from msgspec.structs import replace

from protocol.messages.market import Agreement, Chunk, FinishReason, Prices, Receipt
from protocol.primitives.codec import encode
from protocol.primitives.limits import CHUNK_PAYLOAD_BYTES_MAX
from protocol.primitives.units import (
    AMOUNT_MAX,
    AccountId,
    Amount,
    ChannelId,
    DurationMs,
    Hash,
    Lane,
    MessageId,
    ModelId,
    NodeId,
    Salt,
    SequenceNumber,
    TimestampMs,
    WorkUnits,
)
from protocol.settlement.chunks import ChunkInvalid, Progress, check_chunk, chunk_hash, progress_start
from protocol.settlement.pricing import amount_due
from protocol.settlement.receipts import (
    ReceiptInvalid,
    check_receipt,
    check_receipt_terms,
    input_commitment,
    make_receipt,
    output_commitment,
)

JOB = MessageId(b"j" * 32)
SALT = Salt(b"s" * 32)
PROVIDER = AccountId(b"p" * 32)
PRICES = Prices(Amount(100), Amount(10_000), Amount(50_000))
AGREEMENT = Agreement(
    bid=MessageId(b"b" * 32),
    offer=MessageId(b"o" * 32),
    buyer=AccountId(b"u" * 32),
    provider=PROVIDER,
    buyer_node=NodeId(b"v" * 32),
    provider_node=NodeId(b"q" * 32),
    model=ModelId(b"m" * 32),
    runtime_build="echo 1",
    settings="plain",
    prices=PRICES,
    chunk_units=10,
    input_units_max=WorkUnits(20),
    output_units_max=WorkUnits(25),
    price_ceiling=amount_due(PRICES, 20, 25),
    input_commitment=input_commitment(SALT, b"in"),
    input_bytes=2,
    channel=ChannelId(b"c" * 32),
    lane=Lane(3),
    cumulative_start=Amount(0),
    sequence_start=SequenceNumber(0),
    created_at=TimestampMs(1000),
    accept_ms=DurationMs(1),
    first_output_ms=DurationMs(1),
    stall_ms=DurationMs(1),
    total_ms=DurationMs(1),
    seed=0,
    temperature_milli=0,
    verification="none",
)
FIRST = Chunk(JOB, 0, Hash(JOB), WorkUnits(20), WorkUnits(0), amount_due(PRICES, 20, 0), FinishReason.NONE, b"")


def after(progress: Progress, chunk: Chunk, agreement: Agreement = AGREEMENT) -> Progress:
    return check_chunk(JOB, agreement, progress, chunk, encode(chunk))


FULL = bytes(CHUNK_PAYLOAD_BYTES_MAX)
PREFILLED = after(progress_start(JOB), FIRST)
SECOND = Chunk(
    JOB,
    1,
    PREFILLED.last_chunk,
    WorkUnits(20),
    WorkUnits(10),
    amount_due(PRICES, 20, 10),
    FinishReason.NONE,
    b"0123456789",
)
BEGUN = after(PREFILLED, SECOND)
LAST = Chunk(
    JOB, 2, BEGUN.last_chunk, WorkUnits(20), WorkUnits(15), amount_due(PRICES, 20, 15), FinishReason.STOP, b"01234"
)
ENDED = after(BEGUN, LAST)


WHOLE = replace(
    FIRST, output_units=WorkUnits(10), due=amount_due(PRICES, 20, 10), finish=FinishReason.STOP, payload=b"0123456789"
)


def test_all_of_a_short_output_may_come_with_its_input_as_one_chunk() -> None:
    progress = after(progress_start(JOB), WHOLE)
    assert (progress.chunks, progress.output_units, progress.due, progress.delivered) == (1, 10, WHOLE.due, True)
    assert not PREFILLED.delivered
    with pytest.raises(ChunkInvalid, match="after the last"):
        after(progress, SECOND)


def test_chunks_in_order_build_a_chain() -> None:
    assert (
        Progress(
            3, chunk_hash(encode(LAST)), WorkUnits(20), WorkUnits(15), amount_due(PRICES, 20, 15), FinishReason.STOP
        )
        == ENDED
    )


def test_a_last_chunk_may_be_empty() -> None:
    empty = replace(SECOND, output_units=WorkUnits(0), due=FIRST.due, payload=b"", finish=FinishReason.STOP)
    assert after(PREFILLED, empty).output_units == 0


def test_a_unit_may_begin_with_full_chunks_that_cost_nothing() -> None:
    full = replace(SECOND, output_units=WorkUnits(0), due=FIRST.due, payload=FULL)
    assert after(PREFILLED, full).due == FIRST.due


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        (replace(FIRST, job=MessageId(b"x" * 32)), "another job"),
        (replace(FIRST, index=1), "expected chunk 0"),
        (replace(FIRST, previous=Hash(b"x" * 32)), "not linked"),
        (replace(FIRST, payload=b"x"), "carries output"),
        (replace(FIRST, output_units=WorkUnits(1)), "carries output"),
        (replace(WHOLE, finish=FinishReason.NONE), "carries output"),
        (replace(WHOLE, output_units=WorkUnits(11), due=amount_due(PRICES, 20, 11)), "at most 10"),
        (replace(WHOLE, due=FIRST.due), "is due"),
        (replace(FIRST, input_units=WorkUnits(21), due=amount_due(PRICES, 21, 0)), "20 were agreed"),
        (replace(FIRST, due=Amount(FIRST.due + 1)), "is due"),
        (replace(FIRST, due=Amount(FIRST.due - 1)), "is due"),
    ],
)
def test_first_chunk_that_breaks_a_rule_is_refused(chunk: Chunk, reason: str) -> None:
    with pytest.raises(ChunkInvalid, match=reason):
        after(progress_start(JOB), chunk)


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        (replace(SECOND, index=0), "expected chunk 1"),
        (replace(SECOND, index=2), "expected chunk 1"),
        (replace(SECOND, previous=Hash(JOB)), "not linked"),
        (replace(SECOND, input_units=WorkUnits(19), due=amount_due(PRICES, 19, 10)), "input units changed"),
        (replace(SECOND, output_units=WorkUnits(11), due=amount_due(PRICES, 20, 11)), "at most 10"),
        (replace(SECOND, output_units=WorkUnits(0), due=FIRST.due, payload=b""), "without a unit"),
        (replace(SECOND, output_units=WorkUnits(0), due=FIRST.due, payload=FULL[:-1]), "without a unit"),
        (replace(SECOND, due=Amount(SECOND.due + 1)), "is due"),
    ],
)
def test_later_chunk_that_breaks_a_rule_is_refused(chunk: Chunk, reason: str) -> None:
    with pytest.raises(ChunkInvalid, match=reason):
        after(PREFILLED, chunk)


def test_output_may_not_shrink_or_pass_its_limit_or_go_on_after_the_end() -> None:
    less = replace(LAST, output_units=WorkUnits(9), due=amount_due(PRICES, 20, 9))
    with pytest.raises(ChunkInvalid, match="at most 10"):
        after(BEGUN, less)
    tight = replace(AGREEMENT, output_units_max=WorkUnits(14))
    with pytest.raises(ChunkInvalid, match="at most 14 were agreed"):
        after(BEGUN, LAST, tight)
    again = replace(LAST, index=3, previous=ENDED.last_chunk)
    with pytest.raises(ChunkInvalid, match="after the last"):
        after(ENDED, again)


def test_chunk_above_the_price_ceiling_is_refused() -> None:
    tight = replace(AGREEMENT, price_ceiling=Amount(SECOND.due - 1))
    with pytest.raises(ChunkInvalid, match="above the ceiling"):
        after(PREFILLED, SECOND, tight)


def test_chunk_that_costs_more_than_all_money_is_refused_and_nothing_else_is_raised() -> None:
    dear = replace(AGREEMENT, prices=replace(PRICES, input_per_thousand=Amount(AMOUNT_MAX)))
    with pytest.raises(ChunkInvalid, match="more than can be owed"):
        after(progress_start(JOB), replace(FIRST, input_units=WorkUnits(2000)), replace(dear, input_units_max=2000))


OUTPUT = output_commitment(SALT, b"012345678901234")
RECEIPT = make_receipt(JOB, AGREEMENT, ENDED, OUTPUT, TimestampMs(2000), TimestampMs(3000))


def judge(receipt: Receipt, signer: AccountId = PROVIDER) -> None:
    check_receipt(receipt, signer, JOB, AGREEMENT, TimestampMs(2000), ENDED, OUTPUT)


def test_the_receipt_of_what_was_delivered_holds() -> None:
    judge(RECEIPT)
    assert RECEIPT.amount == LAST.due


@pytest.mark.parametrize(
    ("receipt", "field"),
    [
        (replace(RECEIPT, job=MessageId(b"x" * 32)), "job"),
        (replace(RECEIPT, bid=MessageId(b"x" * 32)), "bid"),
        (replace(RECEIPT, buyer=AccountId(b"x" * 32)), "buyer"),
        (replace(RECEIPT, provider=AccountId(b"x" * 32)), "provider"),
        (replace(RECEIPT, model=ModelId(b"x" * 32)), "model"),
        (replace(RECEIPT, runtime_build="other"), "runtime_build"),
        (replace(RECEIPT, settings="other"), "settings"),
        (replace(RECEIPT, input_commitment=Hash(b"x" * 32)), "input_commitment"),
        (replace(RECEIPT, channel=ChannelId(b"x" * 32)), "channel"),
        (replace(RECEIPT, lane=Lane(4)), "lane"),
        (replace(RECEIPT, input_units=WorkUnits(21), amount=amount_due(PRICES, 21, 15)), "input_units"),
        (replace(RECEIPT, output_units=WorkUnits(26), amount=amount_due(PRICES, 20, 26)), "output_units"),
        (replace(RECEIPT, chunks=2), "chunks"),
        (replace(RECEIPT, chunks=0, output_units=WorkUnits(0), amount=amount_due(PRICES, 20, 0)), "chunks"),
        (replace(RECEIPT, amount=Amount(RECEIPT.amount + 1)), "amount"),
        (replace(RECEIPT, finish=FinishReason.NONE), "finish"),
        (replace(RECEIPT, finished_at=TimestampMs(1999)), "finished_at"),
    ],
)
def test_receipt_that_contradicts_its_agreement_is_refused_offline(receipt: Receipt, field: str) -> None:
    with pytest.raises(ReceiptInvalid, match=f": {field}$"):
        check_receipt_terms(receipt, JOB, AGREEMENT)


def test_receipt_above_the_agreed_ceiling_is_refused() -> None:
    with pytest.raises(ReceiptInvalid, match="amount"):
        check_receipt_terms(RECEIPT, JOB, replace(AGREEMENT, price_ceiling=Amount(RECEIPT.amount - 1)))


def test_receipt_whose_price_can_not_be_owed_is_refused_and_nothing_else_is_raised() -> None:
    dear = replace(
        AGREEMENT, prices=replace(PRICES, output_per_thousand=Amount(AMOUNT_MAX), request=Amount(AMOUNT_MAX))
    )
    with pytest.raises(ReceiptInvalid, match="amount"):
        check_receipt_terms(RECEIPT, JOB, dear)


@pytest.mark.parametrize(
    ("receipt", "field"),
    [
        (replace(RECEIPT, output_commitment=Hash(b"x" * 32)), "output_commitment"),
        (replace(RECEIPT, accepted_at=TimestampMs(1500)), "accepted_at"),
        (replace(RECEIPT, output_units=WorkUnits(14), amount=amount_due(PRICES, 20, 14)), "units"),
        (replace(RECEIPT, input_units=WorkUnits(19), amount=amount_due(PRICES, 19, 15)), "units"),
        (replace(RECEIPT, last_chunk=Hash(b"x" * 32)), "last_chunk"),
        (replace(RECEIPT, chunks=4), "last_chunk"),
        (replace(RECEIPT, finish=FinishReason.LENGTH), "finish"),
    ],
)
def test_receipt_that_contradicts_what_was_delivered_is_refused(receipt: Receipt, field: str) -> None:
    with pytest.raises(ReceiptInvalid, match=f": {field}$"):
        judge(receipt)


def test_receipt_signed_by_somebody_else_is_refused() -> None:
    with pytest.raises(ReceiptInvalid, match="signer"):
        judge(RECEIPT, AccountId(b"x" * 32))


def test_commitments_hide_by_salt_and_differ_by_purpose() -> None:
    assert input_commitment(SALT, b"x") != output_commitment(SALT, b"x")
    assert input_commitment(SALT, b"x") != input_commitment(Salt(b"t" * 32), b"x")
