"""The score: what takes it up and down, what wash trading costs, and what newcomers get."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from node.cli.genesis import PRODUCTION_PARAMETERS as PARAMETERS
from protocol.engine.ledger_facts import LedgerFacts
from protocol.ledger.channels import redeem_fee
from protocol.ledger.track_rows import DEALINGS_MAX
from protocol.market.reputation import (
    AGE_FULL_MS,
    COUNTERPARTIES_FULL,
    COUNTERPARTY_VOLUME_FULL,
    EXPLORATION_PERMILLE,
    FAILURE_WEIGHT,
    NEWCOMER_SCORE_MILLI,
    NOTHING_KNOWN,
    SCORE_MAX,
    Dealing,
    Side,
    SideRecord,
    TrackRecord,
    explores,
    is_newcomer,
    ranking_score_milli,
    score,
    score_milli,
)
from protocol.messages.transactions import ChannelClose, ChannelRedeem
from protocol.primitives.hashing import content_hash
from protocol.primitives.units import AMOUNT_MAX, CREDIT, AccountId, Amount, Hash, LedgerTimeMs
from protocol.settlement.blame import FAILED_VOLUME_MIN, PRIOR_VOLUME, STRANGERS_SHARE, backed, blamed
from protocol.settlement.fading import HALF_LIFE_MS
from tests.ledger.world import FEE, Ledger, account_of, make_genesis

NOW = LedgerTimeMs(10 * HALF_LIFE_MS)
YOUNG = LedgerTimeMs(0)
ME = account_of("provider")


def side(volumes: Sequence[int], at: int = NOW, first_at: int = NOW - AGE_FULL_MS, failed: int = 0) -> SideRecord:
    """Somebody who settled these volumes, each with another counterparty."""
    dealings = tuple(
        Dealing(AccountId(number.to_bytes(32, "big")), Amount(volume), LedgerTimeMs(at))
        for number, volume in enumerate(volumes)
    )
    return SideRecord(
        jobs=len(volumes),
        volume=Amount(sum(volumes)),
        recent_volume=Amount(sum(volumes)),
        first_at=LedgerTimeMs(first_at),
        last_at=LedgerTimeMs(at),
        dealings=dealings,
        failures=int(failed > 0),
        failed_volume=Amount(failed),
        failed_at=LedgerTimeMs(at),
    )


def provider(facts: SideRecord) -> TrackRecord:
    return TrackRecord(ME, as_provider=facts)


def points(facts: SideRecord) -> int:
    return score_milli(provider(facts), NOW)


FULL = [COUNTERPARTY_VOLUME_FULL] * COUNTERPARTIES_FULL


def test_an_account_that_nothing_is_known_of_stands_in_the_middle_in_both_roles() -> None:
    for role in Side:
        assert score_milli(TrackRecord(ME), NOW, role) == NEWCOMER_SCORE_MILLI
        assert is_newcomer(TrackRecord(ME), NOW, role)


def test_sixteen_counterparties_of_full_volume_for_a_month_make_the_best_score_and_more_make_none_better() -> None:
    assert points(side(FULL)) == SCORE_MAX
    assert points(side([AMOUNT_MAX // 64] * DEALINGS_MAX)) == SCORE_MAX
    assert points(side(FULL[1:])) < SCORE_MAX
    assert points(side(FULL, first_at=NOW)) == 750  # half of the experience counts at first


def test_one_counterparty_adds_a_sixteenth_however_much_it_buys() -> None:
    rich, richest = points(side([COUNTERPARTY_VOLUME_FULL])), points(side([AMOUNT_MAX]))
    assert rich == richest == NEWCOMER_SCORE_MILLI + (SCORE_MAX - NEWCOMER_SCORE_MILLI) // COUNTERPARTIES_FULL


def test_jobs_are_shown_and_never_counted() -> None:
    facts = side([CREDIT, CREDIT])
    assert points(replace(facts, jobs=2**60)) == points(facts)


def test_all_that_was_earned_fades_and_so_do_failures() -> None:
    later = LedgerTimeMs(NOW + 2 * HALF_LIFE_MS)
    good, bad = provider(side([Amount(CREDIT)] * 4)), provider(side([], failed=CREDIT))
    assert NEWCOMER_SCORE_MILLI < score_milli(good, later) < score_milli(good, NOW)
    assert score_milli(bad, NOW) < score_milli(bad, later) < NEWCOMER_SCORE_MILLI
    forgotten = LedgerTimeMs(NOW + 64 * HALF_LIFE_MS)
    assert score_milli(good, forgotten) == score_milli(bad, forgotten) == NEWCOMER_SCORE_MILLI


@pytest.mark.parametrize(
    ("failed_of_a_hundred", "reliability"),
    [(0, 1000), (1, 953), (10, 667), (50, 286), (100, 167)],
)
def test_what_share_of_its_work_failed_decides_how_much_of_a_score_is_left(
    failed_of_a_hundred: int, reliability: int
) -> None:
    settled, failed = CREDIT * (100 - failed_of_a_hundred), CREDIT * failed_of_a_hundred
    facts = side([settled], failed=failed) if settled else side([], failed=failed)
    exact = SCORE_MAX * (PRIOR_VOLUME + settled) // (PRIOR_VOLUME + settled + FAILURE_WEIGHT * failed)
    assert score(facts, NOW).reliability == exact
    if 0 < failed_of_a_hundred < 100:
        assert abs(exact - SCORE_MAX * settled // (settled + FAILURE_WEIGHT * failed)) <= 1
    assert exact == reliability or abs(exact - reliability) < 170


def test_large_and_small_providers_that_fail_as_often_lose_the_same() -> None:
    small, large = side([CREDIT], failed=CREDIT // 10), side([1_000 * CREDIT], failed=100 * CREDIT)
    assert abs(score(small, NOW).reliability - score(large, NOW).reliability) < 20


amounts = st.integers(0, 100 * CREDIT)


@given(st.lists(amounts, max_size=DEALINGS_MAX), amounts, st.integers(0, AGE_FULL_MS * 2))
def test_every_score_is_within_bounds_and_a_failure_never_helps(volumes: list[int], failed: int, age: int) -> None:
    facts = side(volumes, first_at=NOW - age, failed=failed)
    assert 0 <= points(facts) <= SCORE_MAX
    assert points(facts) <= points(replace(facts, failed_volume=Amount(0)))
    assert points(replace(facts, failed_volume=Amount(failed + CREDIT))) <= points(facts)
    for number, volume in enumerate(volumes):
        more = replace(facts, dealings=side([*volumes[:number], volume + CREDIT, *volumes[number + 1 :]]).dealings)
        assert points(more) >= points(facts)


# Newcomers


def test_an_exploring_choice_puts_newcomers_first_and_about_one_choice_in_twenty_explores() -> None:
    draws = [Hash(content_hash(number.to_bytes(4, "big"))) for number in range(20_000)]
    share = sum(map(explores, draws)) * 1000 / len(draws)
    assert abs(share - EXPLORATION_PERMILLE) < 5
    exploring = next(draw for draw in draws if explores(draw))
    other = next(draw for draw in draws if not explores(draw))
    newcomer, old = provider(NOTHING_KNOWN), provider(side(FULL[:12]))
    assert ranking_score_milli(newcomer, NOW, exploring) == SCORE_MAX > ranking_score_milli(old, NOW, exploring)
    assert ranking_score_milli(newcomer, NOW, other) == NEWCOMER_SCORE_MILLI


def test_who_fails_at_first_is_not_explored_any_more_and_stands_below_who_has_not_begun() -> None:
    failed = provider(side([], failed=20_000))
    assert not is_newcomer(failed, NOW)
    assert score_milli(failed, NOW) < NEWCOMER_SCORE_MILLI


# Wash trading: somebody who buys from itself under invented names


def washing_cost(names: int, volume: int) -> int:
    """Base units that a full round costs: money for each name, its channel, the redeem and the close."""
    fee = PARAMETERS.fee_min
    return fee + names * (3 * fee + redeem_fee(PARAMETERS, Amount(volume)))


def cheapest(wanted: int, first_at: int) -> int:
    """The least that so many points above a newcomer's cost in one round, names and volumes freely chosen."""
    found = []
    for names in range(1, DEALINGS_MAX + 1):
        low, high = 0, COUNTERPARTY_VOLUME_FULL + 1
        while low < high:
            middle = (low + high) // 2
            if points(side([middle] * names, first_at=first_at)) >= NEWCOMER_SCORE_MILLI + wanted:
                high = middle
            else:
                low = middle + 1
        if low <= COUNTERPARTY_VOLUME_FULL:
            found.append(washing_cost(names, low))
    return min(found)


@pytest.mark.parametrize(
    ("wanted", "after_a_month", "at_once"),
    [(50, 20_900, 68_900), (100, 68_900, 260_900), (250, 404_900, 1_604_900), (500, 1_604_900, None)],
)
def test_wash_trading_costs_the_redeem_fee_of_many_names_and_again_for_every_half_life(
    wanted: int, after_a_month: int, at_once: int | None
) -> None:
    """With the numbers of a new network's genesis; what is bought fades to a half in thirty days."""
    assert cheapest(wanted, NOW - AGE_FULL_MS) == after_a_month
    if at_once is not None:
        assert cheapest(wanted, NOW) == at_once
    else:
        assert points(side([COUNTERPARTY_VOLUME_FULL] * DEALINGS_MAX, first_at=NOW)) == 750


def test_names_beyond_those_that_the_ledger_keeps_and_volume_beyond_the_cap_buy_nothing() -> None:
    assert points(side([COUNTERPARTY_VOLUME_FULL * 100] * COUNTERPARTIES_FULL)) == points(side(FULL))


def test_who_washes_on_a_real_ledger_has_paid_what_the_bound_says() -> None:
    """Two names; every account and fee of the ring counted, the volume itself comes back."""
    ledger = Ledger(make_genesis(balance=10_000_000))
    ring = ("bob", "alice", "carol")
    before = sum(ledger.balance(name) for name in ring)
    pool = ledger.state.fee_pool
    for name in ring[1:]:
        channel = ledger.open_channel(name, "bob", 500_000)
        voucher = ledger.voucher(channel, name, "bob", 1, 500_000, receipts_root=b"r" * 32, receipts_count=10_000)
        ledger.act("bob", ChannelRedeem(channel, (voucher,)))
        ledger.act("bob", ChannelClose(channel))
    paid = before - sum(ledger.balance(name) for name in ring)
    assert paid == 2 * (3 * FEE + redeem_fee(ledger.state.parameters, Amount(500_000)))
    assert paid == ledger.state.fee_pool - pool
    record = LedgerFacts(ledger.state).track_record(account_of("bob"))
    assert (record.as_provider.jobs, record.as_provider.volume) == (20_000, 1_000_000)
    gained = score_milli(record, ledger.state.ledger_time_ms) - NEWCOMER_SCORE_MILLI
    alone = score(side([500_000] * 2, first_at=NOW), NOW).total - NEWCOMER_SCORE_MILLI
    assert gained == alone == 2


# Cheap bad marks: somebody who makes a rival fail and reports it


HONEST = [10 * CREDIT] * 12
"""What an honest provider has redeemed from twelve buyers: 120 credits."""
ALL_THE_MONEY = 10_000 * CREDIT
REPORT_COST = 4 * PARAMETERS.fee_min


def marked_down(paid: int, reports: int = 64, stake: int = ALL_THE_MONEY) -> int:
    """The honest provider's score once one more buyer has paid it ``paid`` and reported that many huge failures."""
    volumes = [*HONEST, paid] if paid else HONEST
    settled, failed = sum(volumes), 0
    _, backing = backed(Amount(paid), 0)
    for _ in range(reports):
        counted, backing = blamed(Amount(stake), backing, settled, failed)
        failed += counted
    return points(side(volumes, failed=failed))


def cheapest_mark(wanted: int) -> int | None:
    """The least that one buyer has to pay its rival, for work, to take so many points; ``None``: no sum does it."""
    clean = points(side(HONEST))
    if marked_down(ALL_THE_MONEY) > clean - wanted:
        return None
    low, high = 0, ALL_THE_MONEY
    while low < high:
        middle = (low + high) // 2
        if marked_down(middle) <= clean - wanted:
            high = middle
        else:
            low = middle + 1
    return low


@pytest.mark.parametrize(("wanted", "credits_paid"), [(50, 10), (100, 25), (150, 49), (300, 569), (340, None)])
def test_to_take_points_from_an_honest_provider_its_rival_has_to_pay_it_that_much_for_work(
    wanted: int, credits_paid: int | None
) -> None:
    """A provider of 120 settled credits and 618 points. Credits that the attacker pays it, fees left out."""
    assert points(side(HONEST)) == 618
    cost = cheapest_mark(wanted)
    assert (cost // CREDIT if cost is not None else None) == credits_paid


def test_reports_of_strangers_take_a_tenth_of_a_score_and_for_that_a_fee_for_each_thousand_of_volume() -> None:
    clean, least = points(side(HONEST)), points(side(HONEST)) * 10 // 11
    assert marked_down(0, reports=100_000, stake=CREDIT) in (least - 1, least, least + 1)
    reports = sum(HONEST) // STRANGERS_SHARE // FAILED_VOLUME_MIN
    assert reports * REPORT_COST > CREDIT * 9 // 10  # what these 56 points cost
    assert marked_down(0, reports=16) > clean - 2


def test_strangers_alone_take_no_newcomer_out_of_the_exploring_share() -> None:
    failed = 0
    for _ in range(100):
        failed += blamed(Amount(CREDIT), 0, 0, failed).counted
    assert is_newcomer(provider(side([], failed=failed)), NOW)


def test_who_fails_those_that_pay_it_is_marked_down_all_the_same() -> None:
    """Twenty buyers pay five credits each and report a failure in two jobs of each three."""
    settled = failed = 0
    for _ in range(20):
        settled += 5 * CREDIT
        counted, _ = blamed(Amount(10 * CREDIT), backed(Amount(5 * CREDIT), 0).backing, settled, failed)
        failed += counted
    facts = side([5 * CREDIT] * 20, failed=failed)
    assert score(facts, NOW).reliability < 450
    assert points(facts) < points(side([5 * CREDIT] * 20)) * 45 // 100
