"""Track records: only what both parties signed counts, each job once, in rows that stay bounded."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from protocol.ledger.accounts import TrackDict
from protocol.ledger.blocks import PendingTransaction
from protocol.ledger.errors import (
    FailureNotProviders,
    FailureReported,
    FeeTooLow,
    NotAParty,
    NotATransaction,
    ReportExpired,
    ReportMismatch,
    TransactionInvalid,
)
from protocol.ledger.mempool import Mempool, TransactionRejected
from protocol.ledger.signatures import transaction_checks
from protocol.ledger.snapshots import check_root, cut_rows, joined_rows, judge_rows
from protocol.ledger.state import LedgerState
from protocol.ledger.track_rows import DEALINGS_MAX, NO_TRACK, REPORTED_MAX, Role, Track, track_id, track_row
from protocol.ledger.tracks import REPORT_FEES, REPORT_WINDOW_MS, dealing_with, settled
from protocol.messages.envelope import open_as
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Acceptance, Agreement, Failure, FaultKind
from protocol.messages.transactions import ChannelClose, ChannelRedeem, FailureReport, Transaction
from protocol.primitives.codec import encode
from protocol.primitives.units import AMOUNT_MAX, AccountId, Amount, LedgerTimeMs, MessageId, TimestampMs
from protocol.settlement.blame import BACKED_SHARE, FAILED_VOLUME_MIN, PRIOR_VOLUME, STRANGERS_SHARE
from protocol.settlement.fading import HALF_LIFE_MS, faded
from tests.ledger.deal import Deal, id_of
from tests.ledger.world import FEE, Ledger, account_of, make_genesis, sealed

PRICE = FEE * REPORT_FEES
ROOT = b"r" * 32


def track(ledger: Ledger, role: Role, name: str) -> Track:
    return ledger.state.track(track_id(role, account_of(name)))


def failure_report(
    deal: Deal,
    agreement: Agreement | None = None,
    fault: FaultKind = FaultKind.PROVIDER,
    buyer: str = "alice",
    accepted_by: str = "bob",
    failed_by: str = "bob",
    about: MessageId | None = None,
) -> FailureReport:
    """A report of the deal's job, or of one made otherwise."""
    network = deal.ledger.hash
    agreed = sealed(network, buyer, MessageKind.AGREEMENT, agreement if agreement is not None else deal.terms)
    job = id_of(agreed)
    accepted = sealed(network, accepted_by, MessageKind.ACCEPTANCE, Acceptance(job, TimestampMs(1_700_000_000_100)))
    failed = sealed(network, failed_by, MessageKind.FAILURE, Failure(about or job, fault, 1, "worker died"))
    return FailureReport(agreed, accepted, failed)


def agreed_at(deal: Deal, created_at: int) -> Agreement:
    return replace(deal.terms, created_at=TimestampMs(created_at))


# Settlements


def test_a_redeem_counts_its_receipts_and_its_amount_once_on_both_sides() -> None:
    ledger = Ledger()
    channel = ledger.open_channel("alice", "bob", 10_000)
    first = ledger.voucher(channel, "alice", "bob", 3, 700, receipts_root=ROOT, receipts_count=3)
    ledger.act("bob", ChannelRedeem(channel, (first,)))
    then = ledger.state.ledger_time_ms
    second = ledger.voucher(channel, "alice", "bob", 4, 900, receipts_root=b"s" * 32, receipts_count=4)
    other_lane = ledger.voucher(channel, "alice", "bob", 1, 50, lane=1, receipts_root=ROOT, receipts_count=2)
    ledger.act("bob", ChannelRedeem(channel, (second, other_lane)))
    for role, name, counterparty in ((Role.PROVIDER, "bob", "alice"), (Role.BUYER, "alice", "bob")):
        found = track(ledger, role, name)
        assert (found.jobs, found.volume, found.failures) == (3 + 1 + 2, 950, 0)
        assert (found.first_at, found.last_at) == (then, ledger.state.ledger_time_ms)
        assert [(one.counterparty, one.volume) for one in found.dealings] == [(account_of(counterparty), 950)]
    assert track(ledger, Role.PROVIDER, "alice") == track(ledger, Role.BUYER, "bob") == NO_TRACK


def test_what_the_payer_alone_brings_to_the_ledger_counts_for_nobody() -> None:
    ledger = Ledger()
    channel = ledger.open_channel("alice", "bob", 10_000)
    voucher = ledger.voucher(channel, "alice", "bob", 1, 700, receipts_root=ROOT, receipts_count=9)
    ledger.act("alice", ChannelRedeem(channel, (voucher,)))
    assert track(ledger, Role.PROVIDER, "bob") == track(ledger, Role.BUYER, "alice") == NO_TRACK


def test_a_record_outlives_the_channel_that_it_comes_from() -> None:
    ledger = Ledger()
    channel = ledger.open_channel("alice", "bob", 10_000)
    ledger.act("bob", ChannelRedeem(channel, (ledger.voucher(channel, "alice", "bob", 1, 700),)))
    ledger.act("bob", ChannelClose(channel))
    assert track(ledger, Role.PROVIDER, "bob").volume == 700


def test_of_too_many_counterparties_the_one_of_least_volume_by_now_is_forgotten() -> None:
    found = NO_TRACK
    names = [AccountId(bytes((number,)) * 32) for number in range(1, DEALINGS_MAX + 2)]
    for number, name in enumerate(names[:DEALINGS_MAX]):
        # The first is worth least by now, though it settled most: that was long ago.
        paid, at = (400, 0) if number == 0 else (200 + number, 2 * HALF_LIFE_MS)
        found = settled(found, name, Amount(paid), 1, LedgerTimeMs(at))
    found = settled(found, names[-1], Amount(1), 1, LedgerTimeMs(2 * HALF_LIFE_MS))
    assert [one.counterparty for one in found.dealings] == names[1:]
    assert found.jobs == DEALINGS_MAX + 1
    again = settled(found, names[1], Amount(5), 1, LedgerTimeMs(2 * HALF_LIFE_MS))
    assert len(again.dealings) == DEALINGS_MAX
    assert again.dealings[0].volume == 201 + 5


def test_the_largest_record_is_below_two_kilobytes_and_its_totals_stop_at_their_most() -> None:
    found = NO_TRACK
    for number in range(DEALINGS_MAX + 8):
        name = AccountId(number.to_bytes(32, "big"))
        found = settled(found, name, Amount(AMOUNT_MAX), AMOUNT_MAX, LedgerTimeMs(2**47), -AMOUNT_MAX)
    assert (found.jobs, found.volume, found.recent_volume) == (AMOUNT_MAX, AMOUNT_MAX, AMOUNT_MAX)
    assert len(encode(found)) < 2_048


@given(st.integers(0, AMOUNT_MAX), st.integers(0, 40 * HALF_LIFE_MS), st.integers(0, 40 * HALF_LIFE_MS))
def test_a_weight_never_grows_with_time_and_halves_with_each_half_life(amount: int, early: int, late: int) -> None:
    early, late = sorted((early, late))
    assert 0 <= faded(amount, late) <= faded(amount, early) <= amount
    assert faded(amount, HALF_LIFE_MS) == amount // 2
    assert abs(faded(faded(amount, early), HALF_LIFE_MS) - faded(amount, early + HALF_LIFE_MS)) <= 2


# Reports


def test_a_reported_failure_weighs_on_the_provider_and_is_seen_with_the_buyer_for_four_fees() -> None:
    deal = Deal()
    before = deal.ledger.balance("alice")
    deal.ledger.act("alice", failure_report(deal), PRICE)
    assert deal.ledger.balance("alice") == before - PRICE
    for role, name in ((Role.PROVIDER, "bob"), (Role.BUYER, "alice")):
        found = track(deal.ledger, role, name)
        assert (found.failures, found.failed_volume) == (1, FAILED_VOLUME_MIN)
        assert found.first_at == found.last_at == found.failed_at == deal.ledger.state.ledger_time_ms
        assert (found.jobs, found.volume) == (0, 0)
    assert deal.ledger.state.supply().total == deal.ledger.state.issued


def pay(ledger: Ledger, buyer: str, amount: int) -> None:
    """``buyer`` pays bob for work, and bob redeems it."""
    channel = ledger.open_channel(buyer, "bob", amount)
    ledger.act("bob", ChannelRedeem(channel, (ledger.voucher(channel, buyer, "bob", 1, amount),)))


def report_of(deal: Deal, stake: int, number: int = 0) -> None:
    """Alice reports one more failed job that could have cost so much."""
    prices = replace(deal.terms.prices, request=Amount(stake - 600))
    terms = replace(agreed_at(deal, deal.terms.created_at + number), prices=prices, price_ceiling=Amount(stake))
    deal.ledger.act("alice", failure_report(deal, terms), PRICE)


def blamed_on_bob(ledger: Ledger) -> int:
    return track(ledger, Role.PROVIDER, "bob").failed_volume


def test_a_report_counts_what_the_job_could_have_cost_as_far_as_its_buyer_has_paid_for_four_times_as_much() -> None:
    deal = Deal()
    pay(deal.ledger, "alice", 40_000)
    report_of(deal, 6_600)
    assert blamed_on_bob(deal.ledger) == 6_600
    report_of(deal, 9_000, 1)
    assert blamed_on_bob(deal.ledger) == track(deal.ledger, Role.BUYER, "alice").failed_volume == 40_000 // BACKED_SHARE
    report_of(deal, 1_000_000, 2)
    found = track(deal.ledger, Role.PROVIDER, "bob")
    assert (found.failures, found.failed_volume) == (3, 40_000 // BACKED_SHARE)


def test_a_report_that_nothing_backs_yet_counts_when_its_buyer_s_payments_are_redeemed_and_once() -> None:
    deal = Deal()
    pay(deal.ledger, "carol", 450_000)  # room for ten strangers' reports
    report_of(deal, 8_000)
    assert blamed_on_bob(deal.ledger) == FAILED_VOLUME_MIN
    pay(deal.ledger, "alice", 8_000)
    assert blamed_on_bob(deal.ledger) == FAILED_VOLUME_MIN + 2_000
    pay(deal.ledger, "alice", 80_000)
    assert blamed_on_bob(deal.ledger) == track(deal.ledger, Role.BUYER, "alice").failed_volume == 8_000
    pay(deal.ledger, "alice", 80_000)
    assert blamed_on_bob(deal.ledger) == 8_000
    assert track(deal.ledger, Role.PROVIDER, "bob").failures == 1


def test_strangers_reports_count_little_and_all_of_them_together_no_more_than_their_share() -> None:
    deal = Deal()
    share = PRIOR_VOLUME // STRANGERS_SHARE
    for number in range(3):
        report_of(deal, 5_000_000, number)
        assert blamed_on_bob(deal.ledger) == share == FAILED_VOLUME_MIN
    pay(deal.ledger, "carol", 150_000)
    for number in range(3, 9):
        report_of(deal, 5_000_000, number)
    assert blamed_on_bob(deal.ledger) == (PRIOR_VOLUME + 150_000) // STRANGERS_SHARE
    assert track(deal.ledger, Role.PROVIDER, "bob").failures == 9


def test_failures_of_free_work_are_seen_and_what_backs_reports_fades_like_what_was_paid() -> None:
    deal = Deal()
    pay(deal.ledger, "alice", 40_000)
    bought = track(deal.ledger, Role.BUYER, "alice")
    later = LedgerTimeMs(bought.last_at + HALF_LIFE_MS)
    dealing = dealing_with(bought, account_of("bob"), later)
    assert (dealing.volume, dealing.backing) == (20_000, 20_000 // BACKED_SHARE)
    deal.ledger.act("alice", failure_report(deal, replace(deal.terms, price_ceiling=Amount(0))), PRICE)
    assert blamed_on_bob(deal.ledger) == FAILED_VOLUME_MIN
    report_of(deal, 50_000, 1)
    claimed = dealing_with(track(deal.ledger, Role.BUYER, "alice"), account_of("bob"), later).backing
    assert -20_505 <= claimed <= -20_495  # half of 50,000, less what backed it


reported_and_paid = st.lists(
    st.tuples(st.booleans(), st.integers(1_000, 200_000), st.integers(0, 20_000)), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(reported_and_paid)
def test_whatever_is_reported_and_paid_in_any_order_failures_stay_within_both_bounds(
    steps: list[tuple[bool, int, int]],
) -> None:
    deal = Deal()
    paid = 0
    for number, (pays, amount, after_ms) in enumerate(steps):
        deal.ledger.pass_time(after_ms)
        if pays:
            pay(deal.ledger, "alice", amount)
            paid += amount
        else:
            report_of(deal, amount, number)
        found = track(deal.ledger, Role.PROVIDER, "bob")
        assert found.failed_volume <= paid // BACKED_SHARE + (PRIOR_VOLUME + paid) // STRANGERS_SHARE
        assert found.failures == sum(not pays for pays, _, _ in steps[: number + 1])


def test_a_report_for_the_fee_of_a_transfer_is_refused() -> None:
    deal = Deal()
    with pytest.raises(FeeTooLow):
        deal.ledger.act("alice", failure_report(deal), PRICE - 1)


HOSTILE: dict[str, tuple[str, Callable[[Deal], FailureReport], type[TransactionInvalid]]] = {
    "somebody else's job": ("carol", failure_report, NotAParty),
    "the provider's report of itself": ("bob", failure_report, NotAParty),
    "an agreement that its buyer did not sign": ("alice", lambda d: failure_report(d, buyer="carol"), NotAParty),
    "a job nobody accepted": ("alice", lambda d: failure_report(d, accepted_by="alice"), ReportMismatch),
    "a failure signed by another": ("alice", lambda d: failure_report(d, failed_by="alice"), ReportMismatch),
    "a failure of another job": ("alice", lambda d: failure_report(d, about=MessageId(b"j" * 32)), ReportMismatch),
    "the user's own error": ("alice", lambda d: failure_report(d, fault=FaultKind.USER), FailureNotProviders),
    "no room": ("alice", lambda d: failure_report(d, fault=FaultKind.CAPACITY), FailureNotProviders),
    "a broken link": ("alice", lambda d: failure_report(d, fault=FaultKind.NETWORK), FailureNotProviders),
    "a job of last week": (
        "alice",
        lambda d: failure_report(d, agreed_at(d, d.ledger.state.tip.timestamp_ms - REPORT_WINDOW_MS)),
        ReportExpired,
    ),
    "a receipt for a failure": (
        "alice",
        lambda d: replace(failure_report(d), failure=d.receipt),
        NotATransaction,
    ),
    "no envelope": ("alice", lambda d: replace(failure_report(d), acceptance=b"\xc0"), NotATransaction),
}


@pytest.mark.parametrize(("sender", "make", "expected"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_report_that_proves_nothing_is_refused(
    sender: str, make: Callable[[Deal], FailureReport], expected: type[TransactionInvalid]
) -> None:
    deal = Deal()
    before = deal.ledger.state.tip_hash
    with pytest.raises(expected):
        deal.ledger.act(sender, make(deal), PRICE)
    assert deal.ledger.state.tip_hash == before
    assert track(deal.ledger, Role.PROVIDER, "bob") == NO_TRACK


def test_the_door_checks_every_signature_of_a_report() -> None:
    deal = Deal()
    report = failure_report(deal)
    for forged in ("", "agreement", "acceptance", "failure"):
        changed = {forged: _with_broken_signature(getattr(report, forged))} if forged else {}
        pending = deal.ledger.transaction("alice", replace(report, **changed), fee=PRICE)
        checks = transaction_checks(deal.ledger.hash, pending.envelope_bytes)
        assert len(checks) == 4
        assert all(check.holds() for check in checks) == (not forged)


def _with_broken_signature(envelope_bytes: bytes) -> bytes:
    return envelope_bytes[:-1] + bytes((envelope_bytes[-1] ^ 1,))


def test_a_job_is_reported_once_however_often_it_is_tried() -> None:
    deal = Deal()
    deal.ledger.act("alice", failure_report(deal), PRICE)
    with pytest.raises(FailureReported):
        deal.ledger.act("alice", failure_report(deal), PRICE)
    # Another statement of the same failure is the same failure.
    with pytest.raises(FailureReported):
        deal.ledger.act("alice", replace(failure_report(deal), failure=_said_again(deal)), PRICE)
    assert track(deal.ledger, Role.PROVIDER, "bob").failures == 1


def _said_again(deal: Deal) -> bytes:
    failure = Failure(id_of(deal.agreement), FaultKind.PROVIDER, 2, "died again")
    return sealed(deal.ledger.hash, "bob", MessageKind.FAILURE, failure)


def test_a_report_forgotten_for_room_can_not_be_filed_again() -> None:
    deal = Deal()
    start = deal.terms.created_at
    reports = [failure_report(deal, agreed_at(deal, start + number)) for number in range(REPORTED_MAX + 1)]
    late = failure_report(deal, agreed_at(deal, start - 1))
    for report in reversed(reports):  # in any order
        deal.ledger.act("alice", report, PRICE)
    kept = track(deal.ledger, Role.BUYER, "alice")
    assert len(kept.reported) == REPORTED_MAX
    assert kept.reported_before == start
    for report in (*reports, late):
        with pytest.raises(FailureReported):
            deal.ledger.act("alice", report, PRICE)
    assert track(deal.ledger, Role.PROVIDER, "bob").failures == REPORTED_MAX + 1


def test_a_report_that_expires_while_it_waits_leaves_the_mempool() -> None:
    deal = Deal()
    mempool = Mempool(deal.ledger.genesis)
    mempool.block_applied(deal.ledger.state, ())
    almost = agreed_at(deal, deal.ledger.state.tip.timestamp_ms - REPORT_WINDOW_MS)
    waiting = deal.ledger.transaction("alice", failure_report(deal, almost), fee=PRICE)
    _add(mempool, waiting, deal.ledger.state)
    deal.ledger.pass_time(15_000)
    dropped = mempool.block_applied(deal.ledger.state, ())
    assert [error.code for _, error in dropped] == ["report_expired"]
    with pytest.raises(TransactionRejected, match="report_expired"):
        _add(mempool, waiting, deal.ledger.state)


def _add(mempool: Mempool, pending: PendingTransaction, state: LedgerState) -> None:
    envelope, body = open_as(pending.envelope_bytes, MessageKind.TRANSACTION)
    assert isinstance(body, Transaction)
    mempool.add(pending.envelope_bytes, envelope, body, state)


# Rows


def traded() -> Ledger:
    deal = Deal()
    ledger = deal.ledger
    ledger.act("bob", ChannelRedeem(deal.channel, (deal.voucher,)))
    other = ledger.open_channel("carol", "bob", 10_000)
    ledger.act("bob", ChannelRedeem(other, (ledger.voucher(other, "carol", "bob", 1, 300),)))
    ledger.act("alice", failure_report(deal), PRICE)
    return ledger


def test_records_are_rows_of_the_state_root_and_come_back_from_a_snapshot() -> None:
    ledger = traded()
    chunks = list(cut_rows(ledger.state.rows()))
    rows = list(joined_rows(chunks))
    check_root(ledger.state.tip, rows)
    judge_rows(ledger.genesis, ledger.state.tip, rows)
    restored = LedgerState.from_rows(ledger.genesis, rows, ledger.state.tip)
    assert list(restored.rows()) == list(ledger.state.rows())
    for role, name in ((Role.PROVIDER, "bob"), (Role.BUYER, "alice"), (Role.BUYER, "carol")):
        identity = track_id(role, account_of(name))
        assert restored.track(identity) == ledger.state.track(identity) != NO_TRACK
        key, value = track_row(identity, ledger.state.track(identity))
        assert (key, value) in rows
        assert restored.row(key) == ledger.state.row(key) == value


def test_a_row_that_claims_a_better_record_gives_another_root() -> None:
    ledger = traded()
    identity = track_id(Role.PROVIDER, account_of("bob"))
    key, _ = track_row(identity, NO_TRACK)
    better = track_row(identity, replace(ledger.state.track(identity), failures=0))[1]
    rows = [(found, better if found == key and better is not None else value) for found, value in ledger.state.rows()]
    with pytest.raises(Exception, match="state root"):
        check_root(ledger.state.tip, rows)


names = st.sampled_from(["alice", "bob", "carol", "dave"])
steps = st.lists(st.tuples(names, names, st.integers(0, 5_000), st.integers(0, 3), st.integers(0, 40)), max_size=12)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_whatever_is_settled_the_money_is_all_there_and_both_sides_agree(
    taken: list[tuple[str, str, int, int, int]],
) -> None:
    ledger = Ledger(make_genesis(evidence_ms=10**9))
    paid: dict[tuple[str, str], int] = {}
    jobs: dict[tuple[str, str], int] = {}
    for payer, payee, amount, receipts, days in taken:
        if payer == payee:
            continue
        channel = ledger.open_channel(payer, payee, 5_000)
        voucher = ledger.voucher(
            channel, payer, payee, 1, amount, receipts_root=ROOT if receipts else bytes(32), receipts_count=receipts
        )
        ledger.act(payee, ChannelRedeem(channel, (voucher,)), after_ms=days * 1_000)
        paid[payer, payee] = paid.get((payer, payee), 0) + amount
        jobs[payer, payee] = jobs.get((payer, payee), 0) + receipts
    assert ledger.state.supply().total == ledger.state.issued
    for role, place in ((Role.BUYER, 0), (Role.PROVIDER, 1)):
        for name in ("alice", "bob", "carol", "dave"):
            found = track(ledger, role, name)
            assert found.volume == sum(amount for parties, amount in paid.items() if parties[place] == name)
            assert found.jobs == sum(count for parties, count in jobs.items() if parties[place] == name)
    assert list(LedgerState.from_rows(ledger.genesis, ledger.state.rows(), ledger.state.tip).rows()) == list(
        ledger.state.rows()
    )


def test_a_table_in_memory_forgets_what_says_nothing() -> None:
    table = TrackDict()
    identity = track_id(Role.BUYER, account_of("alice"))
    table.put(identity, settled(NO_TRACK, account_of("bob"), Amount(5), 1, LedgerTimeMs(9)))
    assert table.get(identity).volume == 5
    table.put(identity, NO_TRACK)
    assert list(table.items()) == []
