"""Standing to bid comes from the ledger, and what a bid leaves behind goes with its time."""

import pytest

from protocol.engine.judging import (
    BALLOTS_PER_AUTHORITY_MAX,
    BID_LIFETIME_MS_MAX,
    BIDS_PER_ACCOUNT_MAX,
    Judge,
    relayed_until,
)
from protocol.engine.ledger_facts import LedgerFacts
from protocol.gossip.verdicts import ACCEPTED, Judgement, Verdict
from protocol.market.order_book import OrderBook
from protocol.messages.consensus import VoteBody
from protocol.messages.effects import Now
from protocol.messages.envelope import open_envelope
from protocol.messages.kinds import MessageKind
from protocol.messages.market import AuctionTerms, Bid
from protocol.primitives.units import Amount, BlockHash, Hash, Height, ModelId, NodeId, TimestampMs, View, WorkUnits
from tests.engine.test_hostile_input import at, make_engine
from tests.ledger.world import START_MS, Ledger, sealed
from tests.store.chain import transfer

PEER = NodeId(b"p" * 32)


class Bench:
    """A judge over a fresh ledger, asked about bids."""

    def __init__(self) -> None:
        self.replica = make_engine("follower").replica
        self.judge = Judge(self.replica, OrderBook(), LedgerFacts(self.replica.state))

    def rule(
        self,
        name: str,
        number: int,
        ceiling: int,
        expires_in_ms: int = 60_000,
        time_ms: int = 0,
        auction: AuctionTerms | None = None,
    ) -> Judgement:
        expires_at = TimestampMs(START_MS + time_ms + expires_in_ms)
        unique = Hash(number.to_bytes(32, "big"))
        bid = Bid(
            ModelId(bytes(32)), WorkUnits(1), WorkUnits(1), Amount(ceiling), expires_at, "none", 1, unique, auction
        )
        received = sealed(self.replica.state.genesis_hash, name, MessageKind.BID, bid)
        envelope, payload = open_envelope(received)
        return self.judge.judge(PEER, envelope, payload, received, at(time_ms)).judgement

    def remembered(self) -> int:
        return len(self.judge._bids)


def test_a_bid_that_its_account_can_pay_is_relayed() -> None:
    assert Bench().rule("alice", 1, 500) is ACCEPTED


@pytest.mark.parametrize(("name", "ceiling"), [("stranger", 0), ("stranger", 1), ("alice", 10**9)])
def test_a_bid_that_its_account_cannot_pay_is_ignored_and_leaves_nothing(name: str, ceiling: int) -> None:
    bench = Bench()
    ruled = bench.rule(name, 1, ceiling)
    assert ruled.reason == "buyer can't pay the ceiling"
    assert ruled.retryable
    assert bench.remembered() == 0


def test_an_account_has_so_many_live_bids_and_no_more() -> None:
    bench = Bench()
    for number in range(BIDS_PER_ACCOUNT_MAX):
        assert bench.rule("alice", number, 500) is ACCEPTED
    assert bench.rule("alice", 99, 500) is not ACCEPTED
    assert bench.rule("alice", 100, 500, time_ms=60_000) is ACCEPTED


def test_bids_that_share_their_random_bytes_count_one_by_one() -> None:
    bench = Bench()
    for number in range(BIDS_PER_ACCOUNT_MAX):
        assert bench.rule("alice", 1, 500 - number) is ACCEPTED
    assert bench.rule("alice", 1, 400).reason == "too many bids of this account are live"


@pytest.mark.parametrize("address", ["nowhere", "host:", ":80", "host:0", "host:65536", "host:1x"])
def test_an_auction_whose_quotes_can_go_nowhere_is_held_against_its_sender(address: str) -> None:
    auction = AuctionTerms(PEER, ("127.0.0.1:80", address), 200, 200)
    ruled = Bench().rule("alice", 1, 500, auction=auction)
    assert (ruled.verdict, ruled.reason) == (Verdict.REJECT, "address is not host:port")
    assert Bench().rule("alice", 1, 500, auction=AuctionTerms(PEER, (), 200, 200)) is ACCEPTED


def test_bids_that_expire_at_once_count_for_seconds_all_the_same() -> None:
    bench = Bench()
    for number in range(BIDS_PER_ACCOUNT_MAX):
        assert bench.rule("alice", number, 500, expires_in_ms=1) is ACCEPTED
    assert bench.rule("alice", 99, 500, time_ms=2).reason == "too many bids of this account are live"
    assert bench.judge.bids(at(2)) == []
    assert bench.rule("alice", 99, 500, time_ms=4_000) is ACCEPTED


def test_an_auctions_bid_travels_while_its_windows_last_and_counts_for_seconds() -> None:
    bench = Bench()
    windows = AuctionTerms(PEER, (), 200, 200)
    for number in range(BIDS_PER_ACCOUNT_MAX):
        assert bench.rule("alice", number, 500, auction=windows) is ACCEPTED
    assert bench.rule("alice", 99, 500, time_ms=3_999, auction=windows) is not ACCEPTED
    assert bench.rule("alice", 100, 500, time_ms=4_000, auction=windows) is ACCEPTED
    unique = Hash(bytes(32))
    bid = Bid(ModelId(bytes(32)), WorkUnits(1), WorkUnits(1), Amount(1), TimestampMs(10**6), "none", 1, unique, windows)
    now = at(0)
    assert relayed_until(bid, Now(now.monotonic_ms, TimestampMs(5_000))) == 5_400
    assert relayed_until(bid, Now(now.monotonic_ms, TimestampMs(10**6 - 100))) == 10**6


def test_a_bid_that_would_live_for_ever_is_ignored() -> None:
    bench = Bench()
    assert bench.rule("alice", 1, 500, BID_LIFETIME_MS_MAX) is ACCEPTED
    assert bench.rule("alice", 2, 500, BID_LIFETIME_MS_MAX + 1).reason == "expires too far ahead"


def test_expired_bids_are_forgotten() -> None:
    bench = Bench()
    bench.rule("alice", 1, 500)
    bench.judge.expire(at(59_999))
    assert bench.remembered() == 1
    bench.judge.expire(at(60_000))
    assert bench.remembered() == 0


def _transfer(bench: Bench, nonce: int) -> Judgement:
    ledger = Ledger(bench.replica.state.genesis)
    received = ledger.transaction("alice", transfer("bob", 3), nonce).envelope_bytes
    envelope, payload = open_envelope(received)
    return bench.judge.judge(PEER, envelope, payload, received, at(0)).judgement


def test_a_transaction_that_was_pushed_here_before_gossip_brings_it_is_relayed_and_not_asked_for_again() -> None:
    bench = Bench()
    assert _transfer(bench, 0) is ACCEPTED
    assert _transfer(bench, 0) is ACCEPTED


def test_a_transaction_whose_nonce_is_decided_is_not_asked_for_again_and_one_that_is_early_is() -> None:
    bench = Bench()
    ledger = Ledger(bench.replica.state.genesis)
    execution = ledger.include(ledger.transaction("alice", transfer("carol", 1), 0))
    bench.replica.state.apply(execution)
    assert not _transfer(bench, 0).retryable
    assert _transfer(bench, 9).retryable


def _vote(bench: Bench, height: int, view: int) -> Judgement:
    body = VoteBody(Height(height), View(view), BlockHash(bytes(32)))
    received = sealed(bench.replica.state.genesis_hash, "auth0", MessageKind.VOTE, body)
    envelope, payload = open_envelope(received)
    return bench.judge.judge(PEER, envelope, payload, received, at(0)).judgement


def test_ballots_of_one_authority_are_relayed_so_often_and_not_more() -> None:
    bench = Bench()
    assert all(_vote(bench, 1, view) is ACCEPTED for view in range(1, BALLOTS_PER_AUTHORITY_MAX + 1))
    assert _vote(bench, 1, BALLOTS_PER_AUTHORITY_MAX + 1) is not ACCEPTED


def test_a_ballot_of_a_height_far_ahead_is_not_relayed_but_may_come_again() -> None:
    bench = Bench()
    ruled = _vote(bench, 1_000_000, 1)
    assert ruled is not ACCEPTED
    assert ruled.retryable
