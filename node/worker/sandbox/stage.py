"""The launch stage: a short program between the node and bubblewrap, run as its own process.

It ties its life to the node's, joins the control groups, and sets the hard limits. As root it also makes a private
mount namespace in which everything the worker needs is bound at a traversable place (an interpreter or a checkout
often lies under a closed home), and gives up root for the worker's own uid. Then it becomes bubblewrap.

Where there are no namespaces it becomes the worker itself, behind the kernel's path rules (Landlock) and the first
system call filter. What the worker needs is then shown under one folder: bound there if we may mount, else linked.

Law: nothing of ours is imported, and of the standard library only what imports fast: every start of a worker waits for
it. The order is stage, limits, uid, die-with-parent, exec. The specification (``specification.py``), which the node
wrote, is marshalled on the descriptor named by the first argument.

Source for Landlock: Linux `Documentation/userspace-api/landlock.rst`.
"""

from __future__ import annotations

import ctypes
import marshal
import os
import resource
import struct
import sys

TYPE_CHECKING = False  # the module that defines it takes as long to import as all others together
if TYPE_CHECKING:
    from typing import NoReturn

    from node.worker.sandbox.specification import Direct, Specification

SIGKILL = 9
CLONE_NEWNS = 0x00020000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x1, 0x2, 0x4, 0x1000, 0x4000, 0x40000
PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
SYS_SECCOMP = 317
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_RECORD_BYTES = 8
SYS_LANDLOCK_CREATE_RULESET, SYS_LANDLOCK_ADD_RULE, SYS_LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_ASK_VERSION = 1
LANDLOCK_RULE_PATH_BENEATH = 1
ACCESS_EXECUTE, ACCESS_READ_FILE, ACCESS_READ_DIRECTORY = 1 << 0, 1 << 2, 1 << 3
# Rights over files that each version of the interface knows: all are taken away, and reading is given back.
ACCESS_BITS_OF_VERSION = {1: 13, 2: 14, 3: 15, 4: 15}
ACCESS_BITS_LATEST = 16
STAGE_DIRECTORY = "/tmp"  # in a private mount namespace, hidden under a fresh file system
FAILURE_STATUS = 125


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _must(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def die_with(parent: int) -> None:
    """Be killed when the node ends; leave at once if it has ended already."""
    _must(_library().prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "prctl")
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


def private_mounts() -> None:
    """From now on what is mounted here is seen by nobody else. OSError where the kernel doesn't let us."""
    _must(_library().unshare(CLONE_NEWNS), "unshare")
    mount("none", "/", None, MS_REC | MS_PRIVATE)


def bind(paths: list[str], places: list[str], root: str) -> None:
    """Bind each path at its place, in a fresh file system at ``root`` that hides what was there."""
    sources = [os.open(path, os.O_PATH) for path in paths]
    directories = [os.path.isdir(path) for path in paths]
    mount("stage", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
    for place, source, directory in zip(places, sources, directories, strict=True):
        os.makedirs(place if directory else os.path.dirname(place), 0o755, exist_ok=True)
        if not directory:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
        mount(f"/proc/self/fd/{source}", place, None, MS_BIND)
        os.close(source)


def stage(paths: list[str]) -> list[str]:
    """Bind each path at a traversable place of a private mount namespace; return the places, in order."""
    private_mounts()
    places = [f"{STAGE_DIRECTORY}/{number}-{os.path.basename(path)}" for number, path in enumerate(paths)]
    bind(paths, places, STAGE_DIRECTORY)
    return places


def show(paths: list[str], direct: Direct) -> list[str]:
    """Show each path at its target under the root; return the places, in order."""
    places = [direct["root"] + target for target in direct["targets"]]
    try:
        private_mounts()
    except OSError:
        for path, place in zip(paths, places, strict=True):
            os.makedirs(os.path.dirname(place), 0o755, exist_ok=True)
            os.symlink(path, place)
    else:
        bind(paths, places, direct["root"])
    return places


def _kernel(number: int, *arguments: object) -> int:
    """A raw system call; OSError when it fails."""
    result: int = _library().syscall(number, *arguments)
    _must(min(result, 0), f"system call {number}")
    return result


def restrict_files(readable: list[str]) -> None:
    """Take every right over files away but reading beneath these paths, and over ports, sockets and signals where the
    kernel can. OSError where there is no Landlock."""
    version = _kernel(SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_ASK_VERSION)
    handled = (1 << ACCESS_BITS_OF_VERSION.get(version, ACCESS_BITS_LATEST)) - 1
    ports, scopes = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    attribute = struct.pack("<QQQ", handled, ports, scopes)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = _kernel(SYS_LANDLOCK_CREATE_RULESET, attribute, ctypes.c_size_t(len(attribute)), 0)
    for path in readable:
        try:
            beneath = os.open(path, os.O_PATH)
        except FileNotFoundError:
            continue
        rights = ACCESS_EXECUTE | ACCESS_READ_FILE | (ACCESS_READ_DIRECTORY if os.path.isdir(path) else 0)
        rule = struct.pack("<Qi", rights, beneath)
        _kernel(SYS_LANDLOCK_ADD_RULE, ruleset, LANDLOCK_RULE_PATH_BENEATH, rule, 0)
        os.close(beneath)
    _kernel(SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


class FilterProgram(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("records", ctypes.c_void_p))


def apply_filter(descriptor: int) -> None:
    """Put the filter on this descriptor in force for whatever runs from here on."""
    program = os.read(descriptor, 1 << 16)
    records = ctypes.create_string_buffer(program, len(program))
    address = ctypes.cast(records, ctypes.c_void_p).value
    argument = FilterProgram(len(program) // SECCOMP_RECORD_BYTES, address)
    _kernel(SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(argument))


def confine_directly(direct: Direct, places: list[str]) -> None:
    """The layers that need no namespace, after every privilege is gone."""
    _must(_library().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    if direct["landlock"]:
        restrict_files([direct["root"], *places, *direct["readable"]])
    if direct["filter"] >= 0:
        apply_filter(direct["filter"])
        os.close(direct["filter"])


def drop_root(uid: int) -> None:
    """Become the worker's own user for good."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def close_all_but(kept: list[int]) -> None:
    """Close every inherited descriptor that isn't ours to pass on, whatever the node's event loop left open."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            try:  # noqa: SIM105  what would say it shorter is slow to import
                os.close(int(name))
            except OSError:  # the listing's own
                pass


def filled(argument: str, places: list[str]) -> str:
    """The argument, or the staged path that it stands for."""
    number = argument[1:-1]
    is_placeholder = argument == f"{{{number}}}" and number.isascii() and number.isdigit()
    return places[int(number)] if is_placeholder else argument


def main() -> NoReturn:
    """Run the stages and become the sandbox; any failure is one line on standard error."""
    descriptor = int(sys.argv[1])
    with os.fdopen(descriptor, "rb") as stream:
        wanted: Specification = marshal.load(stream)
    try:
        die_with(wanted["parent"])
        close_all_but(wanted["descriptors"])
        for path in wanted["cgroup_files"]:
            with open(path, "w", encoding="ascii") as group:
                group.write(str(os.getpid()))
        places, direct = wanted["staged"], wanted["direct"]
        if direct is not None:
            places = show(places, direct)
        elif wanted["uid"] is not None:
            places = stage(places)
        for which, value in wanted["limits"]:
            resource.setrlimit(which, (value, value))
        if wanted["uid"] is not None:
            drop_root(wanted["uid"])
            die_with(wanted["parent"])  # a change of user clears it
        arguments = [filled(argument, places) for argument in wanted["arguments"]]
        environment = {name: filled(value, places) for name, value in wanted["environment"].items()}
        if direct is not None:
            confine_directly(direct, places)
        os.execve(arguments[0], arguments, environment)
    except (OSError, ValueError) as error:
        print(f"launch: {error}", file=sys.stderr)
        sys.exit(FAILURE_STATUS)


if __name__ == "__main__":
    main()
