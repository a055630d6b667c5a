"""What holds for every test, and how the suite is spread over several processes (``pytest -n``).

Law: one process alone runs the files in their order. Several share them out: the tests of one file stay together and in
their order, and whatever starts a whole network of processes is one unit, so that two networks never compete for the
machine. That unit comes first, since it takes longest and waits more than it computes.
"""

import gc
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

NETWORKS = (
    "tests/bench/test_output.py",
    "tests/cli/test_real_cluster.py",
    "tests/e2e/",
    "tests/kill/test_kill.py",
    "tests/network/",
    "tests/repository/test_readme.py",
)
"""Where tests start networks of processes."""
ALLOCATIONS_PER_COLLECTION = 20_000
"""A simulation spends a fifth of its time in the collector when that comes after every 700, as it does by default."""

gc.set_threshold(ALLOCATIONS_PER_COLLECTION)
# How long one example takes is the machine's affair: the deadline of a whole test is in pyproject.toml.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory for control sockets, whose paths must be short; the one that pytest gives can be too deep."""
    folder = Path(tempfile.mkdtemp(prefix="mercat-"))
    yield folder
    shutil.rmtree(folder)


def unit_of(nodeid: str) -> str:
    """What goes to one process as a whole, of the tests that this one belongs to."""
    return "networks" if nodeid.startswith(NETWORKS) else nodeid.split("::", 1)[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a process that is one of several, what takes longest comes first, and so is handed out first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: unit_of(item.nodeid) != "networks")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: "Producer") -> "LoadScopeScheduling":
    """Hands out whole units, in the order in which they were collected."""
    from xdist.scheduler import LoadScopeScheduling

    class Units(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no annotations
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    config.option.loadscopereorder = False
    return Units(config, log)
