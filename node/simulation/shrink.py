"""The shortest run that still fails: fewer blows of the nemesis, then an earlier end.

Law: what it returns was run and failed. Blows are halved as if fewer of them never made it worse; where they did, the
run at hand stays the shortest that was found.
"""

from dataclasses import dataclass, replace

from node.simulation.run import SimulationFailed, run_seed
from node.simulation.world import Options


@dataclass(frozen=True)
class Reproduction:
    """How to see a failure again, with as little around it as was found."""

    seed: int
    strikes: int
    """Blows of the nemesis that it takes."""
    time_ms: int
    """Virtual ms until the rule is broken."""
    reason: str


def shortest(failed: SimulationFailed, options: Options) -> Reproduction:
    """The shortest prefix of the failed seed's run that fails too. Takes about log2(strikes) runs."""
    best = Reproduction(failed.seed, failed.strikes, failed.time_ms, failed.reason)
    low, high = 0, failed.strikes
    while low < high:
        middle = (low + high) // 2
        found = _fails(failed.seed, replace(options, strikes_max=middle))
        if found is None:
            low = middle + 1
        else:
            high = found.strikes if found.strikes < middle else middle
            best = found
    return best


def _fails(seed: int, options: Options) -> Reproduction | None:
    try:
        run_seed(seed, options)
    except SimulationFailed as failed:
        return Reproduction(seed, failed.strikes, failed.time_ms, failed.reason)
    return None
