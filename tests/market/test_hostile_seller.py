"""A provider that lies: what it says is refused, and never costs more than what it delivered."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from protocol.market.events import JobDelivered, JobFailed, JobFinished, JobText
from protocol.market.policies import BuyerPolicy
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Cancellation, Chunk, Failure, FaultKind, FinishReason, Receipt, Voucher
from protocol.primitives.codec import Message
from protocol.primitives.units import Amount, Hash, MessageId, WorkUnits
from protocol.settlement.pricing import amount_due
from tests.market.town import PRICES, Person, Town, Worker, envelope_of, request

Change = Callable[[Chunk], Chunk]


def lying_town(change: Callable[[Message], Message | None], buyer_policy: BuyerPolicy | None = None) -> Town:
    """The seller's statements reach the buyer changed (and signed by the seller), or not at all."""
    town = Town()
    if buyer_policy is not None:
        town.buyer.buyer_policy = buyer_policy
        town.crash(town.buyer)
    kinds = {Chunk: MessageKind.CHUNK, Receipt: MessageKind.RECEIPT}

    def heard(sender: Person, payload: Message) -> bool:
        if sender is not town.seller or type(payload) not in kinds:
            return True
        changed = change(payload)
        if changed is payload:
            return True
        if changed is not None:
            lie = envelope_of(town.seller, kinds[type(payload)], changed)[2]
            town.links[(town.seller.node, town.buyer.node)].append(lie)
        return False

    town.on_send = heard
    return town


def outcome(town: Town) -> JobFailed | JobDelivered:
    town.start(request())
    town.run()
    town.wait(100_000)
    town.run()
    [lost] = [event for event in town.buyer.events if isinstance(event, JobFailed | JobDelivered)]
    assert town.buyer.buyer.jobs() == ()
    assert town.seller.seller.jobs() == ()
    return lost


def vouchers(town: Town) -> list[Voucher]:
    return [voucher for lane in town.watch.vouchers.values() for voucher in lane.values()]


@pytest.mark.parametrize(
    ("index", "change", "paid_chunks"),
    [
        (0, lambda chunk: replace(chunk, input_units=WorkUnits(11), due=amount_due(PRICES, 11, 0)), 0),
        (0, lambda chunk: replace(chunk, due=Amount(chunk.due + 1)), 0),
        (0, lambda chunk: replace(chunk, previous=Hash(bytes(32))), 0),
        (0, lambda chunk: replace(chunk, index=1), 0),
        (0, lambda chunk: replace(chunk, payload=b"output"), 0),
        (0, lambda chunk: replace(chunk, output_units=WorkUnits(1), due=amount_due(PRICES, 10, 1)), 0),
        (1, lambda chunk: replace(chunk, due=Amount(chunk.due + 1)), 1),
        (1, lambda chunk: replace(chunk, output_units=WorkUnits(11), due=amount_due(PRICES, 10, 11)), 1),
        (1, lambda chunk: replace(chunk, previous=Hash(chunk.job)), 1),
        (1, lambda chunk: replace(chunk, index=2), 1),
        (2, lambda chunk: replace(chunk, due=Amount(chunk.due + 1)), 2),
    ],
)
def test_a_chunk_that_is_not_as_agreed_is_not_paid_and_ends_the_job(
    index: int, change: Change, paid_chunks: int
) -> None:
    town = lying_town(lambda said: change(said) if isinstance(said, Chunk) and said.index == index else said)
    lost = outcome(town)
    assert lost.fault is FaultKind.PROVIDER
    assert len(vouchers(town)) == paid_chunks
    assert lost.paid == (0 if paid_chunks == 0 else amount_due(PRICES, 10, 10 * (paid_chunks - 1)))


@pytest.mark.parametrize(
    "change",
    [
        lambda receipt: replace(receipt, amount=Amount(receipt.amount + 1)),
        lambda receipt: replace(receipt, output_commitment=Hash(bytes(32))),
        lambda receipt: replace(receipt, last_chunk=Hash(bytes(32))),
        lambda receipt: None,
    ],
)
def test_without_a_good_receipt_the_last_chunk_is_paid_and_no_receipt_is_acknowledged(
    change: Callable[[Receipt], Receipt | None],
) -> None:
    town = lying_town(lambda said: change(said) if isinstance(said, Receipt) else said)
    lost = outcome(town)
    assert (lost.fault, lost.paid, lost.output_units) == (FaultKind.PROVIDER, amount_due(PRICES, 10, 25), 25)
    last = vouchers(town)[-1]
    assert (last.cumulative, last.receipts_count) == (amount_due(PRICES, 10, 25), 0)
    [channel] = town.seller.seller.books.channels()
    [lane] = town.seller.seller.books.lanes_of(channel)
    assert lane.position.cumulative == amount_due(PRICES, 10, 25)


def test_statements_of_another_signer_are_not_listened_to() -> None:
    town = Town(sellers=2)
    mallory = town.sellers[1]
    town.start(request(provider=town.seller.account))
    while not town.watch.agreements:
        town.busy()[0]()
    [job] = town.watch.agreements
    for kind, payload in (
        (MessageKind.FAILURE, Failure(job, FaultKind.USER, 0, "no")),
        (MessageKind.CHUNK, Chunk(job, 0, Hash(job), WorkUnits(1), WorkUnits(0), Amount(110), FinishReason.NONE, b"")),
    ):
        town.hand(town.buyer, mallory.node, envelope_of(mallory, kind, payload)[2])
    town.run()
    assert len(town.buyer.told(JobFinished)) == 1


def test_chunk_before_the_acceptance_is_not_paid() -> None:
    town = Town()
    town.on_send = lambda sender, payload: sender is town.buyer
    town.start(request())
    town.run()
    [job] = town.watch.agreements
    chunk = Chunk(job, 0, Hash(job), WorkUnits(10), WorkUnits(0), amount_due(PRICES, 10, 0), FinishReason.NONE, b"")
    town.hand(town.buyer, town.seller.node, envelope_of(town.seller, MessageKind.CHUNK, chunk)[2])
    assert vouchers(town) == []


def test_receipt_before_the_last_chunk_is_not_acknowledged_and_ends_nothing() -> None:
    town = Town()
    town.seller.worker = Worker(silent_from=3)
    receipts: list[Receipt] = []

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Receipt):
            receipts.append(payload)
        return True

    finished = Town()
    finished.on_send = heard
    finished.start(request())
    finished.run()
    town.start(request())
    town.run()
    town.hand(town.buyer, town.seller.node, envelope_of(town.seller, MessageKind.RECEIPT, receipts[0])[2])
    [record] = town.buyer.buyer.jobs()
    assert (record.state, record.chunks) == ("streaming", 3)
    assert [voucher.receipts_count for voucher in vouchers(town)] == [0, 0, 0]


def test_chunk_sent_twice_is_paid_once() -> None:
    town = lying_town(lambda said: said)
    town.start(request())
    again: list[bytes] = []

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Chunk):
            again.append(envelope_of(town.seller, MessageKind.CHUNK, payload)[2])
        return True

    town.on_send = heard
    while town.busy():
        town.busy()[0]()
        for envelope_bytes in again:
            town.hand(town.buyer, town.seller.node, envelope_bytes)
    assert len(vouchers(town)) == 4
    assert len(town.buyer.told(JobFinished)) == 1
    assert len(town.buyer.told(JobText)) == 3


def test_output_without_end_is_cut_off() -> None:
    town = lying_town(lambda said: said, BuyerPolicy(output_bytes_max=20))
    lost = outcome(town)
    assert (lost.fault, lost.output_units) == (FaultKind.PROVIDER, 20)
    assert "larger than 20 bytes" in lost.reason


def test_a_provider_that_was_given_up_is_told_so() -> None:
    told: list[Cancellation] = []
    town = lying_town(lambda said: replace(said, due=Amount(1)) if isinstance(said, Chunk) else said)
    before = town.on_send
    assert before is not None

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Cancellation):
            told.append(payload)
        return before(sender, payload)

    town.on_send = heard
    outcome(town)
    assert [cancellation.chunks for cancellation in told] == [0]


def test_statements_about_unknown_jobs_change_nothing() -> None:
    town = Town()
    failure = Failure(MessageId(bytes(32)), FaultKind.USER, 0, "no")
    town.hand(town.buyer, town.seller.node, envelope_of(town.seller, MessageKind.FAILURE, failure)[2])
    assert town.busy() == []
