"""Where a crash may strike: before a sync, in the middle of one, or right behind it.

Law: every sync of a node's disk, the sign guard's own commits included, asks its ``Power`` first. What was synced
before stays; what was not is gone, except that a torn write keeps a beginning of what it was writing.
"""

import random
import sqlite3
from collections.abc import Callable, Sequence
from enum import Enum


class Moment(Enum):
    """At which point of a sync the power fails."""

    BEFORE = "crash before fsync"
    """What was written is gone."""
    TORN = "torn journal tail"
    """A beginning of what was written is there."""
    BEHIND = "crash after fsync"
    """What was written is there, and nothing came of it."""


class PowerFailed(Exception):
    """The process is dead; nothing after this happens in it."""

    def __init__(self, moment: Moment) -> None:
        super().__init__(moment.value)
        self.moment = moment


class Power:
    """The power supply of one node, with at most one failure armed."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._left: int | None = None
        self._moment = Moment.BEFORE

    def arm(self, syncs: int, moment: Moment) -> None:
        """Fail at the sync that comes after so many others."""
        self._left, self._moment = syncs, moment

    def disarm(self) -> None:
        """No failure is armed any more."""
        self._left = None

    def sync(self, count: int, write: Callable[[int], None]) -> None:
        """Write ``count`` entries in one sync, by ``write(how_many)``. Raises ``PowerFailed``."""
        if self._left is None:
            write(count)
            return
        self._left -= 1
        if self._left >= 0:
            write(count)
            return
        self._left = None
        match self._moment:
            case Moment.BEFORE:
                pass
            case Moment.TORN:
                # Of one entry a torn write leaves nothing: its checksum fails.
                write(self._dice.randrange(count))
            case Moment.BEHIND:
                write(count)
        raise PowerFailed(self._moment)


class PoweredConnection(sqlite3.Connection):
    """An SQLite connection whose commits are syncs."""

    power: Power | None = None

    def execute(self, statement: str, parameters: Sequence[int | bytes | str | None] = ()) -> sqlite3.Cursor:  # type: ignore[override]
        """As SQLite's, except that a COMMIT may be where the power fails."""
        if self.power is None or statement != "COMMIT":
            return super().execute(statement, parameters)
        self.power.sync(1, self._commit)
        return self.cursor()

    def _commit(self, count: int) -> None:
        if count:
            super().execute("COMMIT")
