"""Tables of jobs stay bounded, and rows of an older version are taken up."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from node.runtime.housekeeping import prune_jobs
from node.store.connection import open_database
from node.store.database import Store
from node.store.schema import STORE_SCHEMA, Schema, step_7_timelines, step_8_work_of_a_lane, step_11_written_off
from protocol.market.records import BuyerLane, JobRecord, SellerLane, attempt_key
from protocol.messages.effects import Put, Table
from protocol.primitives.codec import decode, encode
from protocol.primitives.units import Hash, MessageId
from tests.ledger.world import make_genesis
from tests.market.test_timeline import BOUGHT, SOLD
from tests.market.town import Town, request


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "store.sqlite", make_genesis())
    yield opened
    opened.close()


def bought(number: int, state: str = "done") -> JobRecord:
    name = number.to_bytes(32, "big")
    return replace(BOUGHT, job=MessageId(name), request=Hash(name[::-1]), state=state)


def keep(store: Store, record: JobRecord) -> None:
    store.commit(
        [
            Put(Table.JOB, record.job, encode(record)),
            Put(Table.JOB_STATEMENT, record.job, b"signed"),
            Put(Table.JOB_OF_REQUEST, attempt_key(record.request, record.attempt), record.job),
        ]
    )


def test_the_jobs_written_first_go_with_all_that_belongs_to_them(store: Store) -> None:
    for number in (5, 3, 9, 7):
        keep(store, bought(number))
    keep(store, bought(3))  # written again, as at a job's end: no younger for it
    assert prune_jobs(store, 2) == 2
    assert {decode(row, JobRecord).job[-1] for row in store.newest(Table.JOB, 9)} == {7, 9}
    assert [store.count(table) for table in (Table.JOB, Table.JOB_STATEMENT, Table.JOB_OF_REQUEST)] == [2, 2, 2]
    assert prune_jobs(store, 2) == 0


def test_a_job_under_way_is_never_given_up(store: Store) -> None:
    keep(store, bought(1, state="streaming"))
    for number in (2, 3):
        keep(store, bought(number))
    assert prune_jobs(store, 1) == 1
    assert store.get(Table.JOB, bought(1).job) is not None


def test_rows_of_the_other_side_and_of_requests_without_a_job_go_too(store: Store) -> None:
    store.commit([Put(Table.JOB, SOLD.job, encode(SOLD))])
    lost = replace(bought(4, state="failed"), job=MessageId(bytes(32)))
    store.commit([Put(Table.JOB, lost.request, encode(lost))])
    assert prune_jobs(store, 0) == 2
    assert store.count(Table.JOB) == 0


def test_newest_first_and_oldest_first_by_when_they_were_first_written(store: Store) -> None:
    for number in (2, 1, 3):
        store.commit([Put(Table.STANDING, bytes((number,)), bytes((number,)))])
    assert store.newest(Table.STANDING, 2) == [b"\3", b"\1"]
    assert store.oldest(Table.STANDING, 2) == [b"\2", b"\1"]


def test_jobs_of_the_version_before_are_taken_up_with_what_they_did_not_tell_left_empty(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    steps = STORE_SCHEMA.steps
    before = Schema("store", steps[: steps.index(step_7_timelines)])
    database = open_database(path, before, exclusive=False)
    fields = msgspec.msgpack.decode(encode(BOUGHT))[:-5]
    fields[-1] = [entry[:3] for entry in fields[-1]]
    with database.conn:
        database.execute("INSERT INTO job VALUES (?, ?)", (BOUGHT.job, msgspec.msgpack.encode(fields)))
    database.close()
    opened = Store.open(path, make_genesis())
    row = opened.get(Table.JOB, BOUGHT.job)
    opened.close()
    assert row is not None
    record = decode(row, JobRecord)
    assert (record.state, record.paid, record.model_name, record.node) == ("done", BOUGHT.paid, "", None)
    assert [entry.cause for entry in record.history] == [entry.cause for entry in BOUGHT.history]


def test_lanes_of_the_version_before_are_taken_up(tmp_path: Path) -> None:
    """A node that could not read its lanes would not start, and its vouchers would stay unredeemed."""
    town = Town()
    town.start(request())
    town.run()
    [bought_lane], [sold_lane] = town.buyer.rows(Table.BUYER_LANE), town.seller.rows(Table.SELLER_LANE)
    path = tmp_path / "old.sqlite"
    steps = STORE_SCHEMA.steps
    before = Schema("store", steps[: steps.index(step_8_work_of_a_lane)])
    database = open_database(path, before, exclusive=False)
    with database.conn:
        for name, row, fields in (("buyer_lane", bought_lane, 15), ("seller_lane", sold_lane, 18)):
            newer = msgspec.msgpack.decode(row)[:fields]
            for key, value in ((b"old", newer[:-2]), (b"newer", newer)):
                database.execute(f"INSERT INTO {name} VALUES (?, ?)", (key, msgspec.msgpack.encode(value)))
    database.close()
    opened = Store.open(path, make_genesis())
    bought_lanes = [decode(row, BuyerLane) for _, row in opened.load_table(Table.BUYER_LANE)]
    sold_lanes = [decode(row, SellerLane) for _, row in opened.load_table(Table.SELLER_LANE)]
    opened.close()
    assert [(lane.paid, lane.output_units) for lane in bought_lanes] == [(1_450, 25), (1_450, 0)]
    assert [(lane.paid, lane.output_units) for lane in sold_lanes] == [(1_450, 25), (1_450, 0)]
    assert [lane.written_off for lane in sold_lanes] == [0, 0]


def test_lanes_of_the_version_before_that_wait_in_the_journal_are_taken_up(tmp_path: Path) -> None:
    """That program was killed: what it had promised last is in no table yet."""
    town = Town()
    town.start(request())
    town.run()
    [bought_lane], [sold_lane] = town.buyer.rows(Table.BUYER_LANE), town.seller.rows(Table.SELLER_LANE)
    path = tmp_path / "store.sqlite"
    before = Store.open(path, make_genesis())
    with before.database.conn:
        before.database.execute("DELETE FROM _sqlite_migrations WHERE name = ?", (step_11_written_off.__name__,))
    for table, row, fields, then in (
        (Table.BUYER_LANE, bought_lane, 15, (1, 0)),
        (Table.SELLER_LANE, sold_lane, 18, (False,)),
    ):
        before.commit([Put(table, b"lane", msgspec.msgpack.encode([*msgspec.msgpack.decode(row)[:fields], *then]))])
    shutil.copytree(tmp_path, tmp_path / "killed", ignore=lambda folder, names: ["killed", "store.sqlite.lock"])
    before.close()
    opened = Store.open(tmp_path / "killed" / "store.sqlite", make_genesis())
    [(_, bought)], [(_, sold)] = opened.load_table(Table.BUYER_LANE), opened.load_table(Table.SELLER_LANE)
    opened.close()
    assert decode(bought, BuyerLane).paid == 1_450
    assert decode(sold, SellerLane).written_off == 0
