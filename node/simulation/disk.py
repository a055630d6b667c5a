"""A node's disk: what its effects have committed, and nothing else.

Law: each durable effect is one commit. A crash keeps every commit before it and none after; a lost disk keeps none.
"""

from protocol.engine.restored import RestoredConsensus
from protocol.ledger.blocks import decode_block
from protocol.ledger.state import LedgerState
from protocol.messages.blocks import DecidedBlock
from protocol.messages.effects import CommitBlock, Delete, GuardPosition, Put, Table
from protocol.messages.genesis import Genesis
from protocol.primitives.limits import BLOCKS_PER_RESPONSE_MAX
from protocol.primitives.units import Height

_PositionKey = tuple[int, int, int]


class GuardRefused(Exception):
    """A height at or below the guard's watermark."""


class SimulatedGuard:
    """The sign guard: insert or return what is there; refuse closed heights."""

    def __init__(self) -> None:
        self.rows: dict[_PositionKey, tuple[GuardPosition, bytes]] = {}
        self.watermark = Height(0)

    def reserve(self, position: GuardPosition, payload: bytes) -> bytes:
        """The payload that may be signed at this position, once and for all."""
        if position.height <= self.watermark:
            raise GuardRefused(f"height {position.height} is closed")
        key = (position.height, position.view, int(position.guard_class))
        return self.rows.setdefault(key, (position, payload))[1]

    def raise_watermark(self, height: Height) -> None:
        """Refuse this height and all below from now on, then forget their rows."""
        self.watermark = max(self.watermark, height)
        self.rows = {key: row for key, row in self.rows.items() if key[0] > self.watermark}


class SimulatedDisk:
    """Tables, blocks and state rows of one node."""

    def __init__(self, genesis: Genesis) -> None:
        self._genesis = genesis
        self.tables: dict[Table, dict[bytes, bytes]] = {table: {} for table in Table}
        self.blocks: dict[Height, DecidedBlock] = {}
        self.rows: dict[bytes, bytes] = dict(LedgerState.from_genesis(genesis).rows())
        self.guard = SimulatedGuard()

    def commit(self, effect: Put | Delete | CommitBlock) -> None:
        """Make one effect durable."""
        match effect:
            case Put():
                self.tables[effect.table][effect.key] = effect.value
            case Delete():
                self.tables[effect.table].pop(effect.key, None)
            case CommitBlock():
                assert effect.height == self.tip + 1
                self.blocks[effect.height] = effect.decided
                for key, value in effect.rows:
                    if value is None:
                        self.rows.pop(key, None)
                    else:
                        self.rows[key] = value
                self.tables[Table.CONSENSUS_BODY].clear()
                self.tables[Table.CONSENSUS_CERTIFICATE].clear()

    @property
    def tip(self) -> Height:
        """Height of the last committed block."""
        return Height(len(self.blocks))

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
            list(self.guard.rows.values()),
            self.guard.watermark,
        )
