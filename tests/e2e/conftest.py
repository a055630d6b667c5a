"""One cluster of four authorities, two providers and a buyer for all tests of this folder."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.worker.models import ModelId, ModelStore
from tests.e2e.network import Network, descendants, is_alive, processes_in, wait_until
from tests.worker.conftest import echo, magika, smollm, store

__all__ = ["cluster", "echo", "magika", "network", "place", "smollm", "store"]


@pytest.fixture(scope="package")
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory with a short path (sockets live in it), kept if a test failed; no process may remain in it."""
    folder = Path(tempfile.mkdtemp(prefix="mercat-e2e-"))
    yield folder
    left = processes_in(folder)
    assert not left, f"processes outlived the tests; see {folder}: {left}"
    if not request.session.testsfailed:
        shutil.rmtree(folder)


@pytest.fixture(scope="package")
def cluster(place: Path, store: ModelStore, echo: ModelId, magika: ModelId, smollm: ModelId) -> Iterator[Network]:
    """Started once by ``mercat cluster up``, stopped by ``mercat cluster stop``."""
    home = place / "home"
    home.mkdir()
    started = Network(place / "c", home, store.directory)
    started.up()
    yield started
    below = [process for name in started.running() for process in descendants(started.pid(name))]
    started.stop()
    wait_until(lambda: not any(map(is_alive, below)), "no worker outlives its node")
    started.assert_no_error_was_logged()


@pytest.fixture
def network(cluster: Network) -> Network:
    """The cluster with all its nodes running, whatever the test before has killed; logs are read from here on."""
    if not cluster.is_whole():
        cluster.up()
    cluster.mark()
    return cluster
