"""What an upstream server streams, held against what can be seen: events, deltas, units."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.worker.errors import JobFailed
from node.worker.upstream_stream import (
    EVENT_BYTES_MAX,
    PIECE_BYTES_MAX,
    Delta,
    EventReader,
    Meter,
    Part,
    error_text,
    read_delta,
    tokens_of,
)

STREAM = (
    b': ping\n\nevent: x\ndata: {"a":1}\n\ndata:two\r\ndata: lines\r\n\r\nid: 7\n\ndata: [DONE]\n\ndata: unfinished'
)
EVENTS = [b'{"a":1}', b"two\nlines", b"[DONE]"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_the_same_however_the_bytes_are_cut(size: int) -> None:
    reader = EventReader()
    events = []
    for start in range(0, len(STREAM), size):
        events += reader.feed(STREAM[start : start + size])
    assert events == EVENTS


@pytest.mark.parametrize("content", [b"x" * 1000, b"data: x\n" * 200, b"data: " + b"x" * 990 + b"\n"])
def test_an_event_that_never_ends_is_not_held(content: bytes) -> None:
    reader = EventReader()
    pieces = EVENT_BYTES_MAX // 1000 + 2
    with pytest.raises(JobFailed, match="event of more than"):
        print([reader.feed(content) for _ in range(pieces)])


def event(**choice: object) -> bytes:
    return json.dumps({"choices": [choice]}).encode()


def test_a_delta_is_text_or_a_finish_or_a_count() -> None:
    assert read_delta(event(delta={"role": "assistant", "content": None})) == Delta()
    assert read_delta(event(delta={"content": "Hi"}, finish_reason=None)) == Delta("Hi")
    assert read_delta(event(text="Hi", finish_reason="length")) == Delta("Hi", "length")
    assert read_delta(event(delta={}, finish_reason="stop")) == Delta("", "stop")
    assert read_delta(event(delta={}, finish_reason="content_filter")) == Delta("", "stop")
    assert read_delta(b'{"choices":[],"usage":{"completion_tokens":7}}') == Delta(completion_tokens=7)
    assert read_delta(b'{"choices":[],"usage":null}') == Delta()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"null", b"[]", b"{}", b'{"choices":{}}', b'{"choices":[1]}', b'{"choices":[{},{}]}',
        event(delta={"content": 7}), event(delta=[]), event(text={}), event(delta={}, finish_reason=1),
        b'{"choices":[],"usage":{"completion_tokens":-1}}', b'{"choices":[],"usage":{"completion_tokens":true}}',
        b'{"choices":[],"usage":{"completion_tokens":1.5}}', b'{"error":{"message":"out of memory"},"choices":[]}',
        b"[" * 10_000, b"\xff\xfe",
    ],
)  # fmt: skip
def test_what_is_no_event_of_a_completion_is_the_servers_fault(content: bytes) -> None:
    with pytest.raises(JobFailed):
        read_delta(content)


@given(st.binary(max_size=200) | st.text(max_size=50).map(lambda text: json.dumps({"choices": [text]}).encode()))
def test_any_bytes_are_a_delta_or_the_servers_fault(content: bytes) -> None:
    with contextlib.suppress(JobFailed):
        assert isinstance(read_delta(content), Delta)
    EventReader().feed(content)


def test_what_a_server_says_is_cut_and_printable() -> None:
    assert error_text({"error": {"message": "no\x1b[31m room" + "x" * 500}})[:12] == "no[31m roomx"
    assert len(error_text({"error": "x" * 500})) == 200
    assert error_text({}) == ""
    assert tokens_of(None, "prompt_tokens") is None


def parts(meter: Meter, *deltas: Delta) -> list[Part]:
    """The pieces of a whole stream."""
    taken = []
    for delta in deltas:
        meter.take(delta)
        if meter.settled:
            meter.end()
        if meter.full:
            taken.append(meter.part())
            if taken[-1].finish is not None:
                return taken
    if not taken or taken[-1].finish is None:
        meter.end()
        taken.append(meter.part())
    return taken


def texts(count: int) -> list[Delta]:
    return [Delta("ab")] * count


def test_each_event_with_text_is_a_unit_and_the_servers_count_settles_the_rest() -> None:
    meter = Meter(100, 4, 1000)
    taken = parts(meter, *texts(6), Delta(finish="stop"), Delta(completion_tokens=8))
    assert taken == [Part(b"ab" * 4, 4, None), Part(b"ab" * 2, 4, "stop")]


def test_without_a_count_nothing_is_added() -> None:
    assert parts(Meter(100, 4, 1000), *texts(2), Delta("", "stop")) == [Part(b"abab", 2, "stop")]


def test_a_count_above_what_was_streamed_is_paid_by_the_byte_at_most() -> None:
    (part,) = parts(Meter(100, 50, 1000), Delta("ab"), Delta("", "stop", 40))
    assert part == Part(b"ab", 3, "stop")


def test_a_count_is_never_paid_beyond_one_piece() -> None:
    taken = parts(Meter(100, 4, 1000), Delta("a" * 90), Delta("", "stop", 60))
    assert taken == [Part(b"a" * 90, 4, "stop")]


@pytest.mark.parametrize(
    ("deltas", "said"),
    [
        ([*texts(3), Delta("", "stop", 2)], "counts 2 tokens, and streamed text 3 times"),
        ([*texts(1), Delta("", "stop", 11)], "more tokens than it was asked for"),
        ([*texts(1), Delta("", "stop"), Delta("more")], "went on after its finish"),
        ([*texts(1)], "ended before its answer did"),
        ([], "ended before its answer did"),
        ([Delta("x" * 1001)], "over its cap of 1000 bytes"),
    ],
)
def test_a_stream_that_contradicts_itself_or_its_limits_is_the_servers_fault(deltas: list[Delta], said: str) -> None:
    with pytest.raises(JobFailed, match=said):
        parts(Meter(10, 50, 1000), *deltas)


def test_a_stream_that_never_ends_is_cut_where_the_job_ends() -> None:
    meter = Meter(5, 3, 1000)
    taken = parts(meter, *texts(5))
    assert taken == [Part(b"ab" * 3, 3, None), Part(b"ab" * 2, 2, "length")]
    meter.take(Delta("ab"))
    assert meter.part() == Part(b"", 0, "length")


def test_a_piece_ends_where_a_chunk_of_the_market_would_be_too_large() -> None:
    meter = Meter(1000, 256, 1 << 24)
    for _ in range(2):
        assert not meter.full
        meter.take(Delta("x" * (PIECE_BYTES_MAX // 2)))
    assert meter.full
    assert meter.part().units == 2


@given(
    st.lists(st.text(max_size=5), max_size=30), st.integers(0, 40) | st.none(), st.integers(1, 40), st.integers(1, 9)
)
def test_nobody_pays_for_more_than_was_seen_asked_for_or_fits(
    said: list[str], counted: int | None, units_max: int, chunk_units: int
) -> None:
    deltas = [*map(Delta, said), Delta("", "stop"), Delta(completion_tokens=counted)]
    try:
        taken = parts(Meter(units_max, chunk_units, 1000), *deltas)
    except JobFailed:
        return
    total = sum(part.units for part in taken)
    assert total <= min(units_max, sum(len(text.encode("utf-8", "replace")) for text in said) + 1)
    assert all(part.units <= chunk_units for part in taken)
    assert [part.finish is not None for part in taken] == [False] * (len(taken) - 1) + [True]
