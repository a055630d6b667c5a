"""A real server of the kind that operators run: llama.cpp's, with a small real model."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from node.worker.errors import JobCancelled, JobRefused
from node.worker.models import ModelId, ModelStore
from node.worker.supervisor import JobRequest, ServedJob, WorkerChunk, WorkerSupervisor
from node.worker.upstream import UpstreamAddress
from tests.worker.conftest import chat
from tests.worker.llama_server import MODEL, llama_server

PARIS = b"<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def server(store: ModelStore, smollm: ModelId) -> Iterator[str]:
    (file,) = store.manifest(smollm).files
    with llama_server(store.file_path(file)) as address:
        yield address


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """The server is a child of this process while the tests of this module run."""


@asynccontextmanager
async def serving(server: str, folder: Path) -> AsyncIterator[tuple[WorkerSupervisor, str]]:
    async with WorkerSupervisor(ModelStore(folder), slots=2) as supervisor:
        model = supervisor.attach(UpstreamAddress(server, MODEL, "llama-server")).model_id
        async with asyncio.timeout(20):
            while (view := supervisor.view(model)) is None or view.state != "ready":
                await supervisor.changed.wait()
                supervisor.changed.clear()
        yield supervisor, model


async def rest(job: ServedJob) -> list[WorkerChunk]:
    chunks = [await job.next_chunk()]
    while chunks[-1].finish is None:
        chunks.append(await job.next_chunk())
    return chunks


async def test_a_prompt_is_counted_and_its_answer_streamed_and_metered(server: str, tmp_path: Path) -> None:
    async with serving(server, tmp_path) as (supervisor, model):
        job = await supervisor.serve(model, b"job", JobRequest("text", PARIS, 40, 4), deadline_s=30)
        prefilled = await job.prefill()
        chunks = await rest(job)
    assert prefilled.input_units == 16
    assert b"".join(chunk.payload for chunk in chunks) == b"The capital of France is Paris."
    assert [chunk.units for chunk in chunks] == [4, 4]  # seven words and the end, which the server counts
    assert chunks[-1].finish == "stop"


async def test_the_same_seed_gives_the_same_chat_and_the_limit_ends_it(server: str, tmp_path: Path) -> None:
    request = JobRequest("chat", chat("Tell a story."), 12, 5, seed=11, temperature_milli=800)
    answers = []
    async with serving(server, tmp_path) as (supervisor, model):
        for _ in range(2):
            job = await supervisor.serve(model, b"job", request, deadline_s=30)
            await job.prefill()
            answers.append(await rest(job))
    assert answers[0] == answers[1]
    assert sum(chunk.units for chunk in answers[0]) == 12
    assert answers[0][-1].finish == "length"


async def test_a_prompt_over_the_context_is_the_users_fault(server: str, tmp_path: Path) -> None:
    async with serving(server, tmp_path) as (supervisor, model):
        job = await supervisor.serve(model, b"job", JobRequest("text", b"word " * 3000, 8, 8), deadline_s=30)
        with pytest.raises(JobRefused, match="400"):
            await job.prefill()


async def test_a_cancelled_job_stops_the_server_and_two_run_side_by_side(server: str, tmp_path: Path) -> None:
    async with serving(server, tmp_path) as (supervisor, model):
        long = JobRequest("chat", chat("Tell a very long story about the sea."), 900, 4)
        jobs = [await supervisor.serve(model, bytes([number]), long, deadline_s=60) for number in range(2)]
        for job in jobs:
            await job.prefill()
            assert (await job.next_chunk()).units == 4
        for job in jobs:
            await job.cancel()
            with pytest.raises(JobCancelled):
                await job.next_chunk()
        began = time.monotonic()
        job = await supervisor.serve(model, b"after", JobRequest("text", PARIS, 8, 8), deadline_s=30)
        await job.prefill()
        await rest(job)
        assert time.monotonic() - began < 5  # both slots of the server are free again: 900 tokens take far longer
