"""Snapshots between the engine, which decides, and the disk: making, serving, fetching, installing; and pruning.

Law: a snapshot is cut from one commit, at a height that follows from the configuration alone, so that nodes that do the
same offer the same. Blocks go only once a finished snapshot covers them, and never those that this node's receipts are
proven by. Nothing here runs on the loop for longer than it takes to ask for it.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import assert_never

from node.config.settings import LedgerConfig
from node.store.database import Store
from node.store.snapshot_files import SnapshotFiles
from node.store.state_rows import StateSource
from node.telemetry import event_logger
from node.transport.transport import Transport
from protocol.engine.anchors import AnchorRow
from protocol.engine.bodies import open_body
from protocol.engine.inputs import Input, SnapshotInstalled, SnapshotRefused
from protocol.engine.snapshots import Fetched
from protocol.ledger.errors import StateInvalid
from protocol.ledger.snapshots import cut_rows
from protocol.messages.blocks import Block, DecidedBlock, Succession
from protocol.messages.effects import (
    InstallSnapshot,
    KeepSnapshot,
    KeepSnapshotChunk,
    SendSnapshotChunk,
    SendSnapshotOffer,
    Table,
)
from protocol.messages.snapshots import SnapshotManifest
from protocol.messages.wire import SnapshotChunk, SnapshotOffer
from protocol.primitives.codec import decode
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.units import Hash, Height, NodeId

_CHUNK_PAUSE_S = 0.02
"""After each megabyte that is cut: making a snapshot must not keep the node from its work."""
_ANSWERS_PER_PEER_MAX = 4
"""Chunks that are being read for one peer; honest ones ask for two at a time."""

SnapshotEffect = SendSnapshotOffer | SendSnapshotChunk | KeepSnapshot | KeepSnapshotChunk | InstallSnapshot


class SnapshotDesk:
    """One node's snapshots. ``due`` and ``after_commit`` are called by whoever commits blocks."""

    def __init__(self, files: SnapshotFiles, store: Store, config: LedgerConfig) -> None:
        self.files = files
        self._store = store
        self._config = config
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshots")
        """Keeps what is fetched in the order in which the engine said so."""
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="snapshot-maker")
        self._making = threading.Event()
        self._stop = threading.Event()
        self._answering: dict[NodeId, int] = {}
        self._failed: Callable[[Exception], object] = lambda error: None
        self._log = event_logger("snapshots")

    def close(self) -> None:
        """End what is under way; a snapshot that is not finished is made again another time."""
        self._stop.set()
        self._maker.shutdown()
        self._thread.shutdown()

    # Making and pruning, on threads

    def due(self, height: Height) -> bool:
        """True if a snapshot is made of the state after this block."""
        every = self._config.snapshot_blocks
        return every > 0 and height % every == 0

    def after_commit(self) -> None:
        """A block of a height that is due has just been committed and no later one has."""
        if self._making.is_set() or self._stop.is_set():
            return
        self._making.set()
        self._maker.submit(self._make, self._store.state_source())

    def on_failure(self, failed: Callable[[Exception], object]) -> None:
        """Whom to tell, from a thread, that a snapshot could not be written."""
        self._failed = failed

    def _make(self, source: StateSource) -> None:
        try:
            with closing(source):
                assert source.tip is not None
                tip: DecidedBlock = source.tip

                header = decode(tip.block, Block).header
                rows = self._store.load_table(Table.SUCCESSION)
                successions = tuple(decode(value, Succession) for _, value in rows)
                below = tuple(each for each in successions if each.header.height < header.height)

                def manifest_of(hashes: tuple[Hash, ...]) -> SnapshotManifest:
                    return SnapshotManifest(header, tip.certificate, below, hashes)

                self.files.make(self._cut(tip, source), manifest_of)
            height, gone = self.files.heights[-1], self.prune()
            self._log.info("snapshot_made", height=height, blocks_given_up=gone)
        except _Stopped:
            pass
        except Exception as error:
            self._failed(error)
        finally:
            self._making.clear()

    def _cut(self, tip: DecidedBlock, source: StateSource) -> Iterator[bytes]:
        yield tip.block
        for chunk in cut_rows(source.rows()):
            yield chunk
            if self._stop.wait(_CHUNK_PAUSE_S):
                raise _Stopped

    def prune(self) -> int:
        """Give up blocks as configured; returns how many went."""
        heights = self.files.heights
        if self._config.keep_blocks == 0 or not heights:
            return 0
        # Whoever has begun with the older snapshot goes on from there.
        covered = heights[0] + 1
        below = min(self._store.height() - self._config.keep_blocks + 1, covered)
        return self._store.prune(Height(max(1, below)), self._needed())

    def _needed(self) -> frozenset[int]:
        """Heights of the blocks that prove this node's receipts."""
        return frozenset(decode(value, AnchorRow).height for _, value in self._store.load_table(Table.ANCHOR))

    # Between engine, peers and disk

    async def act(
        self,
        effect: SnapshotEffect,
        transport: Transport,
        feed: Callable[[Input], None],
        pay: Callable[[NodeId, int], None],
    ) -> None:
        """Carry out one of the engine's wishes; they are begun in the order in which this is called.

        ``pay`` charges a link for so many bytes of an answer that its peer asked for.
        """
        loop = asyncio.get_running_loop()
        match effect:
            case SendSnapshotOffer(to, above):
                transport.send(to, SnapshotOffer(self.files.newest(above)))
            case SendSnapshotChunk(to, height, index):
                await self._answer(to, height, index, transport, pay)
            case KeepSnapshot(manifest):
                await loop.run_in_executor(self._thread, self.files.begin, manifest)
            case KeepSnapshotChunk(index, payload):
                await loop.run_in_executor(self._thread, self.files.keep_chunk, index, payload)
            case InstallSnapshot(manifest):
                try:
                    decided = await loop.run_in_executor(self._thread, self._install, manifest)
                except StateInvalid as error:
                    feed(SnapshotRefused(str(error)))
                    return
                # Reads what was just written, on the thread that will use it.
                state = await loop.run_in_executor(self._thread, self._store.load_state)
                feed(SnapshotInstalled(state, decided))
            case _:
                assert_never(effect)

    async def _answer(
        self, to: NodeId, height: Height, index: int, transport: Transport, pay: Callable[[NodeId, int], None]
    ) -> None:
        if self._answering.get(to, 0) >= _ANSWERS_PER_PEER_MAX:
            return
        self._answering[to] = self._answering.get(to, 0) + 1
        try:
            payload = await asyncio.get_running_loop().run_in_executor(self._thread, self.files.chunk, height, index)
        finally:
            self._answering[to] -= 1
            if not self._answering[to]:
                del self._answering[to]
        pay(to, len(payload))
        transport.send(to, SnapshotChunk(height, index, payload))

    def fetched(self) -> Fetched | None:
        """What an earlier life has fetched."""
        return self.files.fetched()

    def _install(self, manifest: SnapshotManifest) -> DecidedBlock:
        """Raises ``StateInvalid`` with the state as it was."""
        try:
            block_bytes = self.files.fetched_block()
            try:
                block, _ = open_body(block_bytes)
            except RemoteProtocolError as error:
                raise StateInvalid(f"the first chunk is no block: {error}") from None
            if block.header != manifest.header:
                raise StateInvalid("the first chunk is another block than the manifest names")
            decided = DecidedBlock(block_bytes, manifest.certificate)
            self._store.install(manifest, decided, self.files.fetched_rows(manifest), self._needed())
        finally:
            self.files.end()
        return decided


class _Stopped(Exception):
    """The node ends before the snapshot is finished."""
