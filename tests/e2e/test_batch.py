"""``mercat batch`` on a real cluster: killed in the middle, resumed, each line done and paid once."""

import json
import os
import secrets
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from node.cli.failures import CommandFailed
from node.runtime.control import RunRequest
from tests.e2e.network import INPUT_UNIT, OUTPUT_UNIT, REQUEST, Network, command_line, environment, wait_until

COUNT = 200


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = (json.dumps({"id": f"p{number}", "prompt": f"hello number {number}"}) for number in range(COUNT))
    path.write_text("\n".join(lines) + "\n")
    return path


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.with_name("prompts.out.jsonl").read_text().splitlines()]


def price_of(prompt: str) -> int:
    """By the cluster's prices, rounded up for thousands of units as the market does."""
    units = len(prompt.encode())
    return REQUEST + units * INPUT_UNIT + units * OUTPUT_UNIT


def batch(network: Network, path: Path, *options: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command_line("batch", str(path), "--model", "echo", *options),
        env={**environment(network.home), **network.variables("buyer-1")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=network.home,
    )


def test_a_batch_killed_in_the_middle_goes_on_and_pays_every_line_once(network: Network, prompts: Path) -> None:
    before = sum(channel.promised for channel in network.channels())
    partial = prompts.with_name("prompts.out.jsonl.partial")
    process = batch(network, prompts)
    wait_until(lambda: partial.exists() and partial.read_bytes().count(b'"text"') >= COUNT // 4, "a quarter is done")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done_before = {
        entry["place"]: entry["result"]["job"]
        for entry in map(json.loads, partial.read_bytes().splitlines())
        if entry["entry"] == "end" and entry["result"]
    }
    assert COUNT // 4 <= len(done_before) < COUNT
    resumed = batch(network, prompts, "--max-total", "10")
    _, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err.decode()
    rows = results(prompts)
    assert [(row["id"], row["text"]) for row in rows] == [(f"p{n}", f"hello number {n}") for n in range(COUNT)]
    assert {place: rows[place]["job"] for place in done_before} == done_before, "what was done stays what it was"
    assert len({row["job"] for row in rows}) == COUNT
    assert {network.name_of(row["provider"]) for row in rows} == {"provider-1", "provider-2"}
    # Every unit of what was promised since is some line's price, and each line's receipt says what it cost.
    assert sum(channel.promised for channel in network.channels()) - before == sum(row["price"] for row in rows)
    jobs = {view.job: view for view in network.client("buyer-1").jobs(2 * COUNT + 1_000)}
    receipted = sum(jobs[row["job"]].amount for row in rows)
    broken_off = sum(row["price"] - jobs[row["job"]].amount for row in rows)
    assert receipted == sum(price_of(f"hello number {number}") for number in range(COUNT))
    assert sum(row["price"] for row in rows) == receipted + broken_off
    assert broken_off <= 16 * price_of("hello number 100"), "no more than what was under way at the kill"
    assert network.is_conserved()


def test_ctrl_c_leaves_nothing_under_way_and_the_total_below_its_ceiling(network: Network, prompts: Path) -> None:
    partial = prompts.with_name("prompts.out.jsonl.partial")
    process = batch(network, prompts, "--max-total", "0.1")
    wait_until(lambda: partial.exists() and partial.read_bytes().count(b'"text"') >= 5, "some lines are done")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()
    assert b"the same command goes on" in err
    assert all(view.state in ("done", "failed", "cancelled") for view in network.jobs("buyer-1").values())
    resumed = batch(network, prompts, "--max-total", "0.1")
    _, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 4, err.decode()
    assert b"--max-total leaves too little" in err
    entries = [json.loads(line) for line in partial.read_bytes().splitlines()]
    spent = sum(entry["paid"] for entry in entries if entry["entry"] == "end")
    assert 90_000 < spent <= 100_000


def test_a_request_sent_again_under_its_name_is_refused_and_told_what_became_of_it(network: Network) -> None:
    client, name = network.client("buyer-1"), secrets.token_hex(32)
    assert client.request(name).state == "unknown"
    request = RunRequest(model="echo", format="text", body=b"once", request=name)
    events = list(client.run(request, 30))
    assert events[-1].event == "finished"
    view = client.request(name)
    assert (view.state, view.output, view.job) == ("done", b"once", events[-1].facts["job"])
    assert view.paid == events[-1].facts["amount"]
    with pytest.raises(CommandFailed, match="made before"):
        list(client.run(request, 30))
    network.kill("buyer-1")
    network.up()
    assert network.client("buyer-1").request(name) == view, "a name outlives its node's process"
    with pytest.raises(CommandFailed, match="made before"):
        list(network.client("buyer-1").run(request, 30))
