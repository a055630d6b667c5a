"""The input's price given with the agreement: who has what money, whatever becomes of the job."""

from protocol.market.events import JobFinished
from protocol.market.records import BuyerLane, SellerLane, buyer_debt, seller_debt
from protocol.primitives.codec import Message
from protocol.settlement.pricing import amount_due
from tests.market.town import PRICES, Person, Town, Worker, request

PREFILL = amount_due(PRICES, 10, 0)
WHOLE = amount_due(PRICES, 10, 25)


def books_of(town: Town) -> tuple[BuyerLane, SellerLane]:
    [bought] = town.buyer.buyer.books.lanes()
    [channel] = town.seller.seller.books.channels()
    [sold] = town.seller.seller.books.lanes_of(channel)
    return bought, sold


def acquainted(town: Town) -> Town:
    """After one job that was paid as it went."""
    town.start(request(1, input_units_certain=True))
    town.run()
    assert len(town.buyer.told(JobFinished)) == 1
    town.buyer.events.clear()
    return town


def begun(town: Town, number: int = 2) -> None:
    town.start(request(number, input_units_certain=True))


def test_who_has_delivered_before_is_paid_ahead_and_answers_at_once() -> None:
    town, seen = acquainted(Town()), list[str]()

    def watch(person: Person, statement: Message) -> bool:
        seen.append(f"{person.name.split()[0]} {type(statement).__name__}")
        return True

    town.on_send = watch
    town.seller.worker = Worker(pieces=(5,))
    begun(town)
    town.run()
    [finished] = town.buyer.told(JobFinished)
    assert isinstance(finished, JobFinished)
    assert finished.paid == amount_due(PRICES, 10, 5) == finished.receipt.amount
    bought, sold = books_of(town)
    assert bought.position == sold.position
    assert bought.position.cumulative == WHOLE + finished.paid
    assert (buyer_debt(bought), seller_debt(sold)) == (0, 0)
    assert seen == [
        "buyer Bid",
        "buyer Agreement",
        "buyer Voucher",
        "seller Acceptance",
        "seller Chunk",
        "seller Chunk",
        "seller Receipt",
        "buyer Voucher",
    ]
