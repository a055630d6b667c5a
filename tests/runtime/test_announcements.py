"""What peers cause in the log is bounded."""

import pytest
from structlog.testing import capture_logs

from node.runtime import announcements
from node.runtime.announcements import Announcements
from protocol.engine.events import PeerMisbehaved
from protocol.messages.effects import Now
from protocol.primitives.units import MonotonicMs, NodeId, TimestampMs


def test_a_peer_writes_so_many_lines_a_second_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    time_ms = [5_000]
    monkeypatch.setattr(announcements, "read_clock", lambda: Now(MonotonicMs(time_ms[0]), TimestampMs(0)))
    told = Announcements()
    with capture_logs() as lines:
        for _ in range(1_000):
            told.tell(PeerMisbehaved(NodeId(bytes(32)), "again"))
    assert [line["event"] for line in lines] == ["PeerMisbehaved"] * 10 + ["more_left_out"]
    time_ms[0] += 1_000
    with capture_logs() as lines:
        told.tell(PeerMisbehaved(NodeId(bytes(32)), "and again"))
    assert len(lines) == 1
