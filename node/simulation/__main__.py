"""``python -m node.simulation --seeds N [--from S] [--nodes n]``: run seeds, print each outcome, stop at a failure."""

import argparse
import sys

from node.simulation.nemesis import DEFAULT_FAULTS, Fault
from node.simulation.run import SimulationFailed, run_seed
from node.simulation.world import Options


def main() -> int:
    """Exit status 0 if every seed held, 1 at the first that failed."""
    parser = argparse.ArgumentParser(prog="python -m node.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="how many seeds to run")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed")
    parser.add_argument("--nodes", type=int, default=4, help="number of authorities")
    parser.add_argument("--followers", type=int, default=1, help="nodes that are no authority")
    parser.add_argument("--transfers", type=int, default=12, help="transfers of each of three users")
    parser.add_argument("--seconds", type=int, default=20, help="virtual seconds with faults")
    parser.add_argument("--twin", action="store_true", help="one authority runs twice")
    parser.add_argument("--lose-disk", action="store_true", help="up to f authorities lose their disks")
    parser.add_argument("--trace", action="store_true", help="print every event")
    arguments = parser.parse_args()
    options = Options(
        authorities=arguments.nodes,
        followers=arguments.followers,
        transfers_per_client=arguments.transfers,
        faulty_ms=arguments.seconds * 1000,
        faults=DEFAULT_FAULTS + ((Fault.LOSE_DISK,) if arguments.lose_disk else ()),
        twin=arguments.twin,
    )
    log = (lambda time_ms, line: print(f"{time_ms:8d} {line}")) if arguments.trace else None
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        try:
            outcome = run_seed(seed, options, log)
        except SimulationFailed as failure:
            print(f"FAILED {failure}", file=sys.stderr)
            return 1
        print(
            f"seed {outcome.seed}: {outcome.heights} blocks, {outcome.transfers} transfers, {outcome.frames} frames, "
            f"settled {outcome.healed_after_ms} ms after healing, trace {outcome.trace_hash}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
