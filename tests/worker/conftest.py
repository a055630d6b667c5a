"""What the worker tests share: a store with the real models, and ways to run a job to its end.

Nothing here is a mock: models come from the pinned packages, workers run in the real sandbox.
"""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from node.worker.models import ModelId, ModelStore, load_description
from node.worker.packages import add_from_package
from node.worker.process import Worker
from node.worker.supervisor import JobRequest, PooledJob, WorkerChunk, WorkerSupervisor

REPOSITORY = Path(__file__).parents[2]
DESCRIPTIONS = REPOSITORY / "configs" / "models"


@pytest.fixture(scope="session")
def store() -> ModelStore:
    """The machine's model cache; it survives test runs so that the packages are downloaded once."""
    return ModelStore(Path(os.environ.get("MERCAT_MODEL_CACHE") or REPOSITORY / "var" / "models"))


def added(store: ModelStore, name: str) -> ModelId:
    return asyncio.run(add_from_package(store, load_description(DESCRIPTIONS / f"{name}.toml")))


@pytest.fixture(scope="session")
def echo(store: ModelStore) -> ModelId:
    return added(store, "echo")


@pytest.fixture(scope="session")
def magika(store: ModelStore) -> ModelId:
    return added(store, "magika")


@pytest.fixture(scope="session")
def smollm(store: ModelStore) -> ModelId:
    return added(store, "smollm2-135m")


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No test may leave a child of this process."""
    yield
    assert children() == []


def children() -> list[int]:
    """Processes whose parent is this one."""
    found = []
    for task in os.listdir("/proc/self/task"):
        try:
            found += [int(pid) for pid in Path(f"/proc/self/task/{task}/children").read_text(encoding="ascii").split()]
        except OSError:
            continue
    return found


def exists(pid: int) -> bool:
    """Whether there is such a process, even a dead one that nobody has waited for."""
    return Path(f"/proc/{pid}").exists()


def chat(content: str) -> bytes:
    """One user's turn as a payload."""
    payload: bytes = msgpack.packb([["user", content]])
    return payload


def running(supervisor: WorkerSupervisor, model_id: ModelId) -> Worker:
    """The worker that takes this model's jobs now."""
    worker = supervisor.running(model_id)
    assert worker is not None
    return worker


async def pull(job: PooledJob) -> list[WorkerChunk]:
    """Every piece of a job."""
    await job.prefill()
    pieces = [await job.next_chunk()]
    while pieces[-1].finish is None:
        pieces.append(await job.next_chunk())
    return pieces


async def run(
    supervisor: WorkerSupervisor, model_id: ModelId, request: JobRequest, deadline_s: float = 30
) -> list[WorkerChunk]:
    """A whole job."""
    return await pull(await supervisor.open_job(model_id, b"job", request, deadline_s=deadline_s))


def text(pieces: list[WorkerChunk]) -> str:
    return b"".join(piece.payload for piece in pieces).decode()


def tokens(pieces: list[WorkerChunk]) -> tuple[int, ...]:
    return tuple(token for piece in pieces for token in piece.tokens)
