"""A development network for a benchmark: real processes in a temporary directory, gone when the benchmark ends.

Law: the lifelines of all nodes stay in this process, so that its death, however sudden, ends them. Nothing outside the
temporary directory is written, but for the content-addressed model store.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from node.cli.cluster_layout import ClusterRecord, Shape, create_cluster, write_configs, write_record
from node.cli.cluster_processes import start_node, stop_processes
from node.cli.cluster_start import Start, node_status, start_missing, wait_ready
from node.config.descriptions import description_path
from node.config.genesis_file import genesis_to_json, load_genesis, make_genesis
from protocol.messages.genesis import Allocation
from scripts.benchmarks.measure import note

MODEL_STORE = Path(__file__).parents[2] / "var" / "models"
"""The one of ``scripts/demo``: models are downloaded once."""
READY_SECONDS = 180.0
_POLL_SECONDS = 0.01
_REDEEM_LINES = {"amount = 10000": "amount = 1000000"}
"""A cluster's provider redeems every few jobs, for people to watch; here only every credit or two seconds."""


class Network:
    """A running development network."""

    def __init__(self, start: Start) -> None:
        self.record: ClusterRecord = start.record
        self._start = start

    def pid(self, name: str) -> int:
        """Process of a node."""
        return self._start.started[name].record.pid

    def control(self, name: str) -> Path:
        """Control socket of a node."""
        return Path(self.record.named(name).control)

    def start(self, names: Sequence[str]) -> None:
        """Start nodes that were stopped; returns once they answer."""
        for name in names:
            self._start.started[name].process.wait()
            self._start.started[name] = start_node(self.record.named(name))
        deadline = time.monotonic() + READY_SECONDS
        for name in names:
            while node_status(self.record.named(name)) is None:
                assert time.monotonic() < deadline, f"{name} does not start"
                assert self._start.started[name].process.poll() is None, f"{name} has ended"
                time.sleep(_POLL_SECONDS)

    def stop(self, names: Sequence[str]) -> None:
        """End some of the nodes."""
        stop_processes(self._start.started[name].record for name in names)


def _lay(
    directory: Path, authorities: int, providers: int, models: Sequence[str], slots: int, accounts: Sequence[Allocation]
) -> ClusterRecord:
    paths = tuple(str(description_path(model)) for model in models)
    record = create_cluster(directory, Shape(authorities, providers), paths, MODEL_STORE)
    path = Path(record.genesis)
    if accounts:
        genesis = load_genesis(path)
        richer = make_genesis(
            genesis.network,
            genesis.development,
            genesis.created_at,
            genesis.parameters,
            genesis.authorities,
            (*genesis.allocations, *accounts),
        )
        path.write_bytes(genesis_to_json(richer))
    write_configs(directory, record)
    for node in record.nodes:
        if node.role == "provider":
            written = node.config.read_text()
            for old, new in {"slots = 2": f"slots = {slots}", **_REDEEM_LINES}.items():
                assert written.count(f"{old}\n") == 1, old
                written = written.replace(f"{old}\n", f"{new}\n")
            node.config.write_text(written)
    return record


@contextmanager
def development_network(
    *,
    authorities: int = 4,
    providers: int = 1,
    models: Sequence[str] = ("echo",),
    slots: int = 2,
    accounts: Sequence[Allocation] = (),
    buyer: bool = True,
    prepare: Callable[[ClusterRecord], None] = lambda record: None,
) -> Iterator[Network]:
    """Start a network, wait until all of it serves, and end it with the context.

    ``accounts`` are funded by the genesis beside the nodes' own; ``prepare`` may change files before anything runs.
    """
    with tempfile.TemporaryDirectory(prefix="mercat-bench-") as folder:
        directory = Path(folder) / "net"
        record = _lay(directory, authorities, providers, models, slots, accounts)
        if not buyer:
            record = msgspec.structs.replace(record, nodes=tuple(n for n in record.nodes if n.role != "buyer"))
        write_record(directory, record)
        prepare(record)
        note(f"starting {len(record.nodes)} nodes on loopback")
        start = start_missing(directory, record)
        try:
            wait_ready(start, READY_SECONDS, lambda text: None)
            yield Network(start)
        finally:
            start.abandon()
            for started in start.started.values():
                started.process.wait()
