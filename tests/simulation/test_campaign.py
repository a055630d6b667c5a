"""Many seeds: totals, progress that outlives a kill, and the shortest run of a failure."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from node.simulation.campaign import Campaign
from node.simulation.mutants import MUTANTS
from node.simulation.profiles import PROFILES
from node.simulation.run import SimulationFailed, run_seed
from node.simulation.shrink import shortest
from node.simulation.world import Options

QUIET = Options(profile=PROFILES["none"], whole_engine=False, followers=0, transfers_per_client=1)


def test_a_campaign_resumes_behind_its_last_seed_with_the_same_totals(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.json"
    whole = Campaign(7, QUIET, "none")
    hashes = [outcome.trace_hash for outcome in whole.run(4)]
    first = Campaign(7, QUIET, "none", path)
    parts = [outcome.trace_hash for outcome in first.run(2)]
    second = Campaign(7, QUIET, "none", path)
    assert second.resume()
    parts += [outcome.trace_hash for outcome in second.run(4)]
    assert parts == hashes
    second.totals.cpu_ms = whole.totals.cpu_ms
    assert second.totals == whole.totals


@pytest.mark.parametrize("changed", ["first seed", "options", "code", "nothing there", "broken file"])
def test_progress_of_anything_else_is_not_resumed(
    tmp_path: Path, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    list(Campaign(7, QUIET, "none", path).run(1))
    options, first = QUIET, 7
    match changed:
        case "first seed":
            first = 8
        case "options":
            options = replace(QUIET, authorities=5)
        case "code":
            monkeypatch.setattr("node.simulation.campaign.code_version", lambda: "another")
        case "nothing there":
            path.unlink()
        case _:
            path.write_bytes(b"{")
    other = Campaign(first, options, "none", path)
    assert not other.resume()
    assert other.totals.seeds == 0


def test_a_killed_command_goes_on_where_it_was(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    command = [sys.executable, "-m", "node.cli.main", "simulate", "--profile", "none", "--state", str(state)]
    process = subprocess.Popen([*command, "--seeds", "100000"], stdout=subprocess.DEVNULL)
    while not state.exists():
        assert process.poll() is None
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = json.loads(state.read_bytes())["totals"]["seeds"]
    resumed = subprocess.run(
        [*command, "--resume", "--json", "--seeds", str(done + 1)], capture_output=True, text=True, check=True
    )
    view = json.loads(resumed.stdout)
    assert view["totals"]["seeds"] == done + 1
    assert [outcome["seed"] for outcome in view["outcomes"]] == [done]
    assert view["node_seconds_per_second"] > 0


def test_the_shortest_run_of_a_failure_fails_and_is_no_longer_than_the_failure() -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "blocks have a timely timestamp")
    with mutant.patch():
        with pytest.raises(SimulationFailed) as failed:
            list(Campaign(0, mutant.options, "clocks").run(mutant.seeds_max))
        short = shortest(failed.value, mutant.options)
        assert 0 < short.strikes <= failed.value.strikes
        with pytest.raises(SimulationFailed) as again:
            run_seed(short.seed, replace(mutant.options, strikes_max=short.strikes))
        assert (again.value.time_ms, again.value.reason) == (short.time_ms, short.reason)
        with pytest.raises(SimulationFailed):
            run_seed(short.seed, replace(mutant.options, strikes_max=short.strikes))
    run_seed(short.seed, replace(mutant.options, strikes_max=short.strikes))
