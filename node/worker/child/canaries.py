"""Canary attacks: what a hostile worker would try first, tried by us inside the real sandbox.

Law: each attack is a function that returns what it got; an attack that *succeeds* is what fails a check. They run
under the second filter, so everything they need is imported here, at the top.
"""

import ctypes
import errno
import mmap
import os
import resource
import signal
import struct
from collections.abc import Callable

SYS_SOCKET, SYS_PTRACE, SYS_UNSHARE, SYS_MOUNT, SYS_FORK, SYS_SETNS, SYS_BPF = 41, 101, 272, 165, 57, 308, 321
SYS_KEYCTL, SYS_PERF_EVENT_OPEN, SYS_IO_URING_SETUP, SYS_USERFAULTFD, SYS_MEMFD_CREATE = 250, 298, 425, 323, 319
SYS_PROCESS_VM_READV, SYS_PIDFD_OPEN, SYS_PERSONALITY, SYS_SHMGET, SYS_CLONE3, SYS_MKNOD = 310, 434, 135, 29, 435, 133
SYS_OPEN_BY_HANDLE_AT, SYS_SETUID, SYS_CHROOT, SYS_SYMLINK, SYS_LINK, SYS_CLONE, SYS_KILL = (
    304,
    105,
    161,
    88,
    86,
    56,
    62,
)
SYS_PRLIMIT64 = 302
AF_UNIX, AF_INET, AF_NETLINK, AF_PACKET, AF_VSOCK = 1, 2, 16, 17, 40
CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000
MAP_SHARED_ANONYMOUS = 0x21
MAP_PRIVATE_ANONYMOUS, MAP_GROWSDOWN, MAP_NORESERVE = 0x22, 0x100, 0x4000
PROT_READ, PROT_READ_WRITE = 1, 3
TIOCSTI = 0x5412
PTRACE_SEIZE = 0x4206  # unlike an attach it stops nobody when it works
X32_GETPID = 0x40000000 | 39
NAMES_SHOWN = 5
VISIBLE = {
    "/": ("code", "dev", "etc", "lib", "lib64", "model", "proc", "python", "site", "sys", "usr"),
    "/etc": ("ld.so.cache",),
    "/proc": ("cpuinfo",),
    "/dev": ("null", "urandom"),
    "/usr": ("lib", "lib64"),
    "/code": ("node",),
    "/code/node": ("worker",),
    "/code/node/worker": ("child",),
}

_library = ctypes.CDLL(None, use_errno=True)
_library.syscall.restype = ctypes.c_long
_library.mmap.restype = ctypes.c_void_p
_library.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip


class Stopped(Exception):
    """The sandbox stopped the attack; the message says how."""


def _call(number: int, *arguments: int | bytes | None) -> int:
    """A raw system call; Stopped names the error when the kernel refuses."""
    result: int = _library.syscall(ctypes.c_long(number), *(_word(argument) for argument in arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise Stopped(errno.errorcode.get(code, str(code)))
    return result


def _word(argument: int | bytes | None) -> ctypes.c_long | bytes | None:
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def _open(path: str, flags: int) -> str:
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise Stopped(errno.errorcode.get(error.errno or 0, "?")) from None
    os.close(descriptor)
    return f"opened {path}"


def _any_listing(paths: tuple[str, ...]) -> str:
    for path in paths:
        try:
            names = os.listdir(path)
        except OSError:
            continue
        if names:
            return f"{path} shows {sorted(names)[:NAMES_SHOWN]}"
    raise Stopped("nothing there")


def write_file() -> str:
    for folder in ("/", "/python", "/code", "/site", "/model", "/tmp", "/dev/shm", "/usr/lib"):
        try:
            return _open(f"{folder}/canary", os.O_WRONLY | os.O_CREAT)
        except Stopped as stopped:
            last = stopped
    raise last


def reopen_model_for_writing() -> str:
    for folder, _, names in os.walk("/model"):
        for name in names:
            return _open(f"{folder}/{name}", os.O_RDWR)
    return _open("/python/bin/python", os.O_RDWR)


def read_shadow() -> str:
    return _open("/etc/shadow", os.O_RDONLY)


def list_homes() -> str:
    return _any_listing(("/home", "/root", "/var", "/tmp", "/run", "/mnt", "/srv", "/opt"))


def host_processes() -> str:
    try:
        seen = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError as error:
        raise Stopped(errno.errorcode.get(error.errno or 0, "?")) from None
    if seen:
        return f"/proc shows {len(seen)} processes"
    raise Stopped("no processes in /proc")


def find_by_name() -> str:
    """Whether a file is there can be asked without opening it."""
    for path in ("/etc/passwd", "/home", "/root", "/tmp", "/proc/1"):
        try:
            os.stat(path)
        except OSError:
            continue
        return f"{path} is there"
    raise Stopped("nothing there")


def unbound_files() -> str:
    """Nothing may be visible beside what was bound on purpose."""
    for folder, expected in VISIBLE.items():
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        extra = sorted(name for name in names if name not in expected)
        if extra:
            return f"{folder} shows {extra[:NAMES_SHOWN]}"
    raise Stopped("only what was bound")


def inherited_descriptors() -> str:
    for descriptor in range(4, 65536):
        try:
            status = os.fstat(descriptor)
        except OSError:
            continue
        return f"descriptor {descriptor} is open, mode {status.st_mode:o}"
    raise Stopped("only the pipes")


def environment() -> str:
    extra = sorted(set(os.environ) - {"LD_LIBRARY_PATH", "LANG", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PWD",
                                      "ORT_DISABLE_TELEMETRY", "RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM",
                                      "LC_CTYPE"})  # fmt: skip
    if extra:
        return f"sees {extra[:NAMES_SHOWN]}"
    raise Stopped("clean")


def host_name() -> str:
    if os.uname().nodename == "worker":
        raise Stopped("hidden")
    return f"sees {os.uname().nodename}"


def be_root() -> str:
    if 0 in (os.getuid(), os.geteuid(), os.getgid()):
        return "is root"
    raise Stopped("nobody")


def raise_limits() -> str:
    limit = struct.pack("<QQ", 1 << 40, 1 << 40)
    _call(SYS_PRLIMIT64, 0, resource.RLIMIT_DATA, limit, None)
    return "raised RLIMIT_DATA"


def memory_bomb() -> str:
    size = 64 << 30
    try:
        region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, ValueError) as error:
        raise Stopped(str(error)) from None
    region.close()
    return f"mapped {size} bytes"


def _map(size: int, protection: int, flags: int) -> str:
    address = _library.mmap(None, size, protection, flags, -1, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        raise Stopped(errno.errorcode.get(ctypes.get_errno(), "?"))
    return f"mapped {size} bytes"


def shared_memory_bomb() -> str:
    return _map(1 << 20, PROT_READ_WRITE, MAP_SHARED_ANONYMOUS)


def stack_memory_bomb() -> str:
    """The kernel counts a mapping that grows downwards as a stack, not as data."""
    return _map(1 << 20, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS | MAP_GROWSDOWN)


def page_table_bomb() -> str:
    """Reading it takes no memory that a process is charged for, only page tables: one for each two megabytes."""
    return _map(1 << 44, PROT_READ, MAP_PRIVATE_ANONYMOUS | MAP_NORESERVE)


def fork() -> str:
    child = _call(SYS_FORK)
    if child == 0:
        os._exit(0)
    return "forked"


def clone_process() -> str:
    child = _call(SYS_CLONE, signal.SIGCHLD, None, None, None, None)
    if child == 0:
        os._exit(0)
    return "cloned a process"


def execute() -> str:
    try:
        os.execv("/python/bin/python", ["python", "-c", ""])
    except OSError as error:
        raise Stopped(errno.errorcode.get(error.errno or 0, "?")) from None


def signal_all() -> str:
    _call(SYS_KILL, -1, 0)
    return "may signal others"


def terminal_injection() -> str:
    _call(16, 0, TIOCSTI, b"x")
    return "pushed a character into a terminal"


def x32_call() -> str:
    _call(X32_GETPID)
    return "called through x32"


def _raw(number: int, *arguments: int | bytes | None) -> Callable[[], str]:
    def attack() -> str:
        return f"got {_call(number, *arguments)}"

    return attack


# Attacks that a working sandbox answers with an error.
ATTACKS: dict[str, Callable[[], str]] = {
    "write a file": write_file,
    "reopen the model for writing": reopen_model_for_writing,
    "read /etc/shadow": read_shadow,
    "list homes": list_homes,
    "see other processes": host_processes,
    "see files that weren't bound": unbound_files,
    "find files by their names": find_by_name,
    "inherit descriptors": inherited_descriptors,
    "read the node's environment": environment,
    "learn the host's name": host_name,
    "open an internet socket": _raw(SYS_SOCKET, AF_INET, 1, 0),
    "open a local socket": _raw(SYS_SOCKET, AF_UNIX, 1, 0),
    "open a netlink socket": _raw(SYS_SOCKET, AF_NETLINK, 3, 0),
    "open a raw socket": _raw(SYS_SOCKET, AF_PACKET, 3, 0),
    "open a vsock": _raw(SYS_SOCKET, AF_VSOCK, 1, 0),
    "ptrace": _raw(SYS_PTRACE, PTRACE_SEIZE, 1, None, None),
    "read another process's memory": _raw(SYS_PROCESS_VM_READV, 1, None, 0, None, 0, 0),
    "open a pidfd": _raw(SYS_PIDFD_OPEN, 1, 0),
    "signal others": signal_all,
    "fork": fork,
    "clone a process": clone_process,
    "clone3": _raw(SYS_CLONE3, None, 0),
    "execute a program": execute,
    "unshare namespaces": _raw(SYS_UNSHARE, CLONE_NEWUSER | CLONE_NEWNS),
    "join a namespace": _raw(SYS_SETNS, 0, 0),
    "mount": _raw(SYS_MOUNT, b"none", b"/", None, 0x20, None),
    "chroot": _raw(SYS_CHROOT, b"/python"),
    "make a device": _raw(SYS_MKNOD, b"/mem", 0o020600, 0x101),
    "make a symbolic link": _raw(SYS_SYMLINK, b"/etc", b"/model/link"),
    "make a hard link": _raw(SYS_LINK, b"/python/bin/python", b"/link"),
    "open by handle": _raw(SYS_OPEN_BY_HANDLE_AT, 0, b"\0" * 64, 0),
    "be root": be_root,
    "become another user": _raw(SYS_SETUID, 0),
    "load a kernel program": _raw(SYS_BPF, 0, b"\0" * 64, 64),
    "use kernel keys": _raw(SYS_KEYCTL, 0, -3, 1),
    "watch performance counters": _raw(SYS_PERF_EVENT_OPEN, b"\0" * 128, 0, -1, -1, 0),
    "use io_uring": _raw(SYS_IO_URING_SETUP, 1, b"\0" * 128),
    "use userfaultfd": _raw(SYS_USERFAULTFD, 1),
    "make an anonymous file": _raw(SYS_MEMFD_CREATE, b"x", 0),
    "change personality": _raw(SYS_PERSONALITY, 0x0040000),
    "use System V memory": _raw(SYS_SHMGET, 0, 4096, 0o1600),
    "inject into a terminal": terminal_injection,
    "raise limits": raise_limits,
    "take all memory": memory_bomb,
    "take uncounted memory": shared_memory_bomb,
    "take memory as a stack": stack_memory_bomb,
    "take memory as page tables": page_table_bomb,
}
# Attacks that a working sandbox answers by killing the process.
LETHAL: dict[str, Callable[[], str]] = {"call through x32": x32_call}


# What must be stopped before the second filter too, when a runtime's packages are imported: tried first.
EARLY = "while starting, "
ATTACKS |= {
    EARLY + name: ATTACKS[name]
    for name in ("open an internet socket", "ptrace", "unshare namespaces", "use kernel keys", "make an anonymous file")
}


def attempt(name: str) -> tuple[bool, str]:
    """Try one attack. Returns whether the sandbox stopped it, and what was seen."""
    attack = ATTACKS.get(name) or LETHAL[name]
    try:
        return False, attack()
    except Stopped as stopped:
        return True, str(stopped)
