"""One job that is cut off at one exact step, and what must be true of it afterwards.

Law: whoever died or hung up, and when: each side ends the job in a state with a reason; nothing was charged that was
not delivered, and nothing released that is not paid but for one chunk (the input's processing counts as one); once
another job has gone through, both sides hold the same vouchers.
"""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from node.cli.cluster_layout import ProcessRecord
from node.cli.cluster_processes import Started, is_paused, start_ticks
from node.cli.failures import CommandFailed
from node.runtime.control import JobView, RunRequest
from tests.kill.market import MODEL, Market, Node
from tests.network.waiting import seconds_until

DOOMED = Path(__file__).with_name("doomed_node.py")
ENDED = ("done", "delivered", "failed", "cancelled")
SECONDS = 20.0
REQUEST, INPUT_UNIT, OUTPUT_UNIT = 1_000, 10, 40
"""Base units: what a cluster's provider asks."""
CHUNK_UNITS = 256
CHUNKS = 4
TEXT = b"".join(b"%07d " % number for number in range(CHUNKS * CHUNK_UNITS // 8))
"""Echoed in four chunks of output behind the one of input."""
ONE_CHUNK = REQUEST + len(TEXT) * INPUT_UNIT
"""The dearest: the processing of the input."""


SHORT = TEXT[:128]
"""Whole in one chunk, input and output, for a buyer that has paid ten times as much."""


@dataclass(slots=True)
class Told:
    """What the asker was told of its job."""

    output: bytes = b""
    job: str = ""
    chunks: int = 0
    request: str = ""
    end: str = ""
    paid: int = 0


def price_of(input_units: int, output_units: int) -> int:
    """What chunks cost; nothing before the input is processed."""
    return REQUEST + input_units * INPUT_UNIT + output_units * OUTPUT_UNIT if input_units else 0


def ask(market: Market, timeout_ms: int = 15_000, text: bytes = TEXT) -> Told:
    """Run the job until the buyer's node says its end or is gone."""
    told = Told()
    try:
        for event in market.buyer.client.run(RunRequest(MODEL, "bytes", text, timeout_ms=timeout_ms), SECONDS):
            told.output += event.payload
            told.request = str(event.facts.get("request") or told.request)
            told.job = str(event.facts.get("job") or told.job)
            if event.event in ("finished", "failed", "cancelled"):
                told.end, told.paid = event.event, int(event.facts.get("paid") or 0)
                told.chunks = int(event.facts.get("chunks") or 0)
    except CommandFailed as error:
        told.end = error.code
    told.end = told.end or "hung up"
    return told


def start_doomed(node: Node, point: str) -> "subprocess.Popen[bytes]":
    """A life of the node that ends or halts at a point."""
    assert node.started is None
    reading, writing = os.pipe()
    arguments = ["node", "run", "--config", str(node.record.config), "--lifeline", str(reading)]
    with open(node.record.log, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, str(DOOMED), point, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(reading,),
            cwd=node.record.directory,
            env={name: value for name, value in os.environ.items() if not name.startswith("MERCAT_")},
        )
    os.close(reading)
    node.started = Started(ProcessRecord(process.pid, start_ticks(process.pid) or 0), process, writing)
    node.lives += 1
    return process


def bury(node: Node) -> None:
    """The node has killed itself."""
    assert node.started is not None
    assert node.started.process.wait(SECONDS) == -signal.SIGKILL, "it did not come to its point"
    os.close(node.started.lifeline)
    node.started = None


def wait_paused(node: Node) -> None:
    """Until the node stands still at its point."""
    record = node.started.record if node.started is not None else None
    assert record is not None
    seconds_until(lambda: is_paused(record), SECONDS, f"{node.name} stands still")


def all_ended(market: Market) -> bool:
    """Whether no job runs on either side, and the provider's slots are free."""
    (provider,) = market.role("provider")
    views = [view for node in (market.buyer, provider) for view in node.client.jobs()]
    return all(view.state in ENDED for view in views) and provider.client.provider().slots_free == 2


def check_books(
    market: Market, known: set[str], one_chunk: int = ONE_CHUNK
) -> "dict[str, tuple[JobView | None, JobView | None]]":
    """Judge every job that is not known yet, as its buyer and its provider have it."""
    (provider,) = market.role("provider")
    seconds_until(lambda: all_ended(market), SECONDS, "every job has ended on both sides")
    bought = {view.job: view for view in market.buyer.client.jobs()}
    sold = {view.job: view for view in provider.client.jobs()}
    pairs = {job: (bought.get(job), sold.get(job)) for job in {**bought, **sold} if job not in known}
    for job, (ours, theirs) in pairs.items():
        for view in (ours, theirs):
            assert view is None or view.state == "done" or view.reason, f"{job} ended without a reason: {view}"
        paid, got = (ours.amount if ours is not None else 0), (theirs.amount if theirs is not None else 0)
        assert got <= paid <= got + one_chunk, f"{job}: its buyer paid {paid}, its provider has {got}"
        if ours is not None:
            assert paid <= price_of(ours.input_units, ours.output_units), f"{job} is charged and not delivered: {ours}"
        if theirs is not None:
            released = price_of(theirs.input_units, theirs.output_units)
            assert released <= got + one_chunk, f"{job}: {released} released, {got} paid"
    return pairs


def check_promises(market: Market) -> None:
    """Both sides hold the same vouchers: nothing that was promised is lost."""
    (provider,) = market.role("provider")

    def promised(node: Node) -> dict[str, int]:
        return {view.channel: view.promised for view in node.client.channels()}

    seconds_until(lambda: promised(market.buyer) == promised(provider), SECONDS, "both sides hold the same vouchers")


def get_deposits_back(market: Market) -> None:
    """The payer closes its channels: all that it has not spent is free again, and no credit is missing."""
    buyer = market.buyer.client
    for view in buyer.channels():
        if view.state == "open":
            buyer.close_channel(view.channel, 10_000)
    account = market.buyer.account
    seconds_until(lambda: buyer.account(account).in_channels == 0, 60.0, "every deposit has come back")
    supply = buyer.supply()
    assert supply.deposits == 0
    assert supply.total == supply.genesis_total == supply.balances + supply.bonds + supply.fee_pool
