"""A buyer and sellers joined without sockets: queues for links, a dictionary for the disk, a plain ledger.

Law: the machines are the real ones. Everything that could go wrong between them (loss, crash, silence) is done here,
by the test's choice. Money is watched from outside at every step, by ``Watch``.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b

from protocol.market.agreement import JobRequest
from protocol.market.buyer import Buyer
from protocol.market.order_book import OrderBook, Ruling
from protocol.market.policies import BuyerPolicy, SellerPolicy
from protocol.market.records import BuyerLane, SellerLane, lane_key
from protocol.market.requests import MarketEffect, WantTransaction
from protocol.market.seller import Seller
from protocol.messages.effects import (
    CancelTimer,
    CloseWork,
    Delete,
    Dial,
    Notify,
    Now,
    OpenWork,
    PullWork,
    Put,
    Send,
    SetTimer,
    SignAndSend,
    Table,
    TimerKey,
)
from protocol.messages.envelope import Envelope, message_id, open_envelope, seal
from protocol.messages.kinds import MessageKind
from protocol.messages.market import (
    Agreement,
    Chunk,
    FaultKind,
    FinishReason,
    JobPayload,
    ModelOffer,
    Offer,
    Prices,
    Voucher,
)
from protocol.messages.wire import Direct, JobInput, OpenJobs
from protocol.primitives.codec import Message, decode, encode
from protocol.primitives.units import (
    AccountId,
    Amount,
    ChannelId,
    Hash,
    Lane,
    MessageId,
    ModelId,
    MonotonicMs,
    NodeId,
    PublicKey,
    Salt,
    SequenceNumber,
    TimestampMs,
    WorkUnits,
)
from tests.market.plain_ledger import PlainLedger

MODEL = ModelId(b"m" * 32)
PRICES = Prices(request=Amount(100), input_per_thousand=Amount(10_000), output_per_thousand=Amount(50_000))
SERVED = ModelOffer(MODEL, "echo", "echo", "echo 1", "plain", PRICES, WorkUnits(1000), WorkUnits(1000))
PAYLOAD = encode(JobPayload("chat", b"hello there", ()))
NETWORK_MS = 1_700_000_000_000


def identity(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=32).digest()


def request(number: int = 1, **changes: object) -> JobRequest:
    """A plain request: input of 10 units, at most 40 of output, 10 a chunk."""
    plain = {
        "request": Hash(number.to_bytes(32, "big")),
        "model": MODEL,
        "payload": PAYLOAD,
        "salt": Salt(identity(f"salt {number}")),
        "unique": Hash(identity(f"unique {number}")),
        "input_units_max": WorkUnits(10),
        "output_units_max": WorkUnits(40),
        "price_ceiling": Amount(1_000_000),
        "chunk_units": 10,
    }
    return JobRequest(**{**plain, **changes})  # type: ignore[arg-type]


@dataclass
class Worker:
    """What a provider's worker will say about each job: units of input, then pieces of output."""

    input_units: int = 10
    pieces: tuple[int, ...] = (10, 10, 5)
    silent_from: int | None = None
    """Piece number from which nothing comes any more (0 is the input)."""
    fails_at: int | None = None

    def payload(self, number: int) -> bytes:
        return f"piece {number:03};".encode()  # a unit is never less than a byte

    def output(self, pieces: int | None = None) -> bytes:
        return b"".join(self.payload(number) for number in range(len(self.pieces) if pieces is None else pieces))

    def pieces_in(self, prefix: bytes) -> int:
        """How many pieces of the output are there already: providers of one model give the same output."""
        return next((count for count in range(len(self.pieces) + 1) if self.output(count) == prefix), 0)


LaneName = tuple[ChannelId, Lane]


class Watch:
    """What is seen from outside: every statement that was signed, and the laws that each must keep."""

    def __init__(self) -> None:
        self.agreements: dict[MessageId, Agreement] = {}
        self.chunks: dict[MessageId, dict[int, Chunk]] = {}
        """Chunks that providers released."""
        self.delivered: dict[MessageId, dict[int, Chunk]] = {}
        """Chunks that reached their buyers."""
        self.vouchers: dict[LaneName, dict[SequenceNumber, Voucher]] = {}

    def signed(self, person: "Person", payload: Message) -> None:
        """A statement is about to leave: judge it by what is on its signer's disk and what was delivered to it."""
        match payload:
            case Agreement():
                self.agreements[person.town.job_of(person, payload)] = payload
            case Voucher():
                self._voucher(person, payload)
            case _:
                pass

    def leaves(self, person: "Person", payload: Message) -> None:
        """A statement leaves its node: a chunk may be signed earlier than it may go out."""
        if isinstance(payload, Chunk):
            self._chunk(person, payload)

    def _chunk(self, person: "Person", chunk: Chunk) -> None:
        agreement = self.agreements[chunk.job]
        key = lane_key(agreement.channel, agreement.lane)
        row = decode(person.disk[(Table.SELLER_LANE, key)], SellerLane)
        # Exposure: with chunk k out, the vouchers of all chunks before k are on the provider's disk.
        assert row.position.sequence >= agreement.sequence_start + chunk.index
        assert person.disk[(Table.SELLER_LANE, key)]
        self.chunks.setdefault(chunk.job, {})[chunk.index] = chunk

    def _voucher(self, person: "Person", voucher: Voucher) -> None:
        row = decode(person.disk[(Table.BUYER_LANE, lane_key(voucher.channel, voucher.lane))], BuyerLane)
        assert row.position.sequence >= voucher.sequence, "a voucher is durable before it is signed"
        lane = self.vouchers.setdefault((voucher.channel, voucher.lane), {})
        before = lane.get(voucher.sequence)
        assert before is None or before == voucher, "two vouchers under one sequence number"
        if before is not None:
            return
        last = lane[max(lane)] if lane else None
        paid = last.cumulative if last is not None else Amount(0)
        if last is not None:
            assert voucher.sequence > last.sequence, "voucher sequences rise"
            assert voucher.cumulative >= last.cumulative, "voucher amounts never fall"
            assert voucher.receipts_count >= last.receipts_count, "receipts are never dropped"
        lane[voucher.sequence] = voucher
        # Paid to the unit for what was delivered: chunk k is paid by the k-th voucher after the agreement's start.
        candidates = [
            (job, agreement)
            for job, agreement in self.agreements.items()
            if (agreement.channel, agreement.lane) == (voucher.channel, voucher.lane)
            and self.delivered.get(job, {}).get(voucher.sequence - agreement.sequence_start - 1) is not None
        ]
        assert any(
            voucher.cumulative
            == max(
                paid,
                agreement.cumulative_start + self.delivered[job][voucher.sequence - agreement.sequence_start - 1].due,
            )
            for job, agreement in candidates
        ) or (last is not None and voucher.cumulative == paid and voucher.receipts_count == last.receipts_count + 1), (
            "a voucher pays for a delivered chunk, to the unit, or commits to its late receipt and pays nothing more"
        )
        facts = person.town.ledger.channels[voucher.channel]
        lanes = [rows for (channel, _), rows in self.vouchers.items() if channel == voucher.channel]
        assert sum(rows[max(rows)].cumulative for rows in lanes) <= facts.deposit, "all lanes stay within the deposit"


class Person:
    """One node: a buyer and a seller on one disk."""

    def __init__(self, town: "Town", name: str) -> None:
        self.town = town
        self.name = name
        self.account = AccountId(identity(name))
        self.node = NodeId(identity(name + "'s node"))
        self.disk: dict[tuple[Table, bytes], bytes] = {}
        self.events: list[Message] = []
        self.buyer_policy = BuyerPolicy()
        self.seller_policy = SellerPolicy(slots=4)
        self.worker = Worker()
        self.sells = False
        self.boot()

    def boot(self) -> None:
        self.timers: dict[TimerKey, int] = {}
        self.work: dict[MessageId, int] = {}
        self.workers: dict[MessageId, Worker] = {}
        self.behind: dict[MessageId, int] = {}
        """Pieces of output that other providers delivered before."""
        self.pulled: deque[MessageId] = deque()
        self.returned: deque[bytes] = deque()
        """Signed and under way to somebody; handed back when it has left."""
        self.kept: deque[bytes] = deque()
        """Signed and kept; handed back, in this order, before anything else happens here."""
        self.book = OrderBook()
        self.buyer = Buyer(self.account, self.node, self.town.ledger, self.book, self.buyer_policy)
        self.seller = Seller(self.account, self.node, self.town.ledger, self.seller_policy)
        if self.sells:
            self.seller.set_models([self.town.served])

    def rows(self, table: Table) -> list[bytes]:
        return [value for (kept_in, _), value in sorted(self.disk.items()) if kept_in is table]

    def told(self, kind: type[Message]) -> list[Message]:
        return [event for event in self.events if isinstance(event, kind)]


Link = tuple[NodeId, NodeId]
Carried = bytes | JobInput | OpenJobs
"""What travels on a link: envelopes, and what needs no signature of its own."""

HOUSEKEEPING_MS = 1_000


class Town:
    """Everything, single-stepped."""

    def __init__(self, buyers: int = 1, sellers: int = 1, served: ModelOffer = SERVED) -> None:
        self.served = served
        self.now = Now(MonotonicMs(1_000), TimestampMs(NETWORK_MS))
        self.ledger = PlainLedger()
        self.watch = Watch()
        self.people: dict[NodeId, Person] = {}
        self.links: dict[Link, deque[Carried]] = {}
        self.unreachable: set[NodeId] = set()
        self.crash_after: int | None = None
        """Carry out so many effects and then lose the node that was at it."""
        self.on_send: Callable[[Person, Message], bool] | None = None
        """Returns False to lose a statement on its way."""
        self.buyers = [self._person(f"buyer {number}") for number in range(buyers)]
        self.sellers = [self._person(f"seller {number}") for number in range(sellers)]
        for buyer in self.buyers:
            self.ledger.balances[buyer.account] = 1_000_000_000
        for seller in self.sellers:
            seller.sells = True
            seller.seller.set_models([served])
        self.publish()

    @property
    def buyer(self) -> Person:
        return self.buyers[0]

    @property
    def seller(self) -> Person:
        return self.sellers[0]

    def _person(self, name: str) -> Person:
        person = Person(self, name)
        self.people[person.node] = person
        return person

    def job_of(self, person: Person, agreement: Agreement) -> MessageId:
        """The id of a person's agreement."""
        return message_id(MessageKind.AGREEMENT, person.account, encode(agreement))

    def publish(self) -> None:
        """Every seller's offer reaches every book."""
        for seller in self.sellers:
            offer = Offer(
                node=seller.node,
                sequence=SequenceNumber(self.now.monotonic_ms),
                expires_at=TimestampMs(self.now.wall_ms + 60_000),
                addresses=("127.0.0.1:4000",),
                region="earth",
                isolation="strong",
                slots_total=seller.seller_policy.slots,
                slots_free=seller.seller.slots_free(),
                models=(self.served,),
            )
            offer_id = message_id(MessageKind.OFFER, seller.account, encode(offer))
            for person in self.people.values():
                judged = person.book.consider_offer(offer_id, offer, seller.account, Amount(5), Amount(5), self.now)
                assert judged.ruling is Ruling.ACCEPT, judged

    def do(self, person: Person, effects: list[MarketEffect]) -> None:
        """Carry out effects in order; a crash may come between two of them."""
        for effect in effects:
            if self.crash_after is not None:
                if self.crash_after == 0:
                    self.crash_after = None
                    self.crash(person)
                    return
                self.crash_after -= 1
            self._one(person, effect)

    def _one(self, person: Person, effect: MarketEffect) -> None:
        match effect:
            case Put(table, key, value):
                person.disk[(table, key)] = value
            case Delete(table, key):
                person.disk.pop((table, key), None)
            case SignAndSend(kind, payload, to, _):
                signature = blake2b(person.account + payload, digest_size=64).digest()
                envelope_bytes = seal(kind, payload, PublicKey(person.account), signature)
                self.watch.signed(person, open_envelope(envelope_bytes)[1])
                for node in to:
                    self._post(person, node, envelope_bytes)
                (person.returned if to else person.kept).append(envelope_bytes)
            case Send(to, Direct(envelope_bytes)):
                self._post(person, to, envelope_bytes)
            case Send(to, (JobInput() | OpenJobs()) as unsigned):
                self._post(person, to, unsigned)
            case SetTimer(key, at):
                person.timers[key] = at
            case CancelTimer(key):
                person.timers.pop(key, None)
            case Dial(node, _):
                self.link(person, self.people[node])
            case OpenWork():
                person.work[effect.job] = 0
                person.workers[effect.job] = person.worker
                person.behind[effect.job] = person.worker.pieces_in(decode(effect.payload, JobPayload).prefix)
            case PullWork(job):
                assert job in person.work
                person.pulled.append(job)
            case CloseWork(job):
                del person.work[job]
            case Notify(event):
                person.events.append(event)
            case WantTransaction():
                self.ledger.waiting.append((person.account, effect))
            case _:
                raise AssertionError(effect)

    def _post(self, person: Person, to: NodeId, message: Carried) -> None:
        if isinstance(message, bytes):
            self.watch.leaves(person, open_envelope(message)[1])
        queue = self.links.get((person.node, to))
        if queue is None:
            return
        heard = self.on_send
        if heard is not None and isinstance(message, bytes) and not heard(person, open_envelope(message)[1]):
            return
        queue.append(message)

    def link(self, one: Person, other: Person) -> None:
        if (one.node, other.node) in self.links or {one.node, other.node} & self.unreachable:
            return
        self.links[(one.node, other.node)] = deque()
        self.links[(other.node, one.node)] = deque()
        for person, peer in ((one, other), (other, one)):
            self.do(person, person.buyer.link_up(peer.node, self.now))
            self.do(person, person.seller.link_up(peer.node, self.now))

    def unlink(self, one: Person, other: Person) -> None:
        """The link breaks and what was on it is lost."""
        if self.links.pop((one.node, other.node), None) is None:
            return
        self.links.pop((other.node, one.node), None)
        for person, peer in ((one, other), (other, one)):
            self.do(person, person.buyer.link_down(peer.node, self.now))
            self.do(person, person.seller.link_down(peer.node, self.now))

    def crash(self, person: Person) -> None:
        """The process is gone, the disk stays; it starts again at once."""
        peers = [self.people[to] for sender, to in tuple(self.links) if sender == person.node]
        for peer in peers:
            self.links.pop((person.node, peer.node), None)
            self.links.pop((peer.node, person.node), None)
        person.boot()

        def row(table: Table, key: bytes) -> bytes | None:
            return person.disk.get((table, key))

        for other in self.people.values():
            if other is not person:
                for live in other.book.offers():
                    person.book.consider_offer(live.id, live.offer, live.account, Amount(5), Amount(5), self.now)
        standing = [(key, value) for (table, key), value in sorted(person.disk.items()) if table is Table.STANDING]
        effects = person.buyer.restore(person.rows(Table.BUYER_LANE), row, self.now, standing)
        effects += person.seller.restore(person.rows(Table.SELLER_LANE), row, self.now)
        self.do(person, effects)
        for peer in peers:
            self.do(peer, peer.buyer.link_down(person.node, self.now))
            self.do(peer, peer.seller.link_down(person.node, self.now))

    def deliver(self, link: Link) -> None:
        """The next message on a link arrives."""
        person = self.people[link[1]]
        self.hand_kept_back(person)
        message = self.links[link].popleft()
        if isinstance(message, JobInput):
            self.do(person, person.seller.receive_input(link[0], message, self.now))
            return
        if isinstance(message, OpenJobs):
            self.do(person, person.buyer.compare(link[0], message.selling, self.now))
            self.do(person, person.seller.compare(link[0], message.buying, self.now))
            return
        self.hand(person, link[0], message)

    def hand(self, person: Person, peer: NodeId, envelope_bytes: bytes) -> None:
        envelope, payload = open_envelope(envelope_bytes)
        if isinstance(payload, Chunk):
            self.watch.delivered.setdefault(payload.job, {})[payload.index] = payload
        self.do(person, person.buyer.receive(peer, envelope, payload, envelope_bytes, self.now))
        self.do(person, person.seller.receive(peer, envelope, payload, envelope_bytes, self.now))

    def hand_back(self, person: Person) -> None:
        envelope_bytes = (person.kept or person.returned).popleft()
        envelope, payload = open_envelope(envelope_bytes)
        self.do(person, person.buyer.signed(envelope, payload, envelope_bytes, self.now))
        self.do(person, person.seller.signed(envelope, payload, envelope_bytes, self.now))

    def hand_kept_back(self, person: Person) -> None:
        """What stays here is signed at once, whatever is still under way: an executor's law."""
        while person.kept:
            self.hand_back(person)

    def work(self, person: Person) -> None:
        """The worker answers the oldest pull."""
        self.hand_kept_back(person)
        if not person.pulled:
            return
        job = person.pulled.popleft()
        number = person.work.get(job)
        worker = person.workers[job]
        if number is None or (worker.silent_from is not None and number >= worker.silent_from):
            return
        person.work[job] = number + 1
        if worker.fails_at == number:
            self.do(person, person.seller.work_failed(job, FaultKind.PROVIDER, "worker died", self.now))
        elif number == 0:
            units = worker.input_units + sum(worker.pieces[: person.behind[job]])
            self.do(person, person.seller.work_prefilled(job, units, self.now))
        else:
            place = number - 1 + person.behind[job]
            last = place == len(worker.pieces) - 1
            finish = FinishReason.STOP if last else FinishReason.NONE
            payload = worker.payload(place)
            units = worker.pieces[place]
            self.do(person, person.seller.work_piece(job, payload, units, finish, self.now))

    def decide(self) -> None:
        """A block."""
        self.ledger.decide()
        for person in self.people.values():
            self.do(person, person.buyer.block_decided(self.now))
            self.do(person, person.seller.block_decided(self.now))

    def wait(self, duration_ms: int) -> None:
        """Time passes; timers fire in order, and every second everybody looks after what is open."""
        until = self.now.monotonic_ms + duration_ms
        while True:
            due = self._next_timer()
            look = (self.now.monotonic_ms // HOUSEKEEPING_MS + 1) * HOUSEKEEPING_MS
            if look <= until and (due is None or look < due[0]):
                self._set_clock(look)
                for person in self.people.values():
                    self.do(person, person.buyer.housekeeping(self.now))
                    self.do(person, person.seller.housekeeping(self.now))
                continue
            if due is None or due[0] > until:
                break
            at, person, key = due
            self._set_clock(max(at, self.now.monotonic_ms))
            del person.timers[key]
            machine = person.buyer if key.room == "buyer" else person.seller
            self.do(person, machine.timer(key, self.now))
        self._set_clock(until)

    def _next_timer(self) -> tuple[int, Person, TimerKey] | None:
        timers = [
            (at, key.room, key.name, key.subject, person, key)
            for person in self.people.values()
            for key, at in person.timers.items()
        ]
        if not timers:
            return None
        at, _, _, _, person, key = min(timers, key=lambda timer: timer[:4])
        return at, person, key

    def _set_clock(self, monotonic_ms: int) -> None:
        passed = monotonic_ms - self.now.monotonic_ms
        self.now = Now(MonotonicMs(monotonic_ms), TimestampMs(self.now.wall_ms + passed))

    def busy(self) -> list[Callable[[], None]]:
        """Everything that could happen next without time passing."""
        choices: list[Callable[[], None]] = []
        for person in self.people.values():
            if person.kept or person.returned:
                choices.append(lambda person=person: self.hand_back(person))  # type: ignore[misc]
            if person.pulled:
                choices.append(lambda person=person: self.work(person))  # type: ignore[misc]
        for link in sorted(self.links):
            if self.links[link]:
                choices.append(lambda link=link: self.deliver(link))  # type: ignore[misc]
        if self.ledger.waiting:
            choices.append(self.decide)
        return choices

    def run(self, steps_max: int = 10_000) -> None:
        """Until nothing is left to do at this moment."""
        for _ in range(steps_max):
            choices = self.busy()
            if not choices:
                return
            choices[0]()
        raise AssertionError("the town never comes to rest")

    def start(self, wanted: JobRequest, person: Person | None = None) -> None:
        buyer = person or self.buyer
        self.do(buyer, buyer.buyer.start_job(wanted, self.now))


def envelope_of(person: Person, kind: MessageKind, payload: Message) -> tuple[Envelope, Message, bytes]:
    """A statement signed by a person."""
    encoded = encode(payload)
    signature = blake2b(person.account + encoded, digest_size=64).digest()
    envelope_bytes = seal(kind, encoded, PublicKey(person.account), signature)
    envelope, decoded = open_envelope(envelope_bytes)
    return envelope, decoded, envelope_bytes


__all__ = ["PRICES", "SERVED", "Person", "Town", "Worker", "envelope_of", "replace", "request"]
