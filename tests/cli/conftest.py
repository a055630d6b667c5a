"""Command lines run in this process, against a fake node, away from the home directory."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from node.cli.main import run_command
from node.telemetry import configure_events
from tests.api.fake_node import FakeNode, served


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left."""

    code: int
    out: str
    err: str


Mercat = Callable[..., Ended]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the user's own node, and none leaves anything in a home directory."""
    for name in list(os.environ):
        if name.startswith("MERCAT_"):
            monkeypatch.delenv(name)
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


@pytest.fixture
def mercat(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Mercat:
    """Runs a command line in this process."""

    def run(*arguments: str, stdin: bytes = b"") -> Ended:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = run_command(arguments)
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return Ended(code, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))

    return run


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    """A node behind ``MERCAT_CONTROL``."""
    node, path = FakeNode(), tmp_path / "control.sock"
    monkeypatch.setenv("MERCAT_CONTROL", str(path))
    configure_events(io.StringIO(), "error", as_json=True)
    with served(path, node):
        yield node
    structlog.reset_defaults()
