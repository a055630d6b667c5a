"""Launching a process in the sandbox.

Law: the sandbox is made of layers that do not trust each other: namespaces and an almost empty, read-only file tree
(bubblewrap), a system call filter from the first instruction, hard resource limits, a control group, and, when the
node is root, a user of the worker's own. Where a machine has no namespaces the kernel's path rules (Landlock) stand in
for them, which is less: other files' names and the host's stay visible, and it is called `fallback`.
"""

import asyncio
import contextlib
import json
import marshal
import os
import platform
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from node.worker.errors import IsolationUnavailable
from node.worker.limits import WorkerLimits
from node.worker.sandbox import cgroup, seccomp, users
from node.worker.sandbox.bubblewrap import (
    DEVICES,
    SYSTEM_DIRECTORIES,
    SYSTEM_FILES,
    bubblewrap_arguments,
    find_bubblewrap,
    remedy_for,
    worker_environment,
)
from node.worker.sandbox.layers import PYTHON_HOME, STRONG_LAYERS, Bind, Command, Layers
from node.worker.sandbox.running import SandboxedProcess, readable
from node.worker.sandbox.specification import Direct, Specification

STAGE_SCRIPT = Path(__file__).with_name("stage.py")
STACK_BYTES = 8 << 20  # what Linux gives a program by default; inherited, it may be unlimited
# Address space beyond memory: libraries, allocators' reserves. It bounds page tables, which no other limit counts.
ADDRESSES_EXTRA_BYTES = 16 << 30
INFO_BYTES_MAX = 4096
ROOT_PREFIX = "mercat-worker-"
PYTHON = f"{PYTHON_HOME}/bin/python"


def interpreter_binds() -> tuple[Bind, ...]:
    """The running interpreter's program, standard library and shared library, laid out as one relocated home."""
    program = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    binds = [Bind(program, PYTHON)]
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


def _memory_file(name: str, content: bytes) -> int:
    descriptor = os.memfd_create(name)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _tasks_of_this_user() -> int:
    own, count = os.getuid(), 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if entry.stat().st_uid == own:
                    count += len(os.listdir(f"{entry.path}/task"))
    return count


def processes_max(limits: WorkerLimits, layers: Layers, uid: int | None) -> int:
    """What the worker is to limit its processes to; 0: not at all.

    The kernel counts by user. In a user namespace or with a user of its own that is the worker alone; else whatever the
    node's user runs counts too, and the limit is as much more.
    """
    if not layers.hard_limits:
        return 0
    if layers.namespaces or uid is not None:
        return limits.processes
    return _tasks_of_this_user() + limits.processes


def _sweep_roots() -> None:
    """Delete the folders that nodes which were killed left behind; they hold links only."""
    for left in Path(tempfile.gettempdir()).glob(f"{ROOT_PREFIX}*"):
        owner = left.name.removeprefix(ROOT_PREFIX).partition("-")[0]
        if not os.path.exists(f"/proc/{owner}"):
            shutil.rmtree(left, ignore_errors=True)


def check_platform() -> None:
    """Raises IsolationUnavailable on a machine that the filters were not written for."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise IsolationUnavailable(
            f"no sandbox for {sys.platform} on {platform.machine()}: workers need Linux on x86-64"
        )


class _Preparation:
    """What one launch holds until it has succeeded: a group, a user, a folder, descriptors."""

    def __init__(self, command: Command, limits: WorkerLimits, layers: Layers) -> None:
        self._command, self._limits, self._layers = command, limits, layers
        self.descriptors: list[int] = []
        self.uid: int | None = None
        self.root = ""
        self.filters = -1
        self.group = cgroup.create(os.urandom(4).hex(), command.memory_bytes, limits)

    def held(self, descriptor: int) -> int:
        """Close it when the launch is over."""
        self.descriptors.append(descriptor)
        return descriptor

    def specification(self, info: int) -> Specification:
        """What the launch stage is asked to do. Raises IsolationUnavailable when a part is missing."""
        if self._layers.own_user:
            self.uid = users.take_uid()
        if self._layers.filter_from_start:
            self.filters = self.held(_memory_file("filter", seccomp.filter_from_start()))
        limits = _hard_limits(self._limits, self._command.memory_bytes, self.uid is not None)
        common = Specification(
            parent=os.getpid(),
            descriptors=[descriptor for descriptor in (self.filters, info) if descriptor >= 0],
            uid=self.uid,
            staged=[],
            cgroup_files=self.group.join_files(),
            limits=limits if self._layers.hard_limits else [],
            arguments=[],
            environment={},
            direct=None,
        )
        return self._with_namespaces(common, info) if self._layers.namespaces else self._without(common)

    def _with_namespaces(self, common: Specification, info: int) -> Specification:
        program, libraries = find_bubblewrap()
        staged = [program, *([libraries] if libraries is not None else [])]
        options = bubblewrap_arguments(
            self._command.binds, len(staged), self.filters if self.filters >= 0 else None, info
        )
        staged += [bind.source for bind in self._command.binds]
        common["staged"] = [str(path) for path in staged]
        common["arguments"] = ["{0}", *options, "--", PYTHON, *self._python("")]
        common["environment"] = {"LD_LIBRARY_PATH": "{1}"} if libraries is not None else {}
        return common

    def _without(self, common: Specification) -> Specification:
        _sweep_roots()
        self.root = tempfile.mkdtemp(prefix=f"{ROOT_PREFIX}{os.getpid()}-")
        os.chmod(self.root, 0o755)
        common["staged"] = [str(bind.source) for bind in self._command.binds]
        common["arguments"] = [self.root + PYTHON, *self._python(self.root)]
        common["environment"] = worker_environment(self.root)
        common["direct"] = Direct(
            root=self.root,
            targets=[bind.target for bind in self._command.binds],
            readable=[*SYSTEM_DIRECTORIES, *SYSTEM_FILES, *DEVICES],
            landlock=self._layers.landlock,
            filter=self.filters,
        )
        return common

    def _python(self, root: str) -> list[str]:
        return ["-I", "-S", "-B", "-c", self._command.source, root]

    def give_up(self) -> None:
        """Nothing was started."""
        self.group.remove()
        users.give_back(self.uid)
        if self.root:
            os.rmdir(self.root)


async def _inner_pid(info: int, within_s: float) -> int | None:
    """Read bubblewrap's report of its child; None when it ended or stayed silent instead."""
    report = b""
    loop = asyncio.get_running_loop()
    end = loop.time() + within_s
    while b"}" not in report and len(report) < INFO_BYTES_MAX:
        if not await readable(info, max(0.0, end - loop.time())):
            return None
        piece = os.read(info, INFO_BYTES_MAX)
        if not piece:
            return None
        report += piece
    number = json.loads(report)["child-pid"]
    return number if isinstance(number, int) else None


async def launch(command: Command, limits: WorkerLimits, *, layers: Layers = STRONG_LAYERS) -> SandboxedProcess:
    """Start a command in the sandbox. Raises IsolationUnavailable with the launcher's own words and a remedy.

    Without namespaces a stage that fails shows only as a process that ends before it speaks.
    """
    check_platform()
    preparation = _Preparation(command, limits, layers)
    launched: SandboxedProcess | None = None
    try:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        preparation.held(reading)
        preparation.held(writing)
        wanted = preparation.specification(writing)
        wanted_bytes = marshal.dumps(wanted)  # type: ignore[arg-type]  # a typed dictionary is a dictionary
        stage = preparation.held(_memory_file("stage", wanted_bytes))
        popen = subprocess.Popen(  # noqa: ASYNC220 - returns once the program is there; its pipes are asynchronous
            [sys.executable, "-I", "-S", "-B", str(STAGE_SCRIPT), str(stage)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            pass_fds=[*wanted["descriptors"], stage], close_fds=True, cwd="/", env={}, start_new_session=True,
        )  # fmt: skip
        launched = SandboxedProcess(popen, preparation.group, preparation.uid, preparation.root)
        launched.processes_max = processes_max(limits, layers, preparation.uid)
        await launched.connect()
        if layers.namespaces:
            os.close(writing)
            preparation.descriptors.remove(writing)
            inner = await _inner_pid(reading, limits.start_s)
            if inner is None:
                await _explain_failed_start(launched)
            else:
                with contextlib.suppress(ProcessLookupError):
                    launched.adopt(inner)
        else:
            launched.adopt(popen.pid)
        return launched
    except BaseException:
        if launched is not None:
            await launched.end()
        else:
            preparation.give_up()
        raise
    finally:
        for descriptor in preparation.descriptors:
            os.close(descriptor)


async def _explain_failed_start(launched: SandboxedProcess) -> None:
    launched.kill()
    said = (await launched.stderr.read(4096)).decode("utf-8", "replace").strip()
    raise IsolationUnavailable(f"the sandbox did not start: {said or 'no message'}. {remedy_for(said)}")
