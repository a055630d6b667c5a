"""Many jobs over one connection to a node."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import pytest

from node.api.requests import SESSION_RUNS_MAX, SessionAnswer, SessionRun
from node.api.server import serve_control
from node.cli.failures import CommandFailed, ExitCode
from node.cli.session import JobSession
from node.runtime.control import RunEvent, RunRequest
from tests.api.fake_node import FakeNode


def wanted(model: str, body: bytes = b"hi") -> RunRequest:
    return RunRequest(f"mcmodel1{model}", "bytes", body)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
async def jobs(fake: FakeNode, path: Path) -> AsyncIterator[JobSession]:
    async with serve_control(fake, path), JobSession(path) as session:
        yield session


async def all_of(jobs: JobSession, request: RunRequest) -> list[RunEvent]:
    return [event async for event in jobs.run(request)]


def client_of(path: Path) -> aiohttp.ClientSession:
    return aiohttp.ClientSession("http://node", connector=aiohttp.UnixConnector(str(path)))


async def closed(fake: FakeNode) -> None:
    assert await asyncio.to_thread(fake.closed.wait, 5)


async def test_every_job_of_a_session_gets_its_own_events(jobs: JobSession) -> None:
    async with asyncio.TaskGroup() as tasks:
        runs = [tasks.create_task(all_of(jobs, wanted("bytes", bytes([n]) * n * 1000))) for n in range(1, 40)]
    for number, run in enumerate(runs, 1):
        events = run.result()
        assert [event.event for event in events] == ["request", "agreed", "input", "output", "output", "finished"]
        assert b"".join(event.payload for event in events) == bytes([number]) * number * 1000


@pytest.mark.parametrize(("model", "code", "exit_code"), [("poor", "funds", 4), ("late", "no_provider", 5)])
async def test_refused_job_ends_with_the_reason_and_the_session_goes_on(
    jobs: JobSession, model: str, code: str, exit_code: int
) -> None:
    with pytest.raises(CommandFailed) as refused:
        await all_of(jobs, wanted(model))
    assert (refused.value.code, refused.value.exit_code) == (code, exit_code)
    assert (await all_of(jobs, wanted("talker")))[-1].event == "finished"


async def test_closed_iterator_cancels_its_job_and_no_other(jobs: JobSession, fake: FakeNode) -> None:
    events = jobs.run(wanted("endless"))
    async for event in events:
        if event.event == "output":
            break
    assert not fake.closed.is_set()
    await events.aclose()  # type: ignore[attr-defined]
    await closed(fake)
    assert (await all_of(jobs, wanted("talker")))[-1].event == "finished"


async def test_client_that_goes_away_cancels_all_its_jobs(fake: FakeNode, path: Path) -> None:
    async with serve_control(fake, path), JobSession(path) as jobs:
        async for event in jobs.run(wanted("endless")):
            if event.event == "output":
                break
        jobs._writer.close()
        await closed(fake)


async def test_job_beyond_the_cap_is_refused_at_once(jobs: JobSession) -> None:
    running = [jobs.run(wanted("endless")) for _ in range(SESSION_RUNS_MAX)]
    for run in running:
        assert (await anext(run)).event == "request"
    with pytest.raises(CommandFailed) as refused:
        await all_of(jobs, wanted("talker"))
    assert refused.value.code == "too_many_runs"


async def test_client_that_does_not_read_keeps_its_job_waiting(fake: FakeNode, path: Path) -> None:
    made: list[int] = []

    class Flood(FakeNode):
        async def _output(self, name: str, request: RunRequest) -> AsyncIterator[tuple[RunEvent, ...]]:
            async for ready in super()._output(name, request):
                made.append(len(ready))
                yield ready

    flooding = Flood()
    async with serve_control(flooding, path), JobSession(path) as jobs:
        jobs._reading.cancel()
        question = SessionRun(1, msgspec.Raw(msgspec.json.encode(wanted("flood"))))
        jobs._send(1, msgspec.json.encode(question))
        seen = -1
        while not made or len(made) > seen:  # until nothing more is made in the time that many frames take
            seen = len(made)
            await asyncio.sleep(0.1)
        assert seen < 500, "the socket and its buffers took some, and then the job waited"
    await closed(flooding)


@pytest.mark.parametrize("sent", ["{", '{"type":"run"}', '{"type":"run","number":1,"request":{},"more":1}', "[]"])
async def test_frame_that_is_no_question_ends_the_session_with_the_reason(
    fake: FakeNode, path: Path, sent: str
) -> None:
    async with serve_control(fake, path), client_of(path) as client, client.ws_connect("/v1/session") as socket:
        await socket.send_str(sent)
        assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 1008


async def test_request_of_unknown_fields_ends_that_run_alone(fake: FakeNode, path: Path) -> None:
    async with serve_control(fake, path), client_of(path) as client, client.ws_connect("/v1/session") as socket:
        await socket.send_str('{"type":"run","number":7,"request":{"model":1}}')
        [answer] = msgspec.json.decode((await socket.receive()).data, type=list[SessionAnswer])
        assert answer.number == 7
        assert answer.ended
        assert answer.error is not None
        assert answer.error.code == "invalid_request"


class _EndsATurnLater(FakeNode):
    """A node whose jobs end one turn of its loop after their output."""

    async def _run(self, request: RunRequest) -> AsyncIterator[tuple[RunEvent, ...]]:
        yield (RunEvent("output", {}, request.body),)
        await asyncio.sleep(0)
        yield (RunEvent("finished", {}),)


async def test_output_and_the_end_a_turn_behind_it_share_a_frame(path: Path) -> None:
    run = msgspec.json.encode(SessionRun(7, msgspec.Raw(msgspec.json.encode(wanted("bytes"))))).decode()
    serving = serve_control(_EndsATurnLater(), path)
    async with serving, client_of(path) as client, client.ws_connect("/v1/session") as socket:
        await socket.send_str(run)
        answers = msgspec.json.decode((await socket.receive()).data, type=list[SessionAnswer])
    assert [event.event for answer in answers for event in answer.events] == ["output", "finished"]
    assert answers[-1].ended


async def test_session_without_a_node_fails_as_unreachable(path: Path) -> None:
    with pytest.raises(CommandFailed) as refused:
        async with JobSession(path):
            pass
    assert refused.value.exit_code == ExitCode.UNREACHABLE


async def test_node_that_goes_away_ends_the_runs_of_its_sessions(fake: FakeNode, path: Path) -> None:
    async with JobSessionOver(fake, path) as jobs:
        run = jobs.run(wanted("endless"))
        assert (await anext(run)).event == "request"
        await jobs.stop()
        with pytest.raises(CommandFailed) as gone:
            async for _ in run:
                pass
        assert gone.value.exit_code in (ExitCode.UNREACHABLE, ExitCode.FAILED)


class JobSessionOver(JobSession):
    """A session whose node can be stopped within it."""

    def __init__(self, fake: FakeNode, path: Path) -> None:
        super().__init__(path)
        self._serving = serve_control(fake, path)

    async def __aenter__(self) -> "JobSessionOver":
        await self._serving.__aenter__()
        await super().__aenter__()
        return self

    async def stop(self) -> None:
        await self._serving.__aexit__(None, None, None)
