"""Seccomp filters as raw BPF: what a worker may ask of the kernel.

Law: a list of what is allowed; everything else gets an error, and a foreign architecture kills the process. The first
filter is in force before the interpreter starts; the second, a strict subset, is applied by the worker itself after
its imports and before the first byte that a stranger wrote.

Source: Linux `Documentation/userspace-api/seccomp_filter.rst`; classic BPF records are `struct sock_filter`.
"""

import errno
import struct
from dataclasses import dataclass

ARCHITECTURE_X86_64 = 0xC000003E
X32_SYSCALL_BIT = 0x40000000

LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
JUMP_GREATER_EQUAL = 0x35  # BPF_JMP | BPF_JGE | BPF_K
AND_CONSTANT = 0x54  # BPF_ALU | BPF_AND | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
REFUSE = 0x00050000  # SECCOMP_RET_ERRNO, the error number in the low half

NUMBER_OFFSET = 0
ARCHITECTURE_OFFSET = 4
ARGUMENTS_OFFSET = 16
INSTRUCTIONS_MAX = 4096  # BPF_MAXINSNS

CLONE_NEW_ANY = 0x7E020080  # CLONE_NEW{TIME,NS,CGROUP,UTS,IPC,USER,PID,NET}
CLONE_THREAD = 0x00010000
MAP_SHARED_ANONYMOUS = 0x21
MAP_GROWSDOWN = 0x100
OPEN_CHANGES = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000 | 0o20000000  # WRONLY RDWR CREAT TRUNC APPEND TMPFILE
SIGABRT = 6

# System call numbers of x86-64 that a worker may use at some time.
NUMBERS: dict[str, int] = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8,
    "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14,
    "rt_sigreturn": 15, "ioctl": 16, "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "access": 21,
    "pipe": 22, "select": 23, "sched_yield": 24, "mremap": 25, "mincore": 27, "madvise": 28, "dup": 32, "dup2": 33,
    "pause": 34, "nanosleep": 35, "getpid": 39, "clone": 56, "fork": 57, "vfork": 58, "execve": 59, "exit": 60,
    "wait4": 61, "kill": 62, "uname": 63, "fcntl": 72, "getcwd": 79, "chdir": 80, "readlink": 89, "umask": 95,
    "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102,
    "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110, "getpgrp": 111, "getgroups": 115,
    "getresuid": 118, "getresgid": 120, "rt_sigpending": 127, "rt_sigtimedwait": 128, "rt_sigsuspend": 130,
    "sigaltstack": 131, "statfs": 137, "fstatfs": 138, "getpriority": 140, "sched_getparam": 143,
    "sched_getscheduler": 145, "sched_get_priority_max": 146, "sched_get_priority_min": 147, "prctl": 157,
    "arch_prctl": 158, "setrlimit": 160, "gettid": 186, "readahead": 187, "tkill": 200, "time": 201, "futex": 202,
    "sched_getaffinity": 204, "epoll_create": 213, "getdents64": 217, "set_tid_address": 218,
    "restart_syscall": 219, "fadvise64": 221, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230,
    "exit_group": 231, "epoll_wait": 232, "epoll_ctl": 233, "tgkill": 234, "waitid": 247, "openat": 257,
    "newfstatat": 262, "readlinkat": 267, "faccessat": 269, "pselect6": 270, "ppoll": 271, "set_robust_list": 273,
    "get_robust_list": 274, "epoll_pwait": 281, "eventfd2": 290, "epoll_create1": 291, "dup3": 292, "pipe2": 293,
    "preadv": 295, "pwritev": 296, "prlimit64": 302, "getcpu": 309, "seccomp": 317, "getrandom": 318,
    "membarrier": 324, "preadv2": 327, "statx": 332, "rseq": 334, "clone3": 435, "close_range": 436, "openat2": 437,
    "faccessat2": 439,
}  # fmt: skip

# Refused as if the kernel were older, so that the C library falls back to the call whose arguments can be inspected.
TOO_NEW = ("clone3", "openat2")
# Allowed from the start, needed by the interpreter's own start-up and imports, and given up by the second filter.
FIRST_ONLY = (
    "execve", "fork", "vfork", "kill", "tkill", "pipe", "pipe2", "dup", "dup2", "dup3", "setrlimit", "umask",
    "chdir", "pwrite64", "pwritev", "seccomp", "wait4", "waitid",
)  # fmt: skip
# Judged by their arguments in `_ruled`.
RULED = ("clone", "mmap", "ioctl", "prctl", "fcntl", "tgkill", "open", "openat", "prlimit64")

IOCTLS = (0x5401, 0x541B, 0x5451)  # TCGETS, FIONREAD, FIOCLEX
PRCTLS = (15, 16, 21, 38, 39, 0x53564D41)  # SET_NAME, GET_NAME, GET_SECCOMP, SET/GET_NO_NEW_PRIVS, SET_VMA
FCNTLS = (1, 2, 3)  # GETFD, SETFD, GETFL
FCNTLS_FIRST_ONLY = (0, 4, 1030)  # DUPFD, SETFL, DUPFD_CLOEXEC


@dataclass(frozen=True, slots=True)
class Instruction:
    """One `struct sock_filter`: code, jump when true, jump when false, constant."""

    code: int
    true: int
    false: int
    constant: int


def refuse(number: int) -> int:
    """The filter's verdict that makes a call fail with this error number."""
    return REFUSE | number


def _load(offset: int) -> Instruction:
    return Instruction(LOAD_WORD, 0, 0, offset)


def _verdict(verdict: int) -> Instruction:
    return Instruction(RETURN, 0, 0, verdict)


def _argument(position: int) -> int:
    """Offset of the low half of an argument on a little-endian machine."""
    return ARGUMENTS_OFFSET + 8 * position


def _one_of(position: int, allowed: tuple[int, ...]) -> list[Instruction]:
    """Allow when the low half of an argument is in the list (these arguments are 32-bit in the kernel)."""
    rules = [_load(_argument(position))]
    for value in allowed:
        rules += [Instruction(JUMP_EQUAL, 0, 1, value), _verdict(ALLOW)]
    return [*rules, _verdict(refuse(errno.EPERM))]


def _masked(position: int, mask: int, equals: int, when_equal: int, otherwise: int) -> list[Instruction]:
    return [
        _load(_argument(position)),
        Instruction(AND_CONSTANT, 0, 0, mask),
        Instruction(JUMP_EQUAL, 0, 1, equals),
        _verdict(when_equal),
        _verdict(otherwise),
    ]


def _ruled(name: str, second: bool) -> list[Instruction]:
    """The rules for a call that is judged by its arguments; they end in a verdict."""
    denied = refuse(errno.EPERM)
    match name:
        case "clone":  # no new namespaces ever; after the second filter only threads
            mask, equals = (CLONE_NEW_ANY | CLONE_THREAD, CLONE_THREAD) if second else (CLONE_NEW_ANY, 0)
            return _masked(0, mask, equals, ALLOW, denied)
        case "mmap":  # RLIMIT_DATA counts neither shared anonymous memory nor what passes for a stack
            stack = _masked(3, MAP_GROWSDOWN, MAP_GROWSDOWN, refuse(errno.ENOMEM), ALLOW)
            shared = _masked(3, MAP_SHARED_ANONYMOUS, MAP_SHARED_ANONYMOUS, refuse(errno.ENOMEM), ALLOW)
            return [*shared[:-1], *stack]
        case "ioctl":
            return _one_of(1, IOCTLS)
        case "prctl":
            return _one_of(0, PRCTLS)
        case "fcntl":
            return _one_of(1, FCNTLS if second else FCNTLS + FCNTLS_FIRST_ONLY)
        case "tgkill":  # abort() may end the caller; the only other process of its namespace ignores the signal
            return _one_of(2, (SIGABRT,)) if second else [_verdict(ALLOW)]
        case "open" | "openat":
            flags = 1 if name == "open" else 2
            return _masked(flags, OPEN_CHANGES, 0, ALLOW, denied) if second else [_verdict(ALLOW)]
        case "prlimit64":  # reading a limit passes a null pointer for the new one
            if not second:
                return [_verdict(ALLOW)]
            low, high = _argument(2), _argument(2) + 4
            return [
                _load(low),
                Instruction(JUMP_EQUAL, 0, 3, 0),
                _load(high),
                Instruction(JUMP_EQUAL, 0, 1, 0),
                _verdict(ALLOW),
                _verdict(denied),
            ]
        case _:
            raise AssertionError(f"no rule for {name}")


def _assemble(second: bool) -> bytes:
    program = [
        _load(ARCHITECTURE_OFFSET),
        Instruction(JUMP_EQUAL, 1, 0, ARCHITECTURE_X86_64),
        _verdict(KILL_PROCESS),
        _load(NUMBER_OFFSET),
        Instruction(JUMP_GREATER_EQUAL, 0, 1, X32_SYSCALL_BIT),
        _verdict(KILL_PROCESS),
    ]
    for name, number in NUMBERS.items():
        if name in RULED:
            rules = _ruled(name, second)
        elif name in TOO_NEW:
            rules = [_verdict(refuse(errno.ENOSYS))]
        elif second and name in FIRST_ONLY:
            continue
        else:
            rules = [_verdict(ALLOW)]
        program += [Instruction(JUMP_EQUAL, 0, len(rules), number), *rules]
    program.append(_verdict(refuse(errno.EPERM)))
    assert len(program) <= INSTRUCTIONS_MAX
    return b"".join(struct.pack("<HBBI", i.code, i.true, i.false, i.constant) for i in program)


def filter_from_start() -> bytes:
    """F1: in force before the worker's first instruction."""
    return _assemble(second=False)


def filter_after_imports() -> bytes:
    """F2: F1 without starting programs, forking, signalling, duplicating descriptors, or any change to a file."""
    return _assemble(second=True)
