"""What one agreement says of the work behind it, row by row."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from protocol.messages.market import Agreement, Bid, Chunk, Continuation, FinishReason
from protocol.primitives.codec import encode
from protocol.primitives.units import (
    AccountId,
    Amount,
    Hash,
    MessageId,
    ModelId,
    Salt,
    TimestampMs,
    WorkUnits,
)
from protocol.settlement.chunks import check_chunk, progress_start
from protocol.settlement.continuation import (
    ContinuationInvalid,
    check_link,
    check_prefix,
    input_units_most,
    make_continuation,
    output_units_most,
)
from protocol.settlement.pricing import amount_due
from tests.settlement.test_chunks_and_receipts import AGREEMENT, JOB

SALT = Salt(b"s" * 32)
PREFIX = b"twelve bytes"
INPUT_UNITS = WorkUnits(1)


def chunk(index: int, previous: Hash, units: int) -> Chunk:
    due = amount_due(AGREEMENT.prices, INPUT_UNITS, units)
    payload = PREFIX if index else b""
    return Chunk(JOB, index, previous, INPUT_UNITS, WorkUnits(units), due, FinishReason.NONE, payload)


def delivered() -> tuple[Chunk, Continuation]:
    """One chunk of output behind the input, and what goes on from it."""
    first = chunk(0, Hash(JOB), 0)
    progress = check_chunk(JOB, AGREEMENT, progress_start(JOB), first, encode(first))
    last = chunk(1, progress.last_chunk, 1)
    progress = check_chunk(JOB, AGREEMENT, progress, last, encode(last))
    return last, make_continuation(JOB, progress, WorkUnits(1), SALT, PREFIX)


LAST, CONTINUES = delivered()
NEXT = replace(AGREEMENT, continues=CONTINUES)
BID = Bid(AGREEMENT.model, WorkUnits(10), WorkUnits(20), Amount(1), TimestampMs(1), "none", 1, Hash(b"u" * 32))


def test_what_was_made_from_the_chunks_is_linked_to_them() -> None:
    check_link(NEXT, AGREEMENT, JOB, LAST, encode(LAST))
    check_prefix(CONTINUES, SALT, PREFIX)
    check_prefix(CONTINUES, SALT, b"the user's own beginning, then " + PREFIX)


def test_limits_of_the_bid_hold_for_all_attempts_together() -> None:
    assert (input_units_most(BID, None), output_units_most(BID, None)) == (10, 20)
    assert (input_units_most(BID, CONTINUES), output_units_most(BID, CONTINUES)) == (10 + len(PREFIX), 19)


@pytest.mark.parametrize(
    ("later", "earlier", "reason"),
    [
        (replace(NEXT, continues=None), AGREEMENT, "another job"),
        (replace(NEXT, continues=replace(CONTINUES, job=MessageId(bytes(32)))), AGREEMENT, "another job"),
        (NEXT, replace(AGREEMENT, bid=MessageId(bytes(32))), "different requests"),
        (NEXT, replace(AGREEMENT, buyer=AccountId(bytes(32))), "different requests"),
        (NEXT, replace(AGREEMENT, model=ModelId(bytes(32))), "different requests"),
        (replace(NEXT, continues=replace(CONTINUES, chunks=3)), AGREEMENT, "behind another chunk"),
        (replace(NEXT, continues=replace(CONTINUES, last_chunk=Hash(bytes(32)))), AGREEMENT, "behind another chunk"),
        (replace(NEXT, continues=replace(CONTINUES, output_units=WorkUnits(2))), AGREEMENT, "2 units before it, 1"),
        (replace(NEXT, continues=replace(CONTINUES, output_units=WorkUnits(0))), AGREEMENT, "0 units before it, 1"),
        (NEXT, NEXT, "1 units before it, 2"),
    ],
)
def test_agreement_that_goes_on_from_something_else_is_found_out(
    later: Agreement, earlier: Agreement, reason: str
) -> None:
    with pytest.raises(ContinuationInvalid, match=reason):
        check_link(later, earlier, JOB, LAST, encode(LAST))


def test_chunk_of_another_job_links_nothing() -> None:
    stray = replace(LAST, job=MessageId(bytes(32)))
    with pytest.raises(ContinuationInvalid, match="another job"):
        check_link(NEXT, AGREEMENT, JOB, stray, encode(stray))


@pytest.mark.parametrize(
    "change",
    [
        lambda prefix: prefix[1:],
        lambda prefix: prefix + b"!",
        lambda prefix: b"",
        lambda prefix: b"twelve bytez",
    ],
)
def test_prefix_that_does_not_end_with_the_output_is_found_out(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ContinuationInvalid, match="prefix"):
        check_prefix(CONTINUES, SALT, change(PREFIX))
