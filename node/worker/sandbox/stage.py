"""The launch stage: a short program between the node and bubblewrap, run as its own process.

It ties its life to the node's, joins the control groups, and sets the hard limits. As root it also makes a private
mount namespace in which everything the worker needs is bound at a traversable place (an interpreter or a checkout
often lies under a closed home), and gives up root for the worker's own uid. Then it becomes bubblewrap.

Law: standard library only, nothing of ours is imported; the order is stage, limits, uid, die-with-parent, exec. The
specification is JSON on the descriptor named by the first argument.
"""

import contextlib
import ctypes
import json
import os
import re
import resource
import signal
import sys
from typing import NoReturn, TypedDict

CLONE_NEWNS = 0x00020000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x1, 0x2, 0x4, 0x1000, 0x4000, 0x40000
PR_SET_PDEATHSIG = 1
STAGE_DIRECTORY = "/tmp"  # in a private mount namespace, hidden under a fresh file system
FAILURE_STATUS = 125


class Specification(TypedDict):
    """What the node asks for. An argument `{n}` stands for the place of path n in `staged`."""

    parent: int
    descriptors: list[int]
    uid: int | None
    staged: list[str]
    cgroup_files: list[str]
    limits: list[tuple[int, int]]
    arguments: list[str]
    environment: dict[str, str]


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _must(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def die_with(parent: int) -> None:
    """Be killed when the node ends; leave at once if it has ended already."""
    _must(_library().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        sys.exit(FAILURE_STATUS)


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """The system call mount(2); OSError says what failed."""
    _must(
        _library().mount(
            source.encode(),
            target.encode(),
            kind.encode() if kind else None,
            flags,
            options.encode() if options else None,
        ),
        f"mount {target}",
    )


def stage(paths: list[str]) -> list[str]:
    """Bind each path at a traversable place of a private mount namespace; return the places, in order."""
    _must(_library().unshare(CLONE_NEWNS), "unshare")
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    sources = [os.open(path, os.O_PATH) for path in paths]
    directories = [os.path.isdir(path) for path in paths]
    mount("stage", STAGE_DIRECTORY, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
    places = []
    for number, (path, source, directory) in enumerate(zip(paths, sources, directories, strict=True)):
        place = f"{STAGE_DIRECTORY}/{number}-{os.path.basename(path)}"
        if directory:
            os.mkdir(place, 0o755)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
        mount(f"/proc/self/fd/{source}", place, None, MS_BIND)
        os.close(source)
        places.append(place)
    return places


def drop_root(uid: int) -> None:
    """Become the worker's own user for good."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def close_all_but(kept: list[int]) -> None:
    """Close every inherited descriptor that isn't ours to pass on, whatever the node's event loop left open."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(int(name))


def filled(argument: str, places: list[str]) -> str:
    """The argument, or the staged path that it stands for."""
    placeholder = re.fullmatch(r"\{([0-9]+)\}", argument)
    return places[int(placeholder[1])] if placeholder is not None else argument


def main() -> NoReturn:
    """Run the stages and become the sandbox; any failure is one line on standard error."""
    descriptor = int(sys.argv[1])
    with os.fdopen(descriptor, "rb") as stream:
        wanted: Specification = json.load(stream)
    try:
        die_with(wanted["parent"])
        close_all_but(wanted["descriptors"])
        for path in wanted["cgroup_files"]:
            with open(path, "w", encoding="ascii") as group:
                group.write(str(os.getpid()))
        places = wanted["staged"]
        if wanted["uid"] is not None:
            places = stage(places)
        for which, value in wanted["limits"]:
            resource.setrlimit(which, (value, value))
        if wanted["uid"] is not None:
            drop_root(wanted["uid"])
            die_with(wanted["parent"])  # a change of user clears it
        arguments = [filled(argument, places) for argument in wanted["arguments"]]
        environment = {name: filled(value, places) for name, value in wanted["environment"].items()}
        os.execve(arguments[0], arguments, environment)
    except (OSError, ValueError) as error:
        print(f"launch: {error}", file=sys.stderr)
        sys.exit(FAILURE_STATUS)


if __name__ == "__main__":
    main()
