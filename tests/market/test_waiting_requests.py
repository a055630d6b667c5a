"""What waits in memory when a buyer's process ends: each request has a reason afterwards, failures are remembered."""

import pytest

from protocol.market.backoff import Backoff
from protocol.market.events import JobFinished
from protocol.market.policies import BuyerPolicy
from protocol.market.records import BACKOFF_KEY, WAITING_PREFIX, JobRecord
from protocol.market.replication import Replication
from protocol.messages.effects import Now, Put, Table
from protocol.messages.market import Chunk, FaultKind
from protocol.primitives.codec import decode
from protocol.primitives.units import AccountId, DurationMs, MonotonicMs, TimestampMs
from tests.market.town import Town, Worker, request

RESTARTED = "this node restarted while"


def waiting_rows(town: Town) -> list[bytes]:
    return [key for table, key in town.buyer.disk if table is Table.STANDING and key.startswith(WAITING_PREFIX)]


def jobs_of(town: Town) -> list[JobRecord]:
    return [decode(row, JobRecord) for row in town.buyer.rows(Table.JOB)]


def waiting_in(state: str) -> Town:
    town = Town()
    wanted = request(choose_ms=DurationMs(60_000))
    match state:
        case "choosing":
            town.buyer.book = type(town.buyer.book)()
            town.buyer.buyer._core.order_book = town.buyer.book
        case "connecting":
            town.unreachable.add(town.seller.node)
        case "auctioning":
            wanted = request(auction_ms=DurationMs(2_000))
        case _:
            assert state == "opening channel"
            town.link(town.buyer, town.seller)
    town.start(wanted)
    while [choice for choice in town.busy() if choice != town.decide]:
        town.busy()[0]()
    [record] = town.buyer.buyer.jobs()
    assert record.state == state
    return town


@pytest.mark.parametrize("state", ["auctioning", "choosing", "connecting", "opening channel"])
def test_a_request_that_waited_when_the_process_ended_has_ended_with_a_reason(state: str) -> None:
    town = waiting_in(state)
    town.crash(town.buyer)
    assert town.buyer.buyer.jobs() == ()
    [ended] = jobs_of(town)
    assert (ended.request, ended.state, ended.fault) == (request().request, "failed", FaultKind.NETWORK)
    assert ended.reason == f"{RESTARTED} the request was {state}"
    assert (ended.history[0].cause, ended.history[-1].cause) == ("requested", ended.reason)
    assert waiting_rows(town) == []
    before = dict(town.buyer.disk)
    town.crash(town.buyer)
    assert {key: row for key, row in town.buyer.disk.items() if key[0] is Table.JOB} == {
        key: row for key, row in before.items() if key[0] is Table.JOB
    }


def test_a_request_that_waits_for_its_second_provider_is_told_beside_its_first_attempt() -> None:
    town = Town()
    town.seller.worker = Worker(fails_at=1)
    town.start(request(choose_ms=DurationMs(60_000)))
    town.run()
    assert [record.state for record in town.buyer.buyer.jobs()] == ["choosing"]
    town.crash(town.buyer)
    first, second = sorted(jobs_of(town), key=lambda record: any(record.job), reverse=True)
    assert (first.state, first.fault) == ("failed", FaultKind.PROVIDER)
    assert (second.state, second.reason) == ("failed", f"{RESTARTED} the request was choosing")
    assert second.attempt == 1


def test_a_job_that_waits_for_nothing_writes_no_such_row_and_one_that_waited_leaves_none() -> None:
    town = Town()
    put: list[bytes] = []
    do_one = town._one

    def noted(person: object, effect: object) -> None:
        if isinstance(effect, Put) and effect.table is Table.STANDING:
            put.append(effect.key)
        do_one(person, effect)  # type: ignore[arg-type]

    town._one = noted  # type: ignore[method-assign]
    town.start(request(1))
    town.run()
    assert put, "the first one needed a link and a channel"
    assert waiting_rows(town) == []
    put.clear()
    town.start(request(2))
    town.run()
    assert len(town.buyer.told(JobFinished)) == 2
    assert put == []


def test_a_request_that_waited_and_then_got_an_agreement_is_told_once_after_a_restart() -> None:
    town = Town()
    town.on_send = lambda sender, payload: not isinstance(payload, Chunk)
    town.start(request())
    town.run()
    assert [record.state for record in town.buyer.buyer.jobs()] == ["prefilling"]
    town.crash(town.buyer)
    [ended] = jobs_of(town)
    assert any(ended.job)
    assert ended.reason == "this node restarted while the job was under way"


# Groups


def test_after_a_restart_a_group_and_each_of_its_members_have_ended_and_name_the_group() -> None:
    town = Town(sellers=2)
    town.on_send = lambda sender, payload: not isinstance(payload, Chunk)
    group = Replication(town.buyer.buyer, town.buyer.book)
    wanted = request(replication=2, replicas_min=2)
    town.do(town.buyer, group.follow(group.start(wanted, town.now), town.now))
    town.run()
    assert len(town.watch.agreements) == 2
    town.crash(town.buyer)
    members = [record for record in jobs_of(town) if any(record.job)]
    assert len(members) == 2
    for member in members:
        assert member.state == "failed"
        assert f"replica of {wanted.request.hex()}" in member.reason
    [whole] = [record for record in jobs_of(town) if record.request == wanted.request]
    assert (whole.state, whole.reason) == ("failed", f"{RESTARTED} the request was with its replicas")


def test_a_group_that_ends_leaves_no_row_of_waiting() -> None:
    town = Town(sellers=2)
    group = Replication(town.buyer.buyer, town.buyer.book)
    town.do(town.buyer, group.follow(group.start(request(replication=2), town.now), town.now))
    assert len(waiting_rows(town)) == 3
    do = town.do
    town.do = lambda person, effects: do(  # type: ignore[method-assign]
        person, group.follow(effects, town.now) if person is town.buyer else effects
    )
    town.run()
    assert waiting_rows(town) == []


# Failures


def test_who_failed_ranks_last_after_a_restart_too_and_no_longer_than_without_one() -> None:
    town = Town(sellers=2)
    town.sellers[0].worker = town.sellers[1].worker = Worker(fails_at=1)
    town.start(request())
    town.run()
    failed = town.buyer.buyer.demoted(town.now)
    assert len(failed) == 2
    town.wait(1_000)
    town.crash(town.buyer)
    assert town.buyer.buyer.demoted(town.now) == failed
    town.wait(BuyerPolicy().demoted_ms)
    assert town.buyer.buyer.demoted(town.now) == ()


def at(monotonic_ms: int, wall_ms: int) -> Now:
    return Now(MonotonicMs(monotonic_ms), TimestampMs(wall_ms))


FAILS, ALWAYS_DISPUTES = AccountId(b"f" * 32), AccountId(b"d" * 32)


def row_of(backoff: Backoff, now: Now) -> bytes:
    [put] = backoff.unsaved(now)
    assert isinstance(put, Put)
    assert (put.table, put.key) == (Table.STANDING, BACKOFF_KEY)
    return put.value


def test_failures_in_a_row_and_dropped_claims_are_taken_up_with_their_counts() -> None:
    policy = BuyerPolicy()
    old = Backoff(policy)
    for _ in range(3):
        old.failed(FAILS, at(5_000, 1_000_000))
    assert old.forgive(ALWAYS_DISPUTES, at(5_000, 1_000_000))
    value = row_of(old, at(5_000, 1_000_000))
    assert old.unsaved(at(6_000, 1_001_000)) == []
    new = Backoff(policy)
    now = at(100, 1_002_000)  # another life: its monotonic clock began anew
    new.restore(value, now)
    assert new.demoted(now) == (FAILS,)
    assert not new.forgive(ALWAYS_DISPUTES, now), "a restart is no new chance"
    later = at(100 + policy.demoted_ms, 1_002_000 + policy.demoted_ms)
    assert new.forgive(ALWAYS_DISPUTES, later)
    assert not new.forgive(ALWAYS_DISPUTES, at(later.monotonic_ms + policy.demoted_ms, 0)), "and the next costs twice"
    new.failed(FAILS, now)
    assert new.demoted(at(100 + 7 * policy.demoted_ms, 0)) == (FAILS,), "it was the fourth in a row"


def test_a_clock_that_was_set_back_keeps_nobody_out_for_longer_than_a_failure_does() -> None:
    policy = BuyerPolicy()
    old = Backoff(policy)
    old.failed(FAILS, at(0, 10**12))
    new = Backoff(policy)
    new.restore(row_of(old, at(0, 10**12)), at(0, 1_000))
    assert new.demoted(at(policy.demoted_ms_max, 0)) == ()


def test_a_good_job_is_remembered_like_a_failure() -> None:
    backoff, now = Backoff(BuyerPolicy()), at(1_000, 1_000)
    backoff.succeeded(FAILS)
    assert backoff.unsaved(now) == [], "a provider that never failed costs no row"
    backoff.failed(FAILS, now)
    row_of(backoff, now)
    backoff.succeeded(FAILS)
    restored = Backoff(BuyerPolicy())
    restored.restore(row_of(backoff, now), now)
    assert restored.demoted(now) == ()
