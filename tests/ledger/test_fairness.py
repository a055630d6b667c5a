"""Fairness: how far one account, however rich, can push the others aside, and what goes first in any case."""

import pytest

from protocol.ledger import mempool as mempool_module
from protocol.ledger.mempool import FAIR_BYTES
from protocol.messages.governance import Issuance
from protocol.messages.transactions import BondUnlock, ChannelClose, EvidenceReport, MotionOpen, MotionVote
from protocol.primitives.limits import BLOCK_BYTES_MAX, BLOCK_TRANSACTIONS_MAX, PENDING_PER_SENDER_MAX
from protocol.primitives.units import Amount, MessageId
from tests.ledger.assembly import Assembly, X, Y, authority, ballot, settings
from tests.ledger.test_mempool import Pool, pay
from tests.ledger.world import FEE, Ledger, account_of, make_genesis

VICTIMS = tuple(f"victim{index}" for index in range(200))


def crowded(balance: int = 10**9) -> Pool:
    return Pool(Ledger(make_genesis(balance=balance, names=("rich", "bob", *VICTIMS))))


def flood(pool: Pool, fee: int = 1_000_000) -> list[MessageId]:
    """As much as one account may have waiting, at a fee that nobody else pays."""
    return [pool.send("rich", pay("bob", 1, outputs=240), nonce, fee=fee) for nonce in range(PENDING_PER_SENDER_MAX)]


def test_one_account_however_much_it_pays_delays_nobody_to_a_later_block() -> None:
    pool = crowded()
    flooded = flood(pool)
    others = [pool.send(name, pay("bob", 1, outputs=90), 0) for name in VICTIMS]
    waiting = [pending.block_bytes_max for pending in pool.mempool.pending()]
    largest = max(waiting)
    # All that the others wait with fits beside FAIR_BYTES and one transaction of the account that floods …
    assert sum(waiting[PENDING_PER_SENDER_MAX:]) + FAIR_BYTES + largest <= BLOCK_BYTES_MAX
    assert sum(waiting) > BLOCK_BYTES_MAX
    # … so the next block holds it, in whatever order both came.
    chosen = pool.mempool.select(pool.ledger.state, BLOCK_BYTES_MAX, BLOCK_TRANSACTIONS_MAX)
    places = {pending.transaction_id: place for place, pending in enumerate(chosen)}
    assert set(others) <= set(places)
    last = max(places[other] for other in others)
    ahead = sum(pending.block_bytes_max for pending in chosen[:last] if pending.transaction_id in flooded)
    assert ahead < FAIR_BYTES + largest


def test_the_rest_of_a_block_is_for_whoever_wants_more() -> None:
    pool = crowded()
    flooded = flood(pool)
    pool.send(VICTIMS[0], pay("bob", 1), 0)
    chosen = pool.selected()
    assert len([each for each in chosen if each in flooded]) > 60


def test_senders_that_flood_together_take_turns() -> None:
    pool = crowded()
    for nonce in range(20):
        for name, fee in (("rich", 500), ("bob", 40)):
            pool.send(name, pay(VICTIMS[0], 1, outputs=200), nonce, fee=fee)
    chosen = pool.mempool.select(pool.ledger.state, 10 * FAIR_BYTES, 100)
    sizes = [sum(each.block_bytes_max for each in chosen if each.transaction.fee == fee) for fee in (500, 40)]
    assert abs(sizes[0] - sizes[1]) <= FAIR_BYTES + max(each.block_bytes_max for each in chosen)


def test_a_higher_fee_goes_first_among_those_that_have_had_as_little() -> None:
    pool = crowded()
    slow, fast = pool.send(VICTIMS[0], pay("bob", 1), 0, fee=20), pool.send(VICTIMS[1], pay("bob", 1), 0, fee=30)
    assert pool.selected() == [fast, slow]


class Parliament(Pool):
    """A mempool over a ledger with an assembly."""

    def __init__(self) -> None:
        self.assembly = Assembly()
        super().__init__(self.assembly)
        self.applied()


def test_governance_evidence_and_closes_have_a_fifth_of_a_block_however_little_they_pay() -> None:
    pool = Parliament()
    assembly = pool.assembly
    channel = assembly.open_channel("alice", "bob", 1_000)
    number = assembly.open(0, settings(fee_min=20))
    for name in ("carol", "dave"):
        for nonce in range(PENDING_PER_SENDER_MAX):
            pool.send(name, pay("bob", 1), nonce, fee=900)
    report = EvidenceReport(assembly.said(3, ballot(1, 2, X)), assembly.said(3, ballot(1, 2, Y)))
    urgent = [
        pool.send("bob", ChannelClose(channel), 0),
        pool.send("auth1-account", MotionVote(number, authority(1), True), 0),
        pool.send("auth2-account", MotionOpen(authority(2), settings(fee_min=30)), 0),
        pool.send("auth3-account", report, 0),
    ]
    assert set(urgent) <= set(pool.selected(count_max=25))


@pytest.mark.parametrize("cap", ["PENDING_TOTAL_MAX", "PENDING_BYTES_TOTAL_MAX"])
def test_a_pool_that_is_full_by_number_or_by_bytes_has_a_fee_floor(cap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool()
    first = pool.send("alice", pay("bob", 1), 0, fee=20)
    size = len(pool.mempool.pending()[0].envelope_bytes)
    monkeypatch.setattr(mempool_module, cap, 1 if cap == "PENDING_TOTAL_MAX" else size + 20)
    assert pool.refused("carol", pay("bob", 1), 0, fee=20) == "mempool_full"
    second = pool.send("carol", pay("bob", 1), 0, fee=21)
    assert second in pool.mempool
    assert first not in pool.mempool
    pool.decide()
    pool.send("alice", pay("bob", 1), 0)


def test_a_vote_for_a_higher_fee_floor_drops_what_pays_too_little() -> None:
    pool = Parliament()
    cheap = pool.send("alice", pay("bob", 1), 0, fee=FEE)
    dear = pool.send("carol", pay("bob", 1), 0, fee=25)
    pool.assembly.decide(settings(fee_min=25))
    assert pool.applied() == [(cheap, "fee_too_low")]
    assert pool.selected() == [dear]


def test_a_bond_that_was_forfeited_can_not_be_unlocked_by_what_waits() -> None:
    pool = Parliament()
    waits = pool.send("auth3-account", BondUnlock(Amount(500)), 0)
    statements = [pool.assembly.said(3, ballot(1, 2, block_hash)) for block_hash in (X, Y)]
    pool.assembly.act("alice", EvidenceReport(statements[0], statements[1]))
    assert pool.applied() == [(waits, "insufficient_bond")]


def test_a_vote_that_comes_too_late_and_a_proof_that_came_twice_are_dropped() -> None:
    pool = Parliament()
    number = pool.assembly.open(0, Issuance(account_of("dave"), Amount(5), ""))
    pool.applied()
    late = pool.send("auth3-account", MotionVote(number, authority(3), True), 0)
    statements = [pool.assembly.said(2, ballot(1, 2, block_hash)) for block_hash in (X, Y)]
    twice = pool.send("carol", EvidenceReport(statements[0], statements[1]), 0)
    for index in (1, 2):
        pool.assembly.vote(index, number)
    pool.assembly.act("alice", EvidenceReport(statements[0], statements[1]))
    assert pool.applied() == [(late, "motion_concluded"), (twice, "already_reported")]
