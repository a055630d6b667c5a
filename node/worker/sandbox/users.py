"""Host users for the workers of a root node: one for each running worker, never one that somebody else runs as.

Law: a user is given back only after the kernel has said that its worker is gone. Without a user of its own a worker
could be signalled, traced or starved by another one, and limits that count by user would be shared.
"""

import contextlib
import os

from node.worker.errors import IsolationUnavailable

# A range that distributions leave free and that also exists inside containers with 65,536 mapped users.
UID_FIRST = 64_700
UID_COUNT = 700

_held: dict[int, None] = {}


def take_uid() -> int | None:
    """A user that nothing runs as; None for ordinary users, who can't give one. Raises IsolationUnavailable."""
    if os.geteuid() != 0:
        return None
    taken = dict(_held)
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                taken[entry.stat().st_uid] = None
    for step in range(UID_COUNT):  # nodes of one machine begin at different places
        uid = UID_FIRST + (os.getpid() * 16 + step) % UID_COUNT
        if uid not in taken:
            _held[uid] = None
            return uid
    raise IsolationUnavailable("every user id kept for workers is in use on this machine")


def give_back(uid: int | None) -> None:
    """The worker that had this user is gone."""
    if uid is not None:
        _held.pop(uid, None)
