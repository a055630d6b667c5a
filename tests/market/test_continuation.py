"""A provider stops mid-stream: the next one goes on, the text has no gap, and everyone is paid for its own chunks."""


import pytest

from protocol.market.events import JobFinished, JobText
from protocol.market.policies import BuyerPolicy
from protocol.messages.market import Agreement
from protocol.primitives.codec import Message
from protocol.primitives.units import MessageId
from protocol.settlement.pricing import amount_due
from tests.market.town import PRICES, Person, Town, Worker, request

PIECES = (10, 10, 10, 5)
WHOLE = Worker(pieces=PIECES)


def town_of(*workers: Worker, policy: BuyerPolicy | None = None) -> Town:
    """One seller for each worker; the request picks them in this order by their prices being alike and ties broken."""
    town = Town(sellers=len(workers))
    if policy is not None:
        town.buyer.buyer_policy = policy
        town.crash(town.buyer)
    for seller, worker in zip(town.sellers, workers, strict=True):
        seller.worker = worker
    return town


def texts(town: Town) -> list[JobText]:
    return [event for event in town.buyer.events if isinstance(event, JobText)]


def agreements(town: Town) -> list[tuple[MessageId, Agreement]]:
    return list(town.watch.agreements.items())


def paid_to(town: Town, seller: Person) -> int:
    """What vouchers promise a seller, all lanes together."""
    return sum(
        max(voucher.cumulative for voucher in lane.values())
        for lane in town.watch.vouchers.values()
        if next(iter(lane.values())).payee == seller.account
    )


def first_fails(stops_at: int) -> Town:
    """Whoever is asked first fails when it should give piece ``stops_at``; the other one is sound."""
    town = town_of(WHOLE, WHOLE)

    def heard(sender: Person, payload: Message) -> bool:
        if isinstance(payload, Agreement) and len(town.watch.agreements) == 1:
            for seller in town.sellers:
                if seller.account == payload.provider:
                    seller.worker = Worker(pieces=PIECES, fails_at=stops_at)
        return True

    town.on_send = heard
    town.start(request())
    town.run()
    return town


@pytest.mark.parametrize("stops_at", [2, 3, 4])
def test_next_provider_goes_on_behind_the_last_verified_chunk(stops_at: int) -> None:
    town = first_fails(stops_at)
    shown = texts(town)
    assert b"".join(text.payload for text in shown) == WHOLE.output()
    assert [text.index for text in shown] == [1, 2, 3, 4]
    assert [text.output_units for text in shown] == [10, 20, 30, 35]
    before = 10 * (stops_at - 1)
    [(first, one), (_, other)] = agreements(town)
    assert other.continues is not None
    assert (other.continues.job, other.continues.output_units) == (first, before)
    assert (other.output_units_max, other.chunk_units) == (40 - before, one.chunk_units)
    [done] = [event for event in town.buyer.events if isinstance(event, JobFinished)]
    mine, theirs = amount_due(PRICES, 10, before), amount_due(PRICES, 10 + before, 35 - before)
    assert done.paid == mine + theirs
    assert (done.output_units, done.chunks, done.receipt.output_units) == (35, 5, 35 - before)
    by_account = {seller.account: paid_to(town, seller) for seller in town.sellers}
    assert (by_account[one.provider], by_account[other.provider]) == (mine, theirs)
    assert town.buyer.buyer.books.debtors() == ()
