"""A channel that has ended leaves no rows but its history; a debt on it ranks a provider last for a while."""

from msgspec.structs import replace

from protocol.market.backoff import OWING_MS
from protocol.market.buyer_channels import ENDED_MS, LOOK_MS
from protocol.market.events import JobFinished
from protocol.messages.effects import Table
from protocol.primitives.units import DurationMs
from tests.market.town import Person, Town, Worker, request


def end_channels(town: Town) -> None:
    town.ledger.channels.clear()


def rank_last(town: Town) -> tuple[bytes, ...]:
    """Whom the next request would rank behind others, a failure's own time being over."""
    [job] = list(town.buyer.buyer._core.requests.values())
    return town.buyer.buyer._opening.want(job, town.now).demoted


def wait_for_offers(town: Town, number: int) -> None:
    """A request that no offer would do: it asks the order book, and waits."""
    town.start(request(number, region="nowhere", choose_ms=600_000, total_ms=600_000))


def in_debt() -> tuple[Town, Person]:
    """One of two providers took the price of an input and died; that channel has ended."""
    town = Town(sellers=2)
    town.sellers[0].worker = Worker(fails_at=1)
    town.start(request(1, provider=town.sellers[0].account))
    town.run()
    assert town.buyer.buyer.books.debtors() == (town.sellers[0].account,)
    end_channels(town)
    return town, town.sellers[0]


def test_rows_of_an_ended_channel_go_when_it_has_been_gone_for_a_while_and_not_before() -> None:
    town = Town()
    town.start(request(1))
    town.run()
    assert len(town.buyer.rows(Table.BUYER_LANE)) == 1
    kept = {table: len(town.buyer.rows(table)) for table in (Table.RECEIPT, Table.RECEIPT_LANE, Table.JOB)}
    end_channels(town)
    town.wait(ENDED_MS)
    assert len(town.buyer.rows(Table.BUYER_LANE)) == 1
    town.wait(2 * LOOK_MS)
    assert town.buyer.rows(Table.BUYER_LANE) == []
    assert town.buyer.buyer.books.lanes() == ()
    assert kept == {table: len(town.buyer.rows(table)) for table in kept}
    town.crash(town.buyer)
    town.wait(1)
    town.publish()
    town.start(request(2))
    town.run()
    assert len(town.buyer.told(JobFinished)) == 2


def test_a_channel_that_the_ledger_only_lacked_for_a_moment_keeps_its_rows() -> None:
    town = Town()
    town.start(request(1))
    town.run()
    channels = dict(town.ledger.channels)
    for _ in range(3):
        end_channels(town)
        town.wait(ENDED_MS - 2 * LOOK_MS)
        town.ledger.channels.update(channels)
        town.wait(2 * LOOK_MS)
    assert len(town.buyer.buyer.books.lanes()) == 1


def test_the_lane_of_a_live_job_stays_whatever_the_ledger_says() -> None:
    town = Town()
    town.seller.seller_policy = replace(town.seller.seller_policy, stall_ms_max=DurationMs(2 * ENDED_MS))
    town.crash(town.seller)
    town.seller.worker = Worker(silent_from=1)
    town.start(request(1, stall_ms=2 * ENDED_MS, total_ms=4 * ENDED_MS))
    town.run()
    end_channels(town)
    town.wait(ENDED_MS + 2 * LOOK_MS)
    [lane] = town.buyer.buyer.books.lanes()
    assert lane.job is not None


def test_a_debt_on_an_ended_channel_ranks_a_provider_last_for_thirty_days_of_ledger_time_and_no_longer() -> None:
    town, debtor = in_debt()
    town.wait(ENDED_MS + 2 * LOOK_MS)
    assert town.buyer.rows(Table.BUYER_LANE) == []
    assert town.buyer.buyer.books.debtors() == ()
    wait_for_offers(town, 2)
    assert rank_last(town) == (debtor.account,)
    town.crash(town.buyer)
    wait_for_offers(town, 3)
    assert rank_last(town) == (debtor.account,), "after a restart too"
    town.ledger.time = OWING_MS - 1
    assert rank_last(town) == (debtor.account,)
    town.ledger.time = OWING_MS
    assert rank_last(town) == ()
    town.wait(1_000)
    town.ledger.time = 0
    town.crash(town.buyer)
    wait_for_offers(town, 4)
    assert rank_last(town) == (), "the row is gone from the disk"
