"""A few real engines on one virtual timeline: named keys, chosen links, a door that really checks.

Law: no dice and no real clock. Signatures are made and checked for real; the disk is taken for granted, except the sign
guard, which keeps its promise. For stories about who decides, who is linked to whom, and who lies.
"""

from collections.abc import Callable, Iterable
from heapq import heappop, heappush

from protocol.engine.engine import Engine
from protocol.engine.inputs import (
    BodyBroken,
    BodyOffered,
    LinkDown,
    LinkUp,
    Misbehaved,
    Received,
    Signed,
    Started,
    TimerFired,
    WantAction,
)
from protocol.engine.ledger_facts import LedgerFacts
from protocol.engine.own_transactions import OwnTransactions
from protocol.engine.replica import Replica
from protocol.engine.restored import RestoredConsensus
from protocol.gossip.router import GossipRouter
from protocol.ledger.mempool import Mempool
from protocol.ledger.state import LedgerState
from protocol.market.buyer import Buyer
from protocol.market.order_book import OrderBook
from protocol.market.seller import Seller
from protocol.messages import wire
from protocol.messages.blocks import DecidedBlock
from protocol.messages.effects import (
    CancelTimer,
    CommitBlock,
    Delete,
    Dial,
    Disconnect,
    Effect,
    GuardPosition,
    Halt,
    Notify,
    Now,
    Put,
    Send,
    SendBlocks,
    SetTimer,
    SignAndSend,
    Table,
    TimerKey,
    Undial,
)
from protocol.messages.envelope import seal, signing_bytes
from protocol.messages.genesis import Genesis, genesis_hash
from protocol.messages.kinds import KeyRole, MessageKind, key_role
from protocol.messages.peers import NodeRecord
from protocol.messages.recovery import Recovery
from protocol.messages.transactions import Action
from protocol.primitives.codec import Message
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.limits import BLOCKS_PER_RESPONSE_MAX
from protocol.primitives.signing import SignatureCheck
from protocol.primitives.units import AuthorityId, Hash, Height, MonotonicMs, NodeId, PublicKey, TimestampMs
from tests.ledger.world import START_MS, account_of, key_of

LATENCY_MS = 5
SIGNING_MS = 1

_checked: dict[bytes, bool] = {}


def holds(check: SignatureCheck) -> bool:
    """Run each distinct check once in the life of the test process."""
    key = check.cache_key()
    if key not in _checked:
        _checked[key] = check.holds()
    return _checked[key]


def node_of(name: str) -> NodeId:
    """The node id behind a name."""
    return NodeId(account_of(f"{name}-node"))


class Villager:
    """One node: an engine, what its effects have written, and its links."""

    def __init__(self, village: "Village", name: str, *, authority: bool, twin: str = "") -> None:
        self.village = village
        self.name = name
        self.node = node_of(name + twin)
        self.key = AuthorityId(account_of(name)) if authority else None
        self.blocks: dict[Height, DecidedBlock] = {}
        self.tables: dict[Table, dict[bytes, bytes]] = {table: {} for table in Table}
        self.guard: dict[GuardPosition, bytes] = {}
        self.guarded = True
        self.events: list[Message] = []
        self.blamed: list[str] = []
        self.halted = ""
        self.dialed: dict[NodeId, None] = {}
        self.links: dict[NodeId, None] = {}
        self.bytes_sent = 0
        self.alters: Callable[[NodeId, wire.WireMessage], Iterable[wire.WireMessage]] = lambda peer, message: (message,)
        """A liar's hand on what it sends."""
        self.timers: dict[TimerKey, int] = {}
        self.up = False
        self.engine = self._make(LedgerState.from_genesis(self.village.genesis), RestoredConsensus())

    def _make(self, state: LedgerState, restored: RestoredConsensus) -> Engine:
        genesis = self.village.genesis
        account = account_of(f"{self.name}-account")
        facts, book = LedgerFacts(state), OrderBook()
        mempool = Mempool(genesis)
        last = self.blocks.get(state.height)
        replica = self.village.replica_type(genesis, state, mempool, self.key, self.node, restored, last)
        return Engine(
            node=self.node,
            account=account,
            replica=replica,
            gossip=GossipRouter(self.node, self.node),
            book=book,
            buyer=Buyer(account, self.node, facts, book),
            seller=Seller(account, self.node, facts),
            own=OwnTransactions(account),
        )

    @property
    def replica(self) -> Replica:
        return self.engine.replica

    @property
    def tip(self) -> int:
        return int(self.replica.tip)

    # Inputs

    def start(self) -> None:
        self.up = True
        number = self.village.next_number()
        self.step(Started(Hash(number.to_bytes(32, "big"))))

    def stop(self) -> None:
        """Dead for good."""
        self.up = False

    def restart(self, *recoveries: tuple[Recovery, tuple[AuthorityId, ...]]) -> None:
        """Begin a new life with what is on disk, and with what its operator was told meanwhile."""
        before = self.replica.state
        state = LedgerState.from_rows(before.genesis, before.rows(), before.tip)
        for recovery, signers in recoveries:
            state.follow_recovery(recovery, signers)
        tables, watermark = self.tables, Height(max(0, state.height - 1))
        restored = RestoredConsensus.from_rows(
            state.height,
            tables[Table.CONSENSUS_CERTIFICATE].items(),
            tables[Table.CONSENSUS_BODY].items(),
            tables[Table.STANDING].items(),
            [row for row in self.guard.items() if row[0].height > watermark],
            watermark,
            tables[Table.CONSENSUS_PROPOSAL].items(),
        )
        for peer in tuple(self.links):
            other = next(each for each in self.village.villagers.values() if each.node == peer)
            self.village.unlink(self, other)
        self.timers.clear()
        self.halted = ""
        self.engine = self._make(state, restored)
        self.start()

    def want(self, action: Action) -> None:
        """A transaction of this node's own account."""
        number = self.village.next_number()
        self.step(WantAction(Hash(number.to_bytes(32, "big")), action))

    def step(self, happened: object) -> None:
        if self.up and not self.halted:
            self.carry_out(self.engine.step(happened, self.village.now()))  # type: ignore[arg-type]

    def deliver(self, peer: NodeId, frame: bytes) -> None:
        """As a runtime does: what is wanted, what is expected, what can be read, what holds."""
        if peer not in self.links or not self.up or self.halted:
            return
        for message in wire.split_frame(frame):
            try:
                self._receive(peer, message)
            except RemoteProtocolError as error:
                self.blamed.append(str(error))

    def _receive(self, peer: NodeId, message: wire.WireMessage) -> None:
        if isinstance(message, wire.Push):
            self.step(BodyOffered(peer, message.envelope))
            if not self.engine.body_wanted:
                return
        if not self.engine.expects(peer, message):
            return
        readable = self.engine.readable(message)
        if all(holds(check) for check in self.engine.checks(readable)):
            self.step(Received(peer, readable))
        elif isinstance(message, wire.Push):
            self.step(BodyBroken(peer, message.envelope))
        else:
            self.blamed.append(f"a {type(message).__name__} with a signature that does not hold")
            self.step(Misbehaved(peer, self.blamed[-1]))

    # Effects

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Put():
                    self.tables[effect.table][effect.key] = effect.value
                case Delete():
                    self.tables[effect.table].pop(effect.key, None)
                case CommitBlock():
                    for journal in (Table.CONSENSUS_BODY, Table.CONSENSUS_CERTIFICATE, Table.CONSENSUS_PROPOSAL):
                        self.tables[journal].clear()
                    self.blocks[effect.height] = effect.decided
                    self.village.committed(self, effect)
                case SignAndSend():
                    self._sign(effect)
                case Send():
                    self.send(effect.to, effect.message)
                case SendBlocks():
                    last = min(self.tip, effect.height + BLOCKS_PER_RESPONSE_MAX - 1)
                    blocks = tuple(self.blocks[Height(number)] for number in range(effect.height, last + 1))
                    self.send(effect.to, wire.Blocks(blocks, Height(self.tip)))
                case SetTimer():
                    self._set_timer(effect.key, effect.at)
                case CancelTimer():
                    self.timers.pop(effect.key, None)
                case Dial():
                    self.dialed[effect.node] = None
                case Undial():
                    self.dialed.pop(effect.node, None)
                case Notify():
                    self.events.append(effect.event)
                case Disconnect():
                    self.blamed.append(effect.reason)
                case Halt():
                    self.halted = effect.reason
                case _:
                    self.other(effect)

    def other(self, effect: Effect) -> None:
        """Effects that these stories don't need."""

    def _set_timer(self, key: TimerKey, at: MonotonicMs) -> None:
        number = self.timers[key] = self.village.next_number()

        def fire() -> None:
            if self.timers.get(key) == number:
                del self.timers[key]
                self.step(TimerFired(key))

        self.village.at(at, fire)

    def _sign(self, effect: SignAndSend) -> None:
        name = {
            KeyRole.NODE: f"{self.name}-node",
            KeyRole.ACCOUNT: f"{self.name}-account",
            KeyRole.AUTHORITY: self.name,
        }[key_role(effect.kind)]
        payload = effect.payload
        if effect.position is not None and self.guarded:
            payload = self.guard.setdefault(effect.position, payload)
        envelope = self.village.seal(name, effect.kind, payload)
        is_ballot = effect.kind in (MessageKind.VOTE, MessageKind.FINAL)
        message: wire.WireMessage = wire.Ballot(envelope) if is_ballot else wire.Direct(envelope)
        for peer in effect.to:
            self.send(peer, message)
        self.village.after(SIGNING_MS, lambda: self.step(Signed(envelope)))

    def send(self, peer: NodeId, message: wire.WireMessage) -> None:
        """Through the liar's hand, if it has one, onto the link."""
        for altered in self.alters(peer, message):
            frame = wire.join_frame([wire.encode_message(altered)])
            self.bytes_sent += len(frame)
            self.village.carry(self, peer, frame)


class Village:
    """All nodes, their links, and time."""

    def __init__(
        self,
        genesis: Genesis,
        authorities: Iterable[str],
        followers: Iterable[str] = (),
        replica_type: type[Replica] = Replica,
    ) -> None:
        self.genesis, self.genesis_hash = genesis, genesis_hash(genesis)
        self.replica_type = replica_type
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._number = 0
        self.now_ms = 0
        self.decided: dict[int, bytes] = {}
        self.villagers = {name: Villager(self, name, authority=True) for name in authorities}
        self.villagers |= {name: Villager(self, name, authority=False) for name in followers}

    def __getitem__(self, name: str) -> Villager:
        return self.villagers[name]

    # Time

    def now(self) -> Now:
        return Now(MonotonicMs(self.now_ms), TimestampMs(START_MS + 1_000 + self.now_ms))

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def at(self, time_ms: int, action: Callable[[], None]) -> None:
        heappush(self._queue, (max(time_ms, self.now_ms), self.next_number(), action))

    def after(self, wait_ms: int, action: Callable[[], None]) -> None:
        self.at(self.now_ms + wait_ms, action)

    def run(self, duration_ms: int) -> None:
        """Let so much time pass."""
        end = self.now_ms + duration_ms
        while self._queue and self._queue[0][0] <= end:
            self.now_ms, _, action = heappop(self._queue)
            action()
        self.now_ms = end

    def run_until(self, reached: Callable[[], bool], bound_ms: int) -> bool:
        """Let time pass until something holds; False if it takes longer."""
        end = self.now_ms + bound_ms
        while not reached() and self.now_ms < end:
            self.run(20)
        return reached()

    # Links

    def begin(self, pairs: Iterable[tuple[str, str]] | None = None) -> None:
        """Start everybody, with these links or with all of them."""
        for villager in self.villagers.values():
            villager.start()
        names = list(self.villagers)
        for one, other in pairs if pairs is not None else [(a, b) for a in names for b in names if a < b]:
            self.link(self[one], self[other])

    def link(self, one: Villager, other: Villager) -> None:
        for left, right in ((one, other), (other, one)):
            left.links[right.node] = None
            record = NodeRecord(1, TimestampMs(START_MS), (), account_of(f"{right.name}-account"))
            left.step(LinkUp(right.node, record, right.tip))

    def unlink(self, one: Villager, other: Villager) -> None:
        for left, right in ((one, other), (other, one)):
            if left.links.pop(right.node, 0) is None:
                left.step(LinkDown(right.node))

    def carry(self, sender: Villager, to: NodeId, frame: bytes) -> None:
        for villager in self.villagers.values():
            if villager.node == to:
                self.after(LATENCY_MS, lambda villager=villager: villager.deliver(sender.node, frame))  # type: ignore[misc]

    # Checks

    def committed(self, villager: Villager, commit: CommitBlock) -> None:
        """One decision for each height."""
        first = self.decided.setdefault(commit.height, commit.block_hash)
        assert first == commit.block_hash, f"{villager.name} decided another block at height {commit.height}"

    def seal(self, name: str, kind: MessageKind, payload: bytes) -> bytes:
        key = key_of(name)
        signature = key.sign(signing_bytes(self.genesis_hash, kind, payload)).signature
        return seal(kind, payload, PublicKey(bytes(key.verify_key)), signature)

    def tips(self, *names: str) -> list[int]:
        return [self[name].tip for name in names or self.villagers]
