"""What is run in a sandbox, what it may see there, and which layers hold it.

Law: layers do not trust each other. Each stops attacks that the others let through; the sandbox tests switch them off
one at a time to show it, and nothing else ever does.
"""

from dataclasses import dataclass
from pathlib import Path

PYTHON_HOME = "/python"
SITE = "/site"
CODE = "/code"
MODEL = "/model"


@dataclass(frozen=True, slots=True)
class Bind:
    """A host path shown read-only at another path inside the sandbox."""

    source: Path
    target: str


@dataclass(frozen=True, slots=True)
class Layers:
    """Which of the layers are in force."""

    namespaces: bool = True
    """A user, process, network, IPC, host name and control group namespace and an almost empty file tree."""
    landlock: bool = False
    """File access by the kernel's path rules: what remains where there are no namespaces."""
    filter_from_start: bool = True
    filter_after_imports: bool = True
    hard_limits: bool = True
    own_user: bool = True
    """A host user of the worker's own; only root can give one."""


STRONG_LAYERS = Layers()
FALLBACK_LAYERS = Layers(namespaces=False, landlock=True)


@dataclass(frozen=True, slots=True)
class Command:
    """What to run: Python source for the sandboxed interpreter, and what it may see.

    The source finds the folder under which it sees its targets as ``sys.argv[1]``: nothing in a file tree of its own.
    """

    source: str
    binds: tuple[Bind, ...]
    memory_bytes: int  # for the control group
