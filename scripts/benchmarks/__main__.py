"""``python -m scripts.benchmarks NAME… [--check] [--quick]``: progress on stderr, one JSON object as the last line."""

import argparse
import signal
import sys
from collections.abc import Callable

import msgspec

from scripts.benchmarks import abuse, failover, gossip, idle, job, ledger, llm, market, pieces, worker
from scripts.benchmarks.measure import Report, machine, note, verdicts

BENCHMARKS: dict[str, Callable[[bool], Report]] = {
    "job": job.measure,
    "ledger": ledger.measure,
    "gossip": gossip.measure,
    "llm": llm.measure,
    "idle": idle.measure,
    "abuse": abuse.measure,
    "market": market.measure,
    "failover": failover.measure,
    "worker": worker.measure,
    "pieces": pieces.measure,
}
EXIT_MISSED = 1


def run_named(command_line: list[str]) -> int:
    """Run the named benchmarks one after the other. 1 with ``--check`` when a target was missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", choices=[*BENCHMARKS, "all"], help=", ".join(BENCHMARKS))
    parser.add_argument("--check", action="store_true", help="exit with 1 and list the targets that were missed")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, measures nothing")
    arguments = parser.parse_args(command_line)
    names = list(BENCHMARKS) if "all" in arguments.names else list(dict.fromkeys(arguments.names))
    facts = machine()
    reports: dict[str, Report] = {}
    for name in names:
        note(f"== {name}")
        reports[name] = BENCHMARKS[name](arguments.quick)
        reports[name].tell()
    judged = [verdict for name, report in reports.items() for verdict in verdicts(name, report)]
    missed = [verdict for verdict in judged if not verdict.met]
    for verdict in missed:
        note(f"missed: {verdict.figure} is {verdict.value} {verdict.unit}, target {verdict.bound} {verdict.target}")
    result = {
        "machine": facts,
        "load_after": machine()["load"],
        "quick": arguments.quick,
        "benchmarks": reports,
        "targets": judged,
        "met": not missed,
    }
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    return EXIT_MISSED if arguments.check and missed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(run_named(sys.argv[1:]))
