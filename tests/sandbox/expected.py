"""What stops each attempt: the error that it must meet while a stranger's bytes are read (``SERVING``), while the
worker still starts (``STARTING``, ``None``: allowed until then), and where the machine has no namespaces
(``FALLBACK``, ``None``: not stopped there, and the level says so).

Law: an attempt that isn't named here meets EPERM at every time: the kernel was not even asked.
"""

from node.worker.child import canaries
from tests.sandbox import attempts

EPERM = "EPERM"
ABSENT = ("ENOENT", "ENOENT", "EACCES")
LIMITED = ("ENOMEM", "ENOMEM", "ENOMEM")

Row = tuple[str | None, str | None, str | None]

EXCEPTIONS: dict[str, Row] = {
    # Nothing there to read: only what was bound is in the worker's tree.
    "read /etc/shadow": ABSENT,
    "read /etc/passwd": ABSENT,
    "read the node's key, closed to others": ABSENT,
    "read the node's key, open to all": ABSENT,
    "look through /proc/1/root": ABSENT,
    "read /proc/self/maps": ABSENT,
    "read the node's own environment": ABSENT,
    "open /dev/kmsg": ABSENT,
    "open /dev/mem": ("ENOENT", "ENOENT", "EACCES or ENOENT"),
    "open /dev/kvm": ("ENOENT", "ENOENT", "EACCES or ENOENT"),
    "open a terminal": ABSENT,
    "list homes": ("nothing there", "nothing there", "nothing there"),
    "see other processes": ("no processes in /proc", "no processes in /proc", "EACCES"),
    "see files that weren't bound": ("only what was bound",) * 3,
    "find files by their names": ("nothing there", "nothing there", None),
    "inherit descriptors": ("only the pipes",) * 3,
    "read the node's environment": ("clean",) * 3,
    "learn the host's name": ("hidden", "hidden", None),
    "be root": ("nobody",) * 3,
    # Nothing there can be changed; the second filter doesn't even let it be tried.
    "write a file": (EPERM, "EROFS", EPERM),
    "reopen the model for writing": (EPERM, "EACCES or EROFS", EPERM),
    "write to /proc/sys": (EPERM, "ENOENT", EPERM),
    "write to the control group": (EPERM, "ENOENT", EPERM),
    "write to a device": (EPERM, None, EPERM),
    # A process namespace holds nobody else; the second filter allows no signal and no process.
    "signal others": (EPERM, "ESRCH", EPERM),
    "signal the node": (EPERM, "ESRCH", EPERM),
    "kill the first process": (EPERM, None, EPERM),
    "fork": (EPERM, None, EPERM),
    "clone a process": (EPERM, None, EPERM),
    "clone3": ("ENOSYS",) * 3,
    "execute a program": (EPERM, None, EPERM),
    "fork without end": (EPERM, None, EPERM),
    "leave a daemon": (EPERM, None, EPERM),
    "add a filter of its own": (EPERM, None, EPERM),
    # Hard limits, and what would go around them.
    "take all memory": ("[Errno 12] Cannot allocate memory",) * 3,
    "take uncounted memory": LIMITED,
    "take memory as a stack": LIMITED,
    "take memory as page tables": LIMITED,
    "take twice the memory": LIMITED,
    "move the program break": LIMITED,
    "unpack a bomb": ("MemoryError",) * 3,
    "open descriptors without end": ("EMFILE",) * 3,
    "start threads without end": ("EAGAIN",) * 3,
}
# Only root gives a worker a user of its own: for others the file is the worker's user's.
ROOT_ONLY: dict[str, Row] = {"read a file of the node's user that was bound": ("EACCES", "EACCES", "EACCES")}

NAMES = tuple(name for name in (*canaries.ATTACKS, *attempts.ATTEMPTS) if not name.startswith(canaries.EARLY))
