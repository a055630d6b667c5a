"""Log events: one JSON object a line, without secrets."""

import io
import json

import pytest
import structlog

from node.telemetry import WITHHELD, configure_events, event_logger


def emitted(level: str = "info", **fields: str | bytes | int) -> list[dict[str, object]]:
    stream = io.StringIO()
    configure_events(stream, level, as_json=True)
    try:
        log = event_logger("market")
        log.debug("quiet")
        log.info("job_done", job=b"\x01" * 32, **fields)
        log.info("after")
    finally:
        structlog.reset_defaults()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_event_is_one_json_line_with_room_and_job() -> None:
    done, after = emitted(units=3)
    assert (done["event"], done["room"], done["units"], done["level"]) == ("job_done", "market", 3, "info")
    assert done["job"] == "01" * 32
    assert "job" not in after


def test_secrets_and_long_bytes_never_reach_the_log() -> None:
    fields = dict.fromkeys(sorted(WITHHELD), "the prompt")
    done, _ = emitted("info", **fields, blob=b"x" * 1000)
    assert "the prompt" not in json.dumps(done)
    assert done["blob"] == "(1000 bytes)"


def test_level_holds_back_lesser_events() -> None:
    assert [event["event"] for event in emitted("debug")] == ["quiet", "job_done", "after"]
    assert emitted("warning") == []


@pytest.mark.parametrize("as_json", [True, False], ids=["JSON", "text"])
@pytest.mark.parametrize("hostile", ["\x1b[31m", "\x9b31m", "\x7f", "\u202e", "\u2028", "\ud800"])
def test_what_a_terminal_would_obey_is_spelled_out(as_json: bool, hostile: str) -> None:
    """Peers' reasons come into the log, and people read it at a terminal."""
    stream = io.StringIO()
    configure_events(stream, "info", as_json)
    try:
        event_logger("transport").info("link.down", reason=f"bye{hostile}")
    finally:
        structlog.reset_defaults()
    written = stream.getvalue()
    assert hostile not in written
    assert "bye" in written
    assert written.count("\n") == 1
