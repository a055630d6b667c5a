"""A provider's start: prove the sandbox, get the models, load them, then tell the engine what can be served.

Law: nothing is offered before it has been loaded in the sandbox on this machine. A node that can't get its isolation
says what is missing and does not sell.
"""

from collections.abc import Callable

from node.config.descriptions import description_path
from node.config.settings import NodeConfig, ProviderModel
from node.runtime.control import ProviderModelView
from node.telemetry import EventLogger, event_logger
from node.worker.errors import WorkerError
from node.worker.models import ModelStore, load_description
from node.worker.packages import add_from_package
from node.worker.supervisor import IsolationReport, LoadedModel, WorkerSupervisor
from protocol.engine.inputs import Input, Serve
from protocol.market.matching import isolation_suffices
from protocol.market.order_book import OFFER_LIFETIME_MS_MAX
from protocol.messages.market import ModelOffer, Prices
from protocol.primitives.limits import SETTINGS_BYTES_MAX
from protocol.primitives.units import Amount, DurationMs, ModelId, WorkUnits


class ProviderShelf:
    """The models of one provider and how far each has come."""

    def __init__(self, config: NodeConfig, supervisor: WorkerSupervisor, store: ModelStore) -> None:
        self._config = config
        self._supervisor = supervisor
        self._store = store
        self._log: EventLogger = event_logger("provider")
        self.report: IsolationReport | None = None
        self.models: dict[str, ProviderModelView] = {}

    async def open(self, addresses: tuple[str, ...], feed: Callable[[Input], None]) -> None:
        """Run once after the node has started; what fails is told and left out."""
        self.report = await self._supervisor.probe()
        self._log.info("isolation_proved", level=self.report.level, summary=self.report.summary())
        if self.obstacle():
            return
        offers: list[ModelOffer] = []
        for entry in self._config.provider.models:
            offer = await self._load(entry)
            if offer is not None:
                offers.append(offer)
                feed(self._serve(tuple(offers), addresses))
        if not offers:
            self._log.warning("nothing_to_sell", reason="no model could be loaded")

    def obstacle(self) -> str:
        """Why this machine's isolation does not do; empty if it does, or while it is not proved yet."""
        if self.report is None:
            return ""
        wanted = self._config.provider.isolation or "strong"
        if self.report.level == "strong" and isolation_suffices(self.report.level, wanted):
            return ""
        proved = self.report.summary()
        return proved if wanted == "strong" else f"isolation {wanted!r} is wanted here; {proved}"

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

    async def _load(self, entry: ProviderModel) -> ModelOffer | None:
        name = entry.description
        self.models[name] = ProviderModelView(name, "", "", "loading", 0)
        try:
            description = load_description(description_path(entry.description))
            model_id = await add_from_package(self._store, description)
            loaded = await self._supervisor.load(model_id)
        except (WorkerError, OSError, ValueError) as error:
            self.models[name] = ProviderModelView(name, "", "", f"failed: {error}", 0)
            self._log.warning("model_failed", model=name, reason=str(error))
            return None
        self.models[name] = ProviderModelView(
            loaded.manifest.name, loaded.model_id, loaded.runtime, "ready", loaded.load_ms
        )
        self._log.info("model_ready", model=loaded.manifest.name, load_ms=loaded.load_ms)
        return self._offer(entry, loaded)

    def _offer(self, entry: ProviderModel, loaded: LoadedModel) -> ModelOffer:
        provider = self._config.provider
        input_units_max = entry.input_units_max or provider.input_units_max
        output_units_max = entry.output_units_max or provider.output_units_max
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
        )


def _settings_text(loaded: LoadedModel) -> str:
    """The runtime's own settings; those of the manifest are fixed by the model's id already."""
    own = {key: value for key, value in loaded.settings.items() if key not in loaded.manifest.settings}
    return ",".join(f"{key}={value}" for key, value in sorted(own.items()))[:SETTINGS_BYTES_MAX]
