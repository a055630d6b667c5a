"""``mercat simulate``: the real consensus and ledger of a whole network in one process, with faults, from a seed."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from node.cli.failures import CommandFailed, ExitCode
from node.cli.options import with_output
from node.cli.output import Output, Progress, note, table

if TYPE_CHECKING:
    from node.simulation.campaign import Totals
    from node.simulation.run import Outcome, SimulationFailed
    from node.simulation.world import Options

PROFILE_NAMES = ("all", "network", "crashes", "disks", "clocks", "byzantine", "changes", "none")
OUTCOMES_SHOWN_MAX = 50
"""A longer campaign prints its totals alone."""


def default_state_file() -> Path:
    """Where a campaign's progress is kept unless told otherwise."""
    from platformdirs import user_state_path

    return user_state_path("mercat") / "simulation.json"


@click.command()
@click.option("--seeds", type=click.IntRange(1, 1_000_000), default=5, show_default=True, help="How many to run.")
@click.option("--from", "first", type=click.IntRange(0), default=0, show_default=True, help="The first seed.")
@click.option(
    "--nodes", "--authorities", "authorities", type=click.IntRange(1, 30), default=4, show_default=True,
    help="Authorities.",
)  # fmt: skip
@click.option("--followers", type=click.IntRange(0, 30), default=1, show_default=True)
@click.option(
    "--transfers", type=click.IntRange(1, 1000), default=12, show_default=True, help="Of each of three users."
)
@click.option(
    "--seconds", type=click.IntRange(1, 3600), default=25, show_default=True, help="Virtual time with faults."
)
@click.option(
    "--profile", type=click.Choice(PROFILE_NAMES), default="all", show_default=True, help="What may go wrong."
)
@click.option("--strikes", type=click.IntRange(0), help="Stop the nemesis after so many blows.")
@click.option("--resume", is_flag=True, help="Go on after the last seed that this very campaign has run.")
@click.option(
    "--state", type=click.Path(path_type=Path, dir_okay=False), help="Where progress is kept [default: user's state]."
)
@click.option("--mutants", is_flag=True, help="Remove each guard of the protocol in turn: the checkers must notice.")
@click.option("--search", is_flag=True, help="Walk through every run of one height, one authority lying.")
@click.option("--views", type=click.IntRange(1, 3), default=3, show_default=True, help="Of the search.")
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
    profile: str,
    strikes: int | None,
    resume: bool,
    state: Path | None,
    mutants: bool,
    search: bool,
    views: int,
    market: bool,
    trace: bool,
) -> None:
    """Run seeds of a simulated network with every kind of fault, checking every step.

    Exit code 1 at the first seed that breaks a rule or does not recover; the same seed replays it to the same trace.
    """
    if market:
        _simulate_markets(output, range(first, first + seeds))
        return
    if mutants:
        from node.cli.simulation_gates import run_mutants

        run_mutants(output)
        return
    if search:
        from node.cli.simulation_gates import run_search

        run_search(output, views)
        return
    from node.simulation.campaign import Campaign
    from node.simulation.profiles import PROFILES
    from node.simulation.run import SimulationFailed
    from node.simulation.world import Options

    options = Options(
        authorities=authorities,
        followers=followers,
        transfers_per_client=transfers,
        faulty_ms=seconds * 1000,
        profile=PROFILES[profile],
        strikes_max=strikes,
    )
    name = f"{profile} {transfers} {seconds} {strikes}"
    campaign = Campaign(first, options, name, (state or default_state_file()) if resume or state else None)
    if resume and campaign.resume():
        output.note(f"resumed after {campaign.totals.seeds} seeds")
    progress = Progress(enabled=not (output.quiet or output.as_json or trace))
    outcomes: list[Outcome] = []
    try:
        for outcome in campaign.run(seeds, _traced if trace else None):
            progress.update(f"seed {outcome.seed + 1}, {campaign.totals.seeds} of {seeds} done")
            if len(outcomes) < OUTCOMES_SHOWN_MAX + 1:
                outcomes.append(outcome)
    except SimulationFailed as failure:
        progress.clear()
        raise _failed(failure, options, output) from None
    progress.clear()
    _show(output, outcomes, campaign.totals)


def _traced(time_ms: int, line: str) -> None:
    note(f"{time_ms:8d} {line}")


def _failed(failure: "SimulationFailed", options: "Options", output: Output) -> CommandFailed:
    """The failure with the shortest run that shows it."""
    from node.simulation.shrink import shortest

    output.note(f"{failure}; looking for the shortest run that fails")
    short = shortest(failure, options)
    return CommandFailed(
        f"{failure}. Shortest: seed {short.seed} with --strikes {short.strikes} fails at {short.time_ms} ms: "
        f"{short.reason}",
        ExitCode.FAILED,
        "simulation_failed",
    )


class View(msgspec.Struct):
    """What ``--json`` prints of a campaign."""

    totals: "dict[str, int | dict[str, int]]"
    node_seconds_per_second: int
    outcomes: "list[dict[str, object]]"
    """The first of them, where there are many."""


def _show(output: Output, outcomes: "list[Outcome]", totals: "Totals") -> None:
    rows = [
        (
            str(outcome.seed),
            str(outcome.heights),
            str(outcome.transactions),
            str(outcome.frames),
            str(outcome.strikes),
            f"{outcome.healed_after_ms} ms",
            outcome.trace_hash,
        )
        for outcome in outcomes
    ]
    headers = ("SEED", "BLOCKS", "TRANSACTIONS", "FRAMES", "BLOWS", "SETTLED AFTER", "TRACE")
    parts = [] if len(outcomes) > OUTCOMES_SHOWN_MAX else [table(headers, rows)]
    faults = sorted(totals.faults.items())
    if faults:
        parts.append(table(("FAULT", "TIMES"), [(name, f"{count:,}") for name, count in faults]))
    parts.append(
        f"{totals.seeds:,} seeds clean: {totals.heights:,} blocks, {totals.transactions:,} transactions, "
        f"{totals.virtual_ms // 1000:,} virtual seconds, settled {totals.healed_after_ms_max} ms after healing at "
        f"most; {totals.node_seconds_per_second:,.0f} node-seconds a second of one core"
    )
    shown = [msgspec.to_builtins(outcome) for outcome in outcomes[:OUTCOMES_SHOWN_MAX]]
    view = View(msgspec.to_builtins(totals), round(totals.node_seconds_per_second), shown)
    output.show(view, "\n\n".join(parts), (outcome.trace_hash for outcome in outcomes))


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
            str(outcome.continued),
            str(sum(outcome.faults.values())),
            outcome.trace_hash[:16],
        )
        for outcome in outcomes
    ]
    headers = ("SEED", "BLOCKS", "JOBS DONE", "FAILED", "CANCELLED", "WENT ON", "FAULTS", "TRACE")
    output.show(outcomes, table(headers, rows), (outcome.trace_hash for outcome in outcomes))
