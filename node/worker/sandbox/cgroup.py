"""Control groups: a child group for each worker under the node's own, in version 1 or 2 of the kernel's interface.

Law: best effort, and honest about it: `describe` says which limits the kernel really took. A group limits all of a
worker's processes together; without one memory is limited for each process only.

Source: Linux `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/`.
"""

import contextlib
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

from node.worker.limits import WorkerLimits

ROOT = Path("/sys/fs/cgroup")
PREFIX = "mercat"
LEAF = "mercat-node"  # where a node moves that has a group of version 2 for itself
UNLIMITED_BYTES = 1 << 60  # version 1 says the largest number that it can where there is no limit
CPU_PERIOD_US = 100_000  # the kernel's default


@dataclass(slots=True)
class ControlGroup:
    """The groups of one worker, one directory for each hierarchy in version 1."""

    directories: list[Path] = field(default_factory=list)
    limited: list[str] = field(default_factory=list)
    _events: Path | None = None
    _peak: Path | None = None

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

    def memory_peak_bytes(self) -> int:
        """The most memory that the group held at once; 0 where the kernel doesn't say."""
        if self._peak is not None:
            with contextlib.suppress(OSError, ValueError):
                return int(self._peak.read_text(encoding="ascii"))
        return 0

    def kill(self) -> None:
        """SIGKILL whatever is left in the group: without a process namespace a child may outlive its parent."""
        for directory in self.directories:
            if _write(directory / "cgroup.kill", "1"):
                continue
            with contextlib.suppress(OSError, ValueError):
                for pid in (directory / "cgroup.procs").read_text(encoding="ascii").split():
                    os.kill(int(pid), signal.SIGKILL)

    def remove(self) -> None:
        """Delete the groups; they must be empty, or are left to be swept away by the next one that is made."""
        for directory in self.directories:
            with contextlib.suppress(OSError):
                directory.rmdir()
        self.directories.clear()


def _own_groups(root: Path, own: str) -> dict[str, Path]:
    """The node's own group for each controller; the key `` is version 2. ``own`` is its /proc/self/cgroup."""
    groups: dict[str, Path] = {}
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            unified = root / "unified" if (root / "unified").is_dir() else root
            groups[""] = unified / path.lstrip("/")
        else:
            for controller in controllers.split(","):
                groups[controller] = root / controller / path.lstrip("/")
    return groups


def _write(path: Path, value: str) -> bool:
    """Write into a file that the kernel shows; never make one."""
    try:
        descriptor = os.open(path, os.O_WRONLY)
    except OSError:
        return False
    try:
        os.write(descriptor, value.encode("ascii"))
    except OSError:
        return False
    finally:
        os.close(descriptor)
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


def _passed_on(directory: Path) -> list[str]:
    try:
        return (directory / "cgroup.subtree_control").read_text(encoding="ascii").split()
    except OSError:
        return []


def delegated(own: Path) -> Path | None:
    """The group of version 2 under which this node may make limited groups; None where nothing was delegated to it.

    A group with processes of its own can't limit its children, so a node that has one for itself (a service with
    ``Delegate=yes``) first moves into a leaf of it. A login session's group is shared: there its parent serves.
    """
    for candidate in (own, own.parent if own.name == LEAF else own, own.parent):
        # To move a process into a child needs the right to write into the group that both groups lie in.
        if "memory" in _passed_on(candidate) and all(
            os.access(path, os.W_OK) for path in (candidate, candidate / "cgroup.procs")
        ):
            return candidate
    try:
        alone = (own / "cgroup.procs").read_text(encoding="ascii").split() == [str(os.getpid())]
        offered = (own / "cgroup.controllers").read_text(encoding="ascii").split()
        wanted = [name for name in ("memory", "pids", "cpu") if name in offered]
        if not alone or "memory" not in wanted or not os.access(own, os.W_OK):
            return None
        leaf = own / LEAF
        leaf.mkdir(exist_ok=True)
    except OSError:
        return None
    if not _write(leaf / "cgroup.procs", str(os.getpid())):
        return None
    enabled = _write(own / "cgroup.subtree_control", " ".join(f"+{name}" for name in wanted))
    return own if enabled else None


def _version_2(own: Path, name: str, memory_bytes: int, limits: WorkerLimits, group: ControlGroup) -> None:
    parent = delegated(own)
    directory = _make(parent, name) if parent is not None else None
    if directory is None:
        return
    group.directories.append(directory)
    if _write(directory / "memory.max", str(memory_bytes)):
        _write(directory / "memory.swap.max", "0")
        _write(directory / "memory.oom.group", "1")
        group.limited.append("memory")
        group._events = directory / "memory.events"
        group._peak = directory / "memory.peak"
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
            made._peak = directory / "memory.max_usage_in_bytes"


def headroom_bytes(root: Path = ROOT, own: str | None = None) -> int | None:
    """How much more memory the node's own group may take; None where it has no limit, or nobody says."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        groups = _own_groups(root, Path("/proc/self/cgroup").read_text(encoding="utf-8") if own is None else own)
        if "memory" in groups:
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            limit, used = "memory.max", "memory.current"
        directory = groups.get("memory") or groups[""]
        most = int((directory / limit).read_text(encoding="ascii"))
        if most < UNLIMITED_BYTES:
            return max(0, most - int((directory / used).read_text(encoding="ascii")))
    return None


def create(
    name: str, memory_bytes: int, limits: WorkerLimits, root: Path = ROOT, own: str | None = None
) -> ControlGroup:
    """A group with these limits, or an empty one where the kernel doesn't let us."""
    made = ControlGroup()
    if own is None:
        try:
            own = Path("/proc/self/cgroup").read_text(encoding="utf-8")
        except OSError:
            return made
    groups = _own_groups(root, own)
    if "memory" in groups or "pids" in groups:
        _version_1(groups, name, memory_bytes, limits, made)
    elif "" in groups:
        _version_2(groups[""], name, memory_bytes, limits, made)
    return made
