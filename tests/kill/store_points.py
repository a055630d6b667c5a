"""SIGKILL of a process that does nothing but commit: thousands of points inside commits of the store and the guard.

Law: what the child has reported was committed before, so it must be there; a block and the rows beside it are there
together or not at all, and of rows that come without one the last of each key. The child is forked from a process that
has everything loaded, so that a point costs milliseconds; it shares no open file with its parent.
"""

import os
import random
import select
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from node.store.database import Store
from node.store.sign_guard import SignGuard
from protocol.messages.effects import GuardClass, GuardPosition, Put, Table
from protocol.messages.genesis import Genesis
from protocol.primitives.units import Height, View
from tests.ledger.world import make_genesis
from tests.store.chain import Chain

TRANSACTIONS_PER_BLOCK = 4
KEEP_HEIGHTS = 16
POINTS_PER_FILE = 250
"""Then a new one is begun, so that checks stay cheap."""
CHECK_EVERY = 25
DELAY_SECONDS_MAX = 0.06
ROWS_PER_BLOCK = 24
ROW_BYTES_MAX = 24 * 1024
"""With so many of up to so many bytes the row journal is folded about once a block, beside the commits."""
ROW_KEYS = 7


@dataclass(slots=True)
class Figures:
    """What a run came to."""

    points: int = 0
    heights: int = 0
    blocks_unreported: int = 0
    """Blocks that were on disk though their child had not reported them: it died right behind the commit."""
    rows: int = 0
    reserved: int = 0


def _rows(store: Store) -> list[int]:
    """The numbers of the rows that are there, in order."""
    return sorted(int.from_bytes(value[:8], "big") for _, value in store.load_table(Table.SELLER_LANE))


def _commit_rows(store: Store, number: int, report: int) -> int:
    """Rows that wait for no block, as a job's do; gives the number of the last one."""
    for _ in range(ROWS_PER_BLOCK):
        number += 1
        value = number.to_bytes(8, "big") + bytes(random.randrange(ROW_BYTES_MAX))
        store.commit([Put(Table.SELLER_LANE, b"%d" % (number % ROW_KEYS), value)])
        os.write(report, f"row {number}\n".encode())
    return number


def _fold(store: Store) -> None:
    while True:
        if store.wants_checkpoint:
            store.checkpoint()
        time.sleep(0.001)


def _work(store_path: Path, guard_path: Path, genesis: Genesis, report: int) -> None:
    """The child: commit blocks and reserve positions, and report each once it must be on disk."""
    store, guard = Store.open(store_path, genesis), SignGuard.open(guard_path)
    chain = Chain(genesis)
    chain.ledger.state = store.load_state()
    number = max(_rows(store), default=0)
    threading.Thread(target=_fold, args=(store,), daemon=True).start()
    os.write(report, b"open\n")
    while True:
        number = _commit_rows(store, number, report)
        commit = chain.next(TRANSACTIONS_PER_BLOCK)
        position = GuardPosition(commit.height, View(1), GuardClass.FINAL)
        payload = os.urandom(8)
        [held] = guard.reserve([(position, payload)])
        os.write(report, f"guard {commit.height} {held.hex()}\n".encode())
        row = commit.height.to_bytes(8, "big")
        store.commit([Put(Table.CONSENSUS_BODY, b"body", row), commit, Put(Table.JOB, b"height", row)])
        os.write(report, f"block {commit.height}\n".encode())
        if commit.height % KEEP_HEIGHTS == 0:
            guard.raise_watermark(Height(commit.height))


def _forked(store_path: Path, guard_path: Path, genesis: Genesis) -> tuple[int, int]:
    """A child at work: its process number and the reading end of its reports."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _be_child(store_path, guard_path, genesis, writing)
    os.close(writing)
    return child, reading


def _be_child(store_path: Path, guard_path: Path, genesis: Genesis, writing: int) -> NoReturn:
    try:
        _work(store_path, guard_path, genesis, writing)
    finally:
        os._exit(1)


def _reports(reading: int) -> list[str]:
    """All that the child said before it died; a line cut off at the end says nothing."""
    content = b""
    while part := os.read(reading, 65_536):
        content += part
    return content[: content.rfind(b"\n") + 1].decode().splitlines()


class StorePoints:
    """Kills children over the same files, again and again."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._dice = random.Random(seed)
        self._genesis = make_genesis(balance=1_000_000_000)
        self._files = 0
        self.figures = Figures()

    def run(self, points: int) -> Figures:
        """So many kills. Raises ``AssertionError`` at the first thing that does not hold."""
        while self.figures.points < points:
            self._files += 1
            store_path, guard_path = self._folder / f"{self._files}.store", self._folder / f"{self._files}.guard"
            height = 0
            for point in range(min(POINTS_PER_FILE, points - self.figures.points)):
                reports = self._kill_once(store_path, guard_path)
                height = self._judge(store_path, guard_path, reports, height, thorough=point % CHECK_EVERY == 0)
            self.figures.heights += height
        return self.figures

    def _kill_once(self, store_path: Path, guard_path: Path) -> list[str]:
        child, reading = _forked(store_path, guard_path, self._genesis)
        try:
            if self._dice.random() < 0.9:  # else it may die before it has opened anything
                assert select.select([reading], [], [], 30.0)[0], "a child did not open its files"
            time.sleep(self._dice.uniform(0.0, DELAY_SECONDS_MAX))  # the kill's moment is the input
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status), "a child ended by itself; its error is above"
            reports = _reports(reading)
        finally:
            os.close(reading)
        self.figures.points += 1
        return reports

    def _judge(
        self, store_path: Path, guard_path: Path, reports: Sequence[str], height_before: int, *, thorough: bool
    ) -> int:
        """Open what the child left; the height it holds."""
        committed = [int(line.split()[1]) for line in reports if line.startswith("block")]
        store = Store.open(store_path, self._genesis)
        try:
            state = store.check() if thorough else store.load_state()
            assert state.height >= max(committed, default=height_before), "a committed block is gone"
            supply = state.supply()
            assert supply.total == supply.issued, f"{supply}"
            row = int.from_bytes(store.get(Table.JOB, b"height") or bytes(8), "big")
            assert row == state.height, "a row and the block beside it came apart"
            assert store.load_table(Table.CONSENSUS_BODY) == [], "a closed height left its journal"
            self._judge_rows(_rows(store), reports)
        finally:
            store.close()
        self.figures.blocks_unreported += state.height - max(committed, default=height_before)
        self._judge_guard(guard_path, reports, state.height)
        return state.height

    def _judge_rows(self, there: Sequence[int], reports: Sequence[str]) -> None:
        reported = max((int(line.split()[1]) for line in reports if line.startswith("row")), default=0)
        last = there[-1] if there else 0
        assert last >= reported, "a committed row is gone"
        assert [*there] == [*range(max(1, last - ROW_KEYS + 1), last + 1)], "an older row came back"
        self.figures.rows = max(self.figures.rows, last)

    def _judge_guard(self, guard_path: Path, reports: Sequence[str], tip: int) -> None:
        guard = SignGuard.open(guard_path)
        try:
            watermark = guard.watermark()
            assert watermark <= tip, "the guard closed a height that the store does not have"
            for line in reports:
                if not line.startswith("guard"):
                    continue
                _, height, payload = line.split()
                if int(height) > watermark:
                    position = GuardPosition(Height(int(height)), View(1), GuardClass.FINAL)
                    assert guard.reserve([(position, b"another")]) == [bytes.fromhex(payload)], "signed twice"
                    self.figures.reserved += 1
        finally:
            guard.close()
