"""A node's disk: what its effects have written, what of it is synced, and the shipped sign guard.

Law: what was written is safe once it is synced and not before. A crash keeps every sync before it; of what was written
since, a torn journal may keep a beginning. The guard is the shipped one over SQLite in memory, with the same crashes.
"""

import sqlite3
from functools import cache
from pathlib import Path

from sqlite_utils import Database

from node.simulation.power import Power, PoweredConnection
from node.store.schema import GUARD_SCHEMA
from node.store.sign_guard import SignGuard
from protocol.engine.restored import OBSERVER_KEY, RestoredConsensus
from protocol.ledger.blocks import decode_block
from protocol.ledger.state import LedgerState
from protocol.messages.blocks import DecidedBlock
from protocol.messages.effects import CommitBlock, Delete, Put, Table
from protocol.messages.genesis import Genesis
from protocol.primitives.limits import BLOCKS_PER_RESPONSE_MAX
from protocol.primitives.units import Height

Durable = Put | Delete | CommitBlock

_IN_MEMORY = Path("a simulated guard")


@cache
def _blank_guard() -> bytes:
    """The bytes of a guard's file before its first row; made once, because making tables is slow."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for step in GUARD_SCHEMA.steps:
        step(Database(connection, execute_plugins=False))
    content = connection.serialize()
    connection.close()
    return content


class SimulatedDisk:
    """Tables, blocks and state rows of one node, and its sign guard."""

    def __init__(self, genesis: Genesis, power: Power) -> None:
        self._genesis = genesis
        self.power = power
        self.tables: dict[Table, dict[bytes, bytes]] = {table: {} for table in Table}
        """What is synced; so are ``blocks`` and ``rows``."""
        self.blocks: dict[Height, DecidedBlock] = {}
        self.rows: dict[bytes, bytes] = dict(LedgerState.from_genesis(genesis).rows())
        self._unsynced: list[Durable] = []
        self.unfounded: dict[tuple[int, int, int], None] = {}
        """Positions that the guard held when an older ledger came under it: what they rest on may be gone."""
        self._connection, self.guard = self._guard_from(_blank_guard())

    def _guard_from(self, content: bytes) -> tuple[PoweredConnection, SignGuard]:
        connection = sqlite3.connect(":memory:", isolation_level=None, factory=PoweredConnection)
        connection.deserialize(content)
        connection.power = self.power
        return connection, SignGuard(_IN_MEMORY, Database(connection, execute_plugins=False))

    # Writing

    def write(self, effect: Durable) -> None:
        """Hand one effect to the disk, which may still lose it."""
        self._unsynced.append(effect)

    def sync(self) -> None:
        """Make everything written so far safe, then let the guard forget the heights that are closed by it.

        Raises ``PowerFailed``.
        """
        if not self._unsynced:
            return
        written, self._unsynced = self._unsynced, []
        before = self.tip
        self.power.sync(len(written), lambda count: self._keep(written[:count]))
        if self.tip > before:
            self.guard.raise_watermark(self.tip)

    def fail(self) -> None:
        """The process died: what was not synced is gone."""
        self._unsynced.clear()

    def _keep(self, written: list[Durable]) -> None:
        for effect in written:
            match effect:
                case Put():
                    self.tables[effect.table][effect.key] = effect.value
                case Delete():
                    self.tables[effect.table].pop(effect.key, None)
                case CommitBlock():
                    self._keep_block(effect)

    def _keep_block(self, effect: CommitBlock) -> None:
        assert effect.height == self.tip + 1
        self.blocks[effect.height] = effect.decided
        for key, value in effect.rows:
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value
        for journal in (Table.CONSENSUS_BODY, Table.CONSENSUS_CERTIFICATE, Table.CONSENSUS_PROPOSAL):
            self.tables[journal].clear()

    # Backups

    def copy(self) -> "SimulatedDisk":
        """A backup of all that is synced."""
        twin = SimulatedDisk(self._genesis, self.power)
        twin.take_ledger(self)
        twin._connection.close()
        twin._connection, twin.guard = twin._guard_from(self._connection.serialize())
        return twin

    def take_ledger(self, backup: "SimulatedDisk") -> None:
        """Go back to a backup's tables and blocks, and keep the guard that is here."""
        self.tables = {table: dict(rows) for table, rows in backup.tables.items()}
        self.blocks, self.rows = dict(backup.blocks), dict(backup.rows)
        self._unsynced.clear()
        self.unfounded = {
            (int(position.height), int(position.view), int(position.guard_class)): None
            for position, _ in self.guard.held()
        }

    def close(self) -> None:
        """Nobody uses this disk any more."""
        self._connection.close()

    # Reading

    @property
    def tip(self) -> Height:
        """Height of the last block that is safe."""
        return Height(len(self.blocks))

    @property
    def says_observer(self) -> bool:
        """True if whoever starts on this disk only observes at first."""
        return OBSERVER_KEY in self.tables[Table.STANDING]

    def blocks_from(self, height: Height) -> tuple[DecidedBlock, ...]:
        """Consecutive decided blocks for one answer."""
        last = min(self.tip, height + BLOCKS_PER_RESPONSE_MAX - 1)
        return tuple(self.blocks[Height(number)] for number in range(height, last + 1))

    def load_state(self) -> LedgerState:
        """The ledger as a restarting node finds it, root and supply recounted."""
        if not self.blocks:
            return LedgerState.from_genesis(self._genesis)
        tip = decode_block(self.blocks[self.tip].block).header
        return LedgerState.from_rows(self._genesis, sorted(self.rows.items()), tip)

    def load_consensus(self) -> RestoredConsensus:
        """Journal and guard as a restarting node finds them."""
        return RestoredConsensus.from_rows(
            self.tip,
            self.tables[Table.CONSENSUS_CERTIFICATE].items(),
            self.tables[Table.CONSENSUS_BODY].items(),
            self.tables[Table.STANDING].items(),
            self.guard.held(),
            self.guard.watermark(),
            self.tables[Table.CONSENSUS_PROPOSAL].items(),
        )
