"""From a job's payload to a worker and back: everything that a buyer may ask for arrives; sandboxed, and for real."""

import asyncio
import re

import pytest

from node.runtime.control import ControlError, RunRequest
from node.runtime.wishes import _payload
from node.runtime.work import WorkPump
from node.worker.models import ModelId, ModelStore
from node.worker.supervisor import WorkerSupervisor
from protocol.engine.inputs import Input, WorkFailed, WorkPiece, WorkPrefilled
from protocol.messages.effects import CloseWork, OpenWork, PullWork
from protocol.messages.market import FaultKind, FinishReason, JobPayload, OutputForm
from protocol.primitives.codec import encode
from protocol.primitives.limits import GRAMMAR_BYTES_MAX, LOGPROBS_MAX, SCHEMA_BYTES_MAX
from protocol.primitives.units import AccountId, DurationMs, MessageId, Salt, WorkUnits
from protocol.primitives.units import ModelId as ModelHash
from protocol.settlement.receipts import input_commitment
from tests.worker.conftest import echo, smollm, store

__all__ = ["echo", "smollm", "store"]

JOB = MessageId(bytes(32))


async def done(store: ModelStore, model: ModelId, payload: JobPayload, units: int) -> list[Input]:
    """Everything that the engine is told of one job."""
    told: asyncio.Queue[Input] = asyncio.Queue()
    heard: list[Input] = []
    async with WorkerSupervisor(store) as supervisor, asyncio.TaskGroup() as tasks:
        pump = WorkPump(supervisor, tasks, told.put_nowait)
        pump.open(
            OpenWork(
                JOB, ModelHash(bytes.fromhex(model)), encode(payload), units, WorkUnits(units), 0, 0,
                DurationMs(60_000), AccountId(bytes(32)),
            )
        )  # fmt: skip
        while not heard or not isinstance(heard[-1], WorkFailed | WorkPiece) or _goes_on(heard[-1]):
            pump.pull(PullWork(JOB))
            heard.append(await told.get())
        pump.close(CloseWork(JOB))
    return heard


def _goes_on(last: Input) -> bool:
    return isinstance(last, WorkPiece) and last.finish is FinishReason.NONE


async def test_output_goes_on_behind_a_prefix_that_counts_as_input(store: ModelStore, echo: ModelId) -> None:
    heard = await done(store, echo, JobPayload("bytes", b"hello world", (), b"hello"), 20)
    assert heard == [
        WorkPrefilled(JOB, WorkUnits(16)),
        WorkPiece(JOB, b" world", WorkUnits(6), FinishReason.DONE),
    ]


async def test_a_wish_that_a_runtime_cannot_fulfil_is_its_buyers_fault(store: ModelStore, echo: ModelId) -> None:
    for payload in (
        JobPayload("bytes", b"x", (), schema='{"type":"null"}'),
        JobPayload("bytes", b"x", (), grammar='root ::= "a"'),
        JobPayload("bytes", b"x", (), output=OutputForm.TOKENS),
        JobPayload("bytes", b"x", (), logprobs=2),
    ):
        (failed,) = await done(store, echo, payload, 20)
        assert isinstance(failed, WorkFailed)
        assert failed.fault is FaultKind.USER


async def test_a_schema_and_tokens_reach_the_language_model(store: ModelStore, smollm: ModelId) -> None:
    schema = '{"const":["yes",1]}'
    heard = await done(store, smollm, JobPayload("text", b"Say yes:", (), b'["y', OutputForm.TOKENS, schema, 1), 20)
    pieces = [told for told in heard if isinstance(told, WorkPiece)]
    assert pieces[-1].finish is FinishReason.STOP
    assert b'"top":[{"id":' in pieces[0].payload
    assert b'["y' not in b"".join(piece.payload for piece in pieces).replace(b'\\"', b'"')


async def test_a_grammar_binds_the_sandboxed_language_model(store: ModelStore, smollm: ModelId) -> None:
    payload = JobPayload("text", b"Count:", (), grammar='root ::= ("one" | "two") " " [3-5]{2}')
    heard = await done(store, smollm, payload, 20)
    pieces = [told for told in heard if isinstance(told, WorkPiece)]
    assert pieces[-1].finish is FinishReason.STOP
    assert re.fullmatch(rb"(one|two) [3-5]{2}", b"".join(piece.payload for piece in pieces))


def test_a_grammar_is_part_of_what_an_input_is_committed_to() -> None:
    plain, held, other = (encode(JobPayload("text", b"x", (), grammar=grammar)) for grammar in ("", "a", "b"))
    salt = Salt(bytes(32))
    assert len({input_commitment(salt, payload) for payload in (plain, held, other)}) == 3


def test_what_no_provider_takes_is_told_before_anything_is_signed() -> None:
    wish = RunRequest("m", "chat", b"", output="tokens", schema='{"type":"null"}', logprobs=LOGPROBS_MAX)
    assert _payload(wish) == JobPayload("chat", b"", (), b"", OutputForm.TOKENS, '{"type":"null"}', LOGPROBS_MAX)
    wish = RunRequest("m", "chat", b"", grammar='root ::= "a"')
    assert _payload(wish) == JobPayload("chat", b"", (), grammar='root ::= "a"')
    for bad in (
        RunRequest("m", "chat", b"", logprobs=1),
        RunRequest("m", "chat", b"", output="tokens", logprobs=LOGPROBS_MAX + 1),
        RunRequest("m", "chat", b"", output="tokens", logprobs=-1),
        RunRequest("m", "chat", b"", schema="x" * (SCHEMA_BYTES_MAX + 1)),
        RunRequest("m", "chat", b"", grammar="x" * (GRAMMAR_BYTES_MAX + 1)),
        RunRequest("m", "chat", b"", schema="{}", grammar='root ::= "a"'),
    ):
        with pytest.raises(ControlError) as refused:
            _payload(bad)
        assert refused.value.code == "bad_request"
