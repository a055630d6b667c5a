"""The ledger under load: four authorities, all on this machine, every signature checked, every commit on disk.

The load generator runs on the same cores and so takes its share of them. Transfers go to one authority, which passes
them on to the others. Baseline of the same run: one process that checks, executes and stores the same transfers
without anybody to agree with.
"""

import asyncio
import tempfile
import time
from pathlib import Path

from node.clock import read_clock
from node.config.genesis_file import load_genesis
from node.store.database import Store
from protocol.ledger.blocks import BLOCK_OVERHEAD_BYTES_MAX, build_block
from protocol.ledger.lattice import lattice_bytes
from protocol.ledger.mempool import Mempool
from protocol.ledger.signatures import open_transaction, transaction_checks
from protocol.messages.blocks import DecidedBlock
from protocol.messages.consensus import Certificate, CertificateKind
from protocol.messages.effects import CommitBlock
from protocol.messages.genesis import Genesis
from protocol.primitives.addresses import AddressKind, parse_address
from protocol.primitives.limits import BLOCK_BYTES_MAX, BLOCK_TRANSACTIONS_MAX
from protocol.primitives.units import NodeId, Signature, View
from scripts.benchmarks.control import Control
from scripts.benchmarks.ledger_client import LedgerClient
from scripts.benchmarks.measure import PAIRS, Report, note, run_loop
from scripts.benchmarks.network import Network, development_network
from scripts.benchmarks.processes import ProcessorMeter
from scripts.benchmarks.transfers import Purse, allocations

IN_FLIGHT = 512
"""Undecided transfers while the ledger is saturated: enough to fill blocks, far below the mempool's caps."""
PACED_PER_SECOND = 400
OUTPUTS = 16
_STEP_S = 0.02
_IDLE_GAP_S = 0.06
"""Between two transfers on an idle ledger: longer than the 10 ms for which a height waits for company."""


class _Alone:
    """One process without anybody to agree with: checks, executes and stores transfers."""

    def __init__(self, genesis: Genesis, folder: Path) -> None:
        self._store = Store.open(folder / "alone.sqlite", genesis)
        self._state = self._store.load_state()
        self._mempool = Mempool(genesis)
        self._certificate: Certificate | None = None

    def close(self) -> None:
        """Release the file."""
        self._store.close()

    def take(self, envelopes: list[bytes]) -> float:
        """Seconds for these transfers, in one block."""
        started = time.perf_counter()
        state = self._state
        for received in envelopes:
            assert all(check.holds() for check in transaction_checks(state.genesis_hash, received))
            self._mempool.add(received, *open_transaction(received), state)
        candidates = self._mempool.select(state, BLOCK_BYTES_MAX - BLOCK_OVERHEAD_BYTES_MAX, BLOCK_TRANSACTIONS_MAX)
        execution = build_block(state, candidates, read_clock().wall_ms, self._certificate)
        header = execution.header
        certificate = Certificate(
            CertificateKind.DECIDED, header.height, View(1), execution.block_hash, (0,), (Signature(bytes(64)),)
        )
        decided = DecidedBlock(execution.block_bytes, certificate)
        ids = execution.transaction_ids
        lattice, tree = lattice_bytes(execution.lattice), state.apply(execution)
        commit = CommitBlock(header.height, execution.block_hash, decided, execution.rows, ids, lattice, tree)
        self._store.commit([commit])
        self._certificate = certificate
        self._mempool.block_applied(state, ids)
        assert len(ids) == len(envelopes)
        return time.perf_counter() - started


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


async def _pairs(client: LedgerClient, purse: Purse, genesis: Genesis, report: Report, count: int) -> None:
    note("bursts, each beside the same number of transfers in one process alone")
    together: list[float] = []
    alone: list[float] = []
    own = Purse.open(purse.genesis_hash)
    with tempfile.TemporaryDirectory(prefix="mercat-bench-") as folder:
        single = _Alone(genesis, Path(folder))
        try:
            for number in range(PAIRS):
                envelopes, others = purse.sign(count, 1), own.sign(count, 1)
                if number % 2:
                    alone.append(count / single.take(others))
                started = time.perf_counter()
                client.submit(envelopes)
                await client.until_waiting(0)
                together.append(count / (time.perf_counter() - started))
                if not number % 2:
                    alone.append(count / single.take(others))
        finally:
            single.close()
    report.baseline("ledger.one_process_alone.transfers_per_second", sorted(alone)[len(alone) // 2], "transfers/s")
    report.ratio("ledger.burst_to_one_process_alone", together, alone)


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


async def _measure(network: Network, report: Report, quick: bool) -> None:
    await _follower(network, report, 3 if quick else 40)
    network.stop(["buyer-1"])
    genesis = load_genesis(Path(network.record.genesis))
    authority = network.record.named("authority-1")
    node = NodeId(parse_address(AddressKind.NODE, authority.node))
    names = [record.name for record in network.record.nodes if record.role == "authority"]
    async with LedgerClient(genesis, node, authority.address) as client:
        purse = Purse.open(client.genesis_hash)
        await _saturated(client, purse, 128, 1)
        await _idle(client, purse, report, 5 if quick else 100)
        await _paced(client, purse, report, 1 if quick else 6)
        note(f"as fast as it goes, {IN_FLIGHT} transfers undecided at any time")
        count = 640 if quick else 6400
        meter = ProcessorMeter({name: network.pid(name) for name in names})
        rate = await _saturated(client, purse, count, 1)
        report.add("ledger.transfers_per_second/outputs=1", rate, "transfers/s")
        used = sum(map(meter.seconds, names)) / len(names) / count
        report.add("ledger.authority.processor_ms_per_transaction/outputs=1", used * 1000, "ms")
        report.latencies("ledger.transfer.finality/load=saturated", client.finality)
        count = 128 if quick else 1600
        rate = await _saturated(client, purse, count, OUTPUTS)
        report.add(f"ledger.transfers_per_second/outputs={OUTPUTS}", rate * OUTPUTS, "transfers/s")
        await _pairs(client, purse, genesis, report, 64 if quick else 256)
    async with Control(network.control("authority-1")) as control:
        supply = await control.supply()
        assert supply.total == supply.genesis_total, "money was made or lost"


def measure(quick: bool) -> Report:
    """Transfers per second and finality with four authorities."""
    report = Report.start("transfers through four authorities on this machine, load generator included")
    with development_network(providers=0, models=(), accounts=allocations()) as network:
        run_loop(_measure(network, report, quick))
    report.target("ledger.transfer.finality.p50/load=idle", "<=", 100.0)
    report.target("ledger.transfers_per_second/outputs=1", ">=", 400.0)
    return report
