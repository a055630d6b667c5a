"""The engine: takes one input at a time, hands it to the rooms that care, returns their effects in order.

Law: a dispatcher, never a place for rules. What a room decided is carried to the other rooms here: a decided block to
the market, a wish of the market to the ledger, a verdict to gossip.
"""

from collections.abc import Callable, Iterable
from typing import assert_never

from protocol.consensus.outputs import Equivocation
from protocol.engine import inputs
from protocol.engine.accusations import Accusations
from protocol.engine.anchors import anchors_in
from protocol.engine.channel_log import channel_lines
from protocol.engine.checks import message_checks
from protocol.engine.events import PeerMisbehaved, TransactionDecided, TransactionFailed
from protocol.engine.judging import (
    BALLOT_LIFETIME_MS,
    DISPATCH_LIFETIME_MS,
    TRANSACTION_LIFETIME_MS,
    Judge,
    relayed_until,
)
from protocol.engine.ledger_facts import LedgerFacts
from protocol.engine.own_transactions import OwnTransactions
from protocol.engine.payouts import Payouts
from protocol.engine.replica import Replica
from protocol.engine.trade import Trade
from protocol.engine.usefulness import Usefulness
from protocol.gossip.router import Admission, GossipRouter
from protocol.gossip.verdicts import ACCEPTED, SIGNATURE_BROKEN
from protocol.ledger.mempool import TransactionRejected
from protocol.market.buyer import Buyer
from protocol.market.order_book import OrderBook
from protocol.market.seller import Seller
from protocol.messages import peers, wire
from protocol.messages.blocks import Block
from protocol.messages.effects import (
    CommitBlock,
    Dial,
    Disconnect,
    Effect,
    Notify,
    Now,
    SetTimer,
    Table,
    TimerKey,
    Undial,
)
from protocol.messages.envelope import Envelope, envelope_id, open_envelope
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Bid, Offer
from protocol.primitives.codec import decode, encode
from protocol.primitives.hashing import Domain, digest
from protocol.primitives.signing import SignatureCheck
from protocol.primitives.units import AccountId, MonotonicMs, NodeId, TimestampMs

HOUSEKEEPING_MS = 1_000
"""Events are hints; whatever matters is looked over this often."""

HOUSEKEEPING_TIMER = TimerKey("engine", "housekeeping")


class Engine:
    """One node's protocol, whatever its roles."""

    def __init__(
        self,
        *,
        node: NodeId,
        account: AccountId,
        replica: Replica,
        gossip: GossipRouter,
        book: OrderBook,
        buyer: Buyer,
        seller: Seller,
        own: OwnTransactions,
    ) -> None:
        self.account = account
        self.replica = replica
        self.gossip = gossip
        self.book = book
        self.buyer = buyer
        self.seller = seller
        self.own = own
        self.trade = Trade(node, account, replica, buyer, seller, own, book)
        self.shop = self.trade.shop
        replica.gossips = True
        self.body_wanted = False
        """Whether the body last offered should go on to the door."""
        self._facts = LedgerFacts(replica.state)
        book.judge_by(self._facts)
        self._judge = Judge(replica, book, self._facts)
        self.usefulness = Usefulness(gossip.conduct, replica.mempool)
        self._payouts = Payouts(account)
        self._wishes = 0
        self._accusations = Accusations()
        self._bonds_seen_at = replica.state.tip_hash
        """The block whose bonds the order book was held against last."""
        self._kept: dict[NodeId, None] = {}
        """Nodes of authorities that this one stays linked to."""

    def readable(self, message: wire.WireMessage) -> wire.WireMessage:
        """What of a message can be checked by what is known now; ``checks`` is asked about it in the same moment."""
        return self.replica.readable(message)

    def checks(self, message: wire.WireMessage) -> list[SignatureCheck]:
        """What the door has to verify before a ``readable`` message may be received."""
        return message_checks(self.replica.state.genesis_hash, message, self.replica)

    def expects(self, peer: NodeId, message: wire.WireMessage) -> bool:
        """False for what may be dropped unseen: no honest node sends it to us over this link."""
        return self.replica.expects(peer, message)

    def step(self, happened: inputs.Input, now: Now) -> list[Effect]:
        """Handle one input completely."""
        match happened:
            case inputs.Started():
                effects = self._started(happened, now)
            case inputs.LinkUp():
                effects = self._link_up(happened, now)
            case inputs.LinkDown():
                effects = self._link_down(happened.peer, now)
            case inputs.Unreachable():
                effects = self.trade.unreachable(happened.peer, now)
            case inputs.Received():
                effects = self._received(happened.peer, happened.message, now)
                effects += self._judge_use(happened, effects, now)
            case inputs.Unexpected():
                effects = self.usefulness.unexpected(happened.peer, happened.message, now.monotonic_ms)
            case inputs.Misbehaved():
                effects = [
                    Notify(PeerMisbehaved(happened.peer, happened.reason)),
                    Disconnect(happened.peer, happened.reason),
                ]
            case inputs.Discredited():
                effects = [Notify(PeerMisbehaved(happened.peer, happened.reason))]
                effects += self.gossip.conduct.misbehaved(happened.peer, happened.reason)
            case inputs.BodyOffered():
                admission = self.gossip.offered(happened.peer, happened.envelope, now)
                self.body_wanted = admission.judgement is None
                effects = admission.effects
                if admission.judgement is None:
                    effects += self._put_off(happened, admission, now)
            case inputs.BodyBroken():
                object_id = envelope_id(open_envelope(happened.envelope)[0])
                effects = self.gossip.judged(happened.peer, object_id, happened.envelope, SIGNATURE_BROKEN, now)
            case inputs.Signed():
                effects = self._signed(happened.envelope, now)
            case inputs.TimerFired():
                effects = self._timer(happened.key, now)
            case inputs.WorkPrefilled() | inputs.WorkPiece() | inputs.WorkFailed():
                effects = self.trade.work(happened, now)
            case inputs.Serve():
                effects = self.trade.serve(happened, now)
            case inputs.SnapshotInstalled():
                effects = self.replica.snapshot_installed(happened.state, happened.decided, now)
                effects += self._jumped(now)
            case inputs.SnapshotRefused():
                effects = self.replica.snapshot_refused(happened.reason, now)
            case inputs.StartJob():
                effects = self.trade.start_job(happened.request, now)
            case inputs.CancelJob():
                effects = self.trade.cancel_job(happened.request, happened.reason, now)
            case inputs.AskTimeline() | inputs.DropTimeline() | inputs.JobRead():
                effects = self.trade.timelines(happened, now)
            case inputs.WantAction():
                effects = self.own.want(happened.request, happened.action, self.replica.state)
            case _:
                assert_never(happened)
        return self._follow(effects, now)

    # Life and links

    def restore(
        self,
        *,
        buyer_lanes: Iterable[bytes],
        seller_lanes: Iterable[bytes],
        own_transactions: Iterable[bytes],
        row: Callable[[Table, bytes], bytes | None],
        now: Now,
        standing: Iterable[tuple[bytes, bytes]] = (),
    ) -> list[Effect]:
        """Take up what an earlier life left on disk; once, before the first input. ``row`` reads one stored row,
        ``standing`` are the rows of ``Table.STANDING``."""
        effects = [
            *self.trade.restore(buyer_lanes, seller_lanes, row, now, standing),
            *self.own.restore(own_transactions, self.replica.state),
        ]
        return self._follow(effects, now)

    def _started(self, happened: inputs.Started, now: Now) -> list[Effect]:
        return [
            *self._keep_links(),
            *self.replica.start(happened.nonce, now),
            *self.trade.start(happened.nonce, now),
            SetTimer(HOUSEKEEPING_TIMER, MonotonicMs(now.monotonic_ms + HOUSEKEEPING_MS)),
        ]

    def _keep_links(self) -> list[Effect]:
        """An authority stays linked to all that decide now or soon, and no longer to those that have left."""
        replica = self.replica
        seated = replica.key is not None and replica.seats.seated(replica.key)
        wanted = dict.fromkeys(replica.seats.nodes()) if seated else {}
        effects: list[Effect] = [Dial(node, (), keep=True) for node in wanted if node not in self._kept]
        effects += [Undial(node) for node in self._kept if node not in wanted]
        self._kept = wanted
        return effects

    def _link_up(self, happened: inputs.LinkUp, now: Now) -> list[Effect]:
        peer = happened.peer
        return [
            *self.replica.link_up(peer, now),
            *self.gossip.link_up(peer, now),
            *self.trade.link_up(peer, happened.record.account, now),
        ]

    def _link_down(self, peer: NodeId, now: Now) -> list[Effect]:
        self.usefulness.forget(peer)
        return [
            *self.replica.link_down(peer, now),
            *self.gossip.link_down(peer, now),
            *self.trade.link_down(peer, now),
        ]

    # Messages

    def _received(self, peer: NodeId, message: wire.WireMessage, now: Now) -> list[Effect]:
        match message:
            case wire.Announce() | wire.Pull() | wire.Graft() | wire.Prune():
                return self.gossip.receive(peer, message, now)
            case wire.Push():
                return self._pushed(peer, message.envelope, now)
            case wire.Direct():
                return self._direct(peer, message.envelope, now)
            case wire.JobInput():
                return self.trade.job_input(peer, message, now)
            case wire.OpenJobs():
                return self.trade.open_jobs(peer, message, now)
            case peers.Hello() | wire.Goodbye() | wire.PeersRequest() | wire.Peers():
                return []  # the transport's own
            case _:
                return self.replica.receive(peer, message, now)

    def _judge_use(self, happened: inputs.Received, effects: list[Effect], now: Now) -> list[Effect]:
        peer, message = happened.peer, happened.message
        authority, counted = peer in self.replica.seats, self.replica.made_use_of(message)
        return self.usefulness.received(
            peer, message, happened.work, effects, now.monotonic_ms, authority=authority, counted=counted
        )

    def _pushed(self, peer: NodeId, envelope_bytes: bytes, now: Now) -> list[Effect]:
        envelope, payload = open_envelope(envelope_bytes)
        ruled = self._judge.judge(peer, envelope, payload, envelope_bytes, now)
        effects = ruled.effects + self.gossip.judged(
            peer, envelope_id(envelope), envelope_bytes, ruled.judgement, now, ruled.expires_at
        )
        if envelope.kind is MessageKind.OFFER and ruled.judgement is ACCEPTED:
            effects += self.trade.book_changed(now)
        if isinstance(payload, Bid) and ruled.judgement is ACCEPTED:
            effects += self.trade.bid_heard(envelope_id(envelope), payload, AccountId(envelope.sender), now)
        return effects

    def _put_off(self, happened: inputs.BodyOffered, admission: Admission, now: Now) -> list[Effect]:
        """What authorities say of heights whose sets are not known here goes no further: the door can't check it."""
        assert admission.payload is not None
        assert admission.object_id is not None
        judgement = self._judge.out_of_reach(admission.payload)
        if judgement is None:
            return []
        self.body_wanted = False
        peer, envelope_bytes = happened.peer, happened.envelope
        effects = self.gossip.judged(peer, admission.object_id, envelope_bytes, judgement, now)
        hint = self._judge.hint_in(admission.payload)
        return effects + (self.replica.receive(peer, wire.TipNotice(hint), now) if hint else [])

    def _direct(self, peer: NodeId, envelope_bytes: bytes, now: Now) -> list[Effect]:
        envelope, payload = open_envelope(envelope_bytes)
        return self.trade.direct(peer, envelope, payload, envelope_bytes, now)

    def _signed(self, envelope_bytes: bytes, now: Now) -> list[Effect]:
        envelope, payload = open_envelope(envelope_bytes)
        match envelope.kind:
            case MessageKind.VOTE | MessageKind.FINAL:
                return self.replica.signed(envelope_bytes, now) + self._spread_ballot(envelope, envelope_bytes, now)
            case MessageKind.PROPOSAL | MessageKind.ATTESTATION:
                return self.replica.signed(envelope_bytes, now)
            case MessageKind.DISPATCH | MessageKind.INQUIRY | MessageKind.TESTIMONY:
                expires_at = TimestampMs(now.wall_ms + DISPATCH_LIFETIME_MS)
                return self.gossip.publish(envelope_bytes, envelope_id(envelope), expires_at, now)
            case MessageKind.TRANSACTION:
                return self._signed_transaction(envelope_bytes, now)
            case MessageKind.OFFER:
                assert isinstance(payload, Offer)
                self._judge.offer(envelope, payload, now)
                return self.gossip.publish(envelope_bytes, envelope_id(envelope), payload.expires_at, now)
            case MessageKind.BID if self.trade.takes_demand(envelope_id(envelope)):
                assert isinstance(payload, Bid)
                return self.gossip.publish(envelope_bytes, envelope_id(envelope), payload.expires_at, now)
            case MessageKind.BID if isinstance(payload, Bid) and payload.auction is not None:
                told_until = relayed_until(payload, now)
                return [
                    *self.trade.signed(envelope, payload, envelope_bytes, now),
                    *self.gossip.publish(envelope_bytes, envelope_id(envelope), told_until, now),
                ]
            case MessageKind.NODE_RECORD:
                return []
            case _:
                return self.trade.signed(envelope, payload, envelope_bytes, now)

    def _spread_ballot(self, envelope: Envelope, envelope_bytes: bytes, now: Now) -> list[Effect]:
        """Gossip is the fallback for authorities that there is no link to; linked ones have the ballot already."""
        if not self.replica.unlinked_authorities():
            return []
        expires_at = TimestampMs(now.wall_ms + BALLOT_LIFETIME_MS)
        return self.gossip.publish(envelope_bytes, envelope_id(envelope), expires_at, now)

    # Transactions of our own

    def _signed_transaction(self, envelope_bytes: bytes, now: Now) -> list[Effect]:
        transaction_id, transaction = self.own.signed(envelope_bytes)
        state = self.replica.state
        try:
            submitted = self.replica.submit(envelope_bytes, now)
        except TransactionRejected as error:
            if error.code != "duplicate":
                return self.own.rejected(transaction, error, state)
            submitted = []
        expires_at = TimestampMs(now.wall_ms + TRANSACTION_LIFETIME_MS)
        return [
            *submitted,
            *self.own.admitted(transaction, state),
            *self.gossip.publish(envelope_bytes, transaction_id, expires_at, now),
        ]

    def _resubmit(self, now: Now) -> list[Effect]:
        """Give the mempool what it has dropped of ours: its loss must not strand a nonce."""
        effects: list[Effect] = []
        for transaction_id, envelope_bytes in self.own.unfinished():
            if transaction_id not in self.replica.mempool:
                effects += self._signed_transaction(envelope_bytes, now)
        return effects

    def bids(self, now: Now) -> list[tuple[AccountId, Bid]]:
        """What other nodes' buyers wait for."""
        return self._judge.bids(now)

    # Time and blocks

    def _timer(self, key: TimerKey, now: Now) -> list[Effect]:
        match key.room:
            case "consensus":
                return self.replica.timer(key, now)
            case "gossip":
                return self.gossip.timer(key, now)
        of_trade = self.trade.timer(key, now)
        if of_trade is not None:
            return of_trade
        assert key == HOUSEKEEPING_TIMER, key
        return self._housekeeping(now)

    def _housekeeping(self, now: Now) -> list[Effect]:
        self.book.expire(now)
        self._judge.expire(now)
        state = self.replica.state
        if state.tip_hash != self._bonds_seen_at:  # bonds change by blocks alone, and the book may be long
            self._bonds_seen_at = state.tip_hash
            self.book.drop_unbonded(self._facts.bond, state.parameters.provider_bond_min, now)
        return [
            *self._resubmit(now),
            *self._pay_out(now),
            *self._accuse(now),
            *self.trade.housekeeping(now),
            SetTimer(HOUSEKEEPING_TIMER, MonotonicMs(now.monotonic_ms + HOUSEKEEPING_MS)),
        ]

    def _pay_out(self, now: Now) -> list[Effect]:
        state = self.replica.state
        effects: list[Effect] = []
        for action in self._payouts.due(state, now):
            self._wishes += 1
            request = digest(Domain.MARKET_WISH, self._wishes.to_bytes(8, "big"), encode(action))
            effects += self.own.want(request, action, state)
        return effects

    def _notice(self, evidence: Equivocation, now: Now) -> None:
        own = self.replica.own
        if own is not None:
            self._accusations.notice(evidence, own, self.replica.authorities, now.monotonic_ms)

    def _accuse(self, now: Now) -> list[Effect]:
        """An authority reports, from its own account, who signed twice."""
        state = self.replica.state
        effects: list[Effect] = []
        for request, report in self._accusations.due(state, now.monotonic_ms):
            effects += self.own.want(request, report, state)
        return effects

    def _follow(self, effects: list[Effect], now: Now) -> list[Effect]:
        """Carry what was decided to the rooms that wait for it."""
        followed: list[Effect] = []
        for effect in effects:
            match effect:
                case CommitBlock():
                    followed.append(effect)
                    followed += self._follow(self._block_decided(effect, now), now)
                case Notify(event=Equivocation() as seen):
                    followed.append(effect)
                    self._notice(seen, now)
                case Notify(event=TransactionFailed() as failed):
                    answered = self.trade.transaction_failed(failed, now)
                    followed += [effect] if answered is None else self._follow(answered, now)
                case Notify(event=TransactionDecided() as decided) if self.trade.transaction_decided(decided):
                    pass
                case _:
                    followed.append(effect)
        return followed

    def _jumped(self, now: Now) -> list[Effect]:
        """The state has moved over blocks that this node will never see: the rooms look at what it says now."""
        state = self.replica.state
        return [
            *self._pay_out(now),
            *self.own.jumped(state),
            *self.trade.block_decided(now),
        ]

    def _block_decided(self, commit: CommitBlock, now: Now) -> list[Effect]:
        block = decode(commit.decided.block, Block)
        header, state = block.header, self.replica.state
        decided = dict.fromkeys(commit.transactions)
        return [
            *anchors_in(block, self.account),
            *channel_lines(block, self.account, self.trade.owns_channel),
            *self._keep_links(),
            *self._pay_out(now),
            *self.own.block_decided(header, commit.block_hash, decided, state),
            *self.trade.block_decided(now),
        ]
