"""What a process has used: processor time and memory, as the kernel counts them."""

import os
from collections.abc import Mapping
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
MEBIBYTE = 1 << 20


def processor_seconds(pid: int) -> float:
    """User and system time of a process since its start, in steps of a clock tick."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_mebibytes(pid: int) -> float:
    """Memory of a process that is in RAM, pages shared with others counted whole."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MEBIBYTE


def children(pid: int) -> list[int]:
    """All living descendants of a process."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *children(int(child))]
    return found


class ProcessorMeter:
    """Processor time of several processes from now on."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._before = {name: processor_seconds(pid) for name, pid in self._pids.items()}

    def seconds(self, name: str) -> float:
        """What one of them has used since the start."""
        return processor_seconds(self._pids[name]) - self._before[name]
