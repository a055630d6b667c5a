"""``mercat simulate``: the real consensus and ledger of a whole network in one process, with faults, from a seed."""

from typing import TYPE_CHECKING

import click
import msgspec

from node.cli.failures import CommandFailed, ExitCode
from node.cli.options import with_output
from node.cli.output import Output, Progress, note, table

if TYPE_CHECKING:
    from node.simulation.run import Outcome


@click.command()
@click.option("--seeds", type=click.IntRange(1, 1_000_000), default=5, show_default=True, help="How many to run.")
@click.option("--from", "first", type=click.IntRange(0), default=0, show_default=True, help="The first seed.")
@click.option("--authorities", type=click.IntRange(1, 30), default=4, show_default=True)
@click.option("--followers", type=click.IntRange(0, 30), default=1, show_default=True)
@click.option(
    "--transfers", type=click.IntRange(1, 1000), default=12, show_default=True, help="Of each of three users."
)
@click.option(
    "--seconds", type=click.IntRange(1, 3600), default=20, show_default=True, help="Virtual time with faults."
)
@click.option("--twin", is_flag=True, help="One authority runs twice.")
@click.option("--lose-disk", is_flag=True, help="Authorities may lose their disks.")
@click.option("--market", is_flag=True, help="Providers, buyers and jobs too; takes --seeds and --from only.")
@click.option("--trace", is_flag=True, help="Print every event on standard error.")
@with_output
def simulate(
    output: Output,
    seeds: int,
    first: int,
    authorities: int,
    followers: int,
    transfers: int,
    seconds: int,
    twin: bool,
    lose_disk: bool,
    market: bool,
    trace: bool,
) -> None:
    """Run seeds of a simulated network under crashes, partitions, loss and skewed clocks, checking every step.

    Exit code 1 at the first seed that breaks a rule or does not recover; the same seed replays it to the same trace.
    """
    if market:
        _simulate_markets(output, range(first, first + seeds))
        return
    from node.simulation.nemesis import DEFAULT_FAULTS, Fault
    from node.simulation.run import SimulationFailed, run_seed
    from node.simulation.world import Options

    options = Options(
        authorities=authorities,
        followers=followers,
        transfers_per_client=transfers,
        faulty_ms=seconds * 1000,
        faults=DEFAULT_FAULTS + ((Fault.LOSE_DISK,) if lose_disk else ()),
        twin=twin,
    )
    progress = Progress(enabled=not (output.quiet or output.as_json or trace))
    outcomes: list[Outcome] = []
    for seed in range(first, first + seeds):
        progress.update(f"seed {seed}")
        try:
            outcomes.append(run_seed(seed, options, _traced if trace else None))
        except SimulationFailed as failure:
            progress.clear()
            raise CommandFailed(str(failure), ExitCode.FAILED, "simulation_failed") from None
    progress.clear()
    _show(output, outcomes)


def _traced(time_ms: int, line: str) -> None:
    note(f"{time_ms:8d} {line}")


def _show(output: Output, outcomes: "list[Outcome]") -> None:
    rows = [
        (
            str(outcome.seed),
            str(outcome.heights),
            str(outcome.transfers),
            str(outcome.frames),
            str(sum(outcome.faults.values())),
            f"{outcome.healed_after_ms} ms",
            outcome.trace_hash,
        )
        for outcome in outcomes
    ]
    headers = ("SEED", "BLOCKS", "TRANSFERS", "FRAMES", "FAULTS", "SETTLED AFTER", "TRACE")
    view = [msgspec.to_builtins(outcome) for outcome in outcomes]
    output.show(view, table(headers, rows), (outcome.trace_hash for outcome in outcomes))


def _simulate_markets(output: Output, seeds: range) -> None:
    """Whole markets with the shipped engine: money stays fair, every job ends, no deposit is stranded."""
    from node.simulation.market import MarketOutcome, run_market_seed
    from node.simulation.run import SimulationFailed

    progress = Progress(enabled=not (output.quiet or output.as_json))
    outcomes: list[MarketOutcome] = []
    for seed in seeds:
        progress.update(f"market of seed {seed}, {len(outcomes)} of {len(seeds)} done")
        try:
            outcomes.append(run_market_seed(seed))
        except SimulationFailed as failure:
            progress.clear()
            raise CommandFailed(str(failure), ExitCode.FAILED, "simulation_failed") from None
    progress.clear()
    rows = [
        (
            str(outcome.seed),
            str(outcome.heights),
            str(outcome.finished),
            str(outcome.failed),
            str(outcome.cancelled),
            str(sum(outcome.faults.values())),
            outcome.trace_hash[:16],
        )
        for outcome in outcomes
    ]
    headers = ("SEED", "BLOCKS", "JOBS DONE", "FAILED", "CANCELLED", "FAULTS", "TRACE")
    output.show(outcomes, table(headers, rows), (outcome.trace_hash for outcome in outcomes))
