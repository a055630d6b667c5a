"""``why``: two sides' words and the ledger's put together, and where they differ."""

import pytest
from msgspec.structs import replace

from protocol.market.records import (
    CHUNKS,
    LEFT_OUT,
    NO_REQUEST,
    BuyerLane,
    ChannelLine,
    JobRecord,
    RedeemedLane,
    Side,
    ended_by_restart,
    noted,
    timeline_of,
)
from protocol.market.timeline import AttemptStory, Line, Step, Teller, contradictions, facts_of, merged
from protocol.messages.effects import Table
from protocol.messages.market import FaultKind, HistoryEntry, Timeline
from protocol.primitives.codec import decode
from protocol.primitives.limits import HISTORY_ENTRIES_MAX
from protocol.primitives.units import (
    AccountId,
    Amount,
    ChannelId,
    Hash,
    Height,
    Lane,
    MessageId,
    ModelId,
    NodeId,
    SequenceNumber,
    TimestampMs,
    WorkUnits,
)
from protocol.settlement.accumulator import EMPTY
from protocol.settlement.vouchers import unused_lane
from tests.market.town import Town, Worker, request

ZERO = MessageId(bytes(32))
BUYER, PROVIDER = AccountId(b"b" * 32), AccountId(b"p" * 32)


def entry(at: int, state: str, cause: str = "", *, attempt: int = 1, chunks: int = 0, paid: int = 0) -> HistoryEntry:
    return HistoryEntry(TimestampMs(at), state, cause, attempt=attempt, chunks=chunks, paid=Amount(paid))


def record(side: Side, *history: HistoryEntry, state: str = "done", chunks: int = 3, paid: int = 30) -> JobRecord:
    return JobRecord(
        job=MessageId(b"j" * 32),
        request=Hash(b"r" * 32) if side is Side.BUYER else NO_REQUEST,
        side=side,
        buyer=BUYER,
        provider=PROVIDER,
        model=ModelId(b"m" * 32),
        channel=ChannelId(b"c" * 32),
        lane=Lane(2),
        price_ceiling=Amount(100),
        state=state,
        fault=None,
        reason="",
        paid=Amount(paid),
        input_units=WorkUnits(5),
        output_units=WorkUnits(20),
        chunks=chunks,
        history=history,
        model_name="tiny",
        node=NodeId(b"n" * 32),
        attempt=1,
        created_at=TimestampMs(1_000),
        accepted_at=TimestampMs(1_010),
    )


def told(record: JobRecord, **changes: object) -> Timeline:
    return replace(timeline_of(record, ZERO, TimestampMs(9_000)), **changes)


BOUGHT = record(
    Side.BUYER,
    entry(1_000, "choosing", "requested", attempt=0),
    entry(1_005, "offered", "agreement sent, attempt 1"),
    entry(1_020, "prefilling", "accepted by the provider"),
    entry(1_100, "streaming", "input processed and paid", chunks=1, paid=10),
    entry(1_200, CHUNKS, "chunk 1 verified and paid", chunks=2, paid=20),
    entry(1_300, "settling", "last chunk delivered", chunks=3, paid=20),
    entry(1_310, "done", "receipt acknowledged, last chunk paid", chunks=3, paid=30),
)
SOLD = record(
    Side.SELLER,
    entry(1_012, "processing the input", "accepted", attempt=0),
    entry(1_095, CHUNKS, "chunk 1 paid", attempt=0, chunks=2, paid=20),
    entry(1_290, "awaiting the final voucher", "last chunk released", attempt=0, chunks=3, paid=20),
    entry(1_315, "done", "paid and receipt acknowledged", attempt=0, chunks=3, paid=30),
)


def spoken(lines: tuple[Line, ...]) -> list[tuple[str, str]]:
    return [("+".join(teller.name.lower() for teller in line.tellers), line.what) for line in lines]


def test_what_both_sides_say_alike_is_one_line_of_both() -> None:
    lines = merged((AttemptStory(1, BOUGHT, told(SOLD)),), ())
    assert spoken(lines) == [
        ("buyer", "asked for the job"),
        ("buyer", "signed the agreement"),
        ("buyer+provider", "provider took the job"),
        ("buyer", "input processed"),
        ("buyer+provider", "chunk 1 delivered and paid"),
        ("buyer+provider", "chunk 2, the last one, delivered"),
        ("buyer+provider", "done"),
    ]
    assert [line.paid for line in lines] == [0, 0, 0, 10, 20, 20, 30]
    assert contradictions(AttemptStory(1, BOUGHT, told(SOLD))) == ()


def test_the_providers_side_tells_the_same_story() -> None:
    lines = merged((AttemptStory(1, SOLD, told(BOUGHT)),), ())
    assert sorted(spoken(lines)) == sorted(spoken(merged((AttemptStory(1, BOUGHT, told(SOLD)),), ())))


def test_lines_of_a_clock_that_is_ahead_are_moved_back_and_sorted_in() -> None:
    ahead = told(SOLD, history=tuple(replace(each, at=TimestampMs(each.at + 500)) for each in SOLD.history))
    lines = merged((AttemptStory(1, replace(BOUGHT, history=BOUGHT.history[:2]), ahead, 500),), ())
    assert [(line.at, line.step) for line in lines if Teller.PROVIDER in line.tellers] == [
        (1_012, Step.ACCEPTED),
        (1_095, Step.CHUNKS_PAID),
        (1_290, Step.LAST_CHUNK),
        (1_315, Step.ENDED),
    ]


def test_where_they_differ_each_keeps_its_line() -> None:
    shorter = told(SOLD, history=(*SOLD.history[:3], entry(1_315, "failed", "stalled", chunks=3, paid=20)))
    lines = merged((AttemptStory(1, BOUGHT, shorter),), ())
    assert spoken(lines)[-2:] == [("buyer", "done"), ("provider", "failed")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chunks": 5}, "the provider says it delivered 5 chunks, this node has 3"),
        ({"chunks": 1}, "the provider says it delivered 1 chunk, this node has 3"),
        ({"paid": Amount(20)}, "the provider says it was paid 0.00002 credits, this node paid 0.00003"),
        ({"state": "failed"}, "the provider says the job is failed, for this node it is done"),
        ({"state": "working"}, "the provider says the job is working, for this node it is done"),
        (
            {"output_units": WorkUnits(21)},
            "the provider counts 5 units in and 21 out, this node 5 and 20",
        ),
    ],
)
def test_every_difference_is_named(changes: dict[str, object], said: str) -> None:
    assert contradictions(AttemptStory(1, BOUGHT, told(SOLD, **changes))) == (said,)


def test_a_party_that_forgot_an_agreed_job_is_named_and_one_that_refused_it_is_not() -> None:
    unknown = Timeline(ZERO, BOUGHT.job, TimestampMs(9_000), known=False)
    assert contradictions(AttemptStory(1, BOUGHT, unknown)) == ("the provider keeps nothing of a job that was agreed",)
    refused = replace(BOUGHT, accepted_at=TimestampMs(0), chunks=0)
    assert contradictions(AttemptStory(1, refused, unknown)) == ()


def test_both_words_for_an_end_without_a_receipt_are_no_contradiction() -> None:
    failed = replace(BOUGHT, state="failed")
    assert contradictions(AttemptStory(1, failed, told(SOLD, state="cancelled"))) == ()


def test_attempts_follow_each_other_in_the_buyers_own_history() -> None:
    history = (
        entry(1_000, "choosing", "requested", attempt=0),
        entry(1_001, "connecting", "no link to the provider yet", attempt=0),
        entry(1_005, "offered", "agreement sent, attempt 1"),
        entry(1_200, "attempt failed", "provider stopped delivering", chunks=2, paid=20),
        entry(1_201, "connecting", "no link to the provider yet", paid=20),
        entry(1_205, "offered", "agreement sent, attempt 2", attempt=2, paid=20),
        entry(1_300, "done", attempt=2, chunks=2, paid=45),
    )
    first = replace(BOUGHT, history=history[:4], state="failed", fault=FaultKind.PROVIDER)
    second = replace(BOUGHT, history=history, attempt=2)
    lines = merged((AttemptStory(1, first, None), AttemptStory(2, second, None)), ())
    assert [(line.attempt, line.step) for line in lines] == [
        (0, Step.REQUESTED),
        (1, Step.BEFORE_AGREEMENT),
        (1, Step.OFFERED),
        (1, Step.ATTEMPT_FAILED),
        (2, Step.BEFORE_AGREEMENT),
        (2, Step.OFFERED),
        (2, Step.ENDED),
    ]
    assert lines[3].cause == "provider stopped delivering"
    assert lines[-1].paid == 45


def test_what_is_on_its_way_in_a_job_under_way_is_no_contradiction() -> None:
    streaming = replace(BOUGHT, state="streaming", chunks=2)
    assert contradictions(AttemptStory(1, streaming, told(SOLD, state="awaiting a voucher"))) == ()


# The ledger


def channel_line(height: int, action: str, at: int, *lanes: RedeemedLane, by: AccountId = PROVIDER) -> ChannelLine:
    amount = Amount(1_000) if action in ("opened", "topped up") else Amount(0)
    return ChannelLine(Height(height), TimestampMs(at), ZERO, by, action, amount, lanes)


def lane(number: int, cumulative: int, receipts: int) -> RedeemedLane:
    return RedeemedLane(Lane(number), SequenceNumber(cumulative), Amount(cumulative), receipts)


def test_of_a_channels_history_only_what_the_job_needed_or_caused_is_told() -> None:
    lines = (
        channel_line(1, "opened", 500, by=BUYER),
        channel_line(2, "topped up", 700, by=BUYER),
        channel_line(3, "redeemed", 800, lane(2, 15, 4)),
        channel_line(4, "topped up", 1_003, by=BUYER),
        channel_line(5, "redeemed", 1_400, lane(1, 9, 7)),
        channel_line(6, "redeemed", 1_500, lane(1, 12, 8), lane(2, 45, 5)),
        channel_line(7, "redeemed", 1_600, lane(2, 99, 6)),
        channel_line(8, "closed", 1_700, by=BUYER),
        channel_line(9, "finalised", 1_800),
    )
    facts = facts_of(AttemptStory(1, BOUGHT, None), lines, 1_000, receipt_index=4)
    assert [(fact.line.height, fact.amount, fact.cause) for fact in facts] == [
        (1, 1_000, "the buyer's deposit"),
        (4, 1_000, "the buyer's deposit"),
        (6, 33, "anchors this job's receipt"),
        (8, 0, "by the buyer"),
        (9, 0, "by the provider"),
    ]


def test_a_job_without_a_receipt_is_paid_by_the_first_redemption_of_its_lane_after_it() -> None:
    lines = (channel_line(3, "redeemed", 800, lane(2, 15, 4)), channel_line(6, "redeemed", 1_500, lane(2, 45, 4)))
    facts = facts_of(AttemptStory(1, BOUGHT, None), lines, 1_000, receipt_index=None)
    assert [(fact.line.height, fact.amount) for fact in facts] == [(6, 30)]


# What is kept


def test_chunks_after_chunks_share_a_line() -> None:
    history: list[HistoryEntry] = []
    for number in range(1, 200):
        noted(history, entry(1_000 + number, CHUNKS, f"chunk {number}", chunks=number + 1, paid=number))
    [line] = history
    assert (line.at, line.until, line.chunks, line.paid) == (1_001, 1_199, 200, 199)


def test_a_full_history_keeps_its_beginning_and_its_end_and_counts_the_rest() -> None:
    history: list[HistoryEntry] = []
    for number in range(3 * HISTORY_ENTRIES_MAX):
        noted(history, entry(number, f"state {number}"))
    assert len(history) == HISTORY_ENTRIES_MAX
    assert (history[0].state, history[-1].state) == ("state 0", f"state {3 * HISTORY_ENTRIES_MAX - 1}")
    [gap] = [each for each in history if each.state == LEFT_OUT]
    assert gap.chunks == 3 * HISTORY_ENTRIES_MAX - (HISTORY_ENTRIES_MAX - 1)
    lines = merged((AttemptStory(1, replace(BOUGHT, history=tuple(history)), None),), ())
    assert f"{gap.chunks} more lines were not kept" in [line.what for line in lines]


def test_a_restart_is_the_last_line_of_what_it_ended() -> None:
    lane = BuyerLane(
        channel=ChannelId(ZERO), lane=Lane(0), provider=PROVIDER, node=NodeId(ZERO), position=unused_lane(Lane(0)),
        accumulator=EMPTY, earned=Amount(0), job=BOUGHT.job, start=Amount(0), ceiling=Amount(50), paid=Amount(20),
        last_receipt=None, retired=False, input_units=WorkUnits(3), output_units=WorkUnits(4),
    )  # fmt: skip
    ended = ended_by_restart(BOUGHT, lane, "failed", FaultKind.NETWORK, "this node restarted", 5_000)
    assert (ended.state, ended.paid, ended.history[-1].cause) == ("failed", 20, "this node restarted")
    assert (ended.input_units, ended.output_units) == (3, 4)
    assert ended.history[-1].chunks == 3


def test_a_job_of_many_chunks_fits_its_row_and_both_rows_agree() -> None:
    town = Town()
    town.seller.worker = Worker(pieces=(1,) * 100)
    town.start(request(1, output_units_max=WorkUnits(200), chunk_units=1))
    town.run()
    [bought] = [decode(row, JobRecord) for row in town.buyer.rows(Table.JOB)]
    [sold] = [decode(row, JobRecord) for row in town.seller.rows(Table.JOB)]
    story = AttemptStory(1, bought, timeline_of(sold, ZERO, town.now.wall_ms))
    assert contradictions(story) == ()
    lines = merged((story,), ())
    assert "chunks 1–99 delivered and paid" in [line.what for line in lines]
    assert len(lines) <= 12
    assert (bought.model_name, sold.model_name) == ("", "echo")
    assert (bought.node, sold.node) == (town.seller.node, town.buyer.node)


def test_what_was_signed_of_a_failed_attempt_is_kept_and_its_request_names_it() -> None:
    town = Town()
    town.seller.worker = Worker(silent_from=2)
    town.start(request())
    town.run()
    town.wait(31_000)
    for person in (town.buyer, town.seller):
        stored = next(row for row in (decode(each, JobRecord) for each in person.rows(Table.JOB)) if any(row.job))
        assert stored.state in ("failed", "cancelled")
        assert (Table.JOB_STATEMENT, stored.job) in person.disk
    [job] = town.buyer.rows(Table.JOB_OF_REQUEST)
    assert (Table.JOB, job) in town.buyer.disk


def test_what_a_receipt_holds_is_not_kept_twice() -> None:
    town = Town()
    town.start(request())
    town.run()
    assert not town.buyer.rows(Table.JOB_STATEMENT)
    assert not town.seller.rows(Table.JOB_STATEMENT)
