"""Three providers of different prices: posted prices, sealed quotes and replicas, by real processes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.cli.cluster_layout import Shape, create_cluster
from node.worker.models import ModelId, ModelStore
from tests.e2e.network import Network, wait_until
from tests.worker.conftest import DESCRIPTIONS

REQUESTS = {"provider-1": 1_000, "provider-2": 1_100, "provider-3": 1_300}
"""What each asks for a request by its offer; the last one gives most of it off while it is idle."""
QUOTES = "\n[provider.quotes]\ndiscount_permille = 600\nfloor_permille = 100\n"


@pytest.fixture(scope="module")
def market(place: Path, store: ModelStore, echo: ModelId) -> Iterator[Network]:
    """One authority, three providers, a buyer."""
    shape = ("--authorities", "1", "--providers", "3", "--model", "echo")
    network = Network(place / "q", place / "q-home", store.directory, shape)
    network.home.mkdir()
    create_cluster(network.folder, Shape(1, 3), (str(DESCRIPTIONS / "echo.toml"),), store.directory)
    for name, request in REQUESTS.items():
        path = network.record(name).config
        text = path.read_text() + f"request = {request}\n"
        path.write_text(text + (QUOTES if name == "provider-3" else ""))
    network.up()
    wait_until(lambda: len(network.client("buyer-1").offers()) == 3, "all offers are heard")
    yield network
    network.stop()
    network.assert_no_error_was_logged()


def test_without_an_auction_the_lowest_posted_price_gets_the_job(market: Network) -> None:
    found = market.mercat("run", "echo", "as posted", "--json").json
    assert market.name_of(found["facts"]["provider"]) == "provider-1"
    assert found["market"] == []


def test_an_auction_finds_the_one_that_quotes_less_than_it_posts_and_pays_the_quote(market: Network) -> None:
    found = market.mercat("run", "echo", "sealed", "--json", "--auction", "600").json
    facts, told = found["facts"], found["market"]
    assert found["output"] == "sealed"
    assert market.name_of(facts["provider"]) == "provider-3"
    assert {"event": "auction", "sealed": 3, "revealed": 3} in told
    quotes = {market.name_of(entry["provider"]): entry["price"] for entry in told if entry["event"] == "quote"}
    assert quotes["provider-3"] == facts["paid"] == min(quotes.values()) < 1_300
    assert quotes["provider-1"] >= REQUESTS["provider-1"]


def test_people_see_who_quoted_and_programs_alone_get_json(market: Network) -> None:
    ended = market.mercat("run", "echo", "for people", "--auction")
    assert ended.out == "for people\n"
    assert ended.err.count("quotes at most") == 3
    assert "auction: 3 sealed a quote, 3 revealed it in time" in ended.err


def test_replicas_are_done_by_different_providers_and_compared(market: Network) -> None:
    found = market.mercat("run", "echo", "thrice", "--replicas", "3", "--json").json
    told = found["market"]
    assert found["output"] == "thrice"
    assert told[-1] == {"event": "compared", "agreeing": 3, "replicas": 3}
    finished = [entry for entry in told if entry["event"] == "replica_finished"]
    assert {market.name_of(entry["provider"]) for entry in finished} == set(REQUESTS)
    assert found["facts"]["paid"] == sum(entry["amount"] for entry in finished)


def test_every_replica_has_a_receipt_that_holds(market: Network) -> None:
    path = market.home / "proof.json"
    market.mercat("run", "echo", "proofs", "--replicas", "2", "--receipt", str(path), "--settle")
    for number in (1, 2):
        numbered = path.with_name(f"proof-{number}.json")
        assert json.loads(numbered.read_text())
        market.mercat("verify", str(numbered))


def test_more_replicas_than_providers_are_refused_with_the_number_unless_fewer_will_do(market: Network) -> None:
    ended = market.mercat("run", "echo", "too many", "--replicas", "4", expect=5)
    assert "3 different providers would do it together under the ceiling, 4 are wanted" in ended.err
    found = market.mercat("run", "echo", "fewer", "--replicas", "4", "--replicas-min", "2", "--json").json
    assert found["market"][-1]["agreeing"] == 3


def test_one_ceiling_is_for_all_replicas_together(market: Network) -> None:
    ended = market.mercat("run", "echo", "x", "--replicas", "3", "--max-price", "0.0025", expect=5)
    assert "price above ceiling" in ended.err


def test_quote_names_price_time_and_score_and_every_reason(market: Network) -> None:
    rows = market.json("quote", "echo", "--input-bytes", "10")["rows"]
    assert [row["would_take"] for row in rows] == [True] * 3
    assert all(row["scores"]["total"] > 0 and row["price_expected"] > 0 for row in rows)
    measured = {market.name_of(row["provider"]): row["expected_ms"] for row in rows}
    assert measured["provider-1"] is not None
    refused = market.json("quote", "echo", "--region", "mars")
    assert [row["reason"] for row in refused["rows"]] == ["region local is not mars"] * 3
    assert refused["reasons"] == [["region local is not mars", 3]]
    dry = market.mercat("run", "echo", "nothing", "--dry-run")
    assert dry.out.count("yes") == 3
