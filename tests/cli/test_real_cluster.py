"""A real cluster of real processes: one authority, one provider, one buyer.

The tests share it and run in order; each leaves it running for the next.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.cli.cluster_layout import existing_record
from node.cli.cluster_processes import is_running

SHAPE = ("--authorities", "1", "--providers", "1", "--model", "echo")


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster's directory, and a way to run commands on it."""

    folder: Path
    store: Path

    def mercat(self, *arguments: str, expect: int = 0) -> str:
        """Run a command line as the cluster's buyer; what it printed on standard output."""
        control = self.folder / "nodes" / "buyer-1" / "state" / "control.sock"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MERCAT_")}
        ended = subprocess.run(
            [sys.executable, "-m", "node.cli.main", *arguments],
            env={**kept, "MERCAT_CONTROL": str(control), "MERCAT_GENESIS": str(self.folder / "genesis.json")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert ended.returncode == expect, ended.stderr
        return ended.stdout

    def cluster(self, command: str, *arguments: str, expect: int = 0) -> str:
        """Run ``mercat cluster COMMAND`` on this cluster."""
        return self.mercat("cluster", command, "--dir", str(self.folder), *arguments, expect=expect)

    def chaos(self, *arguments: str, expect: int = 0) -> str:
        """Run ``mercat cluster chaos`` on this cluster."""
        return self.mercat("cluster", "chaos", *arguments, "--dir", str(self.folder), expect=expect)

    def up(self) -> str:
        """Start what is missing."""
        return self.cluster("up", *SHAPE, "--model-store", str(self.store))

    def processes(self) -> dict[str, int]:
        """Process number of each node that runs."""
        nodes = existing_record(self.folder).nodes
        return {node.name: node.process.pid for node in nodes if node.process and is_running(node.process)}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("c") / "c", tmp_path_factory.mktemp("models"))
    made.up()
    yield made
    made.cluster("stop")
    assert made.processes() == {}


def test_up_is_safe_to_repeat(cluster: Cluster) -> None:
    before = cluster.processes()
    assert len(before) == 3
    cluster.up()
    assert cluster.processes() == before


def test_other_shape_is_refused(cluster: Cluster) -> None:
    cluster.cluster("up", "--authorities", "2", expect=2)
    assert len(cluster.processes()) == 3


def test_job_runs_and_its_receipt_verifies_offline(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    assert cluster.mercat("run", "echo", "hello", "--receipt", str(path), "--settle") == "hello\n"
    report = json.loads(cluster.mercat("verify", str(path), "--settled", "--json"))
    assert report["holds"]
    assert report["height"] >= 1
    assert report["amount"] > 0

    content = json.loads(path.read_text())
    content["output"] = b"HELLO".hex()
    path.write_text(json.dumps(content))
    refused = json.loads(cluster.mercat("verify", str(path), "--json", expect=1))
    assert refused["failed"] == "output_commitment"


def test_a_providers_record_says_what_it_settled_and_where_each_figure_comes_from(cluster: Cluster) -> None:
    nodes = existing_record(cluster.folder)
    provider, buyer = nodes.named("provider-1"), nodes.named("buyer-1")
    for named in (provider.account, provider.account[:10], provider.node, provider.node[:14]):
        view = json.loads(cluster.mercat("provider", "show", named, "--json"))
        assert view["account"] == provider.account
    facts = {(fact["about"], fact["name"]): fact for fact in view["facts"]}
    assert facts["provider", "jobs settled"]["value"] == 1
    assert facts["provider", "volume"]["value"] > 0
    assert f"after block {view['height']}, row 7470" in facts["provider", "volume"]["origin"]
    assert facts["here", "jobs with this node"]["value"] >= 1
    assert [score["role"] for score in view["scores"]] == ["provider", "buyer"]
    assert view["scores"][0]["total"] == 500
    paying = json.loads(cluster.mercat("provider", "show", buyer.account, "--json"))
    paid = next(fact for fact in paying["facts"] if (fact["about"], fact["name"]) == ("buyer", "volume"))
    assert paid["value"] == facts["provider", "volume"]["value"]
    assert "1 job" in cluster.mercat("provider", "show", provider.node)
    cluster.mercat("provider", "show", "mc1n0n0n0", expect=1)
    for wrong in ("mc1nobody", "mc1ac", "mcauth1acacac", provider.node[:-1] + "q", provider.account[:-1] + "q"):
        cluster.mercat("provider", "show", wrong, expect=2)


def test_money_moves_and_none_is_lost(cluster: Cluster) -> None:
    provider = existing_record(cluster.folder).named("provider-1").account
    before = json.loads(cluster.mercat("wallet", "balance", provider, "--json"))["balance"]
    cluster.mercat("wallet", "send", provider, "1.5", "-y")
    after = json.loads(cluster.mercat("wallet", "balance", provider, "--json"))["balance"]
    assert after - before >= 1_500_000
    supply = json.loads(cluster.mercat("ledger", "supply", "--json"))
    assert supply["total"] == supply["genesis_total"]


def test_more_money_than_there_is_can_not_be_sent(cluster: Cluster) -> None:
    provider = existing_record(cluster.folder).named("provider-1").account
    cluster.mercat("wallet", "send", provider, "5000", "-y", expect=4)


def test_env_and_logs_and_status_tell_about_the_cluster(cluster: Cluster) -> None:
    lines = cluster.cluster("env").splitlines()
    assert lines[0].startswith("export MERCAT_CONTROL=")
    assert lines[1].startswith("export MERCAT_GENESIS=")
    assert "serving" in cluster.cluster("logs", "buyer-1", "-n", "1000")
    state = json.loads(cluster.cluster("status", "--json"))
    assert state["running"]
    assert [node["role"] for node in state["nodes"]] == ["authority", "provider", "buyer"]


def test_node_that_was_killed_alone_is_started_again(cluster: Cluster) -> None:
    before = cluster.processes()
    _kill_and_wait(before["authority-1"])
    cluster.cluster("status", expect=1)
    cluster.up()
    after = cluster.processes()
    assert {name for name in after if after[name] != before[name]} == {"authority-1"}


def test_an_account_is_proven_by_a_node_that_was_started_again(cluster: Cluster, tmp_path: Path) -> None:
    account = existing_record(cluster.folder).named("buyer-1").account
    control = str(cluster.folder / "nodes" / "authority-1" / "state" / "control.sock")
    path, trusted = tmp_path / "proof.json", tmp_path / "checkpoint.json"
    cluster.mercat("ledger", "proof", "account", account, "-o", str(path), "--control", control)
    cluster.mercat("ledger", "checkpoint", "-o", str(trusted), "--control", control)
    view = json.loads(cluster.mercat("verify", str(path), "--checkpoint", str(trusted), "--json"))
    assert (view["holds"], view["id"]) == (True, account)
    assert 0 <= view["header_height"] - view["after_block"] <= 64


def _states(cluster: Cluster, expect: int = 0) -> dict[str, str]:
    nodes = json.loads(cluster.cluster("status", "--json", expect=expect))["nodes"]
    return {node["name"]: node["state"] for node in nodes}


def test_a_cut_and_slowed_node_says_so_until_it_is_mended(cluster: Cluster) -> None:
    cluster.chaos("disconnect", "authority-1")
    cluster.chaos("slow", "authority-1", "--delay-ms", "50")
    assert _states(cluster)["authority-1"] == "cut off, slow 50 ms"
    assert json.loads(cluster.chaos("heal", "--json"))["mended"] == ["authority-1"]
    assert json.loads(cluster.chaos("heal", "--json"))["mended"] == []
    assert set(_states(cluster).values()) == {"up"}


def test_a_paused_node_stands_still_and_goes_on_as_the_same_process(cluster: Cluster) -> None:
    before = cluster.processes()
    cluster.chaos("pause", "provider-1")
    assert _states(cluster, expect=1)["provider-1"] == "paused"
    cluster.chaos("heal", "provider-1")
    assert cluster.processes() == before


def test_a_killed_node_is_back_after_its_time(cluster: Cluster) -> None:
    before = cluster.processes()
    cluster.chaos("kill", "provider-1", "--for", "0.1")
    after = cluster.processes()
    assert {name for name in after if after[name] != before[name]} == {"provider-1"}
    assert cluster.mercat("run", "echo", "again") == "again\n"


def test_a_provider_that_overcharges_earns_nothing_and_only_a_provider_can(cluster: Cluster) -> None:
    cluster.chaos("liar", "buyer-1", "overcharge", expect=2)
    cluster.chaos("liar", "provider-1", "overcharge")
    cluster.mercat("run", "echo", "hello", "--timeout", "20", expect=3)
    cluster.chaos("heal")
    assert json.loads(cluster.mercat("job", "list", "--json"))[0]["amount"] == 0


def test_stop_leaves_no_process_and_no_socket_and_a_ledger_as_its_blocks_say(cluster: Cluster, tmp_path: Path) -> None:
    archive = tmp_path / "chain.mercat"
    exported = json.loads(cluster.mercat("ledger", "export", str(archive), "--json"))
    cluster.cluster("stop")
    assert cluster.processes() == {}
    assert list(cluster.folder.glob("nodes/*/state/control.sock")) == []
    cluster.mercat("status", expect=5)
    config = str(cluster.folder / "nodes" / "authority-1" / "config.toml")
    checked = json.loads(cluster.mercat("ledger", "check", "--config", config, "--json"))
    assert checked["blocks"] >= exported["blocks"] > 0
    assert cluster.mercat("ledger", "check", str(archive), "--config", config, "-q") == "OK\n"


def test_start_that_is_interrupted_leaves_nothing_behind(cluster: Cluster) -> None:
    with _starting(cluster) as starter:
        starter.send_signal(signal.SIGINT)
        assert starter.wait(60) == 130
    assert cluster.processes() == {}


def test_start_that_is_killed_leaves_nothing_behind(cluster: Cluster) -> None:
    with _starting(cluster) as starter:
        starter.kill()
    for number in cluster.processes().values():
        _wait_ended(number)
    assert cluster.processes() == {}
    cluster.up()


@contextmanager
def _starting(cluster: Cluster) -> "Iterator[subprocess.Popen[bytes]]":
    """A start of the stopped cluster, caught when its first node runs."""
    with subprocess.Popen(
        [sys.executable, "-m", "node.cli.main", "cluster", "up", "--dir", str(cluster.folder), *SHAPE],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as starter:
        while not cluster.processes():
            assert starter.poll() is None
            select.select([], [], [], 0.01)
        yield starter


def _kill_and_wait(number: int) -> None:
    os.kill(number, signal.SIGKILL)
    _wait_ended(number)


def _wait_ended(number: int) -> None:
    try:
        handle = os.pidfd_open(number)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], 30)[0], "a node outlived its end"
    finally:
        os.close(handle)
