"""Control groups: a child group for each worker under the node's own, in version 1 or 2 of the kernel's interface.

Law: best effort, and honest about it: `describe` says which limits the kernel really took. A group limits all of a
worker's processes together; without one memory is limited for each process only.

Source: Linux `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/`.
"""

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from node.worker.limits import WorkerLimits

ROOT = Path("/sys/fs/cgroup")
PREFIX = "mercat"
CPU_PERIOD_US = 100_000  # the kernel's default


@dataclass(slots=True)
class ControlGroup:
    """The groups of one worker, one directory for each hierarchy in version 1."""

    directories: list[Path] = field(default_factory=list)
    limited: list[str] = field(default_factory=list)
    _events: Path | None = None

    def join_files(self) -> list[str]:
        """Files into which a process writes its number to join."""
        return [str(directory / "cgroup.procs") for directory in self.directories]

    def describe(self) -> str:
        """What is limited for the group as a whole."""
        if not self.limited:
            return "no writable control group: memory is limited per process, not per group"
        return "control group limits " + ", ".join(self.limited)

    def out_of_memory(self) -> bool:
        """Whether the kernel killed something in this group for want of memory."""
        if self._events is None:
            return False
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in self._events.read_text(encoding="ascii").splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1]) > 0
        return False

    def remove(self) -> None:
        """Delete the groups; they must be empty."""
        for directory in self.directories:
            with contextlib.suppress(OSError):
                directory.rmdir()
        self.directories.clear()


def _own_groups() -> dict[str, Path]:
    """The node's own group for each controller; the key `` is version 2."""
    groups: dict[str, Path] = {}
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return groups
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = ROOT / "unified" if (ROOT / "unified").is_dir() else ROOT
            groups[""] = root / path.lstrip("/")
        else:
            for controller in controllers.split(","):
                groups[controller] = ROOT / controller / path.lstrip("/")
    return groups


def _write(path: Path, value: str) -> bool:
    try:
        path.write_text(value, encoding="ascii")
    except OSError:
        return False
    return True


def _sweep(parent: Path) -> None:
    """Delete what nodes that were killed left behind: empty groups whose name holds a process that is gone."""
    for left in parent.glob(f"{PREFIX}-*"):
        owner = left.name.split("-")[1]
        if not os.path.exists(f"/proc/{owner}"):
            with contextlib.suppress(OSError):
                left.rmdir()


def _make(parent: Path, name: str) -> Path | None:
    _sweep(parent)
    directory = parent / f"{PREFIX}-{os.getpid()}-{name}"
    try:
        directory.mkdir()
    except OSError:
        return None
    return directory if os.access(directory / "cgroup.procs", os.W_OK) else None


def _quota_us(limits: WorkerLimits) -> int:
    return CPU_PERIOD_US * limits.cpu_percent // 100


def _version_2(own: Path, name: str, memory_bytes: int, limits: WorkerLimits, group: ControlGroup) -> None:
    try:
        passed_on = (own / "cgroup.subtree_control").read_text(encoding="ascii").split()
    except OSError:
        return
    if "memory" not in passed_on and "pids" not in passed_on:
        return
    directory = _make(own, name)
    if directory is None:
        return
    group.directories.append(directory)
    if _write(directory / "memory.max", str(memory_bytes)):
        _write(directory / "memory.swap.max", "0")
        _write(directory / "memory.oom.group", "1")
        group.limited.append("memory")
        group._events = directory / "memory.events"
    if _write(directory / "pids.max", str(limits.processes)):
        group.limited.append("processes")
    if _write(directory / "cpu.max", f"{_quota_us(limits)} {CPU_PERIOD_US}"):
        group.limited.append("processor time")


def _version_1(groups: dict[str, Path], name: str, memory_bytes: int, limits: WorkerLimits, made: ControlGroup) -> None:
    wanted = (
        ("memory", "memory.limit_in_bytes", memory_bytes, "memory"),
        ("pids", "pids.max", limits.processes, "processes"),
        ("cpu", "cpu.cfs_quota_us", _quota_us(limits), "processor time"),
    )
    for controller, limit_file, value, what in wanted:
        own = groups.get(controller)
        directory = _make(own, name) if own is not None else None
        if directory is None:
            continue
        if not _write(directory / limit_file, str(value)):
            with contextlib.suppress(OSError):
                directory.rmdir()
            continue
        made.directories.append(directory)
        made.limited.append(what)
        if controller == "memory":
            _write(directory / "memory.memsw.limit_in_bytes", str(value))
            made._events = directory / "memory.oom_control"


def create(name: str, memory_bytes: int, limits: WorkerLimits) -> ControlGroup:
    """A group with these limits, or an empty one where the kernel doesn't let us."""
    made = ControlGroup()
    groups = _own_groups()
    if "memory" in groups or "pids" in groups:
        _version_1(groups, name, memory_bytes, limits, made)
    elif "" in groups:
        _version_2(groups[""], name, memory_bytes, limits, made)
    return made
