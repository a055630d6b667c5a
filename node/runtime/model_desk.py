"""Models of this node: which it gives to peers, and pulls of those that it lacks.

Law: a model is pulled once at a time, whoever asks for it; the pull goes on for as long as somebody waits for it, and
what it fetched stays for the next. Whoever is found to send wrong bytes is not asked again for a while, unless the user
names it.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

from node.clock import read_clock
from node.config.settings import ModelsConfig, Sharing
from node.runtime.control import ControlError
from node.runtime.ledger_views import account_text, model_argument
from node.runtime.model_pull import ModelPull, PullSettings
from node.runtime.model_sharing import SharedStore
from node.runtime.model_source import PullSource, SourceAddress
from node.runtime.model_sources import Asking, PullFailed
from node.runtime.model_views import PullEvent, PullRequest, PullSourceView
from node.telemetry import EventLogger, event_logger
from node.transport.endpoints import parse_seed
from node.transport.piece_server import PiecePolicy
from node.worker.errors import BadDescription, CorruptModel, ModelError, ModelInUse, StoreFull, UnknownModel
from node.worker.models import Manifest, ModelStore
from node.worker.models import ModelId as StoredModelId
from node.worker.partial import was_pulled
from protocol.engine.inputs import Discredited
from protocol.messages.genesis import genesis_hash
from protocol.primitives.addresses import AddressInvalid
from protocol.primitives.units import ModelId, NodeId

if TYPE_CHECKING:
    from node.runtime.node import Node

UPLOAD_BYTES_PER_SECOND, UPLOAD_PER_PEER_BYTES_PER_SECOND = 10_000_000, 5_000_000
"""Unless configured otherwise: a gigabyte in two minutes, and most of a good line left to jobs and blocks."""
PULLS_MAX = 8
"""Models pulled at the same time."""
TELL_S = 0.2
"""Between two lines of a pull's stream."""
DISTRUST_MS = 3_600_000
"""How long a source that sent wrong bytes is not asked."""
DISTRUSTED_MAX = 1_024
_CODES = {
    StoreFull: "store_full", CorruptModel: "model_corrupt", ModelInUse: "model_in_use", BadDescription: "bad_manifest",
}  # fmt: skip


class _Running:
    """A pull that somebody waits for."""

    def __init__(self, pull: ModelPull, named: dict[object, SourceAddress]) -> None:
        self.pull = pull
        self.named = named
        self.users = 0
        self.outcome: asyncio.Future[StoredModelId] = asyncio.get_running_loop().create_future()


def piece_policy(models: ModelsConfig, *, development: bool) -> PiecePolicy:
    """How much is given to peers. Bounded unless configured, but not in development networks: they have no line."""

    def rate(configured: int | None, otherwise: int) -> int | None:
        if configured is None:
            return None if development else otherwise
        return configured or None

    return PiecePolicy(
        upload_bytes_per_second=rate(models.upload_bytes_per_second, UPLOAD_BYTES_PER_SECOND),
        upload_per_peer_bytes_per_second=rate(
            models.upload_per_peer_bytes_per_second, UPLOAD_PER_PEER_BYTES_PER_SECOND
        ),
    )


class ModelDesk:
    """The one place that knows both the store and the network."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        config = node.config
        self.store = ModelStore(config.model_store, bytes_max=config.provider.model_store_bytes)
        self._genesis_hash = genesis_hash(node.engine.replica.state.genesis)
        self._running: dict[ModelId, _Running] = {}
        self._distrusted: dict[NodeId, int] = {}
        self._log: EventLogger = event_logger("models")

    # Giving

    def library(self) -> SharedStore | None:
        """What is given to peers; None if nothing ever is."""
        if self._node.config.models.share is Sharing.NONE:
            return None
        return SharedStore(self.store, self.may_share, asyncio.get_running_loop())

    def policy(self) -> PiecePolicy:
        """How much is given."""
        development = self._node.engine.replica.state.genesis.development
        return piece_policy(self._node.config.models, development=development)

    def may_share(self, model: ModelId) -> bool:
        """Whether this node chose to give a model away."""
        if self._node.config.models.share is Sharing.ALL:
            return True
        shelf, registered = self._node.shelf, self._node.engine.replica.state.registration(model)
        return (
            (shelf is not None and shelf.serves(model.hex()))
            or (registered is not None and registered.publisher == self._node.keys.account_id)
            or was_pulled(self.store, model.hex())
        )

    # Taking

    async def obtain(self, model: ModelId, wait_ms: int) -> None:
        """Have a model in the store, pulling it if it is not there. Raises ``PullFailed``, ``ModelError``."""
        with contextlib.suppress(UnknownModel):
            self.store.manifest(model.hex())
            return
        running = self._join(model, (), PullSettings(bytes_per_second=self._limit(0), wait_ms=wait_ms))
        try:
            await asyncio.shield(running.outcome)
        finally:
            self._leave(running)

    async def pull(self, request: PullRequest) -> AsyncGenerator[tuple[PullEvent, ...], None]:
        """Pull a model for this node's user and tell how it goes. Raises ``ControlError``."""
        model = self._named(request.model)
        named = [_source_argument(text) for text in request.sources]
        kept = await asyncio.to_thread(self._kept, model)
        if kept is not None:
            yield (self._event("finished", model, kept, None),)
            return
        settings = PullSettings(
            bytes_per_second=self._limit(request.bytes_per_second), wait_ms=max(0, min(request.wait_ms, 3_600_000))
        )
        running = self._join(model, named, settings)
        try:
            while not (await asyncio.wait((running.outcome,), timeout=TELL_S))[0]:
                yield (self._event("progress", model, running.pull.manifest, running.pull),)
            try:
                if running.outcome.cancelled():
                    raise ControlError("stopping", "the node is stopping; pull again to go on")
                running.outcome.result()
            except PullFailed as error:
                raise ControlError(error.code, str(error), 5 if error.code == "no_source" else 1) from None
            except ModelError as error:
                raise ControlError(_CODES.get(type(error), "model_not_pulled"), error.reason) from None
            yield (self._event("finished", model, running.pull.manifest, running.pull),)
        finally:
            self._leave(running)

    def _limit(self, asked: int) -> int | None:
        return asked if asked > 0 else self._node.config.models.download_bytes_per_second

    def _named(self, text: str) -> ModelId:
        """The model that a person means: by its id, or by the name under which it is on offer."""
        offered = {
            served.model: None
            for live in self._node.engine.book.offers()
            for served in live.offer.models
            if served.name == text
        }
        if len(offered) > 1:
            ids = ", ".join(model.hex() for model in offered)
            raise ControlError("model_ambiguous", f"several models on offer are called {text!r}; give the id: {ids}", 2)
        if offered:
            return ModelId(next(iter(offered)))
        try:
            return model_argument(text)
        except ControlError:
            raise ControlError("model_unknown", f"{text[:80]!r} is no model's id, and no live offer has it") from None

    def _kept(self, model: ModelId) -> Manifest | None:
        """The manifest if the model is in the store and whole."""
        try:
            return self.store.verify(model.hex())
        except ModelError:
            return None

    def _join(self, model: ModelId, named: Sequence[SourceAddress], settings: PullSettings) -> _Running:
        """The pull of a model, begun if there is none."""
        running = self._running.get(model)
        if running is None:
            if len(self._running) >= PULLS_MAX:
                raise ControlError("too_many_pulls", f"{PULLS_MAX} models are being pulled; try later")
            addresses: dict[object, SourceAddress] = {}
            asking = Asking(
                identity=self._node.identity,
                genesis_hash=self._genesis_hash,
                loopback_only=self._node.engine.replica.state.genesis.development,
            )
            pull = ModelPull(model, self.store, asking, lambda: self._sources(model, addresses), settings)
            running = self._running[model] = _Running(pull, addresses)
            task = self._node.spawn(self._run(running))
            running.outcome.add_done_callback(lambda outcome: outcome.cancelled() and task.cancel())
        for address in named:
            running.named[address.key] = address
        running.users += 1
        return running

    def _leave(self, running: _Running) -> None:
        """Nobody waits any more: what was fetched stays for the next pull."""
        running.users -= 1
        if running.users == 0 and not running.outcome.done():
            running.outcome.cancel()
            self._running.pop(running.pull.model, None)

    def _sources(self, model: ModelId, named: dict[object, SourceAddress]) -> list[SourceAddress]:
        """Whom the user named, then whoever offers the model now."""
        now = read_clock()
        offered = [
            SourceAddress(live.offer.node, tuple(live.offer.addresses))
            for live in self._node.engine.book.offers_for(model)
            if live.offer.expires_at > now.wall_ms
            and live.offer.node != self._node.keys.node_id
            and self._distrusted.get(live.offer.node, 0) <= now.monotonic_ms
        ]
        return [*named.values(), *(address for address in offered if address.key not in named)]

    async def _run(self, running: _Running) -> None:
        pull = running.pull
        self._log.info("pull_started", model=pull.model.hex())
        try:
            stored = await pull.run()
        except Exception as error:
            expected = isinstance(error, PullFailed | ModelError)
            self._log.warning("pull_failed", model=pull.model.hex(), reason=str(error), exc_info=not expected)
            if not running.outcome.done():
                running.outcome.set_exception(error)
                running.outcome.exception()  # somebody may have left already
        else:
            self._log.info("pulled", model=stored, bytes=pull.bytes_done, sources=len(pull.sources))
            if not running.outcome.done():
                running.outcome.set_result(stored)
        finally:
            running.outcome.cancel()  # unless it is known: then the node stops
            if self._running.get(pull.model) is running:
                del self._running[pull.model]
            self._remember(pull.sources)

    def _remember(self, sources: Sequence[PullSource]) -> None:
        """Hold what they did against sources that sent wrong bytes."""
        for source in sources:
            if source.corrupt and source.node is not None:
                self._log.warning("source_corrupt", source=source.name, reason=source.state)
                self._node.loop.feed(Discredited(source.node, source.state))
                self._distrusted[source.node] = read_clock().monotonic_ms + DISTRUST_MS
                if len(self._distrusted) > DISTRUSTED_MAX:
                    del self._distrusted[next(iter(self._distrusted))]

    # Looking

    def _event(self, event: str, model: ModelId, manifest: Manifest | None, pull: ModelPull | None) -> PullEvent:
        registered = self._node.engine.replica.state.registration(model)
        size = 0 if manifest is None else manifest.size_bytes()
        done = event == "finished"
        return PullEvent(
            event,
            model.hex(),
            "in the store" if done or pull is None else pull.stage,
            name="" if manifest is None else manifest.name,
            version="" if manifest is None else manifest.version,
            runtime="" if manifest is None else manifest.runtime,
            license="" if manifest is None else manifest.license,
            publisher=None if registered is None else account_text(registered.publisher),
            bytes_total=size,
            bytes_done=size if done or pull is None else pull.bytes_done,
            bytes_kept=size if pull is None else pull.bytes_kept,
            sources=() if pull is None else tuple(_source_view(source) for source in pull.sources),
        )


def _source_view(source: PullSource) -> PullSourceView:
    return PullSourceView(
        source.name, source.state, source.dropped, source.corrupt, source.bytes_received, source.pieces
    )


def _source_argument(text: str) -> SourceAddress:
    try:
        seed = parse_seed(text)
    except AddressInvalid as error:
        raise ControlError("bad_address", str(error), 2) from None
    return SourceAddress(seed.node, (seed.endpoint,))
