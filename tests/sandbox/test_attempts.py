"""Each attempt to get out of a worker, by the error that it meets: while serving, while starting, and without
namespaces. One sandbox takes all attempts of a column; one that ends the worker is tried again alone."""

import asyncio
import os
import signal

import pytest

from node.worker.limits import DEFAULT_LIMITS
from node.worker.sandbox import probe
from node.worker.sandbox.layers import Layers
from tests.sandbox import arena
from tests.sandbox.expected import EPERM, EXCEPTIONS, NAMES, ROOT_ONLY, Row

ROOT = os.geteuid() == 0


def expected(name: str) -> Row:
    if name in ROOT_ONLY:
        return ROOT_ONLY[name] if ROOT else (None, None, None)
    return EXCEPTIONS.get(name, (EPERM, EPERM, EPERM))


def column(position: int) -> list[tuple[str, str]]:
    rows = [(name, expected(name)[position]) for name in NAMES]
    return [(name, error) for name, error in rows if error is not None]


async def _outcomes(names: tuple[str, ...], layers: Layers) -> dict[str, str]:
    """One launch for all; where a weakened worker ends in between, a launch for each of the rest."""
    seen, _ = await arena.attempt(names, layers)
    for name in names:
        if seen[name] == arena.ENDED:
            alone, _ = await arena.attempt((name,), layers)
            seen[name] = alone[name]
    return seen


def outcomes(position: int, layers: Layers) -> dict[str, str]:
    return asyncio.run(_outcomes(tuple(name for name, _ in column(position)), layers))


@pytest.fixture(scope="module")
def serving() -> dict[str, str]:
    return outcomes(0, arena.SERVING)


@pytest.fixture(scope="module")
def starting() -> dict[str, str]:
    return outcomes(1, arena.STARTING)


@pytest.fixture(scope="module")
def fallback() -> dict[str, str]:
    return outcomes(2, arena.FALLBACK)


@pytest.mark.parametrize(("name", "error"), column(0))
def test_while_serving_a_worker_can_not(name: str, error: str, serving: dict[str, str]) -> None:
    assert serving[name] in error.split(" or ")


@pytest.mark.parametrize(("name", "error"), column(1))
def test_while_starting_a_worker_can_not(name: str, error: str, starting: dict[str, str]) -> None:
    assert starting[name] in error.split(" or ")


@pytest.mark.parametrize(("name", "error"), column(2))
def test_without_namespaces_a_worker_can_not(name: str, error: str, fallback: dict[str, str]) -> None:
    assert fallback[name] in error.split(" or ")


@pytest.mark.parametrize("name", ["call through x32", "call through int 0x80"])
@pytest.mark.parametrize(
    "layers", [arena.SERVING, arena.STARTING, arena.FALLBACK], ids=["serving", "starting", "fallback"]
)
def test_another_system_call_table_kills_the_worker(name: str, layers: Layers) -> None:
    seen, status = asyncio.run(arena.attempt((name,), layers))
    assert (seen[name], status) == (arena.ENDED, 128 + signal.SIGSYS)


def test_the_probe_calls_these_layers_strong() -> None:
    report = asyncio.run(probe.probe(DEFAULT_LIMITS, arena.SERVING))
    assert (report.level, report.failures()) == ("strong", ())


@pytest.mark.skipif(not ROOT, reason="only root knows a worker by its user")
def test_a_daemon_left_while_starting_goes_with_the_worker() -> None:
    async def left() -> int | None:
        _, process, _ = await probe.canaries(
            ("leave a daemon",), DEFAULT_LIMITS, arena.STARTING, arena.source({"node": "1"})
        )
        return process.uid

    uid = asyncio.run(left())
    assert uid is not None
    assert [entry for entry in os.scandir("/proc") if entry.name.isdigit() and entry.stat().st_uid == uid] == []
