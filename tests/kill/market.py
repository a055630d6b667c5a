"""A development cluster whose processes can be killed at any moment, and put up again.

Law: a node that ends without having been killed is a failure, whatever else holds.
"""

import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from node.cli.client import NodeClient
from node.cli.cluster_layout import ClusterRecord, NodeRecord, Shape, create_cluster, log_tail
from node.cli.cluster_processes import Started, start_node
from node.cli.failures import CommandFailed
from node.config.descriptions import description_path
from tests.network.waiting import seconds_until

START_SECONDS = 60.0
STOP_SECONDS = 20.0
MODEL = "echo"


@dataclass(slots=True)
class Node:
    """One node of the cluster and its present life."""

    record: NodeRecord
    started: Started | None = None
    lives: int = 0

    @property
    def name(self) -> str:
        """Such as ``authority-1``."""
        return self.record.name

    @property
    def account(self) -> str:
        """Address of its money."""
        return self.record.account

    @property
    def client(self) -> NodeClient:
        """Of its control socket."""
        return NodeClient(Path(self.record.control))

    @property
    def state(self) -> Path:
        """Directory of its files."""
        return Path(self.record.directory) / "state"

    def start(self) -> None:
        """A new life."""
        assert self.started is None
        self.started = start_node(self.record)
        self.lives += 1

    def check_alive(self) -> None:
        """Raises if the process has ended by itself."""
        assert self.started is not None
        code = self.started.process.poll()
        if code is not None:
            tail = "\n".join(log_tail(Path(self.record.log), 20))
            raise AssertionError(f"{self.name} ended by itself with exit code {code}:\n{tail}")

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End this life and wait until the process is gone."""
        self.check_alive()
        assert self.started is not None
        self.started.process.send_signal(number)
        try:
            self.started.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.started.process.kill()
            self.started.process.wait(STOP_SECONDS)
            raise AssertionError(f"{self.name} did not stop within {STOP_SECONDS:.0f} s") from None
        finally:
            os.close(self.started.lifeline)
            self.started = None

    def serves(self) -> bool:
        """Whether its control socket answers, and a provider sells."""
        self.check_alive()
        try:
            status = self.client.status(5)
        except CommandFailed:
            return False
        return status.selling or "provider" not in status.roles


@dataclass(slots=True)
class Market:
    """All nodes."""

    folder: Path
    record: ClusterRecord
    nodes: list[Node] = field(default_factory=list)

    def role(self, role: str) -> list[Node]:
        """The nodes of a role."""
        return [node for node in self.nodes if node.record.role == role]

    @property
    def buyer(self) -> Node:
        """Who runs jobs."""
        return self.role("buyer")[0]

    @property
    def clients(self) -> list[NodeClient]:
        """Of all nodes."""
        return [node.client for node in self.nodes]

    def start(self) -> float:
        """Start what does not run; the seconds until all serve and the buyer sees an offer."""
        for node in self.nodes:
            if node.started is None:
                node.start()

        def ready() -> bool:
            return all(node.serves() for node in self.nodes) and self._offers() > 0

        return seconds_until(ready, START_SECONDS, "every node serves and the buyer sees an offer")

    def _offers(self) -> int:
        try:
            return len(self.buyer.client.offers())
        except CommandFailed:
            return 0

    def end(self, number: signal.Signals) -> None:
        """End all: a power cut, or an orderly stop."""
        for node in self.nodes:
            if node.started is not None:
                node.end(number)

    def abandon(self) -> None:
        """Leave no process behind, whatever state they are in."""
        for node in self.nodes:
            if node.started is not None:
                node.started.process.kill()
                node.started.process.wait(STOP_SECONDS)
                os.close(node.started.lifeline)
                node.started = None


def make_market(folder: Path, model_store: Path, authorities: int = 4, providers: int = 1) -> Market:
    """Files of a new cluster; nothing runs yet."""
    models = (str(description_path(MODEL)),)
    record = create_cluster(folder, Shape(authorities, providers), models, model_store)
    return Market(folder, record, [Node(node) for node in record.nodes])
