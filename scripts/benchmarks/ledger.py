"""The ledger under load: four authorities, all on this machine, every signature checked, every commit on disk.

The load generator runs on the same cores and so takes its share of them. Transfers go to one authority, which passes
them on to the others. Baseline of the same run: one process that checks, executes and stores the same transfers
without anybody to agree with.
"""

import asyncio
import tempfile
import time
from pathlib import Path

from node.cli.cluster_layout import ClusterRecord
from node.config.genesis_file import load_genesis
from protocol.primitives.addresses import AddressKind, parse_address
from protocol.primitives.units import AccountId, NodeId
from scripts.benchmarks.control import Control
from scripts.benchmarks.ledger_alone import PARTS, Alone
from scripts.benchmarks.ledger_client import LedgerClient
from scripts.benchmarks.ledger_scale import measure_scale
from scripts.benchmarks.measure import PAIRS, Report, note, run_loop
from scripts.benchmarks.network import Network, development_network
from scripts.benchmarks.population import fill_stores, treasury
from scripts.benchmarks.processes import ProcessorMeter
from scripts.benchmarks.transfers import ACCOUNTS, Purse, accounts

IN_FLIGHT = 512
"""Undecided transfers while the ledger is saturated: enough to fill blocks, far below the mempool's caps."""
PACED_PER_SECOND = 400
OUTPUTS = 16
_STEP_S = 0.02
_IDLE_GAP_S = 0.06
"""Between two transfers on an idle ledger: longer than the 10 ms for which a height waits for company."""


async def _idle(client: LedgerClient, purse: Purse, report: Report, count: int) -> None:
    note("one transfer at a time")
    client.finality.clear()
    for envelope in purse.sign(count, 1):
        client.submit([envelope])
        await client.until_waiting(0)
        await asyncio.sleep(_IDLE_GAP_S)
    report.latencies("ledger.transfer.finality/load=idle", client.finality)


async def _paced(client: LedgerClient, purse: Purse, report: Report, seconds: int) -> None:
    note(f"{PACED_PER_SECOND} transfers a second")
    envelopes = purse.sign(PACED_PER_SECOND * seconds, 1)
    client.finality.clear()
    started = time.perf_counter()
    sent = 0
    while sent < len(envelopes):
        due = min(len(envelopes), int((time.perf_counter() - started) * PACED_PER_SECOND))
        client.submit(envelopes[sent:due])
        sent = due
        await asyncio.sleep(_STEP_S)
        if client.waiting > 4 * IN_FLIGHT:
            report.notes.append(f"the ledger did not keep up with {PACED_PER_SECOND} transfers a second")
            await client.until_waiting(IN_FLIGHT)
    await client.until_waiting(0)
    report.latencies(f"ledger.transfer.finality/load={PACED_PER_SECOND}_per_second", client.finality)


async def _saturated(client: LedgerClient, purse: Purse, count: int, outputs: int) -> float:
    """Transactions per second over the middle of a run that always has ``IN_FLIGHT`` of them undecided."""
    envelopes = purse.sign(count, outputs)
    client.finality.clear()
    client.decided_at.clear()
    for start in range(0, count, 64):
        await client.until_waiting(IN_FLIGHT - 64)
        client.submit(envelopes[start : start + 64])
    await client.until_waiting(0)
    tenth = count // 10
    first, last = client.decided_at[tenth], client.decided_at[-tenth - 1]
    return sum(first < at <= last for at in client.decided_at) / (last - first)


async def _pairs(client: LedgerClient, purse: Purse, alone: Alone, report: Report, count: int) -> None:
    note("bursts, each beside the same number of transfers in one process alone")
    together: list[float] = []
    apart: list[float] = []
    own = Purse(purse.genesis_hash, purse.payers, purse.recipients)
    for number in range(PAIRS):
        envelopes, others = purse.sign(count, 1), own.sign(count, 1)
        if number % 2:
            apart.append(count / alone.take(others).wall)
        started = time.perf_counter()
        client.submit(envelopes)
        await client.until_waiting(0)
        together.append(count / (time.perf_counter() - started))
        if not number % 2:
            apart.append(count / alone.take(others).wall)
    report.baseline("ledger.one_process_alone.transfers_per_second", sorted(apart)[len(apart) // 2], "transfers/s")
    report.ratio("ledger.burst_to_one_process_alone", together, apart)


def _breakdown(report: Report, alone: Alone, processor_us: float) -> None:
    """Where an authority's time for a transfer goes: parts timed in one process, the rest by difference."""
    known = 0.0
    for part in PARTS:
        cost = alone.seconds[part] / alone.transfers * 1e6
        # Only the leader builds a block; the three others execute it.
        known += cost if part != "build" else 0.0
        report.add(f"ledger.transfer.cost_us/part={part}", cost, "µs")
    report.add("ledger.transfer.cost_us/part=links_and_consensus", max(0.0, processor_us - known), "µs")


async def _follower(network: Network, report: Report, count: int) -> None:
    """A transfer of a node's own user: signed there, decided by the authorities, followed by that node."""
    note("transfers by the user of a following node")
    recipient = network.record.named("authority-1").account
    seconds: list[float] = []
    async with Control(network.control("buyer-1")) as control:
        for _ in range(count):
            started = time.perf_counter()
            await control.send(recipient, 1)
            seconds.append(time.perf_counter() - started)
            await asyncio.sleep(_IDLE_GAP_S)
    report.latencies("ledger.own_transfer.finality/node=follower,load=idle", seconds)


async def _measure(network: Network, alone: Alone, report: Report, quick: bool) -> None:
    await _follower(network, report, 3 if quick else 40)
    network.stop(["buyer-1"])
    genesis = load_genesis(Path(network.record.genesis))
    authority = network.record.named("authority-1")
    node = NodeId(parse_address(AddressKind.NODE, authority.node))
    names = [record.name for record in network.record.nodes if record.role == "authority"]
    people = _people(quick)
    async with LedgerClient(genesis, node, authority.address) as client:
        purse = Purse(client.genesis_hash, len(people), people)
        await _saturated(client, purse, 128, 1)
        await _idle(client, purse, report, 5 if quick else 100)
        await _paced(client, purse, report, 1 if quick else 6)
        note(f"as fast as it goes, {IN_FLIGHT} transfers undecided at any time")
        count = 640 if quick else 12_800
        meter = ProcessorMeter({name: network.pid(name) for name in names})
        rate = await _saturated(client, purse, count, 1)
        report.add("ledger.transfers_per_second/outputs=1", rate, "transfers/s")
        used = sum(map(meter.seconds, names)) / len(names) / count
        report.add("ledger.authority.processor_ms_per_transaction/outputs=1", used * 1000, "ms")
        report.latencies("ledger.transfer.finality/load=saturated", client.finality)
        count = 128 if quick else 3_200
        rate = await _saturated(client, purse, count, OUTPUTS)
        report.add(f"ledger.transfers_per_second/outputs={OUTPUTS}", rate * OUTPUTS, "transfers/s")
        await _pairs(client, purse, alone, report, 64 if quick else 256)
        _breakdown(report, alone, used * 1e6)
    async with Control(network.control("authority-1")) as control:
        supply = await control.supply()
        assert supply.total == supply.genesis_total, "money was made or lost"


def _people(quick: bool) -> list[AccountId]:
    return accounts(1_000 if quick else ACCOUNTS)


def measure(quick: bool) -> Report:
    """Transfers per second, finality, and where the time goes with four authorities; then a million accounts."""
    report = Report.start("transfers through four authorities on this machine, load generator included")
    with tempfile.TemporaryDirectory(prefix="mercat-bench-") as folder:
        alone_folder = Path(folder) / "alone"

        def fill(record: ClusterRecord) -> None:
            note(f"a ledger with {len(_people(quick))} accounts")
            directories = [alone_folder, *(Path(node.directory) / "state" for node in record.nodes)]
            fill_stores(directories, load_genesis(Path(record.genesis)), _people(quick))

        with development_network(providers=0, models=(), accounts=[treasury()], prepare=fill) as network:
            alone = Alone(load_genesis(Path(network.record.genesis)), alone_folder)
            try:
                run_loop(_measure(network, alone, report, quick))
            finally:
                alone.close()
    report.target("ledger.transfer.finality.p50/load=idle", "<=", 20.0)
    report.target(f"ledger.transfer.finality.p50/load={PACED_PER_SECOND}_per_second", "<=", 80.0)
    report.target("ledger.transfers_per_second/outputs=1", ">=", 1_200.0)
    report.target(f"ledger.transfers_per_second/outputs={OUTPUTS}", ">=", 3_000.0)
    measure_scale(report, quick)
    return report
