"""One process that checks, executes and stores transfers with nobody to agree with: the parts of what a transfer costs.

Law: every part is timed on the same blocks: decoding, signatures as at the door, the mempool, building a block and
executing it as its other authorities do, the state root over its rows, the state tree, one durable commit.
"""

import time
from pathlib import Path
from typing import NamedTuple

from node.clock import read_clock
from node.store.database import Store
from protocol.ledger.blocks import BLOCK_OVERHEAD_BYTES_MAX, build_block, execute_block
from protocol.ledger.lattice import lattice_bytes, updated
from protocol.ledger.mempool import Mempool
from protocol.ledger.signatures import open_transaction, transaction_checks
from protocol.messages.blocks import Block, DecidedBlock
from protocol.messages.consensus import Certificate, CertificateKind
from protocol.messages.effects import CommitBlock
from protocol.messages.genesis import Genesis
from protocol.primitives.codec import decode
from protocol.primitives.limits import BLOCK_BYTES_MAX, BLOCK_TRANSACTIONS_MAX
from protocol.primitives.units import Signature, View

PARTS = ("decode", "signatures", "mempool", "build", "execute", "root", "tree", "store")


class Taken(NamedTuple):
    """What some transfers took, in seconds; a loaded machine stretches the first and hardly the second."""

    wall: float
    processor: float


class Alone:
    """A ledger of one's own over the store in ``folder``, made if there is none."""

    def __init__(self, genesis: Genesis, folder: Path) -> None:
        self._store = Store.open(folder / "ledger.sqlite", genesis)
        self._state = self._store.load_state()
        self._mempool = Mempool(genesis)
        tip = self._store.tip()
        self._certificate: Certificate | None = tip.certificate if tip is not None else None
        self.seconds = dict.fromkeys(PARTS, 0.0)
        """Processor time of each part so far."""
        self.transfers = 0

    def close(self) -> None:
        """Release the file."""
        self._store.close()

    def take(self, envelopes: list[bytes]) -> Taken:
        """Check, execute and store these transfers in one block, as an authority does that has not built it."""
        state, seconds, clock = self._state, dict.fromkeys(PARTS, 0.0), time.process_time
        started = time.perf_counter()
        began = clock()
        opened = [open_transaction(received) for received in envelopes]
        seconds["decode"] = clock() - began
        began = clock()
        assert all(
            check.holds() for received in envelopes for check in transaction_checks(state.genesis_hash, received)
        )
        seconds["signatures"] = clock() - began - seconds["decode"]
        began = clock()
        for received, (envelope, transaction) in zip(envelopes, opened, strict=True):
            self._mempool.add(received, envelope, transaction, state)
        candidates = self._mempool.select(state, BLOCK_BYTES_MAX - BLOCK_OVERHEAD_BYTES_MAX, BLOCK_TRANSACTIONS_MAX)
        seconds["mempool"] = clock() - began
        began = clock()
        built_at = time.perf_counter()
        built = build_block(state, candidates, read_clock().wall_ms, self._certificate)
        seconds["build"] = clock() - began
        started += time.perf_counter() - built_at
        began = clock()
        execution = execute_block(state, decode(built.block_bytes, Block))
        seconds["execute"] = clock() - began
        removed = [(key, value) for key, _ in execution.rows if (value := state.row(key)) is not None]
        began = clock()
        updated(state.lattice, removed, [(key, value) for key, value in execution.rows if value is not None])
        seconds["root"] = clock() - began
        seconds["execute"] -= seconds["root"]
        began = clock()
        tree = state.apply(execution)
        seconds["tree"] = clock() - began
        header, ids = execution.header, execution.transaction_ids
        self._certificate = Certificate(
            CertificateKind.DECIDED,
            header.height,
            View(1),
            execution.block_hash,
            (0, 1, 2),
            (Signature(bytes(64)),) * 3,
        )
        decided = DecidedBlock(execution.block_bytes, self._certificate)
        commit = CommitBlock(
            header.height, execution.block_hash, decided, execution.rows, ids, lattice_bytes(execution.lattice), tree
        )
        began = clock()
        self._store.commit([commit])
        seconds["store"] = clock() - began
        self._store.committed(header.height)
        began = clock()
        self._mempool.block_applied(state, ids)
        seconds["mempool"] += clock() - began
        assert len(ids) == len(envelopes)
        for part, spent in seconds.items():
            self.seconds[part] += spent
        self.transfers += len(envelopes)
        processor = sum(spent for part, spent in seconds.items() if part != "build")
        return Taken(time.perf_counter() - started, processor)
