"""A block and all that it does to the state, before anything has changed."""

from typing import NamedTuple

from protocol.ledger.errors import TransactionInvalid
from protocol.ledger.lattice import LatticeSum
from protocol.ledger.view import Overlay
from protocol.messages.blocks import Block, Header
from protocol.primitives.units import BlockHash, MessageId


class Execution(NamedTuple):
    """What ``build_block`` and ``execute_block`` give and ``LedgerState.apply`` takes."""

    block: Block
    block_bytes: bytes
    block_hash: BlockHash
    rows: tuple[tuple[bytes, bytes | None], ...]
    """Touched rows in order of their keys, ``None`` for a row that ended: what ``CommitBlock`` stores."""
    transaction_ids: tuple[MessageId, ...]
    refused: tuple[tuple[MessageId, TransactionInvalid], ...]
    """Candidates that ``build_block`` left out because they do not execute."""
    changes: Overlay
    lattice: LatticeSum
    undo: tuple[tuple[bytes, bytes | None], ...]
    """The touched rows as they were before the block."""

    @property
    def header(self) -> Header:
        """The block's header."""
        return self.block.header
