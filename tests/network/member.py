"""The program of a node inside a namespace: ``python -m tests.network.member HOLDER OFFSET_MS ARGUMENT...``.

Enters the holder's network, sets this process's wall clock off by so many milliseconds, and becomes ``mercat``. All of
the node reads time through ``node.clock``, whose source is replaced here; the program itself has no such setting.
"""

import sys
import time
from collections.abc import Sequence

from tests.network.namespaces import enter_network


class ShiftedTime:
    """The machine's clocks, the wall clock off by a constant."""

    def __init__(self, offset_ms: int) -> None:
        self._offset_ns = offset_ms * 1_000_000

    def monotonic_ns(self) -> int:
        """As it is: no adjustment of the wall clock touches it."""
        return time.monotonic_ns()

    def time_ns(self) -> int:
        """The wrong wall clock."""
        return time.time_ns() + self._offset_ns


def main(arguments: Sequence[str]) -> None:
    """Become the node."""
    enter_network(int(arguments[0]))
    import node.clock
    from node.cli.main import main as mercat

    offset_ms = int(arguments[1])
    if offset_ms:
        setattr(node.clock, "time", ShiftedTime(offset_ms))  # noqa: B010 (a module's attribute, to a type checker)
    sys.argv = ["mercat", *arguments[2:]]
    mercat()


if __name__ == "__main__":
    main(sys.argv[1:])
