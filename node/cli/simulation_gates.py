"""``mercat simulate --mutants`` and ``--search``: is each guard needed, and do they suffice?"""

from functools import partial

import msgspec

from node.cli.failures import CommandFailed, ExitCode
from node.cli.output import Output, Progress, table


class SearchView(msgspec.Struct):
    """One exhausted space."""

    liar: int
    """Number of the dishonest authority; authority v leads view v."""
    views: int
    states: int
    """Distinct states, none of which disagrees or is stuck."""
    endings: int
    """Of them, those in which nothing is left to happen in the last view."""


def _report(progress: Progress, liar: int, states: int) -> None:
    progress.update(f"authority {liar} lies: {states:,} states")


def run_search(output: Output, views: int) -> None:
    """Each authority lies in turn."""
    from node.simulation.search import Disagreement, Search, Stuck

    progress = Progress(enabled=not (output.quiet or output.as_json))
    found: list[SearchView] = []
    for liar in range(4):
        progress.update(f"authority {liar} lies, {views} views")
        search = Search(liar, views, progress=partial(_report, progress, liar))
        try:
            states = search.run()
        except (Disagreement, Stuck) as failure:
            progress.clear()
            raise CommandFailed(f"authority {liar} lies: {failure}", ExitCode.FAILED, "search_failed") from None
        found.append(SearchView(liar, views, states, search.endings))
    progress.clear()
    total = sum(view.states for view in found)
    rows = [(str(view.liar), str(view.views), f"{view.states:,}", f"{view.endings:,}") for view in found]
    text = table(("LIAR", "VIEWS", "STATES", "ENDINGS"), rows)
    output.show(found, f"{text}\n\n{total:,} states, no disagreement, none stuck", (str(total),))


def run_mutants(output: Output) -> None:
    """Take each guard away; fails at the first that nobody misses."""
    from node.simulation.mutants import MUTANTS, SEARCH_MUTANTS, Caught, Escaped, catch, find, find_nothing
    from node.simulation.search import Disagreement, Stuck

    progress = Progress(enabled=not (output.quiet or output.as_json))
    caught: list[Caught] = []
    try:
        for mutant in MUTANTS:
            progress.update(f"without: {mutant.name}")
            caught.append(catch(mutant))
        progress.update("searching with every guard")
        states = find_nothing()
        for searched in SEARCH_MUTANTS:
            progress.update(f"searching without: {searched.name}")
            caught.append(find(searched))
    except (Escaped, Disagreement, Stuck) as failure:
        progress.clear()
        raise CommandFailed(str(failure), ExitCode.FAILED, "mutant_escaped") from None
    progress.clear()
    text = table(("WITHOUT", "CAUGHT BY", "WHAT BROKE"), caught)
    text += (
        f"\n\n{len(caught)} mutants caught; the same seeds and {states:,} states are clean with every guard in place"
    )
    output.show([each._asdict() for each in caught], text, (each.mutant for each in caught))
