"""The suite's layers: all of them, or all but one when the gate runs it."""

import pytest

from node.worker.limits import DEFAULT_LIMITS, WorkerLimits
from node.worker.sandbox.facts import Check
from node.worker.sandbox.layers import Layers
from node.worker.sandbox.probe import IsolationReport
from tests.sandbox import arena
from tests.worker.conftest import echo, magika, nothing_left_behind, smollm, store

__all__ = ["echo", "magika", "nothing_left_behind", "smollm", "store"]


@pytest.fixture
def unquestioned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers run behind the suite's layers, whatever a probe would say of them."""

    async def probe(limits: WorkerLimits = DEFAULT_LIMITS, layers: Layers = arena.SERVING) -> IsolationReport:
        return IsolationReport("strong", (Check("the suite's layers", True, "", ""),), layers)

    monkeypatch.setattr("node.worker.supervisor.probe", probe)
