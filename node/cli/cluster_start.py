"""Bringing a cluster up: start what is missing, wait until every node serves, and let go of it.

Law: until the cluster is ready each node hangs on a lifeline to this process. A start that is interrupted or killed
leaves nothing behind; one that fails lets the nodes live on for inspection, and names the log to read.
"""

import fcntl
import os
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from node.cli.client import NodeClient
from node.cli.cluster_layout import (
    DEFAULT_MODELS,
    ClusterRecord,
    NodeRecord,
    Shape,
    can_listen,
    create_cluster,
    default_model_store,
    free_addresses,
    log_tail,
    read_record,
    write_configs,
    write_record,
)
from node.cli.cluster_processes import Started, is_running, start_node, stop_processes
from node.cli.failures import CommandFailed, ExitCode
from node.cli.output import Output, Progress
from node.runtime.control import FaultsView

if TYPE_CHECKING:
    from collections.abc import Iterator

    from node.runtime.control import StatusView

START_ORDER = ("provider", "authority", "buyer")
"""Providers need longest: they attack their sandbox and load their models."""
POLL_SECONDS = 0.1
ANSWER_SECONDS = 5.0


@contextmanager
def cluster_lock(directory: Path) -> "Iterator[None]":
    """One command at a time changes a cluster; the lock goes with its process."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandFailed(f"another command is changing the cluster in {directory}") from None
        yield
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class Start:
    """A cluster that is being started."""

    record: ClusterRecord
    started: dict[str, Started]

    def release(self) -> None:
        """Let all nodes live on without us."""
        for started in self.started.values():
            started.release()

    def abandon(self) -> None:
        """Stop what this start had started."""
        for started in self.started.values():
            with suppress(OSError):
                os.close(started.lifeline)
        stop_processes(started.record for started in self.started.values())


def start_missing(directory: Path, record: ClusterRecord, only: Sequence[str] = ()) -> Start:
    """Start every node that does not run, of ``only`` if that names any.

    Ports that others took meanwhile are replaced if none of ours runs."""
    if not any(is_running(node.process) for node in record.nodes) and not all(
        can_listen(node.address) for node in record.nodes
    ):
        addresses = free_addresses(len(record.nodes))
        nodes = tuple(
            msgspec.structs.replace(node, address=address)
            for node, address in zip(record.nodes, addresses, strict=True)
        )
        record = msgspec.structs.replace(record, nodes=nodes)
        write_configs(directory, record)
    start = Start(record, {})
    try:
        for node in sorted(record.nodes, key=lambda node: START_ORDER.index(node.role)):
            if not is_running(node.process) and (not only or node.name in only):
                start.started[node.name] = started = start_node(node)
                start.record = start.record.with_node(msgspec.structs.replace(node, process=started.record))
                write_record(directory, start.record)
    except BaseException:
        start.abandon()
        raise
    return start


def node_status(node: NodeRecord, seconds: float = ANSWER_SECONDS) -> "StatusView | None":
    """What a node says of itself, or None if it does not answer."""
    try:
        return NodeClient(Path(node.control)).status(seconds)
    except CommandFailed:
        return None


def _models_on_offer(node: NodeRecord) -> int:
    try:
        return len(NodeClient(Path(node.control)).offers())
    except CommandFailed:
        return 0


def _unready(record: ClusterRecord, node: NodeRecord, status: "StatusView | None") -> str | None:
    """Why a node is not ready yet."""
    if status is None:
        return "does not answer yet"
    if node.role == "provider" and not status.selling:
        return f"does not sell yet{f': {status.not_selling_because}' if status.not_selling_because else ''}"
    if node.role == "buyer":
        wanted = len(record.models) * sum(other.role == "provider" for other in record.nodes)
        seen = _models_on_offer(node)
        if seen < wanted:
            return f"sees {seen} of {wanted} models on offer"
    if not status.peers and len(record.nodes) > 1:
        return "has no peer yet"
    return None


def wait_ready(start: Start, seconds: float, tell: Callable[[str], None], only: Sequence[str] = ()) -> None:
    """Wait until every node (of ``only`` if that names any) serves, providers sell and the buyer sees their offers.

    What was started to cheat cheats from then on.
    Raises ``CommandFailed`` that names the node and its log.
    """
    record = start.record
    deadline = time.monotonic() + seconds
    waiting = {node.name: "does not answer yet" for node in record.nodes if not only or node.name in only}
    count = len(waiting)
    while waiting:
        for node in record.nodes:
            if node.name not in waiting:
                continue
            started = start.started.get(node.name)
            if started is not None and started.process.poll() is not None:
                raise _failure(node, f"ended with exit code {started.process.returncode}", ExitCode.FAILED)
            if started is None and not is_running(node.process):
                raise _failure(node, "ended while it was waited for", ExitCode.FAILED)
            reason = _unready(record, node, node_status(node))
            if reason is None:
                del waiting[node.name]
            else:
                waiting[node.name] = reason
        if not waiting:
            break
        reasons = "; ".join(f"{name} {reason}" for name, reason in waiting.items())
        tell(f"{count - len(waiting)} of {count} ready; {reasons}")
        if time.monotonic() > deadline:
            name, reason = next(iter(waiting.items()))
            raise _failure(record.named(name), f"{reason} after {seconds:.0f} s", ExitCode.TIMEOUT)
        time.sleep(POLL_SECONDS)
    for node in record.nodes:
        if node.misconduct and node.name in start.started:
            NodeClient(Path(node.control)).have_faults(FaultsView(misconduct=node.misconduct))


def record_for(folder: Path, shape: Shape, models: tuple[str, ...], model_store: Path | None) -> ClusterRecord:
    """The cluster that is there if it has the shape asked for, else a new one."""
    from node.config.descriptions import model_reference

    record = read_record(folder)
    paths = tuple(model_reference(model) for model in models or DEFAULT_MODELS)
    if record is None:
        store = (model_store or default_model_store()).absolute()
        return create_cluster(folder, shape, paths, store)
    wanted = [name for name, _ in shape.names()]
    if [node.name for node in record.nodes] != wanted or (models and record.models != paths):
        raise CommandFailed(
            f"the cluster in {folder} has another shape ({len(record.nodes)} nodes); "
            "remove it with `mercat cluster rm` or choose another --dir",
            ExitCode.USAGE,
            "other_shape",
        )
    return record


def bring_up(output: Output, start: Start, wait: float) -> None:
    """Wait until a start is ready, and tell how far it is; what does not get ready stays for inspection."""
    progress = Progress(enabled=not output.quiet and not output.as_json)
    try:
        wait_ready(start, wait, progress.update)
    except CommandFailed:
        progress.clear()
        start.release()
        raise
    except BaseException:
        progress.clear()
        start.abandon()
        raise
    progress.clear()


def _failure(node: NodeRecord, reason: str, exit_code: ExitCode) -> CommandFailed:
    tail = "".join(f"\n  {line}" for line in log_tail(Path(node.log), 5))
    return CommandFailed(
        f"{node.name} {reason}; the others were left running. Read {node.log}, which ends with:{tail}",
        exit_code,
        "cluster_not_ready",
    )
