"""Many seeds, one after the other, with a file that remembers how far they got.

Law: the totals of a campaign that was killed and resumed are those of one that was not. A file of other code or other
options is of no use: such a campaign starts anew.
"""

import os
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

import msgspec

import node
import protocol
from node.simulation.run import Outcome, run_seed
from node.simulation.world import Options

SAVE_S = 1.0
"""How often the file is written: so much work a kill may cost."""


class Totals(msgspec.Struct):
    """What the seeds of a campaign add up to."""

    seeds: int = 0
    heights: int = 0
    transactions: int = 0
    virtual_ms: int = 0
    node_ms: int = 0
    """Virtual ms times processes."""
    cpu_ms: int = 0
    """Time of one core that the seeds took."""
    healed_after_ms_max: int = 0
    faults: dict[str, int] = {}

    def take(self, outcome: Outcome, cpu_ms: int) -> None:
        """Add one seed."""
        self.seeds += 1
        self.heights += outcome.heights
        self.transactions += outcome.transactions
        self.virtual_ms += outcome.virtual_ms
        self.node_ms += outcome.node_ms
        self.cpu_ms += cpu_ms
        self.healed_after_ms_max = max(self.healed_after_ms_max, outcome.healed_after_ms)
        for fault, count in outcome.faults.items():
            self.faults[fault] = self.faults.get(fault, 0) + count

    @property
    def node_seconds_per_second(self) -> float:
        """Simulated seconds of one node for each second of one core."""
        return self.node_ms / max(self.cpu_ms, 1)


class _Saved(msgspec.Struct):
    purpose: str
    """What code ran with which options."""
    first: int
    totals: Totals


class Campaign:
    """Seeds from ``first`` on. With a ``path`` its progress is kept there."""

    def __init__(self, first: int, options: Options, profile: str, path: Path | None = None) -> None:
        self.first = first
        self.totals = Totals()
        self._options = options
        self._path = path
        self._purpose = f"{code_version()} {profile} {options.authorities} {options.followers}"
        self._saved_at = 0.0

    def resume(self) -> bool:
        """Go on where the file says that this very campaign was; False if it says nothing of it."""
        if self._path is None or not self._path.exists():
            return False
        try:
            saved = msgspec.json.decode(self._path.read_bytes(), type=_Saved)
        except msgspec.DecodeError:
            return False
        if saved.purpose != self._purpose or saved.first != self.first:
            return False
        self.totals = saved.totals
        return True

    def run(self, seeds: int, log: Callable[[int, str], None] | None = None) -> Iterator[Outcome]:
        """Run what is still missing of so many seeds. Raises ``SimulationFailed`` at the first that fails."""
        try:
            while self.totals.seeds < seeds:
                began = time.process_time()
                outcome = run_seed(self.first + self.totals.seeds, self._options, log)
                self.totals.take(outcome, round((time.process_time() - began) * 1000))
                self._save(at_once=False)
                yield outcome
        finally:
            self._save(at_once=True)

    def _save(self, *, at_once: bool) -> None:
        now = time.monotonic()
        if self._path is None or (now - self._saved_at < SAVE_S and not at_once):
            return
        self._saved_at = now
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".new")
        beside.write_bytes(msgspec.json.encode(_Saved(self._purpose, self.first, self.totals)))
        os.replace(beside, self._path)


def code_version() -> str:
    """Hash of all source files: a result counts for the code that gave it."""
    hashed = blake2b(digest_size=16)
    for package in (protocol, node):
        assert package.__file__ is not None
        root = Path(package.__file__).parent
        for path in sorted(root.rglob("*.py")):
            hashed.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return hashed.hexdigest()
