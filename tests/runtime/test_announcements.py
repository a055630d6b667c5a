"""A stream that is not read ends with a word about it, and never slows the node."""

import pytest

from node.runtime import announcements
from node.runtime.announcements import Announcements, StreamLost
from protocol.market.events import JobPrefilled
from protocol.primitives.units import Hash, MessageId, WorkUnits

REQUEST = Hash(b"r" * 32)


def event(units: int) -> JobPrefilled:
    return JobPrefilled(REQUEST, MessageId(bytes(32)), WorkUnits(units))


def test_a_reader_that_falls_behind_is_told_so_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcements, "_STREAM_EVENTS_MAX", 3)
    board = Announcements()
    stream = board.open(REQUEST)
    for units in range(6):
        board.tell(event(units))
    heard = [stream.get_nowait() for _ in range(stream.qsize())]
    assert heard == [event(1), event(2), StreamLost(REQUEST)]


def test_events_go_to_the_stream_of_their_request_alone() -> None:
    board = Announcements()
    mine, other = board.open(REQUEST), board.open(Hash(b"o" * 32))
    board.tell(event(1))
    board.close(REQUEST)
    board.tell(event(2))
    assert (mine.qsize(), other.qsize()) == (1, 0)
