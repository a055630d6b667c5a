"""What a hostile worker tries, beside the canaries that every node tries at its start. Runs inside the sandbox.

Law: nothing but the standard library and the worker's own child code is imported; what an attempt needs to know of the
outside (where the node's key is, which process it runs as) comes in ``PARAMETERS``. An attempt returns what it got, or
raises ``Stopped`` with the name of the error that stopped it.
"""

import ctypes
import errno
import mmap
import os
import resource
import signal
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable

from node.worker.child import canaries
from node.worker.child.canaries import Stopped, _call, _open, _raw

PARAMETERS: dict[str, str] = {}

SYS_MKDIR, SYS_RENAME, SYS_UNLINK, SYS_TRUNCATE, SYS_CHMOD, SYS_PIDFD_SEND_SIGNAL = 83, 82, 87, 76, 90, 424
SYS_PIVOT_ROOT, SYS_UMOUNT, SYS_FSOPEN, SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 155, 166, 430, 428, 429, 442
SYS_PROCESS_VM_WRITEV, SYS_KEXEC_LOAD, SYS_INIT_MODULE, SYS_SEMGET, SYS_MSGGET, SYS_MLOCK = 311, 246, 175, 64, 68, 149
SYS_SYSLOG, SYS_MEMFD_SECRET, SYS_INOTIFY_INIT, SYS_FANOTIFY_INIT, SYS_SETSID, SYS_SCHED_SETAFFINITY = (
    103, 447, 253, 300, 112, 203,
)  # fmt: skip
SYS_SOCKET, SYS_SOCKETPAIR, SYS_KILL, SYS_TGKILL = 41, 53, 62, 234
AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10
MEMORY_WANTED_BYTES = 2 << 30
"""Twice what a worker may have, and less than most machines have: a limit must stop it, not the machine."""
DESCRIPTORS_WANTED, THREADS_WANTED = 200, 100
INT_80 = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"
"""mov eax, 20 (getpid of the 32-bit table); int 0x80; ret"""


def _named(error: OSError) -> Stopped:
    return Stopped(errno.errorcode.get(error.errno or 0, "?"))


def _read(path: str) -> Callable[[], str]:
    return lambda: _open(path, os.O_RDONLY)


def _read_parameter(name: str) -> Callable[[], str]:
    return lambda: _open(PARAMETERS[name], os.O_RDONLY)


def read_bound_key() -> str:
    return _open(sys.argv[1] + PARAMETERS["bound_key"], os.O_RDONLY)


def _write(path: str) -> Callable[[], str]:
    return lambda: _open(path, os.O_WRONLY)


def connect(family: int, kind: int, address: bytes) -> Callable[[], str]:
    def attempt() -> str:
        descriptor = _call(SYS_SOCKET, family, kind, 0)
        library = ctypes.CDLL(None, use_errno=True)
        if library.connect(descriptor, address, len(address)) < 0:
            raise Stopped(errno.errorcode.get(ctypes.get_errno(), "?"))
        return "connected"

    return attempt


def host_environment() -> str:
    return _open(f"/proc/{PARAMETERS['node']}/environ", os.O_RDONLY)


def signal_node() -> str:
    _call(SYS_KILL, int(PARAMETERS["node"]), 0)
    return "may signal the node"


def trace_node() -> str:
    _call(canaries.SYS_PTRACE, canaries.PTRACE_SEIZE, int(PARAMETERS["node"]), None, None)
    return "traces the node"


def signal_launcher() -> str:
    """The first process of the namespace, or the host's."""
    _call(SYS_KILL, 1, signal.SIGKILL)
    return "may kill process 1"


def memory_bomb() -> str:
    try:
        region = mmap.mmap(-1, MEMORY_WANTED_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise _named(error) from None
    region.close()
    return f"took {MEMORY_WANTED_BYTES} bytes"


def decompression_bomb() -> str:
    """Two gigabytes from two megabytes; every byte would be written if there were room."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(16 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)  # stands alone, so it can be repeated
    packed = block * (MEMORY_WANTED_BYTES >> 24) + packer.flush()
    try:
        return f"unpacked {len(zlib.decompress(packed, -15, MEMORY_WANTED_BYTES))} bytes"
    except MemoryError:
        raise Stopped("MemoryError") from None


def break_bomb() -> str:
    """The old way to more memory: moving the program break."""
    library = ctypes.CDLL(None, use_errno=True)
    library.sbrk.restype = ctypes.c_void_p
    library.sbrk.argtypes = (ctypes.c_ssize_t,)
    if library.sbrk(MEMORY_WANTED_BYTES) == ctypes.c_void_p(-1).value:
        raise Stopped(errno.errorcode.get(ctypes.get_errno(), "?"))
    return "moved the break"


def descriptor_bomb() -> str:
    opened: list[int] = []
    try:
        while len(opened) < DESCRIPTORS_WANTED:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        raise _named(error) from None
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return f"opened {len(opened)}"


def thread_storm() -> str:
    release = threading.Event()
    started: list[threading.Thread] = []
    try:
        while len(started) < THREADS_WANTED:
            thread = threading.Thread(target=release.wait)
            thread.start()
            started.append(thread)
    except RuntimeError:
        raise Stopped("EAGAIN") from None
    finally:
        release.set()
        for thread in started:
            thread.join()
    return f"started {len(started)} threads"


def fork_storm() -> str:
    for _ in range(THREADS_WANTED):
        try:
            child = os.fork()
        except OSError as error:
            raise _named(error) from None
        if child == 0:
            time.sleep(5)
            os._exit(0)
    return "forked"


def leave_a_daemon() -> str:
    """Children of a child: they would outlive a worker that is killed alone."""
    try:
        child = os.fork()
    except OSError as error:
        raise _named(error) from None
    if child == 0:
        try:
            os.fork()
            time.sleep(60)
        finally:
            os._exit(0)
    return "left a daemon"


def inode_bomb() -> str:
    for folder in (b"/", b"/tmp", b"/dev/shm", b"/model", b"/var/tmp"):
        try:
            _call(SYS_MKDIR, folder + b"/bomb", 0o700)
        except Stopped as stopped:
            last = stopped
        else:
            return f"made a folder in {folder!r}"
    raise last


def int_80() -> str:
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    code = mmap.mmap(-1, 4096, flags=private, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(INT_80)
    entry = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    return f"process {entry()} by the 32-bit table"


def raise_limit(which: int) -> Callable[[], str]:
    def attempt() -> str:
        _call(canaries.SYS_PRLIMIT64, 0, which, struct.pack("<QQ", 1 << 40, 1 << 40), None)
        return "raised it"

    return attempt


def drop_filters() -> str:
    """A filter that allows everything does not undo the ones before it; that it may be added at all is not wanted."""
    _call(317, 1, 0, struct.pack("<HxxxxxxQ", 1, 0))
    return "added a filter"


def first_process_root() -> str:
    return _open("/proc/1/root/etc/passwd", os.O_RDONLY)


INTERNET_LOOPBACK = struct.pack("=HH4s8x", AF_INET, 0x1600, bytes((127, 0, 0, 1)))
METADATA = struct.pack("=HH4s8x", AF_INET, 0x5000, bytes((169, 254, 169, 254)))
STREAM, DATAGRAM = 1, 2

ATTEMPTS: dict[str, Callable[[], str]] = {
    # files
    "read the node's key, closed to others": _read_parameter("closed_key"),
    "read the node's key, open to all": _read_parameter("open_key"),
    "read a file of the node's user that was bound": read_bound_key,
    "read /etc/passwd": _read("/etc/passwd"),
    "look through /proc/1/root": first_process_root,
    "read /proc/self/maps": _read("/proc/self/maps"),
    "write to /proc/sys": _write("/proc/sys/kernel/hostname"),
    "write to the control group": _write("/sys/fs/cgroup/cgroup.procs"),
    "write to a device": _write("/dev/null"),
    "make a folder": _raw(SYS_MKDIR, b"/model/folder", 0o700),
    "rename the model": _raw(SYS_RENAME, b"/model", b"/other"),
    "delete the interpreter": _raw(SYS_UNLINK, b"/python/bin/python"),
    "truncate the interpreter": _raw(SYS_TRUNCATE, b"/python/bin/python", 0),
    "open the interpreter to writers": _raw(SYS_CHMOD, b"/python/bin/python", 0o777),
    "watch files": _raw(SYS_INOTIFY_INIT),
    "watch file systems": _raw(SYS_FANOTIFY_INIT, 0, 0),
    # network
    "connect to loopback": connect(AF_INET, STREAM, INTERNET_LOOPBACK),
    "connect to the metadata address": connect(AF_INET, STREAM, METADATA),
    "send a datagram": connect(AF_INET, DATAGRAM, INTERNET_LOOPBACK),
    "open an IPv6 socket": _raw(SYS_SOCKET, AF_INET6, STREAM, 0),
    "connect to an abstract socket": connect(AF_UNIX, STREAM, struct.pack("=H", AF_UNIX) + b"\0bus"),
    "connect to a path socket": connect(AF_UNIX, STREAM, struct.pack("=H", AF_UNIX) + b"/run/docker.sock\0"),
    "make a pair of sockets": _raw(SYS_SOCKETPAIR, AF_UNIX, STREAM, 0, bytes(8)),
    # processes
    "read the node's own environment": host_environment,
    "signal the node": signal_node,
    "trace the node": trace_node,
    "kill the first process": signal_launcher,
    "write another process's memory": _raw(SYS_PROCESS_VM_WRITEV, 1, None, 0, None, 0, 0),
    "signal through a pidfd": _raw(SYS_PIDFD_SEND_SIGNAL, 0, 9, None, 0),
    "leave the session": _raw(SYS_SETSID),
    "raise the limit of memory": raise_limit(resource.RLIMIT_DATA),
    "raise the limit of processes": raise_limit(resource.RLIMIT_NPROC),
    "raise the limit of descriptors": raise_limit(resource.RLIMIT_NOFILE),
    "raise the limit of time": raise_limit(resource.RLIMIT_CPU),
    "add a filter of its own": drop_filters,
    # kernel
    "change the root": _raw(SYS_PIVOT_ROOT, b"/", b"/"),
    "unmount": _raw(SYS_UMOUNT, b"/", 2),
    "open a file system": _raw(SYS_FSOPEN, b"tmpfs", 0),
    "clone a mount": _raw(SYS_OPEN_TREE, -100, b"/", 1),
    "move a mount": _raw(SYS_MOVE_MOUNT, -100, b"/", -100, b"/", 0),
    "change a mount": _raw(SYS_MOUNT_SETATTR, -100, b"/", 0, bytes(32), 32),
    "load a kernel": _raw(SYS_KEXEC_LOAD, 0, 0, None, 0),
    "load a module": _raw(SYS_INIT_MODULE, b"x", 1, b""),
    "use System V semaphores": _raw(SYS_SEMGET, 0, 1, 0o1600),
    "use System V queues": _raw(SYS_MSGGET, 0, 0o1600),
    "lock memory": _raw(SYS_MLOCK, 0, 4096),
    "make secret memory": _raw(SYS_MEMFD_SECRET, 0),
    # leaks
    "read the kernel's log": _raw(SYS_SYSLOG, 3, bytes(64), 64),
    "open /dev/kmsg": _read("/dev/kmsg"),
    "open /dev/mem": _read("/dev/mem"),
    "open /dev/kvm": _read("/dev/kvm"),
    "open a terminal": _read("/dev/tty"),
    # abuse
    "take twice the memory": memory_bomb,
    "unpack a bomb": decompression_bomb,
    "move the program break": break_bomb,
    "open descriptors without end": descriptor_bomb,
    "start threads without end": thread_storm,
    "fork without end": fork_storm,
    "leave a daemon": leave_a_daemon,
    "make inodes": inode_bomb,
}
LETHAL: dict[str, Callable[[], str]] = {"call through int 0x80": int_80}
