"""The whole engine of one node behind the entry points that a simulated node calls.

Law: the engine is the shipped one, built as ``node/runtime`` builds it.
"""

from collections.abc import Callable

from node.simulation.disk import SimulatedDisk
from protocol.engine.engine import Engine
from protocol.engine.inputs import (
    BodyOffered,
    LinkDown,
    LinkUp,
    Received,
    Serve,
    Signed,
    Started,
    TimerFired,
    WantAction,
)
from protocol.engine.ledger_facts import LedgerFacts
from protocol.engine.own_transactions import OwnTransactions
from protocol.engine.replica import Replica
from protocol.gossip.router import GossipRouter
from protocol.ledger.state import LedgerState
from protocol.market.buyer import Buyer
from protocol.market.order_book import OrderBook
from protocol.market.policies import SellerPolicy
from protocol.market.seller import Seller
from protocol.messages import wire
from protocol.messages.effects import Effect, Now, Table, TimerKey
from protocol.messages.peers import NodeRecord
from protocol.messages.transactions import Action
from protocol.primitives.signing import SignatureCheck
from protocol.primitives.units import AccountId, Hash, NodeId


def build_engine(replica: Replica, account: AccountId, node: NodeId, policy: SellerPolicy) -> Engine:
    """An engine around this replica, with empty books."""
    facts, book = LedgerFacts(replica.state), OrderBook()
    return Engine(
        node=node,
        account=account,
        replica=replica,
        gossip=GossipRouter(node, bytes(node)[:8]),
        book=book,
        buyer=Buyer(account, node, facts, book),
        seller=Seller(account, node, facts, policy),
        own=OwnTransactions(account),
    )


class ReplicaParticipant:
    """A replica alone: consensus and ledger without gossip, market and accusations."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.state: LedgerState = replica.state
        self.start, self.link_up, self.link_down = replica.start, replica.link_up, replica.link_down
        self.receive, self.signed, self.submit = replica.receive, replica.signed, replica.submit
        self.timer, self.readable, self.checks = replica.timer, replica.readable, replica.checks

    def offered(self, peer: NodeId, message: wire.WireMessage, now: Now) -> tuple[list[Effect], bool]:
        """A replica takes all that it is sent."""
        del peer, message, now
        return [], True


class EngineParticipant:
    """The engine with the entry points that a simulated node calls."""

    def __init__(
        self, engine: Engine, disk: SimulatedDisk, serve: Serve | None, account_of: Callable[[NodeId], AccountId]
    ) -> None:
        """``account_of``: whose each peer says it is."""
        self._account_of = account_of
        self.engine = engine
        self.state: LedgerState = engine.replica.state
        self._disk = disk
        self._serve = serve

    @property
    def replica(self) -> Replica:
        """The engine's replica."""
        return self.engine.replica

    def start(self, nonce: Hash, now: Now) -> list[Effect]:
        """What an earlier life left, then the first inputs of this one."""
        tables = self._disk.tables
        effects = self.engine.restore(
            buyer_lanes=[*tables[Table.BUYER_LANE].values()],
            seller_lanes=[*tables[Table.SELLER_LANE].values()],
            own_transactions=[*tables[Table.OWN_TRANSACTION].values()],
            row=lambda table, key: tables[table].get(key),
            now=now,
            standing=[*tables[Table.STANDING].items()],
        )
        effects += self.engine.step(Started(nonce), now)
        return effects + (self.engine.step(self._serve, now) if self._serve is not None else [])

    def link_up(self, peer: NodeId, now: Now) -> list[Effect]:
        """A link stands."""
        record = NodeRecord(1, now.wall_ms, (), self._account_of(peer))
        return self.engine.step(LinkUp(peer, record, 0), now)

    def link_down(self, peer: NodeId, now: Now) -> list[Effect]:
        """A link is gone."""
        return self.engine.step(LinkDown(peer), now)

    def offered(self, peer: NodeId, message: wire.WireMessage, now: Now) -> tuple[list[Effect], bool]:
        """Before the door: an object of gossip is looked at, and may go no further."""
        if not isinstance(message, wire.Push):
            return [], True
        effects = self.engine.step(BodyOffered(peer, message.envelope), now)
        return effects, self.engine.body_wanted

    def receive(self, peer: NodeId, message: wire.WireMessage, now: Now) -> list[Effect]:
        """A message whose signatures hold."""
        return self.engine.step(Received(peer, message), now)

    def signed(self, envelope_bytes: bytes, now: Now) -> list[Effect]:
        """An own envelope, handed back."""
        return self.engine.step(Signed(envelope_bytes), now)

    def submit(self, envelope_bytes: bytes, now: Now) -> list[Effect]:
        """A transaction of somebody who uses this node."""
        return self.engine.replica.submit(envelope_bytes, now)

    def want(self, request: Hash, action: Action, now: Now) -> list[Effect]:
        """Something that this node's own account shall do."""
        return self.engine.step(WantAction(request, action), now)

    def timer(self, key: TimerKey, now: Now) -> list[Effect]:
        """One of the engine's timers has come."""
        return self.engine.step(TimerFired(key), now)

    def readable(self, message: wire.WireMessage) -> wire.WireMessage:
        """What of a message the door can check."""
        return self.engine.readable(message)

    def checks(self, message: wire.WireMessage) -> list[SignatureCheck]:
        """What the door has to verify."""
        return self.engine.checks(message)
