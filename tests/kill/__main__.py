"""``./scripts/test kill``: real processes and a bare store, killed at as many random points as wanted."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from node.cli.cluster_layout import default_model_store
from tests.kill.rounds import kill_at_points
from tests.kill.store_points import StorePoints

POINTS_PER_ROUND = 24


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _kill_store(folder: Path, points: int, seed: int) -> None:
    begun = time.monotonic()
    found = StorePoints(folder, seed).run(points)
    print(
        f"store: killed at {found.points} points in {time.monotonic() - begun:.0f} s, {found.heights} blocks, "
        f"{found.blocks_unreported} of them committed and not yet reported, "
        f"up to {found.rows} rows without a block in one file, "
        f"{found.reserved} guard positions asked again"
    )


def _kill_processes(folder: Path, points: int, seed: int) -> None:
    begun = time.monotonic()
    found = kill_at_points(folder / "c", default_model_store(), points, POINTS_PER_ROUND, seed, _tell)
    lives = ", ".join(f"{name} {count}" for name, count in found.lives.items())
    payments = ", ".join(f"{count} {answer.name.lower()}" for answer, count in found.payments.items())
    print(
        f"processes: killed at {found.points} points in {time.monotonic() - begun:.0f} s "
        f"({found.while_starting} while starting, {found.power_cuts} power cuts), height {found.height} "
        f"({found.views_later} blocks of later views), slowest start of all {found.slowest_start_seconds:.1f} s\n"
        f"lives: {lives}\n"
        f"payments: {payments}\n"
        f"jobs: {found.jobs}, {found.jobs_done} done, {found.jobs_cut_short_and_charged} cut short and charged for "
        f"what had come; {found.charged} base units in all, {found.set_off} of them set against what providers owed\n"
        f"guards: {found.guard_positions} signed positions compared\n"
        "nothing lost, nothing doubled"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="./scripts/test kill", description=__doc__)
    parser.add_argument("--points", type=int, default=1_000, help="of running nodes (1000)")
    parser.add_argument("--store-points", type=int, default=2_000, help="of a process that only commits (2000)")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}")
    # Short: the control sockets' paths must fit into the kernel's limit.
    with tempfile.TemporaryDirectory(prefix="mercat-kill-") as made:
        folder = Path(made)
        try:
            if chosen.store_points > 0:
                _kill_store(folder, chosen.store_points, chosen.seed)
            if chosen.points > 0:
                _kill_processes(folder, chosen.points, chosen.seed)
        except BaseException:
            kept = Path(tempfile.mkdtemp(prefix="mercat-killed-"))
            folder.rename(kept / "files")
            folder.mkdir()
            _tell(f"files and logs are kept in {kept}")
            raise


if __name__ == "__main__":
    main()
