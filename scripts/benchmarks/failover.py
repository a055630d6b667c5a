"""A provider killed mid-stream: how long the reader of a job waits for the next provider's first chunk.

Each round is a job of its own on a network of one authority, two providers and a buyer, all on loopback. The provider
that has the job is ended by SIGKILL once a part of the output is here; what is measured is the time from the signal to
the first chunk of the other provider, which goes on behind the last verified one. The text must be whole.
"""

import os
import random
import signal
import time

from node.cli.client import NodeClient
from node.cli.cluster_layout import ClusterRecord
from node.runtime.control import RunRequest
from scripts.benchmarks.measure import Report, note
from scripts.benchmarks.network import Network, development_network

ROUNDS = 40
BODY_BYTES = 60_000
"""Long enough that a provider is still at it when a twentieth has come."""
PRICE_MAX = 50_000_000
TARGET_MS = 1_000.0
_READY_SECONDS = 60.0
_ANSWER_SECONDS = 30.0


def _long_echoes(record: ClusterRecord) -> None:
    """Let providers take inputs and outputs as long as the benchmark's."""
    limits = f"[provider]\ninput_units_max = {10 * BODY_BYTES}\noutput_units_max = {10 * BODY_BYTES}\n"
    for node in record.nodes:
        if node.role == "provider":
            written = node.config.read_text()
            assert written.count("[provider]\n") == 1
            node.config.write_text(written.replace("[provider]\n", limits))


def _wait_for_takers(client: NodeClient, asked: RunRequest, takers: int) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while sum(row.would_take for row in client.quote(asked).rows) < takers:
        assert time.monotonic() < deadline, "an offer never came"
        time.sleep(0.05)


def _round(network: Network, client: NodeClient, body: bytes) -> tuple[str, float, float]:
    """One job with a kill in it: who was killed, the seconds until its own first chunk, and until the other one's."""
    names = {node.account: node.name for node in network.record.nodes}
    output, providers, killed_at, resumed_at = b"", [], 0.0, 0.0
    asked_at, first = time.monotonic(), 0.0
    for event in client.run(RunRequest("echo", "bytes", body, price_max=PRICE_MAX), _ANSWER_SECONDS):
        if event.event == "agreed":
            providers.append(names[str(event.facts["provider"])])
        elif event.event == "output":
            if len(providers) > 1 and not resumed_at:
                resumed_at = time.monotonic()
            first = first or time.monotonic() - asked_at
            output += event.payload
            if not killed_at and len(output) > BODY_BYTES // 20:
                killed_at = time.monotonic()
                os.kill(network.pid(providers[0]), signal.SIGKILL)
    assert output == body, "a gap or a repeat"
    assert len(providers) == 2
    return providers[0], first, resumed_at - killed_at


def measure(quick: bool) -> Report:
    """p50 and p99 from the kill to the next chunk."""
    report = Report.start("a provider killed mid-stream: from the kill to the next provider's first chunk")
    dice = random.Random(7)
    firsts: list[float] = []
    seams: list[float] = []
    with development_network(authorities=1, providers=2, prepare=_long_echoes) as network:
        client = NodeClient(network.control("buyer-1"))
        for number in range(2 if quick else ROUNDS):
            body = dice.randbytes(BODY_BYTES)
            _wait_for_takers(client, RunRequest("echo", "bytes", body, price_max=PRICE_MAX), 2)
            killed, first, seam = _round(network, client, body)
            firsts.append(first)
            seams.append(seam)
            note(f"round {number + 1}: {seam * 1000:.0f} ms")
            network.start([killed])
    report.latencies("market.failover/cause=killed", seams)
    report.latencies("market.first_chunk/cause=asked", firsts, baseline=True)
    report.target("market.failover.p99/cause=killed", "<=", TARGET_MS)
    return report
