"""``mercat cluster chaos``: break a node of a development cluster on purpose, and mend it again.

Law: what is broken stays broken until it is mended, with ``--for`` by this command itself, even when it is interrupted.
A paused or killed process is signalled through its handle alone, so no other process is ever hit.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from msgspec.structs import replace

from node.cli.client import NodeClient
from node.cli.cluster_layout import MISCONDUCTS, ClusterRecord, NodeRecord, cluster_folder, existing_record
from node.cli.cluster_processes import is_paused, is_running, signal_process, wait_end
from node.cli.cluster_start import cluster_lock, start_missing, wait_ready
from node.cli.failures import CommandFailed, ExitCode
from node.cli.options import Command, directory_option, with_output
from node.cli.output import Output
from node.runtime.control import FaultsView

READY_SECONDS = 120.0


@click.group()
def chaos() -> None:
    """Break nodes on purpose, and mend them.

    Without --for a fault lasts until `mercat cluster chaos heal`; `mercat cluster status` shows it.
    """


def cluster_directory_option(command: Command) -> Command:
    """Adds ``--dir``."""
    return directory_option("a directory of your own state")(command)


def for_option(command: Command) -> Command:
    """Adds ``--for``."""
    return click.option(
        "--for", "seconds", type=click.FloatRange(min=0.1), help="Mend it after so many seconds; this command waits."
    )(command)


def _running(directory: Path | None, name: str) -> NodeRecord:
    node = existing_record(cluster_folder(directory)).named(name)
    if not is_running(node.process):
        raise CommandFailed(f"{name} does not run; start it with: mercat cluster chaos heal {name}", code="not_running")
    return node


def change_faults(node: NodeRecord, change: Callable[[FaultsView], FaultsView]) -> None:
    """Let a running node have other faults than now."""
    client = NodeClient(Path(node.control))
    client.have_faults(change(client.faults()))


def kill_node(node: NodeRecord) -> None:
    """End a node's process at once and wait until it is gone."""
    assert node.process is not None
    if is_paused(node.process):
        signal_process(node.process, signal.SIGCONT)
    signal_process(node.process, signal.SIGKILL)
    wait_end(node.process)


def pause_node(node: NodeRecord) -> None:
    """Let a node's process stand still: its links stay open and silent."""
    assert node.process is not None
    signal_process(node.process, signal.SIGSTOP)


def resume_node(node: NodeRecord) -> None:
    """Let it go on."""
    if node.process is not None and is_running(node.process):
        signal_process(node.process, signal.SIGCONT)


def mend(folder: Path, names: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Make nodes (none named: all) honest, quick, linked and running; returns those that were not."""
    with cluster_lock(folder):
        record = existing_record(folder)
        chosen = [record.named(name) for name in names] or list(record.nodes)
        mended = [node.name for node in chosen if _mend_running(node)]
        missing = tuple(node.name for node in chosen if not is_running(node.process))
        if missing:
            _start(folder, record, missing)
    return (*mended, *missing)


def _mend_running(node: NodeRecord) -> bool:
    if node.process is None or not is_running(node.process):
        return False
    paused = is_paused(node.process)
    if paused:
        resume_node(node)
    client = NodeClient(Path(node.control))
    well = FaultsView(misconduct=node.misconduct)
    faulty = client.faults() != well
    if faulty:
        client.have_faults(well)
    return paused or faulty


def _start(folder: Path, record: ClusterRecord, names: tuple[str, ...]) -> None:
    start = start_missing(folder, record, only=names)
    try:
        wait_ready(start, READY_SECONDS, lambda text: None, only=names)
    finally:
        start.release()


@contextmanager
def _lasting(output: Output, folder: Path, name: str, done: str, seconds: float | None) -> Iterator[None]:
    """The fault's time: mended at its end, and when the body or the wait is interrupted."""
    if seconds is None:
        yield
        output.note(f"{name} {done}; mend it with: mercat cluster chaos heal {name}")
        return
    try:
        yield
        output.note(f"{name} {done} for {seconds:g} s")
        time.sleep(seconds)
    finally:
        mend(folder, (name,))
    output.note(f"{name} is mended")


@chaos.command()
@click.argument("node")
@for_option
@cluster_directory_option
@with_output
def kill(output: Output, node: str, seconds: float | None, directory: Path | None) -> None:
    """End NODE's process at once (SIGKILL)."""
    folder = cluster_folder(directory)
    with _lasting(output, folder, node, "is killed", seconds):
        kill_node(_running(directory, node))


@chaos.command()
@click.argument("node")
@for_option
@cluster_directory_option
@with_output
def pause(output: Output, node: str, seconds: float | None, directory: Path | None) -> None:
    """Let NODE stand still with its links open (SIGSTOP)."""
    folder = cluster_folder(directory)
    with _lasting(output, folder, node, "stands still", seconds):
        pause_node(_running(directory, node))


@chaos.command()
@click.argument("node")
@for_option
@cluster_directory_option
@with_output
def disconnect(output: Output, node: str, seconds: float | None, directory: Path | None) -> None:
    """Cut all links of NODE and let it make no new ones."""
    folder = cluster_folder(directory)
    with _lasting(output, folder, node, "is cut off", seconds):
        change_faults(_running(directory, node), lambda faults: replace(faults, isolated=True))


@chaos.command()
@click.argument("node")
@click.option("--delay-ms", type=click.IntRange(1, 60_000), default=200, show_default=True, help="Of each message.")
@for_option
@cluster_directory_option
@with_output
def slow(output: Output, node: str, delay_ms: int, seconds: float | None, directory: Path | None) -> None:
    """Delay each message that NODE sends."""
    folder = cluster_folder(directory)
    with _lasting(output, folder, node, f"is {delay_ms} ms slow", seconds):
        change_faults(_running(directory, node), lambda faults: replace(faults, delay_ms=delay_ms))


@chaos.command()
@click.argument("node")
@click.argument("misconduct", type=click.Choice(MISCONDUCTS), default="overcharge")
@for_option
@cluster_directory_option
@with_output
def liar(output: Output, node: str, misconduct: str, seconds: float | None, directory: Path | None) -> None:
    """Let the provider NODE cheat.

    \b
    overcharge     asks a tenth more for each chunk than was agreed
    miscount       says that a chunk holds a thousand units more than it does
    wrong-chunk    delivers chunks that are not linked to the ones before
    wrong-receipt  delivers everything and writes a receipt for more
    stop           takes the money for the input and delivers nothing
    """
    folder = cluster_folder(directory)
    record = _running(directory, node)
    if record.role != "provider":
        raise CommandFailed(f"{node} is no provider: it has nothing to cheat with", ExitCode.USAGE, "usage")
    with _lasting(output, folder, node, f"cheats ({misconduct})", seconds):
        change_faults(record, lambda faults: replace(faults, misconduct=misconduct))


@chaos.command()
@click.argument("nodes", nargs=-1)
@cluster_directory_option
@with_output
def heal(output: Output, nodes: tuple[str, ...], directory: Path | None) -> None:
    """Mend NODES (none named: all): started, running, linked, quick and honest, but for `--bad-providers`."""
    mended = mend(cluster_folder(directory), nodes)
    output.show({"mended": mended}, f"mended: {', '.join(mended)}" if mended else "nothing was broken", mended)


@chaos.command()
@click.argument("node")
@cluster_directory_option
@with_output
def restart(output: Output, node: str, directory: Path | None) -> None:
    """Kill NODE and start it again."""
    folder = cluster_folder(directory)
    kill_node(_running(directory, node))
    mend(folder, (node,))
    output.note(f"{node} was killed and started again")
