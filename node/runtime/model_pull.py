"""Pulls one model from peers: manifest, piece lists, pieces from several sources at once, and the whole put in place.

Law: the model's id is the only thing that is trusted. The manifest must have it as its hash, a piece list the root that
the manifest names, a piece the hash that the list names; room on disk is made before the first piece is asked for. Who
sends something else is named, dropped, and the pull goes on with the others. An end at any moment leaves nothing
visible and loses at most the pieces in flight.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
from blake3 import blake3

from node.runtime.model_plan import Piece, PullPlan
from node.runtime.model_source import CorruptSource, PieceWork, PullSource, SourceAddress
from node.runtime.model_sources import LOOK_S, TRIES_MAX, Asking, PullFailed, PullSources
from node.transport.bulk_threads import bulk_threads, in_thread
from node.transport.piece_client import PieceAsker
from node.transport.throttle import Throttle
from node.worker.errors import BadDescription, ModelError
from node.worker.models import MANIFEST_BYTES_MAX, Manifest, ModelStore, parse_manifest
from node.worker.models import ModelId as StoredModelId
from node.worker.partial import PartialModel, opened_partial
from node.worker.pieces import HASH_BYTES, PIECE_BYTES, piece_root, pieces_of
from protocol.primitives.units import ModelId

T = TypeVar("T")

SOURCES_MAX = 8
"""Asked at the same time; each has a thread, a connection and a mebibyte."""
CONNECTIONS_ALONE = 2
"""To a source that is the only one, so that one connection's pieces are hashed while the other's arrive."""


class PullSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How one pull goes about it."""

    bytes_per_second: int | None = None
    """What all sources together may send; None: no limit."""
    wait_ms: int = 10_000
    """How long to wait for a source while there is none."""


class ModelPull:
    """One pull. ``run`` is called once; everything else may be looked at meanwhile."""

    def __init__(
        self,
        model: ModelId,
        store: ModelStore,
        asking: Asking,
        find_sources: Callable[[], Sequence[SourceAddress]],
        settings: PullSettings,
    ) -> None:
        self.model = model
        self.stage = "looking for sources"
        self.manifest: Manifest | None = None
        self.bytes_kept = 0
        """What was on disk already."""
        self._store = store
        self._asking = asking
        self._settings = settings
        self._threads = bulk_threads(SOURCES_MAX + CONNECTIONS_ALONE, "mercat-pull")
        self._sources = PullSources(asking, find_sources, self._threads, model.hex())
        self._plan = PullPlan(())
        self._failures: list[Exception] = []

    @property
    def sources(self) -> tuple[PullSource, ...]:
        """Everybody who was thought of."""
        return self._sources.all()

    @property
    def pieces_left(self) -> int:
        """Pieces that have not come, as far as is known."""
        return self._plan.left

    @property
    def bytes_done(self) -> int:
        """What is on disk and right."""
        return self.bytes_kept + self._plan.bytes_done

    async def run(self) -> StoredModelId:
        """Pull the model; its id in the store. Raises ``PullFailed``, ``StoreFull`` and every other ``ModelError``."""
        try:
            manifest = await self._ask(self._fetch_manifest, "the manifest")
            self.manifest = manifest
            with contextlib.ExitStack() as stack:
                self.stage = "making room"
                partial = await self._do(lambda: stack.enter_context(opened_partial(self._store, manifest)))
                self.stage = "asking for piece lists"
                lists = await self._piece_lists(partial, manifest)
                self.stage = "checking what is there"
                missing = await self._do(lambda: _missing(partial, lists))
                self.bytes_kept = manifest.size_bytes() - sum(partial.size_of(*piece) for piece in missing)
                self.stage = "pulling"
                await self._fetch(partial, manifest, missing)
                self.stage = "checking the whole"
                return await self._do(partial.finish)
        finally:
            self._sources.hang_up()
            self._threads.shutdown(wait=False)

    async def _do(self, work: Callable[[], T]) -> T:
        """Work on the disk, which is waited for whatever happens: nobody else may have the files meanwhile."""
        return await in_thread(self._threads, work, lambda: None)

    async def _ask(self, work: Callable[[PieceAsker], T], what: str) -> T:
        return await self._sources.ask_somebody(work, what, self._settings.wait_ms)

    def _fetch_manifest(self, asker: PieceAsker) -> Manifest:
        content = asker.manifest(self.model, MANIFEST_BYTES_MAX)
        if blake3(content).digest() != self.model:
            raise CorruptSource("sent another manifest than the one whose hash the model's id is")
        try:
            return parse_manifest(content)
        except BadDescription as error:
            raise BadDescription(f"{error}; whoever made this model is at fault, no source") from None

    async def _piece_lists(self, partial: PartialModel, manifest: Manifest) -> list[bytes]:
        lists = {number: partial.kept_list(number) for number in range(len(manifest.files))}
        wanted = [number for number, kept in lists.items() if kept is None]

        def fetch(asker: PieceAsker) -> bool:
            while wanted:
                number, file = wanted[0], manifest.files[wanted[0]]
                found = asker.piece_list(self.model, number, HASH_BYTES * pieces_of(file.size))
                if piece_root(found) != file.pieces:
                    raise CorruptSource(f"sent a wrong piece list of {file.path}")
                lists[wanted.pop(0)] = found
            return True

        if wanted:
            await self._ask(fetch, "a piece list")
        return [kept for kept in lists.values() if kept is not None]

    async def _fetch(self, partial: PartialModel, manifest: Manifest, missing: list[Piece]) -> None:
        """Get all pieces. Raises ``PullFailed``, and ``StoreFull`` when the disk takes no more."""
        self._plan = plan = PullPlan(missing)

        def name_of(piece: Piece) -> str:
            return f"piece {piece.number} of {manifest.files[piece.file].path}"

        work = PieceWork(self.model, plan, partial, Throttle(self._settings.bytes_per_second), name_of)
        lanes: dict[asyncio.Task[None], PullSource] = {}
        async with asyncio.TaskGroup() as group:
            try:
                while plan.left and not self._failures:
                    for source, count in self._idle(lanes):
                        for _ in range(count):
                            lane = group.create_task(self._lane(source, work))
                            lanes[lane] = source
                            lane.add_done_callback(lanes.pop)
                    if not lanes:
                        break
                    await asyncio.wait(lanes, timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                work.stop.set()
                for lane in lanes:
                    lane.cancel()
        if self._failures:
            raise self._failures[0]
        if plan.left:
            raise self._sources.failure(f"{plan.left} of {len(missing)} pieces")

    def _idle(self, lanes: Mapping[asyncio.Task[None], PullSource]) -> list[tuple[PullSource, int]]:
        """Sources that may be asked and are not, as far as there is room, and by how many connections."""
        usable = self._sources.usable()
        busy = list(lanes.values())
        idle = [source for source in usable if source not in busy and not source.given_up]
        count = CONNECTIONS_ALONE if len(usable) == 1 else 1
        return [(source, count) for source in idle[: SOURCES_MAX - len(busy)]]

    async def _lane(self, source: PullSource, work: PieceWork) -> None:
        """Ask one source over one connection, and again when it breaks, until nothing is left or it is given up."""
        buffer, tries = memoryview(bytearray(PIECE_BYTES)), 0
        while work.plan.left and not source.dropped and not work.stop.is_set():
            before = source.pieces
            try:
                await self._sources.ask(source, lambda asker: work.run(source, asker, buffer))
            except ModelError as error:
                self._failures.append(error)
                return
            except OSError as error:
                self._failures.append(PullFailed(f"the disk failed: {error.strerror}", "disk"))
                return
            if not work.plan.left or work.stop.is_set():
                return
            tries = 0 if source.pieces > before else tries + 1
            if tries >= TRIES_MAX:
                source.given_up = True
                return
            await asyncio.sleep(self._asking.retry_s(tries))


def _missing(partial: PartialModel, lists: Sequence[bytes]) -> list[Piece]:
    """The pieces to fetch, after a look at what an earlier life left."""
    return [
        Piece(number, piece)
        for number, piece_list in enumerate(lists)
        for piece in partial.open_file(number, piece_list)
    ]
