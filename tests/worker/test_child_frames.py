"""What a worker's child tells of requests that it refuses: a stranger's words never end it."""

import os
from collections.abc import Iterator

import pytest

from node.worker.child.frames import FramePipe, Value
from node.worker.child.main import event_frame, handle
from node.worker.child.runtime import Event, Loaded, Rejected, Request, Runtime
from node.worker.child.text_guide import grammar_for

HALF_A_PAIR = '{"$ref":"#/$defs/\\ud800","$defs":{"?":{"no such keyword":1}}}'


class Judging(Runtime):
    """Judges what answers are to be held to, and nothing else."""

    features = frozenset({"schema"})

    def prepare(self) -> dict[str, int | str]:
        return {}

    def load(self, files: dict[str, str], settings: dict[str, Value], slots: int) -> Loaded:
        return Loaded(1)

    def open(self, job: int, request: Request) -> None:
        grammar_for(request)

    def grant(self, job: int) -> None:
        pass

    def cancel(self, job: int) -> None:
        pass

    def busy(self) -> bool:
        return False

    def step(self) -> list[Event]:
        return []


@pytest.fixture
def pipe() -> Iterator[FramePipe]:
    reading, writing = os.pipe()
    yield FramePipe(reading, writing)
    os.close(reading)
    os.close(writing)


def test_a_schema_that_names_half_a_character_is_refused_and_the_worker_goes_on(pipe: FramePipe) -> None:
    request: dict[str, Value] = {
        "input_format": "text", "payload": b"x", "max_output_units": 1, "chunk_units": 1, "seed": 0,
        "temperature_milli": 0, "stop": [], "prefix": b"", "output": "text", "schema": HALF_A_PAIR, "logprobs": 0,
        "tenant": "", "grammar": "",
    }  # fmt: skip
    handle(pipe, Judging(), ["open", 7, request])
    frame = pipe.read(0.0)
    assert isinstance(frame, list)
    assert frame[:2] == ["refused", 7]
    assert "no such keyword" in str(frame[2])


def test_a_reason_that_is_no_text_is_told_with_escapes(pipe: FramePipe) -> None:
    pipe.write(event_frame(Rejected(7, "half \ud800")))
    assert pipe.read(0.0) == ["refused", 7, "half \\ud800"]
