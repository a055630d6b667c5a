"""Proofs, checkpoints and decided blocks for who wants to check the ledger without believing this node.

Law: nothing here is an answer of this node's: each is a statement that authorities signed, with what leads to it.
"""

import asyncio
from typing import TYPE_CHECKING

from node.clock import read_clock
from node.runtime.control import ControlError
from node.runtime.ledger_views import account_argument, model_argument
from node.store.archive import succession_rows
from protocol.ledger.checkpoints import ProvenRow
from protocol.ledger.proof_file import Subject, make_checkpoint_file, make_proof_file, row_keys
from protocol.messages.blocks import Block, DecidedBlock, DecidedHeader
from protocol.primitives.codec import decode, encode
from protocol.primitives.limits import FRAME_BYTES_MAX
from protocol.primitives.units import AccountId, ChannelId, Height, ModelId

if TYPE_CHECKING:
    from node.runtime.node import Node

_BLOCKS_AT_ONCE_MAX = 32
"""Blocks that are read before it is known how many fit."""


class ProofDesk:
    """Writes proof and checkpoint files of one node's ledger."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._state = node.engine.replica.state

    async def proof(self, subject: str, identity: str, timeout_ms: int) -> bytes:
        """The proof file of an account (``mc1…``), a channel (hex) or a model (hex or ``mcmodel1…``).

        Waits for the block above the checkpoint if that is the tip, and for the next checkpoint while this one's rows
        are not known: at most ``timeout_ms``.
        """
        wanted, unique = _subject(subject, identity)
        until = read_clock().monotonic_ms + timeout_ms
        while True:
            rows = tuple(self._state.proven_row(key) for key in row_keys(wanted, unique))
            present = tuple(row for row in rows if row is not None)
            decided = self._decided(present[0].checkpoint + 1) if len(present) == len(rows) else None
            if decided is not None:
                return await self._written(wanted, unique, present, decided)
            await self._next_block(until)

    async def _written(
        self,
        subject: Subject,
        unique: AccountId | ChannelId | ModelId,
        rows: tuple[ProvenRow, ...],
        decided: DecidedBlock,
    ) -> bytes:
        await self._node.executor.drain()
        header = decode(decided.block, Block).header
        successions = await asyncio.to_thread(succession_rows, self._node.store, header.height)
        genesis = self._state.genesis_hash
        return make_proof_file(genesis, subject, unique, rows, (header, decided.certificate), successions)

    async def checkpoint(self, timeout_ms: int) -> bytes:
        """A checkpoint file of the tip, or of the next block that leaves the authorities as they are."""
        until = read_clock().monotonic_ms + timeout_ms
        while True:
            tip, decided = self._state.tip, self._node.engine.replica.last_decided
            authorities = self._state.authorities_at(tip.height)
            assert authorities is not None
            if decided is not None and tip.next_authorities_hash == tip.authorities_hash:
                checkpoint = DecidedHeader(tip, decided.certificate, authorities.membership())
                return make_checkpoint_file(self._state.genesis_hash, checkpoint)
            await self._next_block(until)

    async def decided(self, height: int) -> bytes:
        """Consecutive decided blocks from a height on, as MessagePack: as many as fit a frame, none above the tip."""
        await self._node.executor.drain()
        read = self._node.store.decided_blocks
        blocks = await asyncio.to_thread(read, Height(height), FRAME_BYTES_MAX, _BLOCKS_AT_ONCE_MAX)
        if blocks and blocks[0].certificate.height != height:
            raise ControlError(
                "block_not_found", f"block {height} was pruned; the first is {blocks[0].certificate.height}"
            )
        return encode(tuple(blocks))

    def _decided(self, height: int) -> DecidedBlock | None:
        if height > self._state.height:
            return None
        return self._node.executor.waiting_block(Height(height)) or self._node.store.decided_block(Height(height))

    async def _next_block(self, until_ms: int) -> None:
        remaining_ms = until_ms - read_clock().monotonic_ms
        if remaining_ms <= 0:
            raise ControlError("not_proven_yet", "no block yet from which it can be proven; ask again later", 124)
        await self._node.next_block(remaining_ms)


def _subject(subject: str, identity: str) -> tuple[Subject, AccountId | ChannelId | ModelId]:
    if subject == "account":
        return "account", account_argument(identity)
    if subject == "record":
        return "record", account_argument(identity)
    if subject == "model":
        return "model", model_argument(identity)
    if subject != "channel":
        provable = "an account, a record, a channel or a model"
        raise ControlError("bad_subject", f"{provable} can be proven, not a {subject!r}", 2)
    try:
        unique = bytes.fromhex(identity)
    except ValueError:
        unique = b""
    if len(unique) != 32:
        raise ControlError("bad_channel", f"not a channel's id, 64 hexadecimal digits: {identity!r}", 2)
    return "channel", ChannelId(unique)
