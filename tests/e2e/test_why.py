"""``mercat why`` on a real cluster: both sides and the ledger, a failed-over job, a partner that is gone."""

import os
import signal
from typing import Any

import pytest

from node.config.genesis_file import load_genesis
from protocol.messages.envelope import open_as, signature_check
from protocol.messages.genesis import genesis_hash
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Timeline
from tests.e2e.network import Network, streaming, wait_until

ORDINARY_LINES_MAX = 20

STORY = ("smollm2-135m", "Tell a very long story about the sea.", "--max-tokens", "350")
"""Seconds of work, on two providers one after the other."""


def why(network: Network, job: str, node: str = "buyer-1") -> Any:
    return network.json("why", job, node=node)


def whats(view: Any) -> list[str]:
    return [line["what"] for line in view["lines"]]


def test_an_ordinary_job_is_told_in_twenty_lines_by_both_sides_and_the_ledger(network: Network) -> None:
    facts = network.json("run", "smollm2-135m", "Count to fifty.", "--max-tokens", "150")["facts"]
    network.mercat("job", "receipt", facts["job"], "--settle")
    said = network.mercat("why", facts["job"][:12]).out
    assert len(said.splitlines()) <= ORDINARY_LINES_MAX, said
    assert "contradiction" not in said
    view = why(network, facts["job"])
    tellers = {tuple(line["tellers"]) for line in view["lines"]}
    assert tellers == {("buyer",), ("buyer", "provider"), ("ledger",)}
    assert any(what.startswith("channel opened") for what in whats(view))
    assert any(line["cause"] == "anchors this job's receipt" and line["height"] for line in view["lines"])
    assert view["paid"] == facts["paid"] == max(line["paid"] for line in view["lines"])
    [attempt] = view["attempts"]
    assert (attempt["other"], attempt["contradictions"]) == ("told", [])
    assert abs(attempt["clock_ahead_ms"]) < 50
    genesis = genesis_hash(load_genesis(network.genesis))
    for timeline in attempt["timelines"]:
        envelope, told = open_as(bytes.fromhex(timeline), MessageKind.TIMELINE)
        assert signature_check(genesis, envelope).holds()
        assert isinstance(told, Timeline)
        assert (told.job.hex(), told.state, told.paid) == (facts["job"], "done", facts["paid"])


def test_the_provider_tells_the_same_job_with_the_same_words(network: Network) -> None:
    facts = network.json("run", "echo", "two sides")["facts"]
    seller = network.name_of(facts["provider"])

    def both() -> tuple[Any, Any]:
        """From one state of the ledger: the provider may redeem between two questions."""
        while True:
            height = network.height("buyer-1")
            views = why(network, facts["job"]), why(network, facts["job"], node=seller)
            if network.height("buyer-1") == network.height(seller) == height:
                return views

    bought, sold = both()
    assert (bought["side"], sold["side"]) == ("buyer", "provider")
    assert sorted(set(whats(bought))) == sorted(set(whats(sold)))
    assert sold["attempts"][0]["contradictions"] == []
    listed = {row["job"]: row for row in network.json("job", "list", node=seller)}
    assert (listed[facts["job"]]["side"], listed[facts["job"]]["model"]) == ("seller", "echo")


@pytest.mark.long
def test_a_failed_over_job_names_who_failed_and_who_went_on(network: Network) -> None:
    with streaming(network, *STORY) as process:
        [running] = [view for view in network.jobs("buyer-1").values() if view.state == "streaming"]
        first = network.name_of(running.counterparty)
        network.kill(first)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    view = why(network, running.job)
    assert [attempt["state"] for attempt in view["attempts"]] == ["failed", "done"]
    lost, taken = view["attempts"]
    assert (lost["fault"], lost["other"]) == ("network", "missing")
    assert "could not be reached" in lost["other_missing"]
    assert lost["words"][0] == "acceptance"
    assert any(word.startswith("chunk ") for word in lost["words"])
    assert taken["other"] == "told"
    assert network.name_of(taken["provider"]) != first
    assert "gave up the attempt" in whats(view)
    assert view["paid"] == lost["paid"] + taken["paid"]
    by_request = why(network, view["request"])
    assert [attempt["job"] for attempt in by_request["attempts"]] == [lost["job"], taken["job"]]
    network.up()
    wait_until(lambda: why(network, running.job)["attempts"][0]["other"] == "told", "the first provider is back")
    [back, _] = why(network, running.job)["attempts"]
    assert all("says" in difference for difference in back["contradictions"])


@pytest.mark.long
def test_a_job_is_told_after_a_restart_and_with_its_provider_gone(network: Network) -> None:
    facts = network.json("run", "echo", "before the restart")["facts"]
    seller = network.name_of(facts["provider"])
    before = why(network, facts["job"])
    network.kill("buyer-1", seller)
    network.mercat("cluster", "up", "--dir", str(network.folder), "--model-store", str(network.store))
    os.kill(network.pid(seller), signal.SIGKILL)
    after = why(network, facts["job"])
    [attempt] = after["attempts"]
    assert attempt["other"] == "missing"
    assert {"acceptance", f"receipt of {attempt['chunks']} chunks for {facts['amount'] / 1e6:.5f} credits"} & {
        *attempt["words"]
    }
    assert (after["model"], after["state"], after["paid"]) == ("echo", "done", before["paid"])
    own = [line["what"] for line in before["lines"] if "buyer" in line["tellers"]]
    assert [line["what"] for line in after["lines"] if "buyer" in line["tellers"]] == own
    said = network.mercat("why", facts["job"]).out
    assert "missing: provider" in said
    assert len(said.splitlines()) <= ORDINARY_LINES_MAX
