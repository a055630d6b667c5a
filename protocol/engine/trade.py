"""The market's place in the engine: what buyer, seller and shop are told, and what becomes of what they want.

Law: no rule of the market is here. A wish for a transaction goes to this node's account under an id of its own, and its
outcome comes back to the room that wished; an offer follows the seller's free slots and the ledger's bond.
"""

from collections.abc import Callable, Iterable

from protocol.engine import inputs
from protocol.engine.events import PeerMisbehaved, TransactionDecided, TransactionFailed
from protocol.engine.own_transactions import OwnTransactions
from protocol.engine.replica import Replica
from protocol.engine.shop import RENEW_TIMER, Shop
from protocol.engine.telling import Telling
from protocol.engine.witness import reports
from protocol.ledger.tracks import report_fee
from protocol.market.agreement import JobRequest, make_bid
from protocol.market.buyer import Buyer
from protocol.market.events import SlotsChanged
from protocol.market.order_book import OrderBook
from protocol.market.records import JobRecord
from protocol.market.replication import Replication
from protocol.market.requests import MarketEffect, WantTransaction
from protocol.market.seller import Seller
from protocol.messages import wire
from protocol.messages.effects import Disconnect, Effect, Notify, Now, Put, SignAndSend, Table, TimerKey
from protocol.messages.envelope import Envelope, envelope_id, message_id
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Bid, Timeline, TimelineRequest
from protocol.messages.transactions import Action
from protocol.primitives.codec import Message, decode, encode
from protocol.primitives.hashing import Domain, digest
from protocol.primitives.units import AccountId, Amount, ChannelId, Hash, MessageId, NodeId

BUYERS_KINDS = (
    MessageKind.ACCEPTANCE,
    MessageKind.REFUSAL,
    MessageKind.CHUNK,
    MessageKind.RECEIPT,
    MessageKind.FAILURE,
    MessageKind.QUOTE_SEAL,
    MessageKind.QUOTE,
)
"""What a seller signs and a buyer receives."""

SELLERS_KINDS = (MessageKind.BID, MessageKind.AGREEMENT, MessageKind.VOUCHER, MessageKind.CANCELLATION)
"""What a buyer signs and a seller receives."""


class Trade:
    """One node's buying and selling. Effects are returned in order; none of them is carried out here."""

    def __init__(
        self,
        node: NodeId,
        account: AccountId,
        replica: Replica,
        buyer: Buyer,
        seller: Seller,
        own: OwnTransactions,
        book: OrderBook,
    ) -> None:
        self.buyer = buyer
        self.seller = seller
        self.replication = Replication(buyer, book)
        self.shop = Shop(node)
        self.telling = Telling(account)
        self._account = account
        self._replica = replica
        self._own = own
        self._paces = book.paces
        self._wants: dict[Hash, tuple[Buyer | Seller, bytes]] = {}
        self._demand: dict[MessageId, None] = {}
        """Bids that are being signed for gossip."""
        self._wishes = 0

    def restore(
        self,
        buyer_lanes: Iterable[bytes],
        seller_lanes: Iterable[bytes],
        row: Callable[[Table, bytes], bytes | None],
        now: Now,
        standing: Iterable[tuple[bytes, bytes]] = (),
    ) -> list[Effect]:
        """Take up what an earlier life left on disk."""
        return [
            *self._carry(self.buyer, self.buyer.restore(buyer_lanes, row, now, standing), now),
            *self._carry(self.seller, self.seller.restore(seller_lanes, row, now), now),
        ]

    def start(self, secret: Hash, now: Now) -> list[Effect]:
        """The node starts; ``secret`` is fresh and random."""
        return self._carry(self.seller, self.seller.start(now, secret), now)

    def link_up(self, peer: NodeId, account: AccountId, now: Now) -> list[Effect]:
        """A link stands to a node that says whose it is."""
        return [
            *self._carry(self.buyer, self.buyer.link_up(peer, now), now),
            *self._carry(self.seller, self.seller.link_up(peer, now, account), now),
            *self.telling.link_up(peer, now),
        ]

    def link_down(self, peer: NodeId, now: Now) -> list[Effect]:
        """A link is gone."""
        self.telling.link_down(peer)
        return [
            *self._carry(self.buyer, self.buyer.link_down(peer, now), now),
            *self._carry(self.seller, self.seller.link_down(peer, now), now),
        ]

    def unreachable(self, peer: NodeId, now: Now) -> list[Effect]:
        """No link can be had to a peer now."""
        return self._carry(self.buyer, self.buyer.unreachable(peer, now), now)

    def direct(
        self, peer: NodeId, envelope: Envelope, payload: Message, envelope_bytes: bytes, now: Now
    ) -> list[Effect]:
        """A signed statement came straight from a peer."""
        if envelope.kind in BUYERS_KINDS:
            room: Buyer | Seller = self.buyer
        elif envelope.kind in SELLERS_KINDS:
            room = self.seller
        elif isinstance(payload, TimelineRequest):
            return self.telling.asked(peer, AccountId(envelope.sender), envelope_id(envelope), payload, now)
        elif isinstance(payload, Timeline):
            return self.telling.told(AccountId(envelope.sender), payload, envelope_bytes, now)
        else:
            reason = f"sent a {envelope.kind.name} directly"
            return [Notify(PeerMisbehaved(peer, reason)), Disconnect(peer, reason)]
        return self._carry(room, room.receive(peer, envelope, payload, envelope_bytes, now), now)

    def job_input(self, peer: NodeId, message: wire.JobInput, now: Now) -> list[Effect]:
        """A job's input came."""
        return self._carry(self.seller, self.seller.receive_input(peer, message, now), now)

    def open_jobs(self, peer: NodeId, message: wire.OpenJobs, now: Now) -> list[Effect]:
        """A peer names what it has open with us."""
        return [
            *self._carry(self.buyer, self.buyer.compare(peer, message.selling, now), now),
            *self._carry(self.seller, self.seller.compare(peer, message.buying, now), now),
        ]

    def signed(self, envelope: Envelope, payload: Message, envelope_bytes: bytes, now: Now) -> list[Effect]:
        """A statement of our own was signed: what a seller signs is what a buyer receives, and the other way round."""
        room: Buyer | Seller = self.seller if envelope.kind in BUYERS_KINDS else self.buyer
        return self._carry(room, room.signed(envelope, payload, envelope_bytes, now), now)

    def work(self, happened: inputs.WorkPrefilled | inputs.WorkPiece | inputs.WorkFailed, now: Now) -> list[Effect]:
        """A worker has got on with a job, or has failed."""
        seller = self.seller
        match happened:
            case inputs.WorkPrefilled():
                wanted = seller.work_prefilled(happened.job, happened.input_units, now)
            case inputs.WorkPiece():
                wanted = seller.work_piece(happened.job, happened.payload, happened.units, happened.finish, now)
            case inputs.WorkFailed():
                wanted = seller.work_failed(happened.job, happened.fault, happened.reason, now)
        return self._carry(seller, wanted, now)

    def timelines(self, happened: inputs.AskTimeline | inputs.DropTimeline | inputs.JobRead, now: Now) -> list[Effect]:
        """Questions of this node's user about a job, and of the other party to one."""
        match happened:
            case inputs.AskTimeline():
                return self.telling.ask(happened, now)
            case inputs.DropTimeline():
                self.telling.drop(happened.unique)
                return []
            case inputs.JobRead():
                job = happened.question.job
                live = self.buyer.attempt(job) or self.seller.job(job)
                row = decode(happened.row, JobRecord) if happened.row is not None else None
                return self.telling.read(happened, live or row, now)

    def start_job(self, request: JobRequest, now: Now) -> list[Effect]:
        """This node's user wants a job done."""
        if request.replication > 1:
            return self._carry(self.buyer, self.replication.start(request, now), now)
        effects = self._carry(self.buyer, self.buyer.start_job(request, now), now)
        return [*effects, *self._tell_demand(request, now)]

    def cancel_job(self, request: Hash, reason: str, now: Now) -> list[Effect]:
        """This node's user wants no more of it."""
        if self.replication.owns(request):
            return self._carry(self.buyer, self.replication.cancel(request, reason, now), now)
        return self._carry(self.buyer, self.buyer.cancel(request, reason, now), now)

    def bid_heard(self, bid_id: MessageId, bid: Bid, buyer: AccountId, now: Now) -> list[Effect]:
        """A bid came by gossip, from an account that can pay it."""
        return self._carry(self.seller, self.seller.bid_heard(bid_id, bid, buyer, now), now)

    def book_changed(self, now: Now) -> list[Effect]:
        """The order book took an offer."""
        return self._carry(self.buyer, self.buyer.book_changed(now), now)

    def serve(self, happened: inputs.Serve, now: Now) -> list[Effect]:
        """What this node can serve from now on."""
        self.seller.set_models(happened.models)
        return self.shop.serve(happened, self.seller.slots_free(), *self._bond(), now)

    def timer(self, key: TimerKey, now: Now) -> list[Effect] | None:
        """A timer of the market's; ``None`` if it is not."""
        match key.room:
            case "buyer":
                return self._carry(self.buyer, self.buyer.timer(key, now), now)
            case "seller":
                return self._carry(self.seller, self.seller.timer(key, now), now)
        return self.shop.renew(*self._bond(), now) if key == RENEW_TIMER else None

    def housekeeping(self, now: Now) -> list[Effect]:
        """A second has passed."""
        return [
            *self._carry(self.buyer, self.buyer.housekeeping(now), now),
            *self._carry(self.seller, self.seller.housekeeping(now), now),
            *(self.shop.renew(*self._bond(), now) if self.shop.silent_because else []),
        ]

    def block_decided(self, now: Now) -> list[Effect]:
        """The ledger shows a new state."""
        return [
            *self._carry(self.buyer, self.buyer.block_decided(now), now),
            *self._carry(self.seller, self.seller.block_decided(now), now),
            *self.shop.bond_decided(*self._bond(), now),
        ]

    def owns_channel(self, channel: ChannelId) -> bool:
        """Whether this node's account pays or is paid by a channel, one that has just ended included."""
        held = self._replica.state.channel(channel)
        if held is not None:
            return self._account in (held.payer, held.payee)
        return self.buyer.books.knows(channel) or self.seller.books.knows(channel)

    def transaction_failed(self, failed: TransactionFailed, now: Now) -> list[Effect] | None:
        """A transaction will not be; ``None`` if nobody here wished for it."""
        if failed.request not in self._wants:
            return None
        room, subject = self._wants.pop(failed.request)
        return self._carry(room, room.transaction_rejected(subject, failed.reason, now, failed.code), now)

    def transaction_decided(self, decided: TransactionDecided) -> bool:
        """A transaction is in a block; returns whether it was wished for here."""
        return self._wants.pop(decided.request, None) is not None

    def takes_demand(self, bid: MessageId) -> bool:
        """Whether a bid, signed now, was meant for gossip. Asked once."""
        if bid not in self._demand:
            return False
        del self._demand[bid]
        return True

    def _tell_demand(self, request: JobRequest, now: Now) -> list[Effect]:
        """A request that waits for an offer is made known by gossip: providers see what is wanted. Others need no
        gossip, their bid goes straight to the provider."""
        if not self.buyer.chooses(request.request):
            return []
        payload = encode(make_bid(request, now.wall_ms))
        self._demand[message_id(MessageKind.BID, self._account, payload)] = None
        return [SignAndSend(MessageKind.BID, payload)]

    def _carry(self, room: Buyer | Seller, wanted: list[MarketEffect], now: Now) -> list[Effect]:
        if room is self.buyer:
            wanted = self.replication.follow(wanted, now)
        effects: list[Effect] = []
        kept_statements = False
        for effect in wanted:
            match effect:
                case WantTransaction():
                    effects += self._want(room, effect)
                case Put():
                    kept_statements |= effect.table is Table.JOB_STATEMENT
                    effects.append(effect)
                case Notify(event=SlotsChanged() as changed):
                    effects += self.shop.slots_changed(changed.slots_free, now)
                case Notify() if room is self.buyer:
                    self._paces.observe(effect.event, now)
                    effects.append(effect)
                case _:
                    effects.append(effect)
        if kept_statements and room is self.buyer and self.buyer.policy.report_failures:
            for report in reports(wanted, report_fee(self._replica.state.parameters)):
                effects += self._own.want(self._wish(report, b""), report, self._replica.state)
        return effects

    def _want(self, room: Buyer | Seller, want: WantTransaction) -> list[Effect]:
        request = self._wish(want.action, want.subject)
        self._wants[request] = (room, want.subject)
        return self._own.want(request, want.action, self._replica.state)

    def _wish(self, action: Action, subject: bytes) -> Hash:
        self._wishes += 1
        return digest(Domain.MARKET_WISH, self._wishes.to_bytes(8, "big"), subject, encode(action))

    def _bond(self) -> tuple[Amount, Amount]:
        state = self._replica.state
        return state.bond(self._account).amount, state.parameters.provider_bond_min
