"""A short soak as a user runs it: jobs under random faults, then an audit that finds nothing missing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
@pytest.mark.timeout(600)
def test_jobs_under_chaos_are_explained_and_every_credit_is_accounted_for(tmp_path: Path) -> None:
    ended = subprocess.run(
        [
            sys.executable, "-m", "node.cli.main", "cluster", "soak",
            "--minutes", "0.75", "--seed", "11", "--dir", str(tmp_path / "s"), "--json",
        ],
        capture_output=True,
        text=True,
        timeout=500,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr + ended.stdout[-4_000:]
    report = json.loads(ended.stdout)
    assert report["audit"]["findings"] == []
    assert report["audit"]["total"] == report["audit"]["by_genesis"]
    finished = [job for job in report["jobs"] if job["outcome"] == "finished"]
    assert len(finished) > 100
    assert report["audit"]["receipts_verified"] == len(finished)
    assert report["faults"]
