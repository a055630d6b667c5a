"""The block bodies of the open height: held, executed, wanted.

Law: a body counts as a hash's only if header, transactions *and* the parent's certificate are the ones that were
hashed; what travels beside a signed proposal is not signed itself, and nothing tampered with on the way must make an
honest block look bad: a certified block that fails stops the node.
"""

from protocol.ledger.blocks import decode_block, execute_block
from protocol.ledger.errors import BlockInvalid
from protocol.ledger.execution import Execution
from protocol.ledger.merkle import merkle_root, transaction_leaf
from protocol.ledger.state import LedgerState
from protocol.messages.blocks import Block, certificate_hash, header_hash
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.units import BlockHash

BODIES_MAX = 16
"""Bodies of one height in memory: at most 16 MiB. Certified, voted and wanted ones are never dropped."""


class BodyMismatch(RemoteProtocolError):
    """A body whose header does not belong to what stands beside it, or to another hash than named."""


def open_body(block_bytes: bytes) -> tuple[Block, BlockHash]:
    """Decode a body and bind all of it to its hash. Raises ``RemoteProtocolError``."""
    block = decode_block(block_bytes)
    if certificate_hash(block.parent_certificate) != block.header.parent_certificate_hash:
        raise BodyMismatch("a block's parent is certified otherwise than its header says")
    root = merkle_root([transaction_leaf(received) for received in block.transactions])
    if root != block.header.transactions_root:
        raise BodyMismatch("a block's transactions are not those of its header")
    return block, header_hash(block.header)


class _Held:
    __slots__ = ("block", "block_bytes", "durable", "execution", "refusal")

    def __init__(self, block: Block, block_bytes: bytes) -> None:
        self.block = block
        self.block_bytes = block_bytes
        self.execution: Execution | None = None
        self.refusal: BlockInvalid | None = None
        self.durable = False


class Bodies:
    """Bodies by hash, for one height."""

    def __init__(self) -> None:
        self._held: dict[BlockHash, _Held] = {}
        self.wanted: dict[BlockHash, tuple[int, ...]] = {}
        """Certified hashes whose body is missing, with the positions of authorities that must have it."""

    def __contains__(self, block_hash: BlockHash) -> bool:
        return block_hash in self._held

    def hold(self, block_hash: BlockHash, block: Block, block_bytes: bytes) -> None:
        """Keep an opened body in memory; the oldest one that nothing depends on makes room."""
        if block_hash in self._held:
            return
        if len(self._held) >= BODIES_MAX:
            for old, held in self._held.items():
                if not held.durable:
                    del self._held[old]
                    break
        self._held[block_hash] = _Held(block, block_bytes)

    def hold_execution(self, execution: Execution) -> None:
        """Keep a body that was built, and so executed, here."""
        self.hold(execution.block_hash, execution.block, execution.block_bytes)
        self._held[execution.block_hash].execution = execution

    def drop(self, block_hash: BlockHash) -> None:
        """Forget a body that nothing depends on."""
        held = self._held.get(block_hash)
        if held is not None and not held.durable and block_hash not in self.wanted:
            del self._held[block_hash]

    def bytes_of(self, block_hash: BlockHash) -> bytes | None:
        """The body's bytes as received."""
        held = self._held.get(block_hash)
        return held.block_bytes if held is not None else None

    def block_of(self, block_hash: BlockHash) -> Block | None:
        """The decoded body."""
        held = self._held.get(block_hash)
        return held.block if held is not None else None

    def claim_durable(self, block_hash: BlockHash) -> bytes | None:
        """Bytes that still have to be made durable; ``None`` when they are, or when there is no such body."""
        held = self._held.get(block_hash)
        if held is None or held.durable:
            return None
        held.durable = True
        return held.block_bytes

    def restore(self, block_hash: BlockHash, block: Block, block_bytes: bytes) -> None:
        """Take back a durable body after a restart."""
        self.hold(block_hash, block, block_bytes)
        self._held[block_hash].durable = True

    def execute(self, block_hash: BlockHash, state: LedgerState) -> Execution:
        """Execute a held body on the tip's state, once. Raises ``BlockInvalid``."""
        held = self._held[block_hash]
        if held.refusal is not None:
            raise held.refusal
        if held.execution is None:
            try:
                held.execution = execute_block(state, held.block)
            except BlockInvalid as refusal:
                held.refusal = refusal
                raise
        return held.execution
