"""A running sandboxed process: its pipes, how it is ended, and what the kernel says that it used.

Law: what is killed is the first process inside, held by a descriptor, so that no other process is ever hit instead;
with it everything inside goes. Nothing of it (its user, its slot, its group) is used again before the kernel says that
it is gone. What it used is asked of the kernel, never of the worker.
"""

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from node.worker.sandbox import users
from node.worker.sandbox.cgroup import ControlGroup

END_S = 10.0  # a kill of a process with gigabytes of memory takes a third of a second
STAND_STILL_S = 0.05  # a process that is not in the middle of a slow system call stands still within microseconds
PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """What the kernel charged a process and everything under it: processor time, and memory now or at its peak."""

    cpu_ms: int = 0
    memory_bytes: int = 0
    memory_peak_bytes: int = 0


def adopt_orphans(wanted: bool) -> bool:
    """Whether processes whose parent is gone come to this one to be waited for. Returns what it was before."""
    library = ctypes.CDLL(None, use_errno=True)
    before = ctypes.c_int(0)
    library.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    library.prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)
    return bool(before.value)


async def readable(descriptor: int, within_s: float) -> bool:
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


async def _reader(pipe: object) -> tuple[asyncio.StreamReader, asyncio.BaseTransport]:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader, transport


class SandboxedProcess:
    """Made by `launch`, ended by `end`."""

    stdin: asyncio.WriteTransport
    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader

    def __init__(self, popen: "subprocess.Popen[bytes]", group: ControlGroup, uid: int | None, root: str) -> None:
        self.group = group
        self.group_description = group.describe()
        self.uid = uid
        self.root = root
        """Folder under which the process sees its targets; empty: a file tree of its own."""
        self.processes_max = 0
        """What the worker is told to limit its processes to; 0: nothing."""
        self.inner_pid: int | None = None
        self.out_of_memory = False
        self.final = Usage()
        """What it used in all; known once it has ended."""
        self._popen = popen
        self._launcher = os.pidfd_open(popen.pid)
        self._inner = -1
        self._orphans: list[int] = []
        """Killed before the launcher had told of them: once it is gone they are ours to wait for."""
        self._pipes: list[asyncio.BaseTransport] = []
        self._status: int | None = None
        self._sampled = Usage()
        """What it had used when it was killed: the kernel bills nobody for what dies with its namespace."""

    async def connect(self) -> None:
        """Take over the pipes."""
        loop = asyncio.get_running_loop()
        self.stdin, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, self._popen.stdin)
        self._pipes.append(self.stdin)
        self.stdout, output = await _reader(self._popen.stdout)
        self._pipes.append(output)
        self.stderr, complaints = await _reader(self._popen.stderr)
        self._pipes.append(complaints)

    @property
    def launcher_pid(self) -> int:
        """The process that this node started: bubblewrap, or the worker itself."""
        return self._popen.pid

    def adopt(self, inner_pid: int) -> None:
        """Hold the first process inside."""
        self._inner = os.pidfd_open(inner_pid)
        self.inner_pid = inner_pid

    def kill(self) -> None:
        """SIGKILL the first process inside, and with it everything there; returns at once."""
        self._sampled = _most(self._sampled, self.usage())
        if self._inner < 0 and self._launcher >= 0:
            self._kill_unknown()
        held = self._inner if self._inner >= 0 else self._launcher
        if held >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(held, signal.SIGKILL)

    def _kill_unknown(self) -> None:
        """Kill what the launcher has started and not told of yet.

        Killed first, the launcher could leave a child behind that it was just about to tie to its own life; going on
        meanwhile, it could start one after the look. So it stands still first.
        """
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            signal.pidfd_send_signal(self._launcher, signal.SIGSTOP)
            until = time.monotonic() + STAND_STILL_S
            while time.monotonic() < until:
                if (
                    os.waitid(os.P_PIDFD, self._launcher, os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG)
                    is not None
                ):
                    break
        for child in _children(self._popen.pid):
            with contextlib.suppress(ProcessLookupError):
                self._orphans.append(os.pidfd_open(child))
                signal.pidfd_send_signal(self._orphans[-1], signal.SIGKILL)

    def usage(self) -> Usage:
        """What the running process has used so far."""
        if self._status is not None or self.inner_pid is None:
            return self.final
        cpu_ticks, pages = _tree_usage(self.inner_pid)
        resident = pages * _PAGE_BYTES
        return Usage(cpu_ticks * 1000 // _TICKS_PER_SECOND, resident, max(resident, self.group.memory_peak_bytes()))

    async def end(self, *, kill: bool = True) -> int:
        """Kill (unless it is ending by itself), wait until the kernel says everything is gone, remove the group.

        Returns the launcher's status: 128 + the signal where one ended the worker.
        """
        if self._status is not None:
            return self._status
        if kill:
            self.kill()
        for pipe in self._pipes[:1]:
            pipe.close()
        for held in (*self._orphans, self._inner, self._launcher):
            if held >= 0 and not await readable(held, END_S):
                self.kill()
                await readable(held, END_S)
        self._status = self._collect()
        self._release()
        return self._status

    def _collect(self) -> int:
        """The status of what has ended, and the kernel's bill for it."""
        _, status, used = os.wait4(self._popen.pid, 0)
        code = self._popen.returncode = os.waitstatus_to_exitcode(status)
        bills = [used]
        for orphan in self._orphans:
            with contextlib.suppress(ChildProcessError):  # its launcher had waited for it already
                os.waitid(os.P_PIDFD, orphan, os.WEXITED)
        if self.inner_pid is not None and self.inner_pid != self._popen.pid:
            with contextlib.suppress(ChildProcessError):  # ours to wait for only if the launcher was gone before it
                if os.waitid(os.P_PIDFD, self._inner, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                    bills.append(os.wait4(self.inner_pid, 0)[2])
        self.out_of_memory = self.group.out_of_memory()
        cpu_s = sum(bill.ru_utime + bill.ru_stime for bill in bills)
        peak = max(self.group.memory_peak_bytes(), *(bill.ru_maxrss * 1024 for bill in bills))
        self.final = _most(Usage(round(cpu_s * 1000), 0, peak), self._sampled)
        return 128 - code if code < 0 else code

    def _release(self) -> None:
        for held in (*self._orphans, self._inner, self._launcher):
            if held >= 0:
                os.close(held)
        self._inner = self._launcher = -1
        self._orphans.clear()
        for pipe in self._pipes[1:]:
            pipe.close()
        for file in (self._popen.stdin, self._popen.stdout, self._popen.stderr)[len(self._pipes) :]:
            if file is not None:  # never taken over
                file.close()
        self.group.kill()
        self.group.remove()
        users.give_back(self.uid)
        if self.root:
            shutil.rmtree(self.root, ignore_errors=True)


def _most(one: Usage, other: Usage) -> Usage:
    """The larger bill of the two, with no memory held any more."""
    return Usage(max(one.cpu_ms, other.cpu_ms), 0, max(one.memory_peak_bytes, other.memory_peak_bytes))


def _children(pid: int) -> list[int]:
    """Processes that this one has started, ours alone to wait for until we have waited for it."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []


def _tree_usage(pid: int) -> tuple[int, int]:
    """Ticks of processor time and pages of memory of a process and everything under it."""
    try:
        # Behind the name, which may hold anything, fields 3 and on of proc(5).
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0, 0
    ticks, pages = sum(int(field) for field in fields[11:15]), int(fields[21])
    for child in _children(pid):
        more_ticks, more_pages = _tree_usage(child)
        ticks, pages = ticks + more_ticks, pages + more_pages
    return ticks, pages
