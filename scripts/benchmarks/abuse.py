"""Transfers and jobs while hostile links send valid statements of no use as fast as they are taken.

The links lead to the authority that the transfers go through and to the provider that the jobs run on. The attackers
run on the same cores, and a link that is cut off comes back under another key.
"""

import asyncio
import time
from contextlib import ExitStack
from pathlib import Path

from node.config.genesis_file import load_genesis
from node.runtime.control import RunRequest
from protocol.primitives.addresses import AddressKind, parse_address
from protocol.primitives.units import NodeId
from scripts.benchmarks.control import Control
from scripts.benchmarks.ledger_client import LedgerClient
from scripts.benchmarks.measure import Report, note, percentile, run_loop
from scripts.benchmarks.network import Network, development_network
from scripts.benchmarks.python_process import python_process
from scripts.benchmarks.transfers import Purse, allocations

LINKS = 12
IN_FLIGHT = 256
_PAYLOAD = b"who pays for the noise?"
_CALM_S = 1.0
"""After the attackers have linked: what they may send before they count as useless is behind them."""


async def _transfers(client: LedgerClient, purse: Purse, count: int) -> float:
    """Transfers a second, always with some undecided."""
    envelopes = purse.sign(count, 1)
    started = time.perf_counter()
    for start in range(0, count, 64):
        await client.until_waiting(IN_FLIGHT - 64)
        client.submit(envelopes[start : start + 64])
    await client.until_waiting(0)
    return count / (time.perf_counter() - started)


async def _jobs(control: Control, count: int) -> list[float]:
    """Seconds of jobs, one after the other."""
    taken = []
    for _ in range(count):
        events = await control.run(RunRequest("echo", "bytes", _PAYLOAD))
        taken.append(events[-1][0])
    return taken


async def _round(network: Network, report: Report, key: str, quick: bool, client: LedgerClient, purse: Purse) -> None:
    note(f"transfers and jobs, {key}")
    rate = await _transfers(client, purse, 128 if quick else 2_048)
    report.add(f"abuse.transfers_per_second/{key}", rate, "transfers/s")
    async with Control(network.control("buyer-1")) as control:
        await _jobs(control, 2 if quick else 10)
        seconds = await _jobs(control, 4 if quick else 100)
    for share in (50, 99):
        report.add(f"abuse.job.p{share}/{key}", percentile(seconds, share) * 1000, "ms")


async def _measure(network: Network, report: Report, quick: bool) -> None:
    genesis = load_genesis(Path(network.record.genesis))
    authority = network.record.named("authority-1")
    node = NodeId(parse_address(AddressKind.NODE, authority.node))
    async with LedgerClient(genesis, node, authority.address) as client:
        purse = Purse.open(client.genesis_hash)
        await _transfers(client, purse, 128)
        await _round(network, report, "hostile_links=0", quick, client, purse)
        with ExitStack() as stack:
            links = 2 if quick else LINKS
            for name in ("authority-1", "provider-1"):
                address = network.record.named(name).address
                module = "scripts.benchmarks.hostile_links"
                attackers = stack.enter_context(python_process(module, network.record.genesis, address, str(links)))
                assert await attackers.heard() == "ready"
            await asyncio.sleep(_CALM_S)
            await _round(network, report, f"hostile_links={links}", quick, client, purse)
            report.add("abuse.transfers_kept", _kept(report, links), "share")


def _kept(report: Report, links: int) -> float:
    name = "abuse.transfers_per_second/hostile_links="
    return report.figures[f"{name}{links}"].value / report.figures[f"{name}0"].value


def measure(quick: bool) -> Report:
    """What hostile links cost honest ones."""
    report = Report.start(f"transfers and jobs beside {LINKS} hostile links to one authority and to the provider")
    with development_network(accounts=allocations()) as network:
        run_loop(_measure(network, report, quick))
    report.target("abuse.transfers_kept", ">=", 0.5)
    return report
