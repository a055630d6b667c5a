"""A provider's shelf: prove the sandbox, get the models, load them, then tell the engine what can be served, and when
that changes.

Law: nothing is offered before it has been loaded in the sandbox on this machine, and nothing while it is quarantined or
the node is about to stop. A node that can't get its isolation says what is missing and does not sell.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from node.clock import read_clock
from node.config.descriptions import description_path, is_model_id
from node.config.settings import NodeConfig, ProviderModel
from node.runtime.control import ProviderModelView
from node.runtime.model_sources import PullFailed
from node.telemetry import EventLogger, event_logger
from node.worker.errors import IsolationUnavailable, WorkerError
from node.worker.models import ModelId as StoredModelId
from node.worker.models import ModelStore, load_description
from node.worker.quota import held
from node.worker.runtimes import input_units_max as most_input_units
from node.worker.sources import add_described
from node.worker.supervisor import IsolationReport, LoadedModel, WorkerSupervisor
from node.worker.upstream import UpstreamAddress
from protocol.engine.inputs import Input, Serve
from protocol.market.matching import isolation_suffices
from protocol.market.order_book import OFFER_LIFETIME_MS_MAX
from protocol.messages.market import ModelOffer, Prices
from protocol.primitives.limits import SETTINGS_BYTES_MAX
from protocol.primitives.units import Amount, DurationMs, ModelId, WorkUnits

_BACK_S = 5.0
"""A model whose worker is started again within so long stays offered: a job waits for it that long."""


Obtain = Callable[[ModelId, int], Awaitable[None]]
"""Has a model in the store, waiting so many milliseconds for somebody who gives it."""

_OBTAIN_MS = 60_000
"""A node that has just started hears of live offers within this time."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One model as far as it has come; `offer` once it was loaded."""

    name: str
    state: str
    loaded: LoadedModel | None = None
    offer: ModelOffer | None = None


class ProviderShelf:
    """The models of one provider and how far each has come."""

    def __init__(
        self, config: NodeConfig, supervisor: WorkerSupervisor, store: ModelStore, obtain: Obtain | None = None
    ) -> None:
        """`obtain` fetches a model that is named by its id and not in the store."""
        self._obtain = obtain
        self._config = config
        self._supervisor = supervisor
        self._store = store
        self._log: EventLogger = event_logger("provider")
        self._entries: dict[str, _Entry] = {}
        self._offered: tuple[ModelOffer, ...] = ()
        self._withdrawn = False
        self.report: IsolationReport | None = None

    async def open(self, addresses: tuple[str, ...], feed: Callable[[Input], None]) -> None:
        """Run once after the node has started, until it stops; what fails is told and left out."""
        self.report = await self._supervisor.probe()
        self._log.info("isolation_proved", level=self.report.level, summary=self.report.summary())
        if self.obstacle():
            return
        with ExitStack() as holds:
            for entry in self._config.provider.models:
                if entry.upstream:
                    self._attach(entry)
                else:
                    await self._load(entry, holds)
                self._offer_anew(addresses, feed)
            if not self._offered:
                self._log.warning("nothing_to_sell", reason="no model could be loaded")
            while True:
                await self._supervisor.changed.wait()
                self._supervisor.changed.clear()
                self._offer_anew(addresses, feed)

    def serves(self, model_id: str) -> bool:
        """Whether a model is loaded here to be sold."""
        return any(entry.loaded is not None and entry.loaded.model_id == model_id for entry in self._entries.values())

    def withdraw(self, feed: Callable[[Input], None]) -> None:
        """Take no more jobs; those that run go on."""
        self._withdrawn = True
        if self._offered:
            self._offer_anew((), feed)

    @property
    def models(self) -> Mapping[str, ProviderModelView]:
        """Every model by its description, as it is now."""
        return {key: self._view(entry) for key, entry in self._entries.items()}

    def _view(self, entry: _Entry) -> ProviderModelView:
        if entry.loaded is None:
            return ProviderModelView(entry.name, "", "", entry.state, 0)
        loaded, now_ms = entry.loaded, read_clock().wall_ms
        pool, usage = self._supervisor.view(loaded.model_id), self._supervisor.usage(loaded.model_id)
        assert pool is not None
        return ProviderModelView(
            name=entry.name,
            model=loaded.model_id,
            runtime=loaded.runtime,
            state=pool.state,
            load_ms=loaded.load_ms,
            reason=pool.reason,
            until_ms=now_ms + round(pool.until_s * 1000) if pool.until_s else 0,
            waiting=pool.waiting,
            jobs=pool.jobs,
            units_out=pool.units_out,
            units_per_second=round(pool.units_per_second, 1),
            memory_bytes=usage.memory_bytes,
            cpu_ms=usage.cpu_ms,
            crashes=pool.crashes,
        )

    def obstacle(self) -> str:
        """Why nothing can be sold here; empty if something can, or while the isolation is not proved yet."""
        if any(entry.upstream for entry in self._config.provider.models):
            return ""  # what stands in a worker's way stands beside its model
        return self._sandbox_obstacle()

    def _sandbox_obstacle(self) -> str:
        """Why this machine's isolation does not do."""
        if self.report is None:
            return ""
        wanted = self._config.provider.isolation
        if self.report.level != "none" and isolation_suffices(self.report.level, wanted):
            return ""
        proved = self.report.summary()
        return f"isolation {wanted!r} is wanted here; {proved}" if wanted else proved

    def _offer_anew(self, addresses: tuple[str, ...], feed: Callable[[Input], None]) -> None:
        """Tell the engine what is sold now, if that is something else than before."""
        sold = () if self._withdrawn else tuple(self._sellable())
        if sold != self._offered:
            self._offered = sold
            self._log.info("offer_changed", models=[offer.name for offer in sold])
            feed(self._serve(sold, addresses))

    def _sellable(self) -> Iterator[ModelOffer]:
        for entry in self._entries.values():
            if entry.offer is None or entry.loaded is None:
                continue
            pool = self._supervisor.view(entry.loaded.model_id)
            if pool is not None and (pool.state == "ready" or (pool.state == "restarting" and pool.until_s <= _BACK_S)):
                yield entry.offer

    def _serve(self, offers: tuple[ModelOffer, ...], addresses: tuple[str, ...]) -> Serve:
        assert self.report is not None
        provider = self._config.provider
        return Serve(
            offers,
            provider.slots,
            self.report.level,
            provider.region,
            addresses,
            DurationMs(min(provider.offer_ms, OFFER_LIFETIME_MS_MAX)),
        )

    async def _load(self, entry: ProviderModel, holds: ExitStack) -> None:
        """Get a model ready; from its first byte in the store on it is held there, so that no quota takes it away."""
        key = entry.label
        self._entries[key] = _Entry(key, "loading")
        try:
            if obstacle := self._sandbox_obstacle():
                raise IsolationUnavailable(obstacle)
            model_id = await self._stored(entry)
            holds.enter_context(held(self._store, model_id))
            loaded = await self._supervisor.load(model_id)
        except (WorkerError, PullFailed, OSError, ValueError) as error:
            self._entries[key] = _Entry(key, f"failed: {error}")
            self._log.warning("model_failed", model=key, reason=str(error))
            return
        self._entries[key] = _Entry(loaded.manifest.name, "ready", loaded, self._offer(entry, loaded))
        self._log.info("model_ready", model=loaded.manifest.name, load_ms=loaded.load_ms)

    def _attach(self, entry: ProviderModel) -> None:
        """Sell a model of an upstream server, while it answers."""
        key = f"{entry.upstream} {entry.model}"
        try:
            wanted = self._config.provider.isolation
            if not isolation_suffices("declared", wanted):
                raise IsolationUnavailable(f"isolation {wanted!r} is wanted here; an upstream server is declared")
            address = UpstreamAddress(entry.upstream, entry.model, entry.server, entry.weights, entry.api_key_file)
            loaded = self._supervisor.attach(address)
        except (WorkerError, OSError) as error:
            self._entries[key] = _Entry(entry.label, f"failed: {error}")
            self._log.warning("model_failed", model=entry.label, reason=str(error))
            return
        self._entries[key] = _Entry(loaded.manifest.name, "loading", loaded, self._offer(entry, loaded))

    async def _stored(self, entry: ProviderModel) -> StoredModelId:
        if is_model_id(entry.description):
            if self._obtain is not None:
                await self._obtain(ModelId(bytes.fromhex(entry.description)), _OBTAIN_MS)
            return StoredModelId(entry.description)
        description = load_description(description_path(entry.description))
        return await add_described(self._store, description)

    def _offer(self, entry: ProviderModel, loaded: LoadedModel) -> ModelOffer:
        provider = self._config.provider
        input_units_max = entry.input_units_max or provider.input_units_max
        output_units_max = entry.output_units_max or provider.output_units_max
        if inputs_of_the_model := most_input_units(loaded.runtime, loaded.manifest.settings):
            input_units_max = min(input_units_max, inputs_of_the_model)
        if loaded.context_tokens:
            input_units_max = min(input_units_max, loaded.context_tokens)
            output_units_max = min(output_units_max, loaded.context_tokens)
        return ModelOffer(
            model=ModelId(bytes.fromhex(loaded.model_id)),
            name=loaded.manifest.name,
            runtime=loaded.runtime,
            runtime_build=loaded.runtime_build,
            settings=_settings_text(loaded),
            prices=Prices(Amount(entry.request), Amount(entry.input_per_thousand), Amount(entry.output_per_thousand)),
            input_units_max=WorkUnits(input_units_max),
            output_units_max=WorkUnits(output_units_max),
            isolation="declared" if loaded.isolation == "declared" else "",
        )


def _settings_text(loaded: LoadedModel) -> str:
    """The runtime's own settings; those of the manifest are fixed by the model's id already."""
    own = {key: value for key, value in loaded.settings.items() if key not in loaded.manifest.settings}
    return ",".join(f"{key}={value}" for key, value in sorted(own.items()))[:SETTINGS_BYTES_MAX]
