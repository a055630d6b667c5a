"""A partner in the middle of a job that changes, repeats, drops and invents messages: the honest side never breaks.

The hostile side runs the real machine, so that jobs get far, and everything that it says is tampered with on its way.
What the honest side signs and pays is judged by ``Watch`` at every step.
"""

import random
from collections import deque
from typing import Any

import pytest
from msgspec import inspect
from msgspec.structs import asdict

from protocol.market.policies import BuyerPolicy
from protocol.market.records import BuyerLane, SellerLane
from protocol.messages.effects import Table
from protocol.messages.envelope import open_envelope, seal
from protocol.messages.kinds import MessageKind
from protocol.messages.market import (
    Acceptance,
    Agreement,
    Bid,
    Cancellation,
    Chunk,
    Failure,
    Receipt,
    Refusal,
    Voucher,
)
from protocol.messages.transactions import ChannelRedeem
from protocol.messages.wire import JobInput, OpenJobs
from protocol.primitives.codec import Message, decode, encode
from protocol.primitives.errors import MalformedMessage
from protocol.primitives.units import AccountId, Amount, NodeId, PublicKey, SequenceNumber
from tests.engine.generated import Generator
from tests.market.town import Carried, Link, Person, Town, Watch, Worker, identity, request

KINDS: dict[type[Message], MessageKind] = {
    Bid: MessageKind.BID,
    Agreement: MessageKind.AGREEMENT,
    Voucher: MessageKind.VOUCHER,
    Cancellation: MessageKind.CANCELLATION,
    Acceptance: MessageKind.ACCEPTANCE,
    Refusal: MessageKind.REFUSAL,
    Chunk: MessageKind.CHUNK,
    Receipt: MessageKind.RECEIPT,
    Failure: MessageKind.FAILURE,
}


class HonestWatch(Watch):
    """Judges what the honest signed; of the others it only notes the agreements."""

    def __init__(self, hostile: Person) -> None:
        super().__init__()
        self._hostile = hostile

    def signed(self, person: Person, payload: Message) -> None:
        if person is not self._hostile or isinstance(payload, Agreement):
            super().signed(person, payload)

    def _chunk(self, person: Person, chunk: Chunk) -> None:
        """Before chunk k leaves, all chunks before it are paid in full, on disk, within the deposit."""
        super()._chunk(person, chunk)
        if chunk.index == 0:
            return
        agreement = self.agreements[chunk.job]
        before = self.chunks[chunk.job][chunk.index - 1]
        rows = [decode(row, SellerLane) for row in person.rows(Table.SELLER_LANE)]
        lanes = {row.lane: row for row in rows if row.channel == agreement.channel}
        assert lanes[agreement.lane].position.cumulative >= agreement.cumulative_start + before.due
        deposit = person.town.ledger.channels[agreement.channel].deposit
        assert sum(row.position.cumulative for row in lanes.values()) <= deposit


class HostileTown(Town):
    """A town in which one person's messages are tampered with."""

    def __init__(self, dice: random.Random, *, buyer_is_hostile: bool) -> None:
        super().__init__(buyers=1, sellers=1 if buyer_is_hostile else 2)
        self.dice = dice
        self.hostile = self.buyer if buyer_is_hostile else self.seller
        self.honest = [person for person in self.people.values() if person is not self.hostile]
        self.watch = HonestWatch(self.hostile)
        self.said: list[Carried] = []
        self.tampered = 0
        # Little enough for two jobs that money is short all the time.
        self.buyer.buyer_policy = BuyerPolicy(channel_deposit=Amount(5_000), channel_top_up=Amount(1_000))
        self.crash(self.buyer)
        for seller in self.sellers:
            seller.worker = Worker(pieces=(10, 10, 10, 5))

    def hand(self, person: Person, peer: NodeId, envelope_bytes: bytes) -> None:
        """A chunk that comes in its turn is the delivered one; others of its index never count."""
        envelope, payload = open_envelope(envelope_bytes)
        if isinstance(payload, Chunk):
            delivered = self.watch.delivered.setdefault(payload.job, {})
            before = delivered.get(payload.index)
            job = person.buyer._core.by_job.get(payload.job)
            attempt = job.attempt if job is not None else None
            if (
                attempt is None
                or AccountId(envelope.sender) != attempt.agreement.provider
                or attempt.acceptance is None
                or payload.index != attempt.progress.chunks
            ):
                super().hand(person, peer, envelope_bytes)
                delivered.pop(payload.index, None)
                delivered.update({} if before is None else {payload.index: before})
                return
        super().hand(person, peer, envelope_bytes)

    def _generator(self) -> Generator:
        ids = [*self.watch.agreements, *self.ledger.channels, bytes(32)]
        ids += [key for person in self.people.values() for key in (person.account, person.node)]
        return Generator(self.dice, {32: [bytes(each) for each in ids]})

    def _seal(self, payload: Message) -> bytes | None:
        """Signed by one of the hostile one's accounts; ``None`` for what no decoder would let in."""
        stranger = AccountId(identity("a stranger"))
        account = self.hostile.account if self.dice.random() < 0.9 else stranger
        sealed = seal(KINDS[type(payload)], encode(payload), PublicKey(account), bytes(64))
        try:
            open_envelope(sealed)
        except MalformedMessage:
            return None
        if isinstance(payload, Agreement) and account == self.hostile.account:
            self.watch.agreements[self.job_of(self.hostile, payload)] = payload
        return sealed

    def _mutated(self, message: Carried) -> Carried | None:
        payload: Message = open_envelope(message)[1] if isinstance(message, bytes) else message
        info: Any = inspect.type_info(type(payload))
        fields = asdict(payload)
        for _ in range(self.dice.choice((1, 1, 1, 2))):
            field = self.dice.choice(info.fields)
            value = fields[field.name]
            if type(value) is int and self.dice.random() < 0.5:
                fields[field.name] = max(0, value + self.dice.choice((-1, 1)))
            else:
                fields[field.name] = self._generator()._of(field.type)
        if isinstance(payload, Voucher):
            # Its own machine could not go on from the last sequence that there is.
            fields["sequence"] = min(fields["sequence"], 2**47)
        changed = type(payload)(**fields)
        return changed if isinstance(changed, JobInput | OpenJobs) else self._seal(changed)

    def _invented(self) -> bytes | None:
        kind = self.dice.choice(list(KINDS))
        return self._seal(self._generator().value(kind))

    def _promised(self) -> bytes | None:
        """A late voucher for a lane that the honest seller knows: what it says is at its edges."""
        lanes = [
            (seller, lane)
            for seller in self.honest
            for channel in seller.seller.books.channels()
            for lane in seller.seller.books.lanes_of(channel)
            if channel in self.ledger.channels
        ]
        if not lanes:
            return None
        seller, lane = self.dice.choice(lanes)
        deposit, position = self.ledger.channels[lane.channel].deposit, lane.position
        return self._seal(
            Voucher(
                lane.channel,
                seller.account,
                lane.lane,
                SequenceNumber(position.sequence + self.dice.choice((0, 1, 2))),
                Amount(self.dice.choice((0, position.cumulative, position.cumulative + 1, deposit, deposit + 1))),
                position.receipts_root,
                position.receipts_count,
            )
        )

    def tamper(self, link: Link) -> None:
        queue: deque[Carried] = self.links[link]
        self.said.extend(queue)
        self.tampered += 1
        match self.dice.choice(("change", "change", "change", "twice", "drop", "again", "swap", "invent", "promise")):
            case "change" if queue:
                changed = self._mutated(queue[0])
                if changed is not None:
                    queue[0] = changed
            case "twice" if queue:
                queue.append(queue[0])
            case "drop" if queue:
                queue.popleft()
            case "again" if self.said:
                queue.append(self.dice.choice(self.said))
            case "swap" if len(queue) > 1:
                queue[0], queue[1] = queue[1], queue[0]
            case kind:
                invented = self._promised() if kind == "promise" else self._invented()
                if invented is not None:
                    queue.append(invented)

    def anything(self) -> None:
        """One step of whatever could happen, with the hostile one's hand in it."""
        dice = self.dice
        outgoing = [link for link in sorted(self.links) if link[0] == self.hostile.node]
        if outgoing and dice.random() < 0.12:
            self.tamper(dice.choice(outgoing))
        luck = dice.random()
        if luck < 0.02:
            self.wait(dice.choice((10, 500, 5_000, 31_000)))
        elif luck < 0.03:
            self.unlink(self.hostile, dice.choice(self.honest))
        elif luck < 0.05:
            self.link(self.hostile, dice.choice(self.honest))
        elif luck < 0.055:
            self.crash(dice.choice(self.honest))
        elif luck < 0.10:
            self.decide()
        choices = self.busy()
        if choices:
            dice.choice(choices)()


def play(seed: int, *, buyer_is_hostile: bool) -> HostileTown:
    town = HostileTown(random.Random(f"{seed}/{buyer_is_hostile}"), buyer_is_hostile=buyer_is_hostile)
    number = 0
    for step in range(600):
        if step % 60 == 0:
            number += 1
            town.wait(1_000)
            town.publish()
            town.start(request(number, chunk_units=10))
        town.anything()
    # The hostile one goes away; whatever is under way ends by itself.
    for person in town.honest:
        town.unlink(town.hostile, person)
    for _ in range(10):
        town.run()
        town.wait(700_000)
    return town


def redeem_everything(town: HostileTown, seller: Person) -> None:
    """The ledger takes every voucher that the seller believes in."""
    for channel in seller.seller.books.channels():
        if channel in town.ledger.channels:
            town.do(seller, [*seller.seller.redeem_now(channel, town.now)])
    for _, wanted in town.ledger.waiting:
        assert isinstance(wanted.action, ChannelRedeem)
    town.ledger.decide()


@pytest.mark.parametrize("seed", range(40))
def test_a_hostile_buyer_never_breaks_a_seller_nor_gets_more_than_a_chunk_unpaid(seed: int) -> None:
    town = play(seed, buyer_is_hostile=True)
    [seller] = town.honest
    assert town.tampered > 10
    assert seller.seller.jobs() == ()
    assert seller.seller.slots_free() == seller.seller_policy.slots
    assert seller.work == {}
    redeem_everything(town, seller)
    earned = sum(
        lane.position.cumulative
        for channel in seller.seller.books.channels()
        for lane in seller.seller.books.lanes_of(channel)
    )
    assert town.ledger.balances.get(seller.account, 0) == earned


@pytest.mark.parametrize("seed", range(40))
def test_a_hostile_seller_never_breaks_a_buyer_nor_gets_more_than_was_agreed(seed: int) -> None:
    town = play(seed, buyer_is_hostile=False)
    [buyer, _] = town.honest
    assert town.tampered > 10
    assert buyer.buyer.jobs() == ()
    lanes = [decode(row, BuyerLane) for row in buyer.rows(Table.BUYER_LANE)]
    assert all(lane.job is None for lane in lanes)
    for channel, facts in town.ledger.channels.items():
        assert sum(lane.position.cumulative for lane in lanes if lane.channel == channel) <= facts.deposit
