"""The network of one simulation: its genesis, nodes, users and faults.

Law: every choice comes from the seed's dice; no set is iterated, no real clock read.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from node.simulation.checkers import Checkers
from node.simulation.disk import SimulatedDisk
from node.simulation.keys import SimulatedKey, Verifier
from node.simulation.member import EPOCH_MS, MemberKeys, Participant, SimulatedNode, Surroundings
from node.simulation.nemesis import DEFAULT_FAULTS, Fault, Nemesis
from node.simulation.network import SimulatedNetwork
from node.simulation.timeline import Timeline
from node.simulation.workload import Client
from protocol.engine.replica import Replica
from protocol.ledger.mempool import Mempool
from protocol.messages.genesis import Allocation, AuthorityRecord, Genesis, Parameters, genesis_hash
from protocol.messages.quorum import AuthoritySet
from protocol.primitives.units import CREDIT, AccountId, Amount, AuthorityId, DurationMs, Hash, NodeId, TimestampMs

LIAR = "authority-0"
"""The node that lies or runs twice where the options ask for it."""
RELINK_MS = 100
"""Links to nodes that died or came back are noticed this often."""
REPEAT_MS = 2000
"""Users repeat undecided transfers this often."""


@dataclass(frozen=True)
class Options:
    """What to simulate. Durations in virtual ms."""

    authorities: int = 4
    followers: int = 1
    clients: int = 3
    transfers_per_client: int = 12
    faulty_ms: int = 20_000
    """Faults and transfers happen in this time, then the network is healed."""
    heal_bound_ms: int = 90_000
    """Every transfer must be decided this long after healing."""
    heartbeat_ms: int = 5_000
    delta_ms: int = 500
    delta_cap_ms: int = 8_000
    clock_precision_ms: int = 200
    faults: tuple[Fault, ...] = DEFAULT_FAULTS
    twin: bool = False
    """One authority runs twice, with two disks, each speaking to some of the others."""
    guarded: bool = True
    """Tests turn the sign guard off to see what it is for."""
    replica_type: type[Replica] = Replica
    liar_type: type[Replica] | None = None
    """What the first authority runs instead, if it is to lie."""


def make_genesis(options: Options, members: list[MemberKeys], clients: list[SimulatedKey]) -> Genesis:
    """A genesis with these authorities and funded clients."""
    parameters = Parameters(
        heartbeat_ms=DurationMs(options.heartbeat_ms),
        delta_ms=DurationMs(options.delta_ms),
        delta_cap_ms=DurationMs(options.delta_cap_ms),
        clock_precision_ms=DurationMs(options.clock_precision_ms),
        challenge_ms=DurationMs(5_000),
        unbonding_ms=DurationMs(5_000),
        provider_bond_min=Amount(0),
        fee_min=Amount(100),
        redeem_fee_min=Amount(100),
        redeem_fee_share_ppm=10_000,
    )
    records = tuple(
        AuthorityRecord(
            AuthorityId(keys.authority.public),
            AccountId(keys.account.public),
            NodeId(keys.node.public),
            f"authority {number}",
        )
        for number, keys in enumerate(members)
        if keys.authority is not None
    )
    allocations = tuple(Allocation(AccountId(key.public), Amount(1000 * CREDIT), Amount(0)) for key in clients)
    return Genesis("simulation", True, TimestampMs(EPOCH_MS), parameters, records, allocations)


class World:
    """Nodes, links, users. ``nodes`` lists every process, the second of a twin included."""

    def __init__(self, seed: int, options: Options) -> None:
        self.options = options
        self.dice = random.Random(seed)
        self.timeline = Timeline()
        self._trace = blake2b(digest_size=16)
        self.log: Callable[[int, str], None] = lambda time_ms, line: None
        """Sees every line of the trace; for people who look into one seed."""
        names = [f"authority-{number}" for number in range(options.authorities)]
        names += [f"follower-{number}" for number in range(options.followers)]
        members = [
            MemberKeys(
                SimulatedKey(f"{seed}/{name}/node"),
                SimulatedKey(f"{seed}/{name}/account"),
                SimulatedKey(f"{seed}/{name}/authority") if number < options.authorities else None,
            )
            for number, name in enumerate(names)
        ]
        client_keys = [SimulatedKey(f"{seed}/client-{number}") for number in range(options.clients)]
        self.genesis = self._make_genesis(members, client_keys)
        self.genesis_hash: Hash = genesis_hash(self.genesis)
        self.authorities = AuthoritySet.from_genesis(self.genesis)
        self.network = self._make_network()
        verifier = Verifier()
        self.checkers = Checkers(self.genesis_hash, self.authorities, verifier)
        self.around = Surroundings(self.timeline, self.network, verifier, self.checkers, self.genesis_hash, self.trace)
        self.nodes = [self._member(name, keys) for name, keys in zip(names, members, strict=True)]
        if options.liar_type is not None:
            self._distrust(self.nodes[0])
        if options.twin:
            self._add_twin(names[0], members[0])
        self.clients = [Client(key, self.genesis_hash, self.dice) for key in client_keys]
        self.nemesis = Nemesis(self, options.faults)
        self._links: dict[tuple[int, int], tuple[int, int]] = {}
        """Pair of positions in ``nodes`` → the two lives that are linked."""
        self._disks_lost = 0

    def _make_genesis(self, members: list[MemberKeys], clients: list[SimulatedKey]) -> Genesis:
        return make_genesis(self.options, members, clients)

    def _make_network(self) -> SimulatedNetwork:
        return SimulatedNetwork(self.timeline, self.dice, self._deliver)

    def _member(self, name: str, keys: MemberKeys) -> SimulatedNode:
        precision = self.options.clock_precision_ms
        skew = self.dice.randint(-precision // 2, precision // 2)

        def build(disk: SimulatedDisk) -> Participant:
            own = AuthorityId(keys.authority.public) if keys.authority is not None else None
            last = disk.blocks.get(disk.tip)
            liar_type = self.options.liar_type if name == LIAR else None
            return (liar_type or self.options.replica_type)(
                self.genesis,
                disk.load_state(),
                Mempool(self.genesis),
                own,
                NodeId(keys.node.public),
                disk.load_consensus(),
                last,
            )

        disk = SimulatedDisk(self.genesis)
        return SimulatedNode(name, keys, skew, self.around, disk, build, self.options.guarded)

    def _add_twin(self, name: str, keys: MemberKeys) -> None:
        first, second = self.nodes[0], self._member(f"{name}-twin", keys)
        self.nodes.append(second)
        self._distrust(first)
        self._distrust(second)
        hears = {node.id: self.dice.choice(("first", "second", "both")) for node in self.nodes}
        first.audible = lambda peer: hears[peer] != "second"
        second.audible = lambda peer: hears[peer] != "first"

    def _distrust(self, node: SimulatedNode) -> None:
        """Nothing is promised to or expected of this node any more."""
        assert node.keys.authority is not None
        node.honest = False
        self.around.liars[node.id] = None
        self.checkers.excused.add(AuthorityId(node.keys.authority.public))

    # What happens

    def trace(self, line: str, content: bytes) -> None:
        """Take one event into the trace hash."""
        entry = f"{self.timeline.now_ms} {line} ".encode() + blake2b(content, digest_size=8).digest()
        self._trace.update(entry)
        self.log(self.timeline.now_ms, line)

    def trace_hash(self) -> str:
        """Hash over everything that happened so far."""
        return self._trace.hexdigest()

    def begin(self) -> None:
        """Start all nodes."""
        self.restart_all()
        self._keep_linking()

    def restart_all(self) -> None:
        """Start every node that is down."""
        for node in self.nodes:
            if not node.up:
                node.start(Hash(self.dice.randbytes(32)))
        self.relink()

    def crash(self, node: SimulatedNode) -> None:
        """Kill a node's process."""
        if node.up:
            node.crash()

    def lose_disk(self) -> None:
        """Kill an authority and empty its disk, sign guard included; at most f of them in one run."""
        if self._disks_lost >= self.authorities.f:
            return
        self._disks_lost += 1
        node = self.dice.choice(self.nodes[: self.options.authorities])
        self.crash(node)
        assert node.keys.authority is not None
        self.checkers.excused.add(AuthorityId(node.keys.authority.public))
        node.disk = SimulatedDisk(self.genesis)

    def join(self) -> None:
        """End a partition."""
        self.network.parts = {}
        self.relink()

    def relink(self) -> None:
        """Tell nodes about links that came up or went down since the last time."""
        for left, one in enumerate(self.nodes):
            for right in range(left + 1, len(self.nodes)):
                self._relink_pair((left, right), one, self.nodes[right])

    def _relink_pair(self, pair: tuple[int, int], one: SimulatedNode, other: SimulatedNode) -> None:
        if one.id == other.id:
            return
        reachable = one.up and other.up and self.network.connected(one.id, other.id)
        wanted = (one.life, other.life) if reachable else None
        held = self._links.get(pair)
        if held == wanted:
            return
        if held is not None:
            del self._links[pair]
            if one.life == held[0]:
                one.link_down(other.id)
            if other.life == held[1]:
                other.link_down(one.id)
        if wanted is not None:
            self._links[pair] = wanted
            one.link_up(other.id)
            other.link_up(one.id)

    def _keep_linking(self) -> None:
        self.relink()
        self.timeline.after(RELINK_MS, self._keep_linking)

    def _deliver(self, sender: NodeId, receiver: NodeId, frame: bytes) -> None:
        for node in self.nodes:
            if node.id == receiver and node.up and node.audible(sender):
                node.deliver(sender, frame)

    # Users

    def plan_transfers(self) -> None:
        """Each client sends its transfers at random times while faults happen."""
        for client in self.clients:
            for _ in range(self.options.transfers_per_client):
                moment = self.dice.randint(500, max(self.options.faulty_ms, 501))
                self.timeline.at(moment, lambda client=client: self._transfer(client))  # type: ignore[misc]
        self.timeline.after(REPEAT_MS, self._repeat_transfers)

    def _transfer(self, client: Client) -> None:
        envelope = client.next_transfer([each.account for each in self.clients])
        self.dice.choice(self.nodes).submit(envelope)

    def _repeat_transfers(self) -> None:
        for client in self.clients:
            node = self.dice.choice(self.nodes)
            for envelope in client.sent[self.nonce_of(client) :]:
                node.submit(envelope)
        self.timeline.after(REPEAT_MS, self._repeat_transfers)

    def nonce_of(self, client: Client) -> int:
        """How many of the client's transfers some running node has committed."""
        return max(
            (node.participant.state.account(client.account).nonce for node in self.nodes if node.participant), default=0
        )

    def all_settled(self) -> bool:
        """True once every honest node has committed every transfer and stands at one height."""
        states = [node.participant.state for node in self.nodes if node.participant and node.honest]
        tips = [state.height for state in states]
        return min(tips) == max(tips) and all(
            state.account(client.account).nonce == len(client.sent) for client in self.clients for state in states
        )
