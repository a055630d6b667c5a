"""A real process is killed at random moments while it commits blocks: nothing committed is lost, nothing is torn."""

import random
import subprocess
import sys
import time
from pathlib import Path

from node.store.database import Store
from protocol.messages.effects import Table
from tests.store.crash_child import GENESIS

SEED = 20_240_607
KILLS = 10


def run_and_kill(path: Path, blocks: int, delay_s: float) -> tuple[int, int]:
    """Start the child, let it commit some blocks, kill it a moment later: (height at its start, last one reported)."""
    command = [sys.executable, "-m", "tests.store.crash_child", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        word, _, started_at = child.stdout.readline().partition(" ")
        assert word == "open"
        reported = int(started_at)
        for _ in range(blocks):
            reported = int(child.stdout.readline().split()[1])
        time.sleep(delay_s)  # the kill's moment is the test's input, not a wait for a condition
        child.kill()
        for line in child.stdout:
            if line.endswith("\n"):
                reported = int(line.split()[1])
    return int(started_at), reported


def test_a_store_whose_process_was_killed_at_random_moments_is_whole_each_time(tmp_path: Path) -> None:
    dice = random.Random(SEED)
    path = tmp_path / "store.sqlite"
    height_before = 0
    for kill in range(KILLS):
        started_at, reported = run_and_kill(path, dice.randrange(12), dice.random() * 0.02)
        assert started_at == height_before, f"seed {SEED}, kill {kill}"
        store = Store.open(path, GENESIS)
        state = store.check()  # recomputes the state root and counts all money
        assert state.height >= reported, f"seed {SEED}, kill {kill}: a committed block is gone"
        assert state.supply().total == state.supply().issued
        height = store.get(Table.JOB, b"height")
        assert int.from_bytes(height or b"", "big") == state.height, "a row and the block beside it came apart"
        assert store.load_table(Table.CONSENSUS_BODY) == []
        height_before = state.height
        store.close()
    assert height_before > KILLS
