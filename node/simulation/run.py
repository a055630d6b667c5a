"""Running seeds: what ``python -m node.simulation`` and ``mercat simulate`` call."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from node.simulation.checkers import Violation
from node.simulation.world import Options, World


@dataclass(frozen=True)
class Outcome:
    """One seed's run."""

    seed: int
    trace_hash: str
    heights: int
    transfers: int
    frames: int
    signatures: int
    healed_after_ms: int
    """Virtual ms from healing until every transfer was committed on every node."""
    faults: dict[str, int]


class SimulationFailed(Exception):
    """A rule was broken or the network did not recover. The message names the seed, which replays it."""

    def __init__(self, seed: int, reason: str, trace_hash: str) -> None:
        super().__init__(f"seed {seed}: {reason} (trace {trace_hash})")
        self.seed = seed


def run_seed(seed: int, options: Options | None = None, log: Callable[[int, str], None] | None = None) -> Outcome:
    """Run one seed to its end. Raises ``SimulationFailed``."""
    world = World(seed, options or Options())
    if log is not None:
        world.log = log
    try:
        return _run(seed, world)
    except Violation as violation:
        raise SimulationFailed(seed, str(violation), world.trace_hash()) from violation


def _run(seed: int, world: World) -> Outcome:
    options = world.options
    world.begin()
    world.plan_transfers()
    world.nemesis.begin()
    world.timeline.run_until(options.faulty_ms)
    world.nemesis.heal()
    healed_at = world.timeline.now_ms
    settled = world.timeline.run_until(healed_at + options.heal_bound_ms, world.all_settled)
    if not settled:
        tips = [int(node.participant.state.height) for node in world.nodes if node.participant is not None]
        undecided = sum(len(client.sent) - world.nonce_of(client) for client in world.clients)
        raise Violation(f"{undecided} transfers undecided {options.heal_bound_ms} ms after healing, tips {tips}")
    return Outcome(
        seed=seed,
        trace_hash=world.trace_hash(),
        heights=len(world.checkers.decided),
        transfers=sum(len(client.sent) for client in world.clients),
        frames=world.network.frames_sent,
        signatures=world.checkers.signatures,
        healed_after_ms=world.timeline.now_ms - healed_at,
        faults={fault.value: count for fault, count in world.nemesis.strikes.items()},
    )


def run_seeds(first: int, count: int, options: Options | None = None) -> Iterator[Outcome]:
    """Run seeds one after the other. Raises ``SimulationFailed`` at the first one that fails."""
    for seed in range(first, first + count):
        yield run_seed(seed, options)
