"""Running one seed to its end.

Law: a seed is at least half a minute of virtual time, twenty heights and three faults; it ends with every valid
transaction decided on every honest node.
"""

from collections.abc import Callable
from dataclasses import dataclass

from node.simulation.checkers import Violation
from node.simulation.world import Options, World

HEIGHTS_BOUND_MS = 120_000
"""After healing, heartbeats alone must bring the heights that are still missing within this time."""


@dataclass(frozen=True)
class Outcome:
    """One seed's run."""

    seed: int
    trace_hash: str
    heights: int
    transactions: int
    frames: int
    signatures: int
    virtual_ms: int
    node_ms: int
    """Virtual ms times processes."""
    healed_after_ms: int
    """Virtual ms from healing until every transaction was committed on every node."""
    strikes: int
    """Blows of the nemesis; ``faults`` counts what came of them and what liars did."""
    faults: dict[str, int]
    authority_sets: int
    """Different sets that decided or were about to."""
    suspended: int
    """Authorities that the ledger knows to have signed twice."""


class SimulationFailed(Exception):
    """A rule was broken or the network did not recover. The message names the seed, which replays it."""

    def __init__(self, seed: int, reason: str, trace_hash: str, time_ms: int = 0, strikes: int = 0) -> None:
        super().__init__(f"seed {seed}: {reason} (at {time_ms} ms, trace {trace_hash})")
        self.seed = seed
        self.reason = reason
        self.time_ms = time_ms
        self.strikes = strikes
        """How often the nemesis had struck by then."""


def run_seed(seed: int, options: Options | None = None, log: Callable[[int, str], None] | None = None) -> Outcome:
    """Run one seed to its end. Raises ``SimulationFailed``."""
    world = World(seed, options or Options())
    if log is not None:
        world.log = log
    try:
        return _run(seed, world)
    except Violation as violation:
        trace_hash, time_ms = world.trace_hash(), world.timeline.now_ms
        raise SimulationFailed(seed, str(violation), trace_hash, time_ms, world.nemesis.strikes) from violation
    finally:
        for node in world.nodes:
            node.disk.close()


def _run(seed: int, world: World) -> Outcome:
    options, timeline = world.options, world.timeline
    world.begin()
    world.plan_work()
    world.nemesis.begin()
    timeline.run_until(options.faulty_ms)
    world.heal()
    if not timeline.run_until(options.faulty_ms + options.heal_bound_ms, world.all_settled):
        tips = [int(node.participant.state.height) for node in world.nodes if node.participant is not None]
        undecided = sum(len(client.sent) - world.nonce_of(client) for client in world.clients)
        raise Violation(
            f"{undecided} transactions undecided and {len(world.unproved())} double signers unproved "
            f"{options.heal_bound_ms} ms after healing, tips {tips}"
        )
    healed_after_ms = timeline.now_ms - options.faulty_ms
    timeline.run_until(options.whole_ms)
    decided = world.checkers.decided
    if not timeline.run_until(timeline.now_ms + HEIGHTS_BOUND_MS, lambda: len(decided) >= options.heights_min):
        raise Violation(f"only {len(decided)} heights {HEIGHTS_BOUND_MS} ms after healing")
    return Outcome(
        seed=seed,
        trace_hash=world.trace_hash(),
        heights=len(decided),
        transactions=sum(len(client.sent) for client in world.clients),
        frames=world.network.frames_sent,
        signatures=world.checkers.signatures,
        virtual_ms=timeline.now_ms,
        node_ms=timeline.now_ms * len(world.nodes),
        healed_after_ms=healed_after_ms,
        strikes=world.nemesis.strikes,
        faults=dict(sorted(world.around.strikes.items())),
        authority_sets=world.checkers.authority_sets,
        suspended=len(world.checkers.proved),
    )
