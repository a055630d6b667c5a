"""Starting, finding and stopping the processes of a cluster.

Law: a process is signalled only through a handle (pidfd) whose start time was compared with the record after the
handle was opened, so a reused process number is never hit. A started node holds the reading end of a pipe, its
lifeline: until it is released there, the death of the starter, however sudden, ends the node.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from node.cli.cluster_layout import NodeRecord, ProcessRecord

STOP_SECONDS = 15.0
"""What a node gets to close its links and files before it is killed."""


def start_ticks(pid: int) -> int | None:
    """When a living process started, in clock ticks since boot; None if there is none or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def is_running(process: ProcessRecord | None) -> bool:
    """Whether exactly this process still runs."""
    return process is not None and start_ticks(process.pid) == process.start_ticks


def is_paused(process: ProcessRecord) -> bool:
    """Whether this process stands still."""
    try:
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state == "T" and is_running(process)


@dataclass(slots=True)
class Started:
    """A process just started, and the end of its lifeline that we hold."""

    record: ProcessRecord
    process: subprocess.Popen[bytes]
    lifeline: int

    def release(self) -> None:
        """From now on the process lives on without us."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.lifeline, b"1")
        os.close(self.lifeline)


def _environment() -> dict[str, str]:
    """Ours, without what would change the node's settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MERCAT_")}


def start_node(node: NodeRecord) -> Started:
    """Start ``mercat node run`` in a session of its own, its output appended to its log."""
    reading, writing = os.pipe()
    try:
        with open(node.log, "ab") as log:
            process = subprocess.Popen(
                [
                    sys.executable, "-P", "-m", "node.cli.main", "node", "run",
                    "--config", str(node.config), "--lifeline", str(reading),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(reading,),
                start_new_session=True,
                env=_environment(),
                cwd=node.directory,
            )  # fmt: skip
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    return Started(ProcessRecord(process.pid, start_ticks(process.pid) or 0), process, writing)


def _handle(process: ProcessRecord) -> int | None:
    """A pidfd of exactly this process, or None if it is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if start_ticks(process.pid) != process.start_ticks:
        os.close(descriptor)
        return None
    return descriptor


def stop_processes(processes: Iterable[ProcessRecord], seconds: float = STOP_SECONDS) -> int:
    """Ask all to stop, wait, then kill what is left. How many had to be killed."""
    handles = [handle for process in processes if (handle := _handle(process)) is not None]
    try:
        _signal_all(handles, signal.SIGTERM)
        _signal_all(handles, signal.SIGCONT)  # one that stands still could not heed the first
        left = _wait_all(handles, seconds)
        _signal_all(left, signal.SIGKILL)
        _wait_all(left, STOP_SECONDS)
        return len(left)
    finally:
        for handle in handles:
            os.close(handle)


def signal_process(process: ProcessRecord, number: signal.Signals) -> bool:
    """Signal exactly this process; False if it is gone."""
    handle = _handle(process)
    if handle is None:
        return False
    try:
        _signal_all([handle], number)
    finally:
        os.close(handle)
    return True


def wait_end(process: ProcessRecord, seconds: float = STOP_SECONDS) -> bool:
    """Wait until a process has ended; False if it has not in time."""
    handle = _handle(process)
    if handle is None:
        return True
    try:
        return not _wait_all([handle], seconds)
    finally:
        os.close(handle)


def _signal_all(handles: Iterable[int], number: signal.Signals) -> None:
    for handle in handles:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, number)


def _wait_all(handles: Iterable[int], seconds: float) -> list[int]:
    """Wait until all have ended; those that have not in time."""
    poll = select.poll()
    waiting = set(handles)
    for handle in waiting:
        poll.register(handle, select.POLLIN)
    deadline = time.monotonic() + seconds
    while waiting and (left := deadline - time.monotonic()) > 0:
        for handle, _ in poll.poll(left * 1000):
            poll.unregister(handle)
            waiting.discard(handle)
    return sorted(waiting)
