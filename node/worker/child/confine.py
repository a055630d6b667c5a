"""The worker's own part of its confinement: descriptors, limits that only make sense inside, and the second filter.

Law: `apply_filter` runs after every import and before the first byte that a stranger wrote (a model's bytes count).
"""

import ctypes
import os
import resource
import struct

SYS_SECCOMP = 317
SYS_CLOSE_RANGE = 436
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_TSYNC = 1
PR_SET_NO_NEW_PRIVS = 38
DESCRIPTORS_MAX = 1 << 16


class ConfinementFailed(Exception):
    """The kernel did not take the second filter: the worker must not go on."""


class FilterProgram(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("records", ctypes.c_void_p))


def keep_only_pipes() -> tuple[int, int]:
    """Close every descriptor but the three standard ones and move frames off standard output.

    Native code prints to standard output; afterwards that goes to standard error and can't break a frame. Returns the
    descriptors to read frames from and to write frames to.
    """
    if ctypes.CDLL(None).syscall(SYS_CLOSE_RANGE, 3, ctypes.c_uint(0xFFFFFFFF), 0) != 0:
        os.closerange(3, DESCRIPTORS_MAX)  # a kernel before 5.9; an inherited number may lie above today's limit
    writing = os.dup(1)
    os.dup2(2, 1)
    return 0, writing


def limit_processes(count: int) -> None:
    """Cap processes and threads. Set here because inside the user namespace only this worker's own are counted."""
    if count == 0:
        return
    resource.setrlimit(resource.RLIMIT_NPROC, (count, count))


def apply_filter(program: bytes) -> None:
    """Put the second filter in force for every thread. Raises ConfinementFailed."""
    record_bytes = struct.calcsize("<HBBI")
    library = ctypes.CDLL(None, use_errno=True)
    records = ctypes.create_string_buffer(program, len(program))
    argument = FilterProgram(len(program) // record_bytes, ctypes.cast(records, ctypes.c_void_p).value)
    if library.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise ConfinementFailed(f"no_new_privs: errno {ctypes.get_errno()}")
    result = library.syscall(SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, ctypes.byref(argument))
    if result != 0:
        raise ConfinementFailed(f"seccomp: errno {ctypes.get_errno()}")
