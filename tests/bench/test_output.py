"""The benchmarks run and say what they promise: one JSON object as the last line. No time is asserted."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks.__main__ import BENCHMARKS, run_named
from scripts.benchmarks.measure import Ratio, Report, percentile

ROOT = Path(__file__).parents[2]
TARGETS = {
    "job": {"market.job.p50"},
    "ledger": {
        "ledger.transfer.finality.p50/load=idle",
        "ledger.transfer.finality.p50/load=400_per_second",
        "ledger.transfers_per_second/outputs=1",
        "ledger.transfers_per_second/outputs=16",
        "ledger.transfer.cost/accounts=2000,beside=100",
        "node.restart.seconds/accounts=2000",
        "node.resident_mebibytes/accounts=2000",
    },
    "gossip": set[str](),
    "worker": {
        "worker.noop.p50",
        "worker.start.p50/warm=1",
        "worker.start_over_plain.p50/model=echo",
        "worker.model_copies/workers=3",
        "worker.onnx_to_runtime/at_once=16",
        "worker.gguf_to_runtime/streams=1",
        "worker.gguf.first_token_overhead.p50",
        "worker.gguf.cancel.p50/while=reading",
        "worker.gguf.cancel.p50/while=writing",
        "worker.gguf_to_server/streams=8",
    },
    "failover": {"market.failover.p99/cause=killed"},
    "pieces": {"pieces.pull.rate/statistic=median"},
    "market": {
        "market.job.p50/at_once=1",
        "market.job.p99/at_once=1",
        "market.job.settled_per_second/at_once=32",
        "market.job.ledger_transactions",
        "gossip.offer.bytes_per_node.most_to_least/by=nodes",
        "gossip.offer.spread.p100/nodes=40,offers=40",
    },
    "idle": {
        f"node.idle.{quantity}/role={role}"
        for quantity in ("resident_mebibytes", "processor_percent")
        for role in ("authority", "provider", "buyer")
    },
}
SLOW = ("failover", "ledger", "market", "worker")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmarks as the script does."""
    command = [sys.executable, "-m", "scripts.benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110)


def result_of(ended: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one line of standard output."""
    lines = ended.stdout.splitlines()
    assert len(lines) == 1, ended.stderr
    result: dict[str, Any] = json.loads(lines[0])
    return result


def _check_fields(name: str, result: dict[str, Any]) -> None:
    assert sorted(result) == ["benchmarks", "load_after", "machine", "met", "quick", "targets"]
    assert sorted(result["machine"]) == ["cores", "kernel", "load", "processor", "python"]
    report = result["benchmarks"][name]
    assert report["baselines"]
    for figure in (*report["figures"].values(), *report["baselines"].values()):
        assert figure["value"] >= 0
        assert figure["unit"]
    for figure in report["figures"].values():
        if figure["unit"] == "ratio":
            assert figure["pairs"] >= 10
            assert figure["lowest"] <= figure["quarter"] <= figure["value"]
            assert figure["value"] <= figure["three_quarters"] <= figure["highest"]
    assert {verdict["figure"] for verdict in result["targets"]} == TARGETS[name]
    for verdict in result["targets"]:
        below = verdict["value"] <= verdict["target"]
        above = verdict["value"] >= verdict["target"]
        assert verdict["met"] == (below if verdict["bound"] == "<=" else above)
    assert result["met"] == all(verdict["met"] for verdict in result["targets"])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in SLOW else name for name in sorted(TARGETS)]
)
def test_benchmark_ends_with_one_json_object_of_the_promised_fields(name: str) -> None:
    ended = bench(name, "--quick")
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    _check_fields(name, result_of(ended))


def test_unknown_name_is_refused() -> None:
    ended = bench("nothing")
    assert ended.returncode == 2
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("value", "arguments", "code"),
    [(5.0, ["--check"], 0), (5.1, ["--check"], 1), (5.1, [], 0)],
    ids=["met", "missed", "missed and not asked"],
)
def test_check_fails_exactly_when_a_target_is_missed(
    value: float,
    arguments: list[str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measured(quick: bool) -> Report:
        report = Report.start("a benchmark of known outcome")
        report.add("room.operation.p50", value, "ms")
        report.target("room.operation.p50", "<=", 5.0)
        return report

    monkeypatch.setitem(BENCHMARKS, "job", measured)
    assert run_named(["job", *arguments]) == code
    printed = capsys.readouterr()
    assert json.loads(printed.out)["met"] == (value <= 5.0)
    assert ("missed: room.operation.p50" in printed.err) == (value > 5.0)


@pytest.mark.parametrize(("share", "expected"), [(50, 5), (99, 10), (1, 1), (100, 10)])
def test_percentile_is_a_sample_that_the_share_does_not_exceed(share: int, expected: float) -> None:
    assert percentile([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], share) == expected


def test_ratio_is_the_median_over_pairs_with_its_spread() -> None:
    report = Report.start("pairs")
    report.ratio("room.a_to_b", [2.0, 3.0, 40.0], [1.0, 1.0, 10.0])
    assert report.figures["room.a_to_b"] == Ratio(3.0, "ratio", 3, 2.0, 2.5, 3.5, 4.0)
