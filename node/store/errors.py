"""What can go wrong with a file of ours, and what a person can do about it."""

from pathlib import Path

from protocol.primitives.errors import LocalProtocolError, MercatError


class StoreError(MercatError):
    """Root of what goes wrong on disk. ``path`` is the file."""

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        super().__init__(f"{path}: {problem}. {remedy}")
        self.path = path
        self.problem = problem
        self.remedy = remedy


class DiskFull(StoreError):
    """Nothing of this commit was written; all earlier ones are safe."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "the disk is full", "Free some space, then start the node again; nothing was lost.")


class StoreCorrupt(StoreError):
    """The file's content is not what was written."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(
            path,
            f"the file is damaged ({detail})",
            "Move it away and start again: blocks come back from peers. A damaged sign guard must not be replaced "
            "while its authority may still have signatures at open heights.",
        )


class StoreLocked(StoreError):
    """Another process has the file open."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "another process uses it", "Stop the node that runs on this state directory first.")


class StoreForeign(StoreError):
    """The file belongs to another network."""

    def __init__(self, path: Path, held: str, wanted: str) -> None:
        super().__init__(
            path,
            f"it belongs to the network with genesis {held}, not {wanted}",
            "Use another state directory for this network.",
        )


class StoreTooNew(StoreError):
    """A later version of this program has written the file."""

    def __init__(self, path: Path, names: str) -> None:
        super().__init__(path, f"it was written by a newer version (schema {names})", "Upgrade this node.")


class StoreUnusable(StoreError):
    """Reading or writing failed for another reason: permissions, a failing disk."""

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(path, f"it can't be read or written ({detail})", "Check the disk and the file's permissions.")


class BlockOutOfOrder(LocalProtocolError):
    """A block that does not follow the last one stored: committing it would tear the ledger."""

    def __init__(self, expected: int, got: int) -> None:
        super().__init__(f"expected block {expected}, got {got}")
        self.expected = expected
        self.got = got


class GuardRefused(LocalProtocolError):
    """A signature at a height that is closed. Signing there could contradict what the guard no longer remembers."""

    def __init__(self, height: int, watermark: int) -> None:
        super().__init__(f"height {height} is closed: the sign guard's watermark is {watermark}")
        self.height = height
        self.watermark = watermark
