"""``mercat cluster``: a whole network on this machine, of real processes, for development."""

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from node.cli.chaos import chaos, cluster_directory_option
from node.cli.client import NodeClient
from node.cli.cluster_layout import (
    DEFAULT_MODELS,
    ClusterRecord,
    NodeRecord,
    Shape,
    cluster_folder,
    existing_record,
    log_tail,
    remove_files,
)
from node.cli.cluster_money import balances_table, read_balances
from node.cli.cluster_processes import is_paused, is_running, stop_processes
from node.cli.cluster_start import Start, bring_up, cluster_lock, node_status, record_for, start_missing
from node.cli.failures import CommandFailed
from node.cli.options import (
    CONTROL_VARIABLE,
    GENESIS_VARIABLE,
    confirm,
    with_output,
    yes_option,
)
from node.cli.output import Output, printable, short, table
from node.cli.soak import soak

FOLLOW_SECONDS = 0.2


class NodeState(msgspec.Struct, frozen=True):
    """One row of ``status``."""

    name: str
    role: str
    running: bool
    answers: bool
    pid: int | None
    node: str
    account: str
    address: str
    control: str
    log: str
    height: int | None
    peers: int | None
    selling: bool | None
    state: str
    """``up``, ``paused``, ``silent`` or ``down``; for a node with other faults on command, those."""


class ClusterState(msgspec.Struct, frozen=True):
    """What ``--json`` prints."""

    directory: str
    genesis: str
    running: bool
    nodes: tuple[NodeState, ...]


@click.group()
def cluster() -> None:
    """A whole network on this machine, of real processes, for development.

    Its keys are publicly known and its money is worth nothing; its nodes listen on loopback alone.
    """


cluster.add_command(chaos)
cluster.add_command(soak)


def _node_state(node: NodeRecord) -> NodeState:
    running = is_running(node.process)
    paused = node.process is not None and is_paused(node.process)
    status = node_status(node) if running and not paused else None
    return NodeState(
        name=node.name,
        role=node.role,
        running=running,
        answers=status is not None,
        pid=node.process.pid if running and node.process else None,
        node=node.node,
        account=node.account,
        address=node.address,
        control=node.control,
        log=node.log,
        height=status.height if status else None,
        peers=len(status.peers) if status else None,
        selling=status.selling if status and node.role == "provider" else None,
        state=_faults(node) if status else "paused" if paused else "silent" if running else "down",
    )


def _faults(node: NodeRecord) -> str:
    """``up``, or what the node does wrong on command."""
    faults = NodeClient(Path(node.control)).faults()
    found = [
        *(["cut off"] if faults.isolated else []),
        *([f"slow {faults.delay_ms} ms"] if faults.delay_ms else []),
        *([faults.misconduct] if faults.misconduct else []),
    ]
    return ", ".join(found) or "up"


def cluster_state(directory: Path, record: ClusterRecord) -> ClusterState:
    """Ask every node."""
    nodes = tuple(_node_state(node) for node in record.nodes)
    return ClusterState(str(directory), record.genesis, all(node.answers for node in nodes), nodes)


def _show(output: Output, directory: Path, state: ClusterState) -> None:
    def text(value: int | bool | None) -> str:
        return "-" if value is None else str(value)

    def relative(path: str) -> str:
        return str(Path(path).relative_to(directory)) if Path(path).is_relative_to(directory) else path

    rows = [
        (
            node.name,
            node.state,
            text(node.pid),
            text(node.height),
            text(node.peers),
            node.address,
            short(node.node, 18),
            relative(node.control),
            relative(node.log),
        )
        for node in state.nodes
    ]
    headers = ("NODE", "STATE", "PID", "HEIGHT", "PEERS", "ADDRESS", "ID", "CONTROL", "LOG")
    output.show(state, f"cluster in {directory}\n" + table(headers, rows), (node.name for node in state.nodes))


@cluster.command()
@click.option("--authorities", type=click.IntRange(1, 30), default=4, show_default=True)
@click.option("--providers", type=click.IntRange(0, 16), default=2, show_default=True)
@click.option("--bad-providers", type=click.IntRange(0, 16), default=0, show_default=True, help="That many cheat.")
@click.option("--model", "models", multiple=True, help=f"Sold by every provider. Default: {', '.join(DEFAULT_MODELS)}.")
@click.option("--model-store", type=click.Path(path_type=Path, file_okay=False), help="Directory of model files.")
@click.option("--wait", type=click.FloatRange(min=1), default=120, show_default=True, help="Seconds to become ready.")
@click.option("--foreground", is_flag=True, help="Stay attached; stop everything at Ctrl-C or when this process ends.")
@cluster_directory_option
@with_output
def up(
    output: Output,
    authorities: int,
    providers: int,
    bad_providers: int,
    models: tuple[str, ...],
    model_store: Path | None,
    wait: float,
    foreground: bool,
    directory: Path | None,
) -> None:
    """Start a cluster, or what is missing of it; it runs until `mercat cluster stop`."""
    folder = cluster_folder(directory)
    with cluster_lock(folder):
        record = record_for(folder, Shape(authorities, providers, bad_providers), models, model_store)
        begun = time.monotonic()
        start = start_missing(folder, record)
        bring_up(output, start, wait)
        started = f"{len(start.started)} nodes ready in {time.monotonic() - begun:.1f} s"
        output.note(started if start.started else "the cluster is already running")
        _show(output, folder, cluster_state(folder, start.record))
        output.note(
            'next:  eval "$(mercat cluster env' + (f" --dir {shlex.quote(str(folder))}" if directory else "") + ')"'
        )
        if foreground and start.started:
            _attend(output, start)
        else:
            start.release()


def _attend(output: Output, start: Start) -> None:
    """Hold the lifelines until a node ends or we are interrupted."""
    output.note("attached; stop everything with Ctrl-C")
    try:
        while True:
            for name, started in start.started.items():
                if started.process.poll() is not None:
                    node = start.record.named(name)
                    raise CommandFailed(f"{name} ended with exit code {started.process.returncode}; read {node.log}")
            time.sleep(FOLLOW_SECONDS)
    finally:
        start.abandon()


@cluster.command()
@cluster_directory_option
@with_output
def status(output: Output, directory: Path | None) -> None:
    """Every node with its state, height, address, control socket and log. Exit code 1 unless all are up."""
    folder = cluster_folder(directory)
    state = cluster_state(folder, existing_record(folder))
    _show(output, folder, state)
    if not state.running:
        down = ", ".join(node.name for node in state.nodes if not node.answers)
        raise CommandFailed(f"not up: {down}; start what is missing with: mercat cluster up", code="not_running")


@cluster.command()
@cluster_directory_option
@with_output
def balances(output: Output, directory: Path | None) -> None:
    """Where all credits are: one line for each account, and their sum."""
    found = read_balances(existing_record(cluster_folder(directory)))
    output.show(found, balances_table(found), (holding.account for holding in found.holdings))
    if found.total != found.by_genesis:
        raise CommandFailed("the sum of all credits has changed", code="not_conserved")


@cluster.command()
@click.option("--node", "name", default="buyer-1", show_default=True, help="Node that commands shall talk to.")
@cluster_directory_option
@with_output
def env(output: Output, name: str, directory: Path | None) -> None:
    """Shell lines that make commands talk to this cluster: eval "$(mercat cluster env)"."""
    record = existing_record(cluster_folder(directory))
    variables = {CONTROL_VARIABLE: record.named(name).control, GENESIS_VARIABLE: record.genesis}
    lines = [f"export {variable}={shlex.quote(value)}" for variable, value in variables.items()]
    output.show(variables, "\n".join(lines), variables.values())


@cluster.command()
@click.argument("node", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on as the logs grow.")
@click.option("-n", "--lines", type=click.IntRange(0, 100_000), default=50, show_default=True)
@cluster_directory_option
def logs(node: str | None, follow: bool, lines: int, directory: Path | None) -> None:
    """The logs of NODE, or of all nodes."""
    record = existing_record(cluster_folder(directory))
    nodes = [record.named(node)] if node else list(record.nodes)
    width = max(len(shown.name) for shown in nodes)

    def show(shown: NodeRecord, line: str) -> None:
        prefix = "" if node else f"{shown.name.ljust(width)}  "
        sys.stdout.write(prefix + printable(line, keep="\t") + "\n")

    for shown in nodes:
        for line in log_tail(Path(shown.log), lines):
            show(shown, line)
    sys.stdout.flush()
    if follow:
        _follow(nodes, show)


def _follow(nodes: list[NodeRecord], show: Callable[[NodeRecord, str], None]) -> None:
    positions = {node.name: Path(node.log).stat().st_size if Path(node.log).exists() else 0 for node in nodes}
    while True:
        for node in nodes:
            path = Path(node.log)
            if not path.exists() or path.stat().st_size <= positions[node.name]:
                continue
            with path.open("rb") as file:
                file.seek(positions[node.name])
                content = file.read()
            complete = content[: content.rfind(b"\n") + 1]
            positions[node.name] += len(complete)
            for line in complete.decode("utf-8", "replace").splitlines():
                show(node, line)
        sys.stdout.flush()
        time.sleep(FOLLOW_SECONDS)


def _stop(output: Output, record: ClusterRecord) -> None:
    processes = [node.process for node in record.nodes if node.process is not None and is_running(node.process)]
    killed = stop_processes(processes)
    output.note(f"{len(processes)} nodes stopped" + (f", {killed} of them killed" if killed else ""))


@cluster.command()
@cluster_directory_option
@with_output
def stop(output: Output, directory: Path | None) -> None:
    """Stop every node; state and logs stay, and `up` goes on from there."""
    folder = cluster_folder(directory)
    existing_record(folder)
    with cluster_lock(folder):
        _stop(output, existing_record(folder))


@cluster.command()
@cluster_directory_option
@yes_option
@with_output
def rm(output: Output, directory: Path | None, yes: bool) -> None:
    """Stop every node and delete the cluster's directory; model files elsewhere stay."""
    folder = cluster_folder(directory)
    existing_record(folder)
    confirm(f"Delete the cluster in {folder}?", yes)
    with cluster_lock(folder):
        _stop(output, existing_record(folder))
        remove_files(folder)
    output.note(f"{folder} deleted")
