"""A ledger with a million accounts: what a transfer costs beside one with a thousand, a node's start and memory."""

import asyncio
import tempfile
import time
from pathlib import Path

from node.cli.cluster_layout import ClusterRecord, Shape, development_genesis
from node.config.genesis_file import load_genesis, make_genesis
from protocol.messages.genesis import Genesis, genesis_hash
from protocol.primitives.addresses import AddressKind, format_address
from protocol.primitives.units import AccountId
from scripts.benchmarks.control import Control
from scripts.benchmarks.ledger_alone import Alone
from scripts.benchmarks.measure import PAIRS, Report, note
from scripts.benchmarks.network import Network, development_network
from scripts.benchmarks.population import fill_stores, stranger, treasury
from scripts.benchmarks.processes import resident_mebibytes
from scripts.benchmarks.transfers import Purse, accounts

FEW, MANY = 1_000, 1_000_000
_PAYERS_MAX = 20_000
_BLOCK = 256
_RESTARTS = 3


def _population(count: int) -> tuple[int, list[AccountId]]:
    payers = min(count, _PAYERS_MAX)
    return payers, [*accounts(payers), *(stranger(number) for number in range(count - payers))]


def _genesis() -> Genesis:
    plain = development_genesis(Shape(4, 0).names())
    allocations = (*plain.allocations, treasury())
    return make_genesis(
        plain.network, plain.development, plain.created_at, plain.parameters, plain.authorities, allocations
    )


def measure_cost(report: Report, few: int, many: int, pairs: int) -> None:
    """The cost of a transfer in one process over a large population beside that over a small one."""
    genesis = _genesis()
    costs: dict[int, list[float]] = {few: [], many: []}
    with tempfile.TemporaryDirectory(prefix="mercat-bench-") as folder:
        ledgers: dict[int, tuple[Alone, Purse]] = {}
        for count in (few, many):
            note(f"a ledger with {count} accounts")
            payers, everybody = _population(count)
            fill_stores([Path(folder) / str(count)], genesis, everybody)
            alone = Alone(genesis, Path(folder) / str(count))
            ledgers[count] = (alone, Purse(genesis_hash(genesis), payers, everybody))
        for number in range(pairs):
            for count in (few, many) if number % 2 else (many, few):
                alone, purse = ledgers[count]
                costs[count].append(alone.take(purse.sign(_BLOCK, 1)).processor / _BLOCK)
        for alone, _ in ledgers.values():
            alone.close()
    report.ratio(f"ledger.transfer.cost/accounts={many},beside={few}", costs[many], costs[few])
    for count in (few, many):
        report.add(f"ledger.transfer.cost_us/accounts={count}", sorted(costs[count])[pairs // 2] * 1e6, "µs")


async def _restarts(network: Network, report: Report, count: int) -> None:
    name, seconds, memory = "authority-1", [], []
    for _ in range(_RESTARTS):
        network.stop([name])
        started = time.perf_counter()
        network.start([name])
        seconds.append(time.perf_counter() - started)
        async with Control(network.control(name)) as control:
            await control.send(format_address(AddressKind.ACCOUNT, stranger(0)), 1)
            supply = await control.supply()
            assert supply.total == supply.genesis_total, "money was made or lost"
        # The state is hashed behind the start: memory is that of a node that works, not of one that waits.
        await asyncio.sleep(2)
        memory.append(resident_mebibytes(network.pid(name)))
    report.add(f"node.restart.seconds/accounts={count}", sorted(seconds)[_RESTARTS // 2], "s")
    report.add(f"node.resident_mebibytes/accounts={count}", max(memory), "MiB")


def measure_node(report: Report, count: int) -> None:
    """A real node's start, from the command to its first answer, and its memory, over a large ledger."""

    def fill(record: ClusterRecord) -> None:
        note(f"a node with {count} accounts")
        directories = [Path(node.directory) / "state" for node in record.nodes]
        fill_stores(directories, load_genesis(Path(record.genesis)), _population(count)[1])

    with development_network(
        authorities=1, providers=0, models=(), accounts=[treasury()], buyer=False, prepare=fill
    ) as network:
        asyncio.run(_restarts(network, report, count))


def measure_scale(report: Report, quick: bool) -> None:
    """All figures that depend on how many accounts there are, with their targets."""
    few, many = (100, 2_000) if quick else (FEW, MANY)
    measure_cost(report, few, many, 10 if quick else PAIRS)
    measure_node(report, many)
    report.target(f"ledger.transfer.cost/accounts={many},beside={few}", "<=", 2.0)
    report.target(f"node.restart.seconds/accounts={many}", "<=", 3.0)
    report.target(f"node.resident_mebibytes/accounts={many}", "<=", 300.0)
