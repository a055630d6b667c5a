"""What a provider offers of a server that it runs: declared, while it answers, and whatever the sandbox says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from node.config.settings import ProviderModel
from node.runtime.provider import ProviderShelf
from node.runtime.work import WorkPump
from node.worker import supervisor as supervisor_module
from node.worker import upstream as upstream_module
from node.worker.limits import WorkerLimits
from node.worker.models import ModelStore
from node.worker.sandbox.facts import Check
from node.worker.sandbox.probe import IsolationReport
from node.worker.supervisor import WorkerSupervisor
from protocol.engine.inputs import Serve, WorkFailed, WorkPiece, WorkPrefilled
from protocol.messages.effects import CloseWork, OpenWork, PullWork
from protocol.messages.market import FaultKind, FinishReason, JobPayload
from protocol.primitives.codec import encode
from protocol.primitives.units import AccountId, DurationMs, MessageId, ModelId, WorkUnits
from tests.runtime.test_provider_shelf import ADDRESSES, Told, config
from tests.worker.conftest import DESCRIPTIONS, chat
from tests.worker.test_upstream import said
from tests.worker.upstream_server import MODEL, Asked, Connection, prompt_counted, upstream

JOB = MessageId(bytes(32))


@pytest.fixture
def no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nothing could be proved."""

    async def nothing(limits: WorkerLimits) -> IsolationReport:
        return IsolationReport("none", (Check("namespaces", False, "none here", "another machine"),))

    monkeypatch.setattr(supervisor_module, "probe", nothing)


@asynccontextmanager
async def open_shelf(
    folder: Path, told: Told, *models: ProviderModel, isolation: str = ""
) -> AsyncIterator[tuple[ProviderShelf, WorkerSupervisor, asyncio.TaskGroup]]:
    settings = config(isolation)
    settings = replace(settings, provider=replace(settings.provider, models=models))
    async with WorkerSupervisor(ModelStore(folder), slots=2) as supervisor, asyncio.TaskGroup() as tasks:
        shelf = ProviderShelf(settings, supervisor, ModelStore(folder))
        task = tasks.create_task(shelf.open(ADDRESSES, told.feed))
        try:
            yield shelf, supervisor, tasks
        finally:
            task.cancel()


def opened(model: ModelId, body: bytes = b"", form: str = "chat") -> OpenWork:
    return OpenWork(
        job=JOB, model=model, payload=encode(JobPayload(form, body or chat("Say hi."), ())), chunk_units=4,
        output_units_max=WorkUnits(20), seed=0, temperature_milli=0, deadline_ms=DurationMs(20_000),
        buyer=AccountId(bytes(32)),
    )  # fmt: skip


def last_offer(told: Told) -> Serve:
    return [happened for happened in told.inputs if isinstance(happened, Serve)][-1]


@pytest.mark.usefixtures("no_sandbox")
async def test_a_server_is_sold_as_declared_even_where_no_sandbox_works_and_what_needs_one_is_not(
    tmp_path: Path,
) -> None:
    told = Told()
    echo = ProviderModel(description=str(DESCRIPTIONS / "echo.toml"))
    async with upstream(said) as server:
        model = ProviderModel(upstream=server.url, model=MODEL, server="vllm", request=7, input_units_max=50)
        async with open_shelf(tmp_path, told, echo, model) as (shelf, _, _):
            await told.until_sold((MODEL,))
            assert shelf.obstacle() == ""
            states = {view.name: view.state for view in shelf.models.values()}
    (offer,) = last_offer(told).models
    assert (offer.isolation, offer.runtime_build, offer.settings) == ("declared", "upstream vllm", "isolation=declared")
    assert (offer.prices.request, offer.input_units_max) == (7, 50)
    assert last_offer(told).isolation == "none"
    assert states[MODEL] == "ready"
    assert next(state for name, state in states.items() if name != MODEL).startswith("failed")


async def test_an_operator_who_insists_on_strong_does_not_sell_a_declared_model(tmp_path: Path) -> None:
    told = Told()
    async with upstream(said) as server:
        echo = ProviderModel(description=str(DESCRIPTIONS / "echo.toml"))
        model = ProviderModel(upstream=server.url, model=MODEL)
        async with open_shelf(tmp_path, told, model, echo, isolation="strong") as (shelf, _, _):
            await told.until_sold(("echo",))
            view = next(iter(shelf.models.values()))
    assert "an upstream server is declared" in view.state
    assert server.asked == []


async def test_a_server_is_offered_from_when_it_has_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "PAUSE_MIN_S", 0.02)
    listed: list[list[dict[str, str]]] = [[], [{"id": "other"}], [{"id": MODEL}]]

    async def before(asked: Asked, connection: Connection) -> None:
        await connection.answer(200, {"data": listed.pop(0)})

    told = Told()
    async with upstream(said, before) as server:
        model = ProviderModel(upstream=server.url, model=MODEL)
        async with open_shelf(tmp_path, told, model):
            await told.until_sold((MODEL,))
    assert listed == []


async def test_the_engine_gets_pieces_and_whose_fault_a_failure_was(tmp_path: Path) -> None:
    status = 400

    async def refused(asked: Asked, connection: Connection) -> None:
        if asked.method == "GET":
            await prompt_counted(asked, connection)
        else:
            await connection.answer(status, {"error": {"message": "no"}})

    told = Told()
    async with upstream(said) as good, upstream(refused, refused) as bad:
        models = [
            ProviderModel(upstream=server.url, model=MODEL, server=kind)
            for server, kind in ((good, "vllm"), (bad, "ollama"))
        ]
        async with open_shelf(tmp_path, told, *models) as (_, supervisor, tasks):
            await until(told, lambda: bool(told.sold()) and len(told.sold()[-1]) == 2)
            ids = {served.runtime_build: served.model for served in last_offer(told).models}
            pump = WorkPump(supervisor, tasks, told.feed)
            for kind in ("vllm", "ollama"):
                told.inputs.clear()
                pump.open(opened(ids[f"upstream {kind}"]))
                for _ in range(3):
                    pump.pull(PullWork(JOB))
                await until(told, lambda: ended(told))
                pump.close(CloseWork(JOB))
                if kind == "vllm":
                    assert told.inputs == [
                        WorkPrefilled(JOB, WorkUnits(5)),
                        WorkPiece(JOB, b"Hi there, you", WorkUnits(4), FinishReason.NONE),
                        WorkPiece(JOB, b".", WorkUnits(2), FinishReason.STOP),
                    ]
            faults = [happened.fault for happened in told.inputs if isinstance(happened, WorkFailed)]
            status = 503
            pump.open(opened(ids["upstream ollama"]))
            told.inputs.clear()
            for _ in range(2):
                pump.pull(PullWork(JOB))
            await until(told, lambda: ended(told))
            pump.close(CloseWork(JOB))
            faults += [happened.fault for happened in told.inputs if isinstance(happened, WorkFailed)]
    assert faults == [FaultKind.USER, FaultKind.CAPACITY]


def ended(told: Told) -> bool:
    """Whether the engine heard of a job's end."""
    return any(
        isinstance(happened, WorkFailed)
        or (isinstance(happened, WorkPiece) and happened.finish is not FinishReason.NONE)
        for happened in told.inputs
    )


async def until(told: Told, condition: Callable[[], bool]) -> None:
    """Wait until what the engine was told fulfils a condition."""
    async with asyncio.timeout(20):
        while not condition():
            told._more.clear()
            await told._more.wait()
