"""A whole market under crashes, partitions, failing workers and impatient buyers, from seeds."""

from typing import Any

import pytest

from node.simulation import market_node
from node.simulation.disk import Durable, SimulatedDisk
from node.simulation.market import MarketOptions, run_market_seed
from node.simulation.profiles import PROFILES
from node.simulation.run import SimulationFailed
from protocol.ledger.track_rows import Role, track_id
from protocol.ledger.tracks import settle
from protocol.ledger.view import Context, Overlay
from protocol.market import seller_books
from protocol.market.seller_books import SellerBooks
from protocol.messages.effects import Put, Table
from protocol.primitives.units import AccountId

SEEDS = range(10)


def test_money_is_fair_every_job_ends_and_no_deposit_is_stranded() -> None:
    finished = failed = cancelled = continued = auctioned = reported = at_once = 0
    for seed in SEEDS:
        outcome = run_market_seed(seed)
        finished += outcome.finished
        failed += outcome.failed
        cancelled += outcome.cancelled
        continued += outcome.continued
        auctioned += outcome.auctioned
        reported += outcome.reported
        at_once += outcome.at_once
    assert finished > 90
    assert failed > 3, "faults must bite"
    assert cancelled > 3
    assert continued > 3, "providers must die mid-stream"
    assert auctioned > 10, "some jobs must be done at what their providers quoted"
    assert at_once > 10, "some jobs must go out as one chunk"
    assert reported > 3, "failures that cost something must reach the ledger"


def test_without_faults_every_job_that_is_not_cancelled_finishes() -> None:
    outcome = run_market_seed(1, MarketOptions(profile=PROFILES["none"], failing_share=0.0, cancelled_share=0.0))
    assert (outcome.finished, outcome.failed, outcome.cancelled) == (20, 0, 0)


def test_the_same_seed_gives_the_same_trace() -> None:
    assert run_market_seed(5) == run_market_seed(5)


def forget(monkeypatch: pytest.MonkeyPatch, table: Table) -> None:
    """Rows of this table never reach the disk."""
    write = SimulatedDisk.write

    def write_without(disk: SimulatedDisk, effect: Durable) -> None:
        if not (isinstance(effect, Put) and effect.table is table):
            write(disk, effect)

    monkeypatch.setattr(SimulatedDisk, "write", write_without)


def test_a_provider_that_does_not_write_down_what_it_was_paid_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, Table.SELLER_LANE)
    with pytest.raises(SimulationFailed, match=r"seed \d+: .*was released while"):
        run_market_seed(0)


def test_a_provider_that_begins_anew_behind_anothers_output_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    work = market_node._Work
    monkeypatch.setattr(market_node, "_Work", lambda body, prefix, units, most: work(body, 0, units, most))
    with pytest.raises(SimulationFailed, match=r"the text has a gap or a repeat before byte \d+"):
        run_market_seed(0, MarketOptions(short_share=0.0))


def test_a_provider_that_trusts_without_limit_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SellerBooks, "trusts", lambda *_: True)
    with pytest.raises(SimulationFailed, match=r"\d+ went out unpaid"):
        run_market_seed(0)


def test_a_provider_that_forgets_what_it_lost_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its buyers keep their promises to themselves."""
    monkeypatch.setattr(seller_books, "_unpaid", lambda lane: 0)

    def run_seeds() -> None:
        for seed in range(100):
            run_market_seed(seed, MarketOptions(short_share=1.0))

    with pytest.raises(SimulationFailed, match=r"\d+ went out unpaid, and [1-9]\d* before"):
        run_seeds()


def test_a_ledger_that_notes_a_settlement_with_one_side_alone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:

    def for_providers(overlay: Overlay, context: Context, payer: AccountId, *others: Any) -> None:
        before = overlay.track(track_id(Role.BUYER, payer))
        settle(overlay, context, payer, *others)
        overlay.tracks[track_id(Role.BUYER, payer)] = before

    monkeypatch.setattr("protocol.ledger.channels.settle", for_providers)
    with pytest.raises(SimulationFailed, match="track records differ"):
        run_market_seed(0)
