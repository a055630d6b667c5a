"""A town with auctions: bids reach sellers by word of mouth, at once or late; each has its own price and policy."""

from collections.abc import Callable

from msgspec.structs import replace

from protocol.market.policies import QuotePolicy
from protocol.messages.envelope import envelope_id, message_id, open_envelope
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Bid, ModelOffer, Offer, Prices, Quote, QuoteSeal
from protocol.primitives.codec import Message, encode
from protocol.primitives.units import AccountId, Amount, Hash, MessageId, SequenceNumber, TimestampMs
from tests.market.town import SERVED, Person, Town, envelope_of, identity

AUCTION_MS = 400
WINDOW_MS = AUCTION_MS // 2


class AuctionTown(Town):
    """Sellers ask 1,000 base units for each output price step in ``steps`` above the usual one."""

    def __init__(self, steps: tuple[int, ...] = (0, 0), policies: tuple[QuotePolicy, ...] = (), slots: int = 4) -> None:
        self.late_ms: dict[AccountId, int] = {}
        """Who hears of bids so much later."""
        self.bids: list[tuple[MessageId, Bid]] = []
        self.halted = False
        """The ledger decides nothing."""
        self._word: list[tuple[int, Person, MessageId, Bid, AccountId]] = []
        self._steps = steps
        super().__init__(sellers=len(steps))
        for number, seller in enumerate(self.sellers):
            quotes = policies[number] if number < len(policies) else QuotePolicy()
            seller.seller_policy = replace(seller.seller_policy, quotes=quotes, slots=slots)
            seller.boot()
            seller.seller.set_models([self.served_by(seller)])
            self.do(seller, seller.seller.start(self.now, Hash(identity(f"secret of {seller.name}"))))
        self.now = replace(self.now, monotonic_ms=self.now.monotonic_ms + 1)
        self.publish()

    def served_by(self, seller: Person) -> ModelOffer:
        """What a seller posts."""
        prices = SERVED.prices
        step = 1_000 * self._steps[self.sellers.index(seller)]
        dearer = Prices(prices.request, prices.input_per_thousand, Amount(prices.output_per_thousand + step))
        return replace(SERVED, prices=dearer)

    def publish(self) -> None:
        for seller in self.sellers:
            offer = Offer(
                seller.node,
                SequenceNumber(self.now.monotonic_ms),
                TimestampMs(self.now.wall_ms + 600_000),
                ("127.0.0.1:4000",),
                "earth",
                "strong",
                seller.seller_policy.slots,
                seller.seller.slots_free(),
                (self.served_by(seller),),
            )
            offer_id = message_id(MessageKind.OFFER, seller.account, encode(offer))
            for person in self.people.values():
                person.book.consider_offer(offer_id, offer, seller.account, Amount(5), Amount(5), self.now)

    def hand_back(self, person: Person) -> None:
        envelope, payload = open_envelope((person.kept or person.returned)[0])
        super().hand_back(person)
        if isinstance(payload, Bid) and payload.auction is not None:
            bid_id = envelope_id(envelope)
            self.bids.append((bid_id, payload))
            for seller in self.sellers:
                at = self.now.monotonic_ms + self.late_ms.get(seller.account, 0)
                self._word.append((at, seller, bid_id, payload, person.account))
            self._spread()

    def _spread(self) -> None:
        due = [word for word in self._word if word[0] <= self.now.monotonic_ms]
        self._word = [word for word in self._word if word[0] > self.now.monotonic_ms]
        for _, seller, bid_id, bid, buyer in due:
            self.do(seller, seller.seller.bid_heard(bid_id, bid, buyer, self.now))

    def after(self, duration_ms: int, step_ms: int = 10) -> None:
        """Time passes in small steps, and everything that can happen in each happens."""
        self.run()
        for _ in range(-(-duration_ms // step_ms)):
            self.wait(step_ms)
            self._spread()
            self.run()

    def decide(self) -> None:
        if not self.halted:
            super().decide()

    def busy(self) -> list[Callable[[], None]]:
        waiting = self.ledger.waiting
        if self.halted:
            self.ledger.waiting = []
        choices = super().busy()
        self.ledger.waiting = waiting
        return choices

    def say(self, seller: Person, payload: QuoteSeal | Quote) -> None:
        """A seller says something of its own choice to the buyer."""
        kind = MessageKind.QUOTE_SEAL if isinstance(payload, QuoteSeal) else MessageKind.QUOTE
        self.hand(self.buyer, seller.node, envelope_of(seller, kind, payload)[2])

    def overheard(self) -> list[tuple[Person, Message]]:
        """From now on: what is sent and by whom."""
        heard: list[tuple[Person, Message]] = []

        def note(person: Person, payload: Message) -> bool:
            heard.append((person, payload))
            return True

        self.on_send = note
        return heard
