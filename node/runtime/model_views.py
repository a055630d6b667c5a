"""What a user asks for when a model is to be pulled, and what the node tells of it."""

import msgspec


class PullRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model that this node is to pull from peers into its store."""

    model: str
    """Its id in hexadecimal, as ``mcmodel1…``, or its name on some live offer."""
    sources: tuple[str, ...] = ()
    """Further nodes to ask: ``HOST:PORT``, or ``mcnode1…@HOST:PORT`` to pin who answers there."""
    bytes_per_second: int = 0
    """What all sources together may send; 0: the node's own setting."""
    wait_ms: int = 10_000
    """How long to wait for a source while there is none."""


class PullSourceView(msgspec.Struct, frozen=True):
    """One source and its conduct."""

    source: str
    """The node's address, or where it answers while its key is not known."""
    state: str
    dropped: bool
    corrupt: bool
    bytes_received: int
    pieces: int


class PullEvent(msgspec.Struct, frozen=True):
    """One line of a pull's stream: how far it is. ``event`` is ``progress``, ``finished`` or ``failed``."""

    event: str
    model: str
    stage: str
    name: str = ""
    """As the manifest says; empty until that has come, and so are the next three."""
    version: str = ""
    runtime: str = ""
    license: str = ""
    publisher: str | None = None
    """Account that registered the model on the ledger; None: nobody has."""
    bytes_total: int = 0
    bytes_done: int = 0
    bytes_kept: int = 0
    """Of those done, what was on disk before."""
    sources: tuple[PullSourceView, ...] = ()
    code: str = ""
    reason: str = ""
    """Why it failed."""
    exit_code: int = 0
