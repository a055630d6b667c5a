"""A whole market in one process: authorities, providers and buyers with the shipped engine, under faults.

Law: links behave like TCP here: frames of one link arrive in order, and what is lost is lost with the link. After the
faults every job ends, all channels are closed, and no credit is left in a deposit.
"""

import random
from dataclasses import dataclass

from node.simulation.checkers import Violation
from node.simulation.disk import SimulatedDisk
from node.simulation.engine_participant import EngineParticipant, build_engine
from node.simulation.faults import Crash, CrashAtSync, Partition, Pause, Restart
from node.simulation.keys import SimulatedKey
from node.simulation.market_checkers import MarketCheckers
from node.simulation.market_node import MarketNode
from node.simulation.member import MemberKeys, SimulatedNode
from node.simulation.network import Deliver, SimulatedNetwork
from node.simulation.power import Moment
from node.simulation.profiles import Profile
from node.simulation.run import SimulationFailed
from node.simulation.timeline import Timeline
from node.simulation.world import Options, World, make_genesis
from protocol.engine.engine import Engine
from protocol.engine.inputs import CancelJob, Serve, StartJob, WantAction
from protocol.engine.replica import Replica
from protocol.ledger.mempool import Mempool
from protocol.market.agreement import JobRequest
from protocol.market.policies import QuotePolicy, SellerPolicy
from protocol.messages.genesis import Allocation, Genesis
from protocol.messages.market import JobPayload, ModelOffer, Prices
from protocol.messages.transactions import ChannelClose
from protocol.primitives.codec import encode
from protocol.primitives.hashing import content_hash
from protocol.primitives.units import (
    CREDIT,
    AccountId,
    Amount,
    AuthorityId,
    DurationMs,
    Hash,
    ModelId,
    NodeId,
    Salt,
    WorkUnits,
)

MODEL = ModelId(content_hash(b"simulated model"))
MARKET_PROFILE = Profile(
    (Crash(), *(CrashAtSync(moment) for moment in Moment), Pause(), Partition(), Restart(), Restart())
)
REDEEM_AGE_MS = 3_000
AUCTION_MS = 600
CHUNK_UNITS = 32
DISCOUNT_PERMILLE = 300
"""What simulated providers take off in auctions while they are idle."""
JOBS_BOUND_MS = 60_000
"""After healing every job ends within this time: its own deadlines are shorter."""
CLOSING_BOUND_MS = 180_000
"""Then every channel is closed and paid out within this: challenge windows count ledger time, moved by heartbeats."""


@dataclass(frozen=True)
class MarketOptions:
    """How large and how rough. Durations in virtual ms."""

    providers: int = 2
    buyers: int = 2
    jobs_per_buyer: int = 10
    short_share: float = 0.5
    """Of the jobs: their output fits a chunk, and is there soon after the input."""
    trust_permille: int = 500
    """See ``SellerPolicy``; more than by default, as there are few jobs."""
    cancelled_share: float = 0.15
    auctioned_share: float = 0.25
    """Of the jobs: their bids ask for sealed quotes first."""
    failing_share: float = 0.05
    """Each step of a worker fails with this probability."""
    faulty_ms: int = 25_000
    profile: Profile = MARKET_PROFILE


@dataclass(frozen=True)
class MarketOutcome:
    """One seed's run."""

    seed: int
    trace_hash: str
    heights: int
    finished: int
    failed: int
    cancelled: int
    continued: int
    """Agreements that went on behind another provider's output."""
    auctioned: int
    """Agreements at the price of a sealed quote."""
    reported: int
    """Failures that buyers put on the ledger."""
    at_once: int
    """Jobs that went out as one chunk."""
    faults: dict[str, int]


class OrderedNetwork(SimulatedNetwork):
    """Frames from one node to another arrive in the order in which they were sent."""

    def __init__(self, timeline: Timeline, dice: random.Random, deliver: Deliver) -> None:
        super().__init__(timeline, dice, deliver)
        self._last: dict[tuple[NodeId, NodeId], int] = {}

    def send(self, sender: NodeId, receiver: NodeId, frame: bytes) -> None:
        """Hand a frame to the weather, behind the earlier ones."""
        self.frames_sent += 1
        arrival = self._timeline.now_ms + self._dice.randint(self.weather.delay_min_ms, self.weather.delay_max_ms)
        arrival = max(arrival, self._last.get((sender, receiver), 0))
        self._last[(sender, receiver)] = arrival
        self._timeline.at(arrival, lambda: self._arrive(sender, receiver, frame))


class MarketWorld(World):
    """Authorities, then providers, then buyers; all of them run the engine."""

    nodes: list[MarketNode]  # type: ignore[assignment]

    def __init__(self, seed: int, market: MarketOptions) -> None:
        self.market = market
        self.market_checkers = MarketCheckers(market.trust_permille)
        followers = market.providers + market.buyers
        options = Options(
            followers=followers, clients=0, faulty_ms=market.faulty_ms, heartbeat_ms=5_000, profile=market.profile
        )
        super().__init__(seed, options)

    @property
    def providers(self) -> list[MarketNode]:
        """The nodes that sell."""
        first = self.options.authorities
        return self.nodes[first : first + self.market.providers]

    @property
    def buyers(self) -> list[MarketNode]:
        """The nodes that buy."""
        return self.nodes[self.options.authorities + self.market.providers :]

    def _make_network(self) -> SimulatedNetwork:
        return OrderedNetwork(self.timeline, self.dice, self._deliver)

    def _make_genesis(self, members: list[MemberKeys], clients: list[SimulatedKey]) -> Genesis:
        plain = make_genesis(self.options, members, clients)
        allocations = tuple(
            Allocation(AccountId(keys.account.public), Amount(100 * CREDIT), Amount(20 * CREDIT)) for keys in members
        )
        return Genesis(
            plain.network, plain.development, plain.created_at, plain.parameters, plain.authorities, allocations
        )

    def _member(self, name: str, keys: MemberKeys) -> SimulatedNode:
        number = int(name.split("-")[1])
        sells = name.startswith("follower") and number < self.market.providers
        serve = self._serve(number) if sells else None

        def build(disk: SimulatedDisk) -> EngineParticipant:
            return EngineParticipant(self._engine(keys, disk), disk, serve, self.account_of)

        around, skew, disk = self.around, self.any_skew(), self.new_disk()
        failing = self.market.failing_share
        return MarketNode(name, keys, skew, around, disk, build, self.market_checkers, self.dice, failing)

    def _serve(self, number: int) -> Serve:
        prices = Prices(Amount(500), Amount(10_000), Amount(40_000 + number))
        served = ModelOffer(MODEL, "simulated", "echo", "echo 1", "", prices, WorkUnits(1024), WorkUnits(1024))
        return Serve((served,), 2, "strong", "", ("127.0.0.1:7400",))

    def _engine(self, keys: MemberKeys, disk: SimulatedDisk) -> Engine:
        account, node = AccountId(keys.account.public), NodeId(keys.node.public)
        authority = AuthorityId(keys.authority.public) if keys.authority is not None else None
        replica = Replica(
            self.genesis,
            disk.load_state(),
            Mempool(self.genesis),
            authority,
            node,
            disk.load_consensus(),
            disk.blocks.get(disk.tip),
        )
        policy = SellerPolicy(
            slots=2,
            trust_permille=self.market.trust_permille,
            redeem_age_ms=DurationMs(REDEEM_AGE_MS),
            quotes=QuotePolicy(discount_permille=DISCOUNT_PERMILLE),
        )
        return build_engine(replica, account, node, policy)

    # What users do

    def plan_jobs(self) -> None:
        """Each buyer asks for jobs at random times while faults happen, and gives some up."""
        for buyer in self.buyers:
            for _ in range(self.market.jobs_per_buyer):
                moment = self.dice.randint(500, self.market.faulty_ms)
                self.timeline.at(moment, lambda buyer=buyer: self._start_job(buyer))  # type: ignore[misc]

    def _start_job(self, buyer: MarketNode) -> None:
        request = Hash(self.dice.randbytes(32))
        short = self.dice.random() < self.market.short_share
        body = self.dice.randbytes(self.dice.randint(1, CHUNK_UNITS if short else 300))
        job = JobRequest(
            request=request,
            model=MODEL,
            payload=encode(JobPayload("bytes", body, ())),
            salt=Salt(self.dice.randbytes(32)),
            unique=Hash(self.dice.randbytes(32)),
            input_units_max=WorkUnits(len(body)),
            output_units_max=WorkUnits(len(body)),
            price_ceiling=Amount(CREDIT),
            chunk_units=CHUNK_UNITS,
            choose_ms=DurationMs(2_000),
            accept_ms=DurationMs(2_000),
            first_output_ms=DurationMs(4_000),
            stall_ms=DurationMs(3_000),
            total_ms=DurationMs(20_000),
            auction_ms=DurationMs(AUCTION_MS if self.dice.random() < self.market.auctioned_share else 0),
        )
        self.market_checkers.requested(request, body, job.price_ceiling)
        buyer.feed(StartJob(job))
        if self.dice.random() < self.market.cancelled_share:
            later = self.dice.randint(1, 400)
            self.timeline.after(later, lambda: buyer.feed(CancelJob(request, "changed their mind")))

    def jobs_ended(self) -> bool:
        """No job is under way anywhere."""
        return all(
            node.engine is not None and not node.engine.buyer.jobs() and not node.engine.seller.jobs()
            for node in self.nodes
        )

    def close_channels(self) -> None:
        """Every buyer wants its deposits back."""
        for buyer in self.buyers:
            assert buyer.engine is not None
            for channel, facts in buyer.engine.replica.state.channels_of(buyer.engine.account):
                if facts.closing_at is None:
                    buyer.feed(WantAction(Hash(self.dice.randbytes(32)), ChannelClose(channel)))

    def channels_ended(self) -> bool:
        """No deposit is left, and all nodes agree."""
        states = [node.participant.state for node in self.nodes if node.participant is not None]
        tips = [state.height for state in states]
        return min(tips) == max(tips) and all(not any(True for _ in state.channels()) for state in states)


def run_market_seed(seed: int, market: MarketOptions | None = None) -> MarketOutcome:
    """Run one seed to its end. Raises ``SimulationFailed`` with the seed."""
    world = MarketWorld(seed, market or MarketOptions())
    try:
        _run(world)
    except Violation as violation:
        trace_hash, time_ms = world.trace_hash(), world.timeline.now_ms
        raise SimulationFailed(seed, str(violation), trace_hash, time_ms, world.nemesis.strikes) from violation
    finally:
        for node in world.nodes:
            node.disk.close()
    checkers = world.market_checkers
    return MarketOutcome(
        seed,
        world.trace_hash(),
        len(world.checkers.decided),
        checkers.finished,
        checkers.failed,
        checkers.cancelled,
        checkers.continued,
        checkers.auctioned,
        checkers.reported,
        checkers.at_once,
        dict(sorted(world.around.strikes.items())),
    )


def _run(world: MarketWorld) -> None:
    timeline = world.timeline
    world.begin()
    world.plan_jobs()
    world.nemesis.begin()
    timeline.run_until(world.market.faulty_ms)
    world.heal()
    if not timeline.run_until(timeline.now_ms + JOBS_BOUND_MS, world.jobs_ended):
        raise Violation(f"jobs still under way {JOBS_BOUND_MS} ms after healing")
    world.close_channels()
    if not timeline.run_until(timeline.now_ms + CLOSING_BOUND_MS, world.channels_ended):
        left = [node.participant.state.supply().deposits for node in world.nodes if node.participant is not None]
        raise Violation(f"deposits of {max(left)} are stranded {CLOSING_BOUND_MS} ms after their channels were closed")
    for node in world.nodes:
        node.disk.sync()
    first = world.nodes[0].disk
    participant = world.nodes[0].participant
    assert participant is not None
    world.market_checkers.check_records(participant.state.tracks())
    world.market_checkers.check_redeemed(first.blocks.values(), [provider.disk for provider in world.providers])
