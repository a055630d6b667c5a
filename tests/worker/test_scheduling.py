"""Who is served when: slots shared between tenants, memory before a start, restarts, quarantine."""

import asyncio
import contextlib
import os
import random
import signal
import struct
import sys
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.worker import gguf_header, memory, process
from node.worker.errors import CapacityExceeded, JobTimedOut, ModelQuarantined, WorkerDied, WorkerError
from node.worker.fair_slots import FairSlots
from node.worker.gguf_header import ITEMS_MAX, STEPS_MAX, context_bytes_per_token
from node.worker.health import Health, HealthLimits
from node.worker.limits import DEFAULT_LIMITS, MEBIBYTE, WorkerLimits
from node.worker.memory import MemoryNeed, MemoryShort
from node.worker.models import Fact, ModelDescription, ModelId, ModelStore
from node.worker.runtimes import CHILD_SOURCE
from node.worker.supervisor import JobRequest, WorkerSupervisor
from tests.worker.conftest import run, running, text

# Slots


class Served:
    """Jobs that take a slot each and note the order in which they came to it."""

    def __init__(self, slots: FairSlots, tasks: asyncio.TaskGroup) -> None:
        self.slots = slots
        self.order: list[str] = []
        self._tasks = tasks

    def ask(self, tenant: str) -> "asyncio.Task[None]":
        return self._tasks.create_task(self._take(tenant))

    async def _take(self, tenant: str) -> None:
        await self.slots.take(tenant, asyncio.get_running_loop().time() + 10)
        self.order.append(tenant)


async def settle() -> None:
    """Let every task come to where it waits."""
    for _ in range(4):
        await asyncio.sleep(0)


async def test_a_tenant_with_many_jobs_does_not_keep_another_waiting() -> None:
    async with asyncio.TaskGroup() as tasks:
        served = Served(FairSlots(1, 64), tasks)
        for tenant in "aaaab":
            served.ask(tenant)
            await settle()
        assert served.order == ["a"]
        for held in ("a", "b", "a", "a", "a"):
            served.slots.give_back(held)
            await settle()
    assert served.order == ["a", "b", "a", "a", "a"]


async def test_a_free_slot_goes_to_the_tenant_that_holds_fewest() -> None:
    async with asyncio.TaskGroup() as tasks:
        served = Served(FairSlots(3, 64), tasks)
        for tenant in "aab" + "abc":
            served.ask(tenant)
            await settle()
        served.slots.give_back("a")
        await settle()
        assert served.order[3:] == ["c"]
        served.slots.give_back("a")
        await settle()
        assert served.order[3:] == ["c", "a"]
        served.slots.give_back("b")
        await settle()
        assert served.order[3:] == ["c", "a", "b"]


async def test_a_full_queue_makes_room_for_a_tenant_with_few_in_it() -> None:
    slots = FairSlots(1, 2)
    async with asyncio.TaskGroup() as tasks:
        served = Served(slots, tasks)
        for tenant in "aa":
            served.ask(tenant)
        await settle()
        latest = tasks.create_task(refused(slots, "a"))
        await settle()
        assert await refused(slots, "a")  # full, and its own
        served.ask("b")
        assert await latest  # made way
        for held in "aba":
            slots.give_back(held)
            await settle()
    assert served.order == ["a", "b", "a"]


async def refused(slots: FairSlots, tenant: str) -> bool:
    try:
        await slots.take(tenant, asyncio.get_running_loop().time() + 10)
    except CapacityExceeded:
        return True
    return False


async def test_who_gives_up_waiting_leaves_nothing_held() -> None:
    slots = FairSlots(1, 8)
    await slots.take("a", 0)
    with pytest.raises(JobTimedOut, match="no slot"):
        await slots.take("b", asyncio.get_running_loop().time())
    assert slots.waiting == 0
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(slots.take("c", asyncio.get_running_loop().time() + 10))
        await settle()
        slots.give_back("a")  # its turn has come, and in the same moment it is cancelled
        waiting.cancel()
    assert slots.free == 1


# Health


def test_pauses_double_and_the_last_crash_too_many_brings_quarantine() -> None:
    health = Health(HealthLimits(crashes_max=4, window_s=100, pause_s=1, quarantine_s=50, quarantine_max_s=150))
    pauses = []
    for now in (0, 1, 2):
        assert health.crashed(now, "bang") is None
        pauses.append(health.pause_s(now))
    assert pauses == [0, 1, 2]
    held = health.crashed(3, "boom")
    assert held is not None
    assert (held.until, held.reason) == (53, "crashed 4 times in 3 s, at last: boom")
    assert health.quarantine(52) == held
    assert health.quarantine(53) is None


def test_quarantine_that_follows_soon_is_twice_as_long_up_to_a_limit_and_is_forgotten() -> None:
    health = Health(HealthLimits(crashes_max=1, window_s=100, quarantine_s=50, quarantine_max_s=150))
    now, lengths = 0.0, []
    for _ in range(4):
        held = health.crashed(now, "bang")
        assert held is not None
        lengths.append(held.until - now)
        now = held.until + 1
    assert lengths == [50, 100, 150, 150]
    later = now + 1000
    again = health.crashed(later, "bang")
    assert again is not None
    assert again.until - later == 50


def test_crashes_far_apart_bring_none() -> None:
    health = Health(HealthLimits(crashes_max=2, window_s=10))
    for now in range(0, 100, 11):
        assert health.crashed(now, "bang") is None
        assert health.pause_s(now) == 0


# Memory


def gguf(entries: list[tuple[str, int, bytes]], architecture: str = "llama") -> bytes:
    def text_of(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    content = b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries) + 1)
    content += text_of("general.architecture") + struct.pack("<I", 8) + text_of(architecture)
    for name, kind, value in entries:
        content += text_of(f"{architecture}.{name}") + struct.pack("<I", kind) + value
    return content


PLAIN = [
    ("block_count", 4, struct.pack("<I", 30)),
    ("embedding_length", 4, struct.pack("<I", 576)),
    ("attention.head_count", 4, struct.pack("<I", 9)),
    ("attention.head_count_kv", 4, struct.pack("<I", 3)),
]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (PLAIN, 30 * 3 * (64 + 64) * 2),
        (PLAIN[:3], 30 * 9 * (64 + 64) * 2),  # every head has its own
        ([*PLAIN, ("attention.key_length", 4, struct.pack("<I", 128))], 30 * 3 * (128 + 64) * 2),
        ([*PLAIN[:3], ("attention.head_count_kv", 9, struct.pack("<IQ3I", 4, 3, 1, 2, 3))], 6 * 128 * 2),
        (PLAIN[:2], None),
    ],
)
def test_context_memory_is_read_from_the_models_header(
    tmp_path: Path, entries: list[tuple[str, int, bytes]], expected: int | None
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf(entries))
    assert context_bytes_per_token(path) == expected


@given(st.binary(max_size=300), st.integers(0, 2**32))
def test_any_header_gives_a_number_or_nothing(tmp_path_factory: pytest.TempPathFactory, tail: bytes, seed: int) -> None:
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    content = bytearray(gguf(PLAIN) + tail)
    dice = random.Random(seed)
    for _ in range(dice.randrange(8)):
        content[dice.randrange(4, len(content))] = dice.randrange(256)
    path.write_bytes(content)
    found = context_bytes_per_token(path)
    assert found is None or found >= 0


def test_what_does_not_fit_the_limit_or_the_machine_is_refused_with_the_numbers() -> None:
    need = MemoryNeed(900 * MEBIBYTE, 100 * MEBIBYTE, "a large model")
    memory.admit(need, DEFAULT_LIMITS, 2000 * MEBIBYTE, promised=0)
    with pytest.raises(MemoryShort, match=r"1000 MiB.*844 MiB are free"):
        memory.admit(need, DEFAULT_LIMITS, 2000 * MEBIBYTE, promised=900 * MEBIBYTE)
    with pytest.raises(MemoryShort, match="a worker may have 512 MiB"):
        memory.admit(need, WorkerLimits(memory_bytes=512 * MEBIBYTE), 1 << 40, promised=0)


async def test_a_language_model_with_more_slots_than_fit_is_refused_before_it_is_loaded(
    store: ModelStore, smollm: ModelId
) -> None:
    async with WorkerSupervisor(store, slots=64) as supervisor:
        with pytest.raises(MemoryShort, match="context for 64 jobs"):
            await supervisor.load(smollm)
        assert supervisor.running(smollm) is None


async def test_a_header_full_of_texts_costs_the_loop_no_step_and_a_thread_a_bounded_number(
    store: ModelStore, tmp_path: Path
) -> None:
    """As many empty texts as a header's bytes hold, and then one array more than its steps allow."""
    array = struct.pack("<IIQ", 9, 8, ITEMS_MAX) + bytes(8 * ITEMS_MAX)
    name = struct.pack("<Q", 1) + b"a"
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + (name + array) * 2 + bytes(64))
    settings: dict[str, Fact] = {"model_file": "model.gguf", "context_tokens": 64}
    hostile = store.add_local(ModelDescription("hostile", "1", "gguf", "MIT", settings), {"model.gguf": file})
    steps: list[int] = []
    on_the_loop: list[str] = []

    def watch(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename == gguf_header.__file__:
            on_the_loop.append(frame.f_code.co_name)

    class Counting(gguf_header._Reader):
        def _step(self, count: int = 1) -> None:
            super()._step(count)
            steps.append(count)

    async with WorkerSupervisor(store) as supervisor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gguf_header, "_Reader", Counting)
            sys.setprofile(watch)
            try:
                with pytest.raises(WorkerError):
                    await supervisor.load(hostile)
            finally:
                sys.setprofile(None)
    assert on_the_loop == []
    assert 0 < sum(steps) <= STEPS_MAX


async def test_a_language_model_takes_what_was_estimated(store: ModelStore, smollm: ModelId) -> None:
    need = memory.need_of(store, store.manifest(smollm), 4)
    async with WorkerSupervisor(store, slots=4) as supervisor:
        await supervisor.load(smollm)
        assert supervisor.usage(smollm).memory_bytes < need.total_bytes
        assert supervisor.usage(smollm).memory_bytes > need.total_bytes // 2


async def test_memory_promised_to_one_model_is_not_promised_twice(
    store: ModelStore, echo: ModelId, magika: ModelId, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = memory.need_of(store, store.manifest(magika), 4).total_bytes + memory.MACHINE_SPARE_BYTES
    monkeypatch.setattr(memory, "available_bytes", lambda: enough)
    async with WorkerSupervisor(store) as supervisor:
        await supervisor.load(echo)
        with pytest.raises(MemoryShort, match="beside what other models were promised"):
            await supervisor.load(magika)
        await supervisor.unload(echo)
        await supervisor.load(magika)


# Workers that end

FRAIL = """
import os
from node.worker.child import echo
honest = echo.EchoRuntime.run
echo.EchoRuntime.run = lambda self, request: os.abort() if request.payload == b"abort" else honest(self, request)
"""


@pytest.fixture
def frail(monkeypatch: pytest.MonkeyPatch) -> None:
    imports, _, start = CHILD_SOURCE.partition("; from node")
    monkeypatch.setattr(process, "CHILD_SOURCE", f"{imports}\n{FRAIL}\nfrom node{start}")


def asked(payload: bytes) -> JobRequest:
    return JobRequest("bytes", payload, 100, 100)


async def until_state(supervisor: WorkerSupervisor, model: ModelId, state: str) -> None:
    async with asyncio.timeout(20):
        while (view := supervisor.view(model)) is None or view.state != state:
            supervisor.changed.clear()
            await supervisor.changed.wait()


async def test_a_worker_that_was_killed_is_back_without_being_asked_for(store: ModelStore, echo: ModelId) -> None:
    async with WorkerSupervisor(store) as supervisor:
        await supervisor.load(echo)
        before = running(supervisor, echo)
        assert before.pid is not None
        os.kill(before.pid, signal.SIGKILL)
        await before.gone.wait()
        await until_state(supervisor, echo, "ready")
        assert running(supervisor, echo) is not before
        view = supervisor.view(echo)
        assert view is not None
        assert view.crashes == 1


@pytest.mark.usefixtures("frail")
async def test_a_model_that_keeps_crashing_is_quarantined_then_tried_again(store: ModelStore, echo: ModelId) -> None:
    health = HealthLimits(crashes_max=3, pause_s=0.0, quarantine_s=1.0)
    async with WorkerSupervisor(store, limits=WorkerLimits(health=health)) as supervisor:
        for _ in range(3):
            await supervisor.load(echo)
            with pytest.raises(WorkerDied):
                await run(supervisor, echo, asked(b"abort"))
        await until_state(supervisor, echo, "quarantined")
        view = supervisor.view(echo)
        assert view is not None
        assert "crashed 3 times" in view.reason
        assert 0 < view.until_s <= 1
        with pytest.raises(ModelQuarantined, match="crashed 3 times"):
            await run(supervisor, echo, asked(b"fine"))
        await until_state(supervisor, echo, "ready")
        assert text(await run(supervisor, echo, asked(b"fine"))) == "fine"


@pytest.mark.usefixtures("frail")
async def test_a_job_that_comes_while_the_worker_restarts_waits_for_it(store: ModelStore, echo: ModelId) -> None:
    health = HealthLimits(pause_s=0.2)
    async with WorkerSupervisor(store, limits=WorkerLimits(health=health)) as supervisor:
        for _ in range(2):
            with contextlib.suppress(WorkerDied):
                await run(supervisor, echo, asked(b"abort"))
        assert text(await run(supervisor, echo, asked(b"fine"))) == "fine"


async def test_a_job_moved_in_the_middle_goes_on_where_it_was(store: ModelStore, echo: ModelId) -> None:
    """Its worker is ended because of a neighbour: the pieces that were released come no second time."""
    async with WorkerSupervisor(store) as supervisor:
        job = await supervisor.open_job(echo, b"a", JobRequest("bytes", b"abcdef", 6, 2), deadline_s=30)
        await job.prefill()
        first = await job.next_chunk()
        worker = running(supervisor, echo)
        worker.kill("a neighbour was not given up in time", "deadline")
        rest = [await job.next_chunk(), await job.next_chunk()]
        assert [chunk.payload for chunk in (first, *rest)] == [b"ab", b"cd", b"ef"]
        assert running(supervisor, echo) is not worker
        view = supervisor.view(echo)
        assert view is not None
        assert view.crashes == 0
        assert view.slots_free == 4


async def test_jobs_wait_in_turn_when_the_slots_are_taken(store: ModelStore, echo: ModelId) -> None:
    async with WorkerSupervisor(store, slots=1) as supervisor:
        first = await supervisor.open_job(echo, b"1", asked(b"x"), deadline_s=30, tenant="a")
        order: list[str] = []

        async def serve(tenant: str) -> None:
            job = await supervisor.open_job(echo, b"j", asked(b"x"), deadline_s=30, tenant=tenant)
            order.append(tenant)
            await job.cancel()

        async with asyncio.TaskGroup() as tasks:
            for tenant in ("a", "a", "b"):
                tasks.create_task(serve(tenant))
            await settle()
            view = supervisor.view(echo)
            assert view is not None
            assert (view.slots_free, view.waiting) == (0, 3)
            await first.cancel()
        assert order == ["b", "a", "a"]
