"""The network of one simulation: its genesis, nodes, users and faults.

Law: every choice comes from the seed's dice; no set is iterated, no real clock read.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from node.simulation.adversaries import Adversary
from node.simulation.checkers import Checkers
from node.simulation.disk import SimulatedDisk
from node.simulation.engine_participant import EngineParticipant, ReplicaParticipant, build_engine
from node.simulation.governance import AUTHORITIES_MIN, Operators, record_of
from node.simulation.keys import SimulatedKey, Verifier
from node.simulation.member import EPOCH_MS, MemberKeys, Participant, SimulatedNode, Surroundings
from node.simulation.nemesis import Nemesis
from node.simulation.network import SimulatedNetwork
from node.simulation.power import Power
from node.simulation.profiles import PROFILES, Profile
from node.simulation.timeline import Timeline
from node.simulation.trust import Trust
from node.simulation.workload import Client, Subscription
from protocol.engine.replica import Replica
from protocol.engine.standing import OBSERVER_DISTANCE
from protocol.ledger.mempool import Mempool
from protocol.market.policies import SellerPolicy
from protocol.messages.genesis import Allocation, Genesis, Parameters, genesis_hash
from protocol.messages.quorum import AuthoritySet
from protocol.primitives.units import CREDIT, AccountId, Amount, AuthorityId, DurationMs, Hash, NodeId, TimestampMs

RELINK_MS = 100
"""Links to nodes that died or came back are noticed this often."""
REPEAT_MS = 2000
"""Users repeat undecided transactions this often."""
CHEAT_SHARE = 0.5
"""How often a payee that could be paid tries to be paid twice instead."""


@dataclass(frozen=True)
class Options:
    """What to simulate. Durations in virtual ms."""

    authorities: int = 4
    followers: int = 1
    clients: int = 3
    transfers_per_client: int = 12
    redeems: int = 8
    """How often somebody who is paid through a channel redeems, or tries to."""
    faulty_ms: int = 25_000
    """Faults and transactions happen in this time, then the network is healed."""
    whole_ms: int = 30_000
    """A run takes at least this long."""
    heights_min: int = 20
    """A run goes on until so many heights are decided."""
    heal_bound_ms: int = 60_000
    """Every valid transaction must be decided this long after healing."""
    heartbeat_ms: int = 2_000
    delta_ms: int = 500
    delta_cap_ms: int = 8_000
    clock_precision_ms: int = 200
    whole_engine: bool = True
    """With gossip and accusations; else each node is a replica alone."""
    profile: Profile = PROFILES["all"]
    liar: type[Adversary] | None = None
    """What the first authority is, whatever the profile says."""
    strikes_max: int | None = None
    """The nemesis stops after so many strikes: for the shortest run that still fails."""


def make_genesis(options: Options, members: list[MemberKeys], clients: list[SimulatedKey]) -> Genesis:
    """A genesis with these authorities, and funded clients and nodes."""
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
        motion_ms=DurationMs(20_000),
        motion_timelock_ms=DurationMs(500),
    )
    seated = members[: options.authorities]
    records = tuple(record_of(keys, f"authority {number}") for number, keys in enumerate(seated))
    accounts = [*clients, *(keys.account for keys in members)]
    allocations = tuple(Allocation(AccountId(key.public), Amount(1000 * CREDIT), Amount(0)) for key in accounts)
    development = options.authorities < AUTHORITIES_MIN
    return Genesis("simulation", development, TimestampMs(EPOCH_MS), parameters, records, allocations)


class World:
    """Nodes, links, users. ``nodes`` lists every process, the second of a twin included."""

    def __init__(self, seed: int, options: Options) -> None:
        self.options = options
        self._keys_count = options.authorities + options.profile.spares
        self.dice = random.Random(seed)
        self.timeline = Timeline()
        self.healed = False
        self._trace = blake2b(digest_size=16)
        self._endings: dict[int, Callable[[], None]] = {}
        self.log: Callable[[int, str], None] = lambda time_ms, line: None
        """Sees every line of the trace; for people who look into one seed."""
        names = [f"authority-{number}" for number in range(options.authorities)]
        names += [f"spare-{number}" for number in range(options.profile.spares)]
        names += [f"follower-{number}" for number in range(options.followers)]
        members = [
            MemberKeys(
                SimulatedKey(f"{seed}/{name}/node"),
                SimulatedKey(f"{seed}/{name}/account"),
                SimulatedKey(f"{seed}/{name}/authority") if number < self._keys_count else None,
            )
            for number, name in enumerate(names)
        ]
        client_keys = [SimulatedKey(f"{seed}/client-{number}") for number in range(options.clients)]
        self.genesis = self._make_genesis(members, client_keys)
        self.genesis_hash: Hash = genesis_hash(self.genesis)
        self.authorities = AuthoritySet.from_genesis(self.genesis)
        self.trust = Trust(self.authorities)
        self.network = self._make_network()
        verifier = Verifier()
        self.checkers = Checkers(self.genesis_hash, self.authorities, verifier)
        self.around = Surroundings(self.timeline, self.network, verifier, self.checkers, self.genesis_hash, self.trace)
        self.nodes = [self._member(name, keys) for name, keys in zip(names, members, strict=True)]
        self.clients = [Client(key, self.genesis_hash, self.dice) for key in client_keys]
        self.subscription = Subscription(self.clients[0], self.clients[1]) if len(self.clients) > 1 else None
        self.nemesis = Nemesis(self, options.profile.faults, options.strikes_max)
        self._links: dict[tuple[int, int], tuple[int, int]] = {}
        """Pair of positions in ``nodes`` → the two lives that are linked."""
        self._recovering: dict[AuthorityId, tuple[SimulatedNode, int]] = {}
        """Authorities whose signatures were lost, and the height above which they sign again."""
        self._corrupt()

    @property
    def authority_nodes(self) -> list[SimulatedNode]:
        """One process of each node that has an authority key, in office or not."""
        return self.nodes[: self._keys_count]

    def _make_genesis(self, members: list[MemberKeys], clients: list[SimulatedKey]) -> Genesis:
        return make_genesis(self.options, members, clients)

    def _make_network(self) -> SimulatedNetwork:
        return SimulatedNetwork(self.timeline, self.dice, self._deliver)

    def new_disk(self) -> SimulatedDisk:
        """An empty disk on a power supply of its own."""
        return SimulatedDisk(self.genesis, Power(self.dice))

    def account_of(self, node: NodeId) -> AccountId:
        """Whose a node says it is."""
        return next(AccountId(each.keys.account.public) for each in self.nodes if each.id == node)

    def any_skew(self) -> int:
        """An error in ms that any clock may have."""
        precision = self.options.clock_precision_ms
        return self.dice.randint(-precision // 2, precision // 2)

    def _member(self, name: str, keys: MemberKeys) -> SimulatedNode:
        def build(disk: SimulatedDisk) -> Participant:
            own = AuthorityId(keys.authority.public) if keys.authority is not None else None
            last = disk.blocks.get(disk.tip)
            mempool, node = Mempool(self.genesis), NodeId(keys.node.public)
            replica = Replica(self.genesis, disk.load_state(), mempool, own, node, disk.load_consensus(), last)
            if not self.options.whole_engine:
                return ReplicaParticipant(replica)
            engine = build_engine(replica, AccountId(keys.account.public), node, SellerPolicy())
            return EngineParticipant(engine, disk, None, self.account_of)

        return SimulatedNode(name, keys, self.any_skew(), self.around, self.new_disk(), build)

    # Dishonesty

    def _corrupt(self) -> None:
        """Choose who lies from the start on."""
        profile, dice = self.options.profile, self.dice
        if self.options.liar is not None:
            self.turn(self.nodes[0], self.options.liar)
            return
        if profile.liars and dice.random() < profile.liar_share:
            if profile.twins and dice.random() < 0.15 and self.trust.room:
                self._add_twin(self.nodes[0])
            for node in dice.sample(self.nodes[: self.options.authorities], self.authorities.f):
                if self.trust.room and node.honest:
                    self.turn(node, dice.choice(profile.liars))
        for node in self.nodes[self._keys_count : self._keys_count + self.options.followers]:
            if profile.lying_followers and dice.random() < 0.3:
                self.turn(node, dice.choice(profile.lying_followers))

    def turn(self, node: SimulatedNode, kind: type[Adversary]) -> None:
        """Make this node dishonest for good."""
        self._distrust(node, kind.name)
        node.manners = kind(node, self.around, self.dice, list(dict.fromkeys(each.id for each in self.nodes)))

    def _add_twin(self, first: SimulatedNode) -> None:
        second = self._member(f"{first.name}-twin", first.keys)
        self.nodes.append(second)
        self._distrust(first, "twins")
        self._distrust(second, "twins")
        self.around.struck("twins")
        hears = {node.id: self.dice.choice(("first", "second", "both")) for node in self.nodes}
        first.audible = lambda peer: hears[peer] != "second"
        second.audible = lambda peer: hears[peer] != "first"

    def _distrust(self, node: SimulatedNode, reason: str) -> None:
        """Nothing is promised to or expected of this node any more."""
        node.honest = False
        self.around.liars[node.id] = None
        if node.authority is not None:
            self.trust.take(node.authority, reason)
            self.checkers.excuse(node.authority)

    def lose_signatures(self, node: SimulatedNode) -> bool:
        """Kill an authority whose disk is about to be lost or replaced; False if too many are worthless already."""
        assert node.authority is not None
        if not node.honest or not self.trust.take(node.authority, "lost its signatures"):
            return False
        self.crash(node)
        closed = len(self.checkers.decided) + OBSERVER_DISTANCE
        self.checkers.excuse(node.authority, closed)
        self._recovering[node.authority] = (node, closed)
        return True

    def _recover(self) -> None:
        """Trust those again who lost their signatures once all heights that these were of are closed."""
        for authority, (node, closed) in list(self._recovering.items()):
            suspended = authority in self.checkers.proved  # for good: its votes don't count any more
            # Before enough have answered about its standing it does not sign and may yet turn out to be an observer.
            signs = node.up and node.replica.first_signing_height is not None and not node.replica.observing
            if signs and node.replica.tip > closed and not suspended:
                self.trust.give_back(authority)
                del self._recovering[authority]

    # What happens

    def trace(self, line: str, content: bytes) -> None:
        """Take one event into the trace hash."""
        entry = f"{self.timeline.now_ms} {line} ".encode() + blake2b(content, digest_size=8).digest()
        self._trace.update(entry)
        self.log(self.timeline.now_ms, line)

    def trace_hash(self) -> str:
        """Hash over everything that happened so far."""
        return self._trace.hexdigest()

    def later(self, span_ms: tuple[int, int], ending: Callable[[], None]) -> None:
        """Let a fault end at some time in this span, or when the network is healed."""
        number = len(self._endings)
        self._endings[number] = ending
        self.timeline.after(self.dice.randint(*span_ms), lambda: self._end(number))

    def _end(self, number: int) -> None:
        ending = self._endings[number]
        self._endings[number] = _nothing
        ending()

    def begin(self) -> None:
        """Start all nodes."""
        self.restart_all()
        self._keep_linking()

    def restart_all(self) -> None:
        """Start every node that is down."""
        for node in self.nodes:
            self._restart(node)
        self.relink()

    def restart_later(self, node: SimulatedNode) -> None:
        """Start this node again after a while, if it is down then."""
        self.timeline.after(self.dice.randint(50, 5000), lambda: self._restart(node))

    def _restart(self, node: SimulatedNode) -> None:
        if not node.up:
            node.start(Hash(self.dice.randbytes(32)))

    def crash(self, node: SimulatedNode) -> None:
        """Kill a node's process."""
        if node.up:
            node.crash()

    def join(self) -> None:
        """End a partition."""
        self.network.parts = {}
        self.relink()

    def heal(self) -> None:
        """No more faults: all nodes up, one network, fair weather, right clocks. Liars go on lying."""
        self.healed = True
        self.nemesis.stop()
        for number in list(self._endings):
            self._end(number)
        self.network.heal()
        for node in self.nodes:
            node.disk.power.disarm()
            node.paused_until = 0
        self.restart_all()

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
        self._recover()
        self.timeline.after(RELINK_MS, self._keep_linking)

    def _deliver(self, sender: NodeId, receiver: NodeId, frame: bytes) -> None:
        for node in self.nodes:
            if node.id == receiver and node.up and node.audible(sender):
                node.deliver(sender, frame)

    # Users

    def plan_work(self) -> None:
        """Users pay each other at random times while faults happen."""
        last = max(self.options.faulty_ms, 501)
        for client in self.clients:
            for _ in range(self.options.transfers_per_client):
                self.timeline.at(self.dice.randint(500, last), lambda client=client: self._transfer(client))  # type: ignore[misc]
        if self.subscription is not None and self.options.redeems:
            self.timeline.at(400, self._open_channel)
            for _ in range(self.options.redeems):
                self.timeline.at(self.dice.randint(500, last), self._redeem)
        self.timeline.after(REPEAT_MS, self._repeat)
        if self.options.profile.spares:
            Operators(self).begin()

    def _transfer(self, client: Client) -> None:
        envelope = client.next_transfer([each.account for each in self.clients])
        self.dice.choice(self.nodes).submit(envelope)

    def _open_channel(self) -> None:
        assert self.subscription is not None
        self.dice.choice(self.nodes).submit(self.subscription.open())

    def _redeem(self) -> None:
        node = self.dice.choice(self.nodes)
        if node.participant is None or self.subscription is None:
            return
        state = node.participant.state
        if self.dice.random() < CHEAT_SHARE:
            again = self.subscription.redeem_again(state)
            if again is not None:
                self.around.struck("voucher shown twice")
                node.submit(again)
        else:
            envelope = self.subscription.redeem(state)
            if envelope is not None:
                node.submit(envelope)

    def _repeat(self) -> None:
        for client in self.clients:
            node = self.dice.choice(self.nodes)
            for envelope in client.sent[self.nonce_of(client) :]:
                node.submit(envelope)
        self.timeline.after(REPEAT_MS, self._repeat)

    def nonce_of(self, client: Client) -> int:
        """How many of the client's transactions some running node has committed."""
        return max(
            (node.participant.state.account(client.account).nonce for node in self.nodes if node.participant), default=0
        )

    def unproved(self) -> list[AuthorityId]:
        """Who was seen to sign twice by an honest authority that remembers it, and is not known for it yet."""
        if not self.options.whole_engine or self.authorities.f == 0:
            return []
        return [
            accused
            for node in self.authority_nodes
            for accused, life in node.noticed.items()
            if node.honest and node.life == life and accused not in (node.authority, *self.checkers.proved)
        ]

    def all_settled(self) -> bool:
        """True once every honest node has committed every transaction and stands at one height, and whoever was
        caught signing twice is known for it."""
        if self.unproved():
            return False
        states = [node.participant.state for node in self.nodes if node.participant and node.honest]
        tips = [state.height for state in states]
        return min(tips) == max(tips) and all(
            state.account(client.account).nonce == len(client.sent) for client in self.clients for state in states
        )


def _nothing() -> None:
    """The ending of a fault that has ended."""
