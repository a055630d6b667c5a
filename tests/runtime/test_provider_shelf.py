"""What a provider offers, as its workers come and go; workers, sandbox and store are the real ones."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from node.config.settings import KeystoreConfig, NodeConfig, ProviderConfig, ProviderModel, Role
from node.runtime.provider import ProviderShelf
from node.runtime.work import WorkPump
from node.worker.errors import ModelInUse, WorkerDied
from node.worker.health import HealthLimits
from node.worker.limits import WorkerLimits
from node.worker.models import ModelDescription, ModelId, ModelStore
from node.worker.quota import remove
from node.worker.supervisor import JobRequest, WorkerSupervisor
from protocol.engine.inputs import Input, Serve, WorkPiece
from protocol.messages.effects import CloseWork, OpenWork, PullWork
from protocol.messages.market import JobPayload
from protocol.primitives.codec import encode
from protocol.primitives.units import AccountId, DurationMs, MessageId, WorkUnits
from protocol.primitives.units import ModelId as ModelHash
from tests.worker.conftest import DESCRIPTIONS, echo, store
from tests.worker.test_scheduling import frail

__all__ = ["echo", "frail", "store"]

ADDRESSES = ("127.0.0.1:7400",)
HEALTH = HealthLimits(crashes_max=2, pause_s=0.0, quarantine_s=1.0)


def config(isolation: str = "", sold: str = "") -> NodeConfig:
    model = ProviderModel(description=sold or str(DESCRIPTIONS / "echo.toml"))
    return NodeConfig(
        genesis=Path("/nowhere"),
        state=Path("/nowhere"),
        keystore=KeystoreConfig(Path("/nowhere")),
        roles=(Role.PROVIDER,),
        provider=ProviderConfig(models=(model,), slots=2, isolation=isolation),
    )


class Told:
    """What the engine was told, and a way to wait for more."""

    def __init__(self) -> None:
        self.inputs: list[Input] = []
        self._more = asyncio.Event()

    def feed(self, happened: Input) -> None:
        self.inputs.append(happened)
        self._more.set()

    def sold(self) -> list[tuple[str, ...]]:
        return [tuple(model.name for model in told.models) for told in self.inputs if isinstance(told, Serve)]

    async def until_sold(self, *expected: tuple[str, ...]) -> None:
        async with asyncio.timeout(20):
            while self.sold() != [*expected]:
                self._more.clear()
                await self._more.wait()


@asynccontextmanager
async def open_shelf(
    supervisor: WorkerSupervisor, store: ModelStore, told: Told, isolation: str = "", sold: str = ""
) -> AsyncIterator[ProviderShelf]:
    shelf = ProviderShelf(config(isolation, sold), supervisor, store)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(shelf.open(ADDRESSES, told.feed))
        try:
            yield shelf
        finally:
            task.cancel()


@pytest.mark.usefixtures("frail")
async def test_a_quarantined_model_leaves_the_offer_with_its_reason_and_comes_back(
    store: ModelStore, echo: ModelId
) -> None:
    told = Told()
    async with (
        WorkerSupervisor(store, slots=2, limits=WorkerLimits(health=HEALTH)) as supervisor,
        open_shelf(supervisor, store, told) as shelf,
    ):
        await told.until_sold(("echo",))
        for _ in range(2):
            job = await supervisor.open_job(echo, b"j", JobRequest("bytes", b"abort", 5, 5), deadline_s=20)
            await job.prefill()
            with pytest.raises(WorkerDied):
                await job.next_chunk()
        await told.until_sold(("echo",), ())
        (view,) = shelf.models.values()
        assert (view.state, view.crashes) == ("quarantined", 2)
        assert "crashed 2 times" in view.reason
        assert view.until_ms > 0
        await told.until_sold(("echo",), (), ("echo",))


async def test_a_model_of_the_store_is_sold_by_its_id_and_stays_while_it_is(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    model = store.add_local(ModelDescription("mine", "1", "echo", "MIT"), {})
    told = Told()
    async with WorkerSupervisor(store, slots=1) as supervisor:
        async with open_shelf(supervisor, store, told, sold=model):
            await told.until_sold(("mine",))
            with pytest.raises(ModelInUse):
                remove(store, model)
        remove(store, model)


async def test_an_isolation_that_this_machine_does_not_reach_sells_nothing_and_says_so(store: ModelStore) -> None:
    told = Told()
    async with (
        WorkerSupervisor(store, slots=2, isolation="strong+") as supervisor,
        open_shelf(supervisor, store, told, "strong+") as shelf,
    ):
        await supervisor.probe()
        for _ in range(3):
            await asyncio.sleep(0)
        assert "'strong+' is wanted" in shelf.obstacle()
    assert told.inputs == []


@pytest.mark.usefixtures("frail")
async def test_a_provider_that_stops_takes_no_more_and_lets_what_runs_finish(store: ModelStore, echo: ModelId) -> None:
    told = Told()
    async with (
        WorkerSupervisor(store, slots=2) as supervisor,
        open_shelf(supervisor, store, told) as shelf,
        asyncio.TaskGroup() as tasks,
    ):
        await told.until_sold(("echo",))
        pump = WorkPump(supervisor, tasks, told.feed)
        job = MessageId(bytes(32))
        pump.open(opened(job, echo))
        pump.pull(PullWork(job))
        shelf.withdraw(told.feed)
        assert told.sold() == [("echo",), ()]
        assert not await pump.finished(0.05)
        pump.pull(PullWork(job))
        await told_piece(told)
        pump.close(CloseWork(job))
        assert await pump.finished(0.05)


async def told_piece(told: Told) -> None:
    async with asyncio.timeout(20):
        while not any(isinstance(happened, WorkPiece) for happened in told.inputs):
            told._more.clear()
            await told._more.wait()


def opened(job: MessageId, model: ModelId) -> OpenWork:
    return OpenWork(
        job=job,
        model=ModelHash(bytes.fromhex(model)),
        payload=encode(JobPayload("bytes", b"finished", ())),
        chunk_units=8,
        output_units_max=WorkUnits(8),
        seed=0,
        temperature_milli=0,
        deadline_ms=DurationMs(20_000),
        buyer=AccountId(bytes(32)),
    )
