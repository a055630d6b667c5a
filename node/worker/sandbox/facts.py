"""What this machine is like for a sandbox, beside what the attacks show: each fact with the remedy where it is poor.

Law: nothing here decides the level; the attacks do. A fact that is poor says what a worker is then not protected by.
"""

import ctypes
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from node.worker.errors import IsolationUnavailable
from node.worker.limits import DEFAULT_LIMITS
from node.worker.sandbox import cgroup
from node.worker.sandbox.bubblewrap import find_bubblewrap

SYS_LANDLOCK_CREATE_RULESET = 444
LANDLOCK_ASK_VERSION = 1
START_REMEDY = (
    "The interpreter, the checkout or the model store may lie where the worker's user can't reach it: use an "
    "interpreter outside a closed home, or run the node as the owner of that home"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried: what it was, whether it is as it must be, what was seen, and what to do if not."""

    name: str
    passed: bool
    detail: str
    remedy: str
    needed: bool = True
    """Whether the level depends on it."""
    attack: bool = False
    """Whether it was tried from inside the sandbox."""


def landlock_version() -> int:
    """The version of the kernel's path rules; 0 where there are none."""
    library = ctypes.CDLL(None, use_errno=True)
    version: int = library.syscall(SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_ASK_VERSION)
    return max(0, version)


def has_landlock() -> bool:
    """Whether a fallback without namespaces is possible."""
    return landlock_version() > 0


def circumstances() -> tuple[Check, ...]:
    """Every fact of this machine that a worker's protection builds on."""
    return (_launcher(), _landlock(), _user(), _group(), _interpreter())


def _launcher() -> Check:
    try:
        program, _ = find_bubblewrap()
    except IsolationUnavailable as error:
        reason, _, remedy = error.reason.partition(". ")
        return Check("launcher", False, reason, remedy, needed=False)
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Check("launcher", False, f"{program}: {error}", "reinstall bubblewrap", needed=False)
    return Check("launcher", True, f"{said.strip() or 'bubblewrap'} at {program}", "", needed=False)


def _landlock() -> Check:
    version = landlock_version()
    detail = f"version {version}" if version else "the kernel has none"
    remedy = "a kernel from 5.13 on with Landlock enabled; only machines without namespaces need it"
    return Check("path rules (Landlock)", version > 0, detail, remedy, needed=False)


def _user() -> Check:
    if os.geteuid() == 0:
        return Check("a user for each worker", True, "root gives each worker a user of its own", "", needed=False)
    detail = "workers run as this user, apart from each other by their namespaces"
    return Check("a user for each worker", True, detail, "", needed=False)


def _group() -> Check:
    group = cgroup.create("facts", DEFAULT_LIMITS.memory_bytes, DEFAULT_LIMITS)
    detail, limited = group.describe(), "memory" in group.limited
    group.remove()
    remedy = "run the node as a service with Delegate=yes, or as root; without a group limits hold for each process"
    return Check("control group", limited, detail, remedy, needed=False)


def closed_folder(path: Path) -> Path | None:
    """The first folder above a path that other users can't enter; None if there is none."""
    for folder in reversed(path.parents):
        try:
            if not folder.stat().st_mode & 0o001:
                return folder
        except OSError:
            return folder
    return None


def _interpreter() -> Check:
    program = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    closed = closed_folder(program)
    if closed is None:
        return Check("interpreter", True, str(program), "", needed=False)
    way = "root shows it to workers by a private mount" if os.geteuid() == 0 else "the workers run as its owner"
    return Check("interpreter", True, f"{program} lies under the closed folder {closed}; {way}", "", needed=False)
