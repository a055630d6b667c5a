"""A stream that is not read ends with a word about it, and never slows the node; news on the way travels together."""

from typing import cast

from node.runtime.announcements import Announcements
from node.runtime.event_stream import EventStream, StreamLost
from node.telemetry import EventLogger
from protocol.market.events import JobPrefilled, JobText, ReplicaText
from protocol.messages.market import FinishReason
from protocol.primitives.units import Hash, MessageId, WorkUnits

REQUEST = Hash(b"r" * 32)
JOB = MessageId(bytes(32))


def event(units: int) -> JobPrefilled:
    return JobPrefilled(REQUEST, JOB, WorkUnits(units))


def text(units: int) -> JobText:
    return JobText(REQUEST, JOB, units, b"text", WorkUnits(units), FinishReason.NONE)


async def test_a_reader_that_falls_behind_is_told_so_last() -> None:
    stream = EventStream(REQUEST, events_max=3)
    for units in range(6):
        stream.add(text(units))
    assert await stream.take() == [text(0), text(1), text(2), StreamLost(REQUEST)]
    assert stream.lost


async def test_events_go_to_the_stream_of_their_request_alone() -> None:
    board = Announcements()
    mine, other = board.open(REQUEST), board.open(Hash(b"o" * 32))
    board.tell(text(1))
    board.close(REQUEST)
    board.tell(text(2))
    assert await mine.take() == [text(1)]
    other.add(text(3))
    assert await other.take() == [text(3)]


async def test_news_on_the_way_is_handed_over_with_the_text_that_follows() -> None:
    stream = EventStream(REQUEST)
    stream.add(event(1))
    stream.add(event(2))
    stream.add(text(3))
    assert await stream.take() == [event(1), event(2), text(3)]


async def test_news_on_the_way_comes_by_itself_when_nothing_follows() -> None:
    stream = EventStream(REQUEST)
    stream.add(event(1))
    assert await stream.take() == [event(1)]


async def test_brief_stream_leaves_out_what_happens_on_the_way() -> None:
    stream = Announcements().open(REQUEST, brief=True)
    stream.add(event(1))
    stream.add(text(2))
    assert await stream.take() == [text(2)]


class Lines:
    """A log that keeps what it is told."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def debug(self, name: str, **fields: object) -> None:
        self.written.append(f"debug {name} {fields}")

    def info(self, name: str, **fields: object) -> None:
        self.written.append(f"info {name} {fields}")


def test_what_a_job_said_is_logged_at_no_level_and_replicas_on_the_way_at_the_lowest() -> None:
    board, lines = Announcements(), Lines()
    board._log, board._tells_all = cast(EventLogger, lines), True
    board.tell(JobText(REQUEST, JOB, 1, b"secret", WorkUnits(1), FinishReason.NONE))
    board.tell(ReplicaText(REQUEST, 1, b"secret", WorkUnits(1)))
    assert [line.split()[:2] for line in lines.written] == [["debug", "JobText"], ["debug", "ReplicaText"]]
    assert not any("secret" in line for line in lines.written)
    board._tells_all = False
    board.tell(ReplicaText(REQUEST, 1, b"secret", WorkUnits(1)))
    assert len(lines.written) == 2
