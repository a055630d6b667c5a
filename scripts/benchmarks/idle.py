"""Nodes with nothing to do: memory and processor time of each role.

The network stands still but for heartbeats: an empty block every 15 s, offers renewed, peers exchanged. Workers are
processes of their own and are listed apart; they hold what the model needs.
"""

import asyncio
import os
import subprocess
import sys
import time

from scripts.benchmarks.measure import Report, note, run_loop
from scripts.benchmarks.network import Network, development_network
from scripts.benchmarks.processes import MEBIBYTE, children, processor_seconds, resident_mebibytes

SECONDS = 35
"""Two heartbeats and an offer's renewal."""
_SETTLE_SECONDS = 5
_MEBIBYTES_MAX = 120.0
_PERCENT_MAX = 1.0


async def _measure(network: Network, report: Report, quick: bool) -> None:
    await asyncio.sleep(0 if quick else _SETTLE_SECONDS)
    seconds = 1 if quick else SECONDS
    note(f"{seconds} s of nothing")
    pids = {record.name: network.pid(record.name) for record in network.record.nodes}
    before = {name: processor_seconds(pid) for name, pid in pids.items()}
    started = time.monotonic()
    await asyncio.sleep(seconds)
    passed = time.monotonic() - started
    for role in ("authority", "provider", "buyer"):
        names = [record.name for record in network.record.nodes if record.role == role]
        share = max((processor_seconds(pids[name]) - before[name]) / passed for name in names)
        memory = max(resident_mebibytes(pids[name]) for name in names)
        report.add(f"node.idle.resident_mebibytes/role={role}", memory, "MiB")
        report.target(f"node.idle.resident_mebibytes/role={role}", "<=", _MEBIBYTES_MAX)
        report.add(f"node.idle.processor_percent/role={role}", share * 100, "%")
        report.target(f"node.idle.processor_percent/role={role}", "<=", _PERCENT_MAX)
    workers = [pid for name in pids if name.startswith("provider") for pid in children(pids[name])]
    total = sum(resident_mebibytes(pid) for pid in workers)
    report.add("worker.idle.resident_mebibytes/model=echo", total, "MiB")


def _bare() -> float:
    """An interpreter with the libraries of a node and nothing of ours."""
    source = (
        "import aiohttp, asyncio, cryptography, msgspec, nacl.signing, sqlite3, uvloop, blake3\n"
        "print(open('/proc/self/statm').read().split()[1])"
    )
    pages = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / MEBIBYTE


def measure(quick: bool) -> Report:
    """Memory and processor share of idle nodes, the worst of each role."""
    report = Report.start("idle nodes, the worst of each role")
    with development_network(authorities=1 if quick else 4) as network:
        run_loop(_measure(network, report, quick))
    report.baseline("interpreter_with_libraries.resident_mebibytes", _bare(), "MiB")
    return report
