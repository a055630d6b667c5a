"""Verdicts on what gossip brings: labelled checks, each room judging its own kinds.

Law: standing comes from the ledger, and a failure of standing is IGNORE and retryable, never REJECT: the judge may be
the one who lags. Only what can't be right in any state is held against the peer that sent it.
"""

from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from protocol.engine.ledger_facts import LedgerFacts
from protocol.engine.replica import Replica
from protocol.engine.replica_gossip import check_parts
from protocol.engine.seats import HEIGHTS_KNOWN_AHEAD
from protocol.gossip.policy import Rate
from protocol.gossip.token_bucket import TokenBucket
from protocol.gossip.verdicts import ACCEPTED, EXPIRED, Judgement, ignore, reject
from protocol.ledger.errors import NotATransaction
from protocol.ledger.mempool import TransactionRejected
from protocol.market.order_book import OrderBook, Ruling, is_address
from protocol.messages.consensus import Dispatch, FinalBody, Inquiry, Testimony, VoteBody
from protocol.messages.effects import Effect, Now
from protocol.messages.envelope import Envelope, envelope_id, open_envelope
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Bid, Offer
from protocol.messages.wire import Ballot, TipNotice
from protocol.primitives.codec import Message
from protocol.primitives.errors import MalformedMessage, RemoteProtocolError
from protocol.primitives.limits import AUTHORITIES_MAX
from protocol.primitives.units import (
    AccountId,
    Amount,
    AuthorityId,
    Height,
    MessageId,
    MonotonicMs,
    NodeId,
    PublicKey,
    TimestampMs,
)

TRANSACTION_LIFETIME_MS = 60_000
"""A transaction is relayed for a minute; its sender's node brings it up again if it is still undecided then."""

BALLOT_LIFETIME_MS = 5_000
"""Votes help only while their height is open; authorities resend theirs every second."""

BID_LIFETIME_MS_MAX = 3_600_000
"""As long as the longest job: what nobody renews must go."""

BIDS_PER_ACCOUNT_MAX = 16
"""Live bids of one account that are relayed."""

BID_COUNTS_MS_MIN = 4_000
"""A bid counts among them for so long at least, however soon it expires: sixteen at once, then four a second."""


DISPATCH_LIFETIME_MS = 5_000
"""As long as a proposal waits to be gossiped again."""

DISPATCH_OBJECTS = Rate(per_second=4, burst=32)
DISPATCH_BYTES = Rate(per_second=512 * 1024, burst=4 * 1024 * 1024)
"""What one authority may say of one kind by gossip: its largest proposal every five seconds and a statement a second,
several times over."""

BALLOTS_PER_AUTHORITY_MAX = 256
"""Ballots of one authority that are relayed while the tip stays: an honest one signs two a view."""


class _Heard(NamedTuple):
    """A bid, how long it matters to anybody but its buyer, and how long it counts among its account's."""

    bid: Bid
    until: TimestampMs
    counts_until: TimestampMs


class Ruled(NamedTuple):
    """A verdict, how long an accepted object lives, and what follows from accepting it."""

    judgement: Judgement
    expires_at: TimestampMs
    effects: list[Effect]


def relayed_until(bid: Bid, now: Now) -> TimestampMs:
    """How long a bid travels: until it expires, or until its auction must be over for whoever hears of it now."""
    if bid.auction is None:
        return bid.expires_at
    return TimestampMs(min(bid.expires_at, now.wall_ms + bid.auction.seal_ms + bid.auction.reveal_ms))


class Judge:
    """Judges objects whose signatures hold."""

    def __init__(self, replica: Replica, book: OrderBook, facts: LedgerFacts) -> None:
        self._replica = replica
        self._book = book
        self._facts = facts
        self._bids: dict[AccountId, dict[MessageId, _Heard]] = {}
        self._ballots: dict[PublicKey, int] = {}
        """Ballots of each authority that were relayed since the tip last changed."""
        self._ballots_tip = replica.tip
        self._said: dict[tuple[AuthorityId, MessageKind], tuple[TokenBucket, TokenBucket]] = {}
        """What each authority may still say by gossip, in objects and in bytes."""

    def judge(self, peer: NodeId, envelope: Envelope, payload: Message, envelope_bytes: bytes, now: Now) -> Ruled:
        """The verdict on one object, and what the other rooms want to happen because of it."""
        ruled = self._rule(peer, envelope, payload, envelope_bytes, now)
        if ruled.judgement.retryable and self._replica.lags():
            return ruled._replace(judgement=msgspec.structs.replace(ruled.judgement, excused=True))
        return ruled

    def _rule(self, peer: NodeId, envelope: Envelope, payload: Message, envelope_bytes: bytes, now: Now) -> Ruled:
        match payload:
            case Offer():
                return Ruled(self.offer(envelope, payload, now), payload.expires_at, [])
            case Bid():
                return Ruled(self._bid(envelope, payload, now), relayed_until(payload, now), [])
            case VoteBody() | FinalBody():
                return self._ballot(peer, envelope, payload, envelope_bytes, now)
            case Dispatch() | Inquiry() | Testimony():
                return self._overheard(peer, envelope, payload, envelope_bytes, now)
        if envelope.kind is MessageKind.TRANSACTION:
            return self._transaction(envelope_bytes, now)
        return Ruled(reject(f"a {envelope.kind.name} does not travel by gossip"), now.wall_ms, [])

    def offer(self, envelope: Envelope, offer: Offer, now: Now) -> Judgement:
        """Keep a provider's offer if it counts; also called for our own."""
        account = AccountId(envelope.sender)
        bond_min = self._replica.state.parameters.provider_bond_min
        judged = self._book.consider_offer(
            envelope_id(envelope), offer, account, self._facts.bond(account), bond_min, now
        )
        match judged.ruling:
            case Ruling.ACCEPT:
                return ACCEPTED
            case Ruling.IGNORE:
                return ignore(judged.reason, retryable=judged.retryable)
            case Ruling.REJECT:
                return reject(judged.reason)

    def _bid(self, envelope: Envelope, bid: Bid, now: Now) -> Judgement:
        buyer = AccountId(envelope.sender)
        # [IGNORE] expired
        if bid.expires_at <= now.wall_ms:
            return EXPIRED
        # [IGNORE] lives too long: the judge's clock may be the one that is wrong
        if bid.expires_at > now.wall_ms + BID_LIFETIME_MS_MAX:
            return ignore("expires too far ahead", retryable=True)
        # [REJECT] quotes are wanted where nobody can be dialed
        if bid.auction is not None and not all(map(is_address, bid.auction.addresses)):
            return reject("address is not host:port")
        # [IGNORE] more live bids than an account may have
        live = {bid_id: held for bid_id, held in self._bids.pop(buyer, {}).items() if held.counts_until > now.wall_ms}
        if live:
            self._bids[buyer] = live
        if len(live) >= BIDS_PER_ACCOUNT_MAX:
            return ignore("too many bids of this account are live")
        # [IGNORE] buyer can't pay it, or has nothing at all (retryable: this node may lag)
        if self._paying_power(buyer) < max(1, bid.price_ceiling):
            return ignore("buyer can't pay the ceiling", retryable=True)
        until = relayed_until(bid, now)
        # By id: what a bid calls unique is its signer's word.
        self._bids.setdefault(buyer, {})[envelope_id(envelope)] = _Heard(
            bid, until, TimestampMs(max(until, now.wall_ms + BID_COUNTS_MS_MIN))
        )
        return ACCEPTED

    def expire(self, now: Now) -> None:
        """Forget bids whose time is over: their accounts may never bid again."""
        for buyer, bids in tuple(self._bids.items()):
            if all(heard.counts_until <= now.wall_ms for heard in bids.values()):
                del self._bids[buyer]

    def bids(self, now: Now) -> list[tuple[AccountId, Bid]]:
        """Bids of buyers that wait for an offer, the first to expire first."""
        live = [(buyer, heard) for buyer, bids in self._bids.items() for heard in bids.values()]
        return sorted(
            ((buyer, heard.bid) for buyer, heard in live if heard.until > now.wall_ms),
            key=lambda entry: (entry[1].expires_at, entry[1].unique),
        )

    def _paying_power(self, account: AccountId) -> Amount:
        """What an account can still spend, open channels included."""
        state = self._replica.state
        held = (channel.held for _, channel in state.channels_of(account) if channel.payer == account)
        return Amount(state.account(account).balance + sum(held))

    def _transaction(self, envelope_bytes: bytes, now: Now) -> Ruled:
        expires_at = TimestampMs(now.wall_ms + TRANSACTION_LIFETIME_MS)
        try:
            effects = self._replica.submit(envelope_bytes, now)
        except NotATransaction as error:
            return Ruled(reject(str(error)), expires_at, [])
        except TransactionRejected as error:
            # [ACCEPT] its sender's node has pushed it here already
            if error.code == "duplicate":
                return Ruled(ACCEPTED, expires_at, [])
            # [IGNORE] it or another one of its nonce is decided: no state to come takes it
            if error.code == "nonce_used":
                return Ruled(ignore(error.code), expires_at, [])
            # [IGNORE] the ledger's present state refuses it; another state may not
            # [REJECT] no state will ever take it
            verdict = ignore(error.code, retryable=True) if error.retryable else reject(error.code)
            return Ruled(verdict, expires_at, [])
        return Ruled(ACCEPTED, expires_at, effects)

    def _ballot(
        self, peer: NodeId, envelope: Envelope, body: VoteBody | FinalBody, envelope_bytes: bytes, now: Now
    ) -> Ruled:
        """A vote that reaches us by gossip because its sender has no direct link to some authority."""
        expires_at = TimestampMs(now.wall_ms + BALLOT_LIFETIME_MS)
        tip = self._replica.tip
        # [IGNORE] of a height that is closed
        if body.height < tip:
            return Ruled(ignore("not of the open height"), expires_at, [])
        # [IGNORE] of a height that this node is not near yet: whose signature counts there is not known here
        if body.height > tip + HEIGHTS_KNOWN_AHEAD:
            hint = self._replica.receive(peer, TipNotice(Height(body.height - 1)), now)
            return Ruled(ignore("not of the open height", retryable=True), expires_at, hint)
        # [REJECT] signed by no authority of that height; asked here too, because a replica may not be listening
        authorities = self._replica.seats.at(body.height)
        if authorities is None or not authorities.counts(AuthorityId(envelope.sender)):
            return Ruled(reject("a ballot signed by a key that is no authority"), expires_at, [])
        try:
            effects = self._replica.receive(peer, Ballot(envelope_bytes), now)
        except RemoteProtocolError as error:
            return Ruled(reject(str(error)), expires_at, [])
        # [IGNORE] more than its authority has to say: what one key can sign has no end
        if tip != self._ballots_tip:
            self._ballots, self._ballots_tip = {}, tip
        relayed = self._ballots.get(envelope.sender, 0)
        if relayed >= BALLOTS_PER_AUTHORITY_MAX:
            return Ruled(self._too_much(peer, AuthorityId(envelope.sender)), expires_at, effects)
        self._ballots[envelope.sender] = relayed + 1
        return Ruled(ACCEPTED, expires_at, effects)

    # What authorities without links say

    def out_of_reach(self, payload: Message) -> Judgement | None:
        """The verdict on what the door could not check, asked for in the same moment; ``None`` for all else."""
        tip = self._replica.tip
        match payload:
            case Dispatch():
                # [IGNORE] of a closed height
                if payload.height <= tip:
                    return ignore("not of the open height")
                # [IGNORE] of a height whose authorities are not known here
                if payload.height > tip + HEIGHTS_KNOWN_AHEAD:
                    return ignore("not of the open height", retryable=True)
            case Testimony():
                # [IGNORE] of a key that has no seat in sight: one of the two ledgers lags
                if self._attested_out_of_sight(payload):
                    return ignore("no authority that is known here", retryable=True)
                # [IGNORE] about a tip whose proof can't be checked here yet; the next answer will be nearer
                asks, proof = AuthorityId(payload.asker) == self._replica.key, payload.certificate
                if asks and proof is not None and proof.height > tip + HEIGHTS_KNOWN_AHEAD:
                    return replace(ignore("about a tip that is out of reach"), excused=True)
        return None

    def _attested_out_of_sight(self, testimony: Testimony) -> bool:
        try:
            envelope, _ = open_envelope(testimony.attestation)
        except MalformedMessage:
            return False  # The door will say so.
        return not self._replica.seats.seated(AuthorityId(envelope.sender))

    def hint_in(self, payload: Message) -> Height | None:
        """The height that the sender of what is out of reach seems to have decided."""
        tip = self._replica.tip
        match payload:
            case Dispatch() if payload.height > tip + 1:
                return Height(payload.height - 1)
            case Testimony() if payload.certificate is not None and payload.certificate.height > tip:
                return payload.certificate.height
        return None

    def _overheard(
        self, peer: NodeId, envelope: Envelope, payload: Dispatch | Inquiry | Testimony, envelope_bytes: bytes, now: Now
    ) -> Ruled:
        """Statements of an authority to those that it has no link to."""
        expires_at = TimestampMs(now.wall_ms + DISPATCH_LIFETIME_MS)
        author, replica = AuthorityId(envelope.sender), self._replica
        # [IGNORE] the tip has moved since the door
        late = self.out_of_reach(payload)
        if late is not None:
            return Ruled(late, expires_at, [])
        # [REJECT] dispatch of a key that is no authority of that height
        if isinstance(payload, Dispatch):
            authorities = replica.seats.at(payload.height)
            if authorities is None or not authorities.counts(author):
                return Ruled(reject("a dispatch of no authority"), expires_at, [])
        # [IGNORE] of a key that has no seat in sight: this node may lag
        elif not replica.seats.seated(author):
            return Ruled(ignore("no authority that is known here", retryable=True), expires_at, [])
        # [IGNORE] more than an authority has to say
        if not self._may_say(author, envelope.kind, len(envelope_bytes), now.monotonic_ms):
            return Ruled(self._too_much(peer, author), expires_at, [])
        # [REJECT] parts of another height or authority
        if isinstance(payload, Dispatch):
            try:
                check_parts(payload, author)
            except RemoteProtocolError as error:
                return Ruled(reject(str(error)), expires_at, [])
        try:
            effects = replica.overheard(author, payload, now)
        except RemoteProtocolError as error:
            return Ruled(reject(str(error)), expires_at, [])
        return Ruled(ACCEPTED, expires_at, effects)

    def _too_much(self, peer: NodeId, author: AuthorityId) -> Judgement:
        """More than an authority has to say. It may tell each of us something else, all of which is within bounds where
        it is heard first: whoever passed it on is not to blame."""
        judgement = ignore("too much of this authority")
        return replace(judgement, excused=not self._replica.seats.holds(peer, author))

    def _may_say(self, author: AuthorityId, kind: MessageKind, size: int, now: MonotonicMs) -> bool:
        if len(self._said) > 8 * AUTHORITIES_MAX:
            del self._said[next(iter(self._said))]
        fresh = TokenBucket.full(DISPATCH_OBJECTS, now), TokenBucket.full(DISPATCH_BYTES, now)
        objects, size_left = self._said.setdefault((author, kind), fresh)
        if size_left.available(DISPATCH_BYTES, now) < size or not objects.take(DISPATCH_OBJECTS, now, 1):
            return False
        return size_left.take(DISPATCH_BYTES, now, size)
