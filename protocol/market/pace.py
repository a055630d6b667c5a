"""How fast providers were, as this node has seen it itself.

Law: measured from this node's own jobs, kept in memory alone, told to nobody. Newer jobs count more: each moves the
figures a quarter of the way. Bounded by models and by providers of each; what was not used for longest goes first.
"""

from collections.abc import Mapping
from types import MappingProxyType

from msgspec import Struct

from protocol.market.events import (
    AttemptFailed,
    JobAgreed,
    JobCancelled,
    JobDelivered,
    JobFailed,
    JobFinished,
    JobPrefilled,
)
from protocol.messages.effects import Now
from protocol.primitives.codec import Message
from protocol.primitives.units import AccountId, DurationMs, Hash, ModelId, MonotonicMs

PROVIDERS_PER_MODEL_MAX = 64
"""Each is weighed by itself in every choice; a node rarely buys one model of more."""
MODELS_MAX = 256
WATCHED_MAX = 4096
"""Jobs under way that are timed."""
_WEIGHT_SHIFT = 2

_NOBODY: Mapping[AccountId, "Pace"] = MappingProxyType({})


class Pace(Struct, frozen=True):
    """What to expect of one provider: ms from the acceptance to the processed input, µs for each unit of output."""

    first_ms: int
    unit_us: int
    jobs: int

    def expected_ms(self, output_units: int) -> DurationMs:
        """Time for so much output."""
        return DurationMs(self.first_ms + output_units * self.unit_us // 1000)


class _Timed(Struct):
    provider: AccountId
    model: ModelId
    agreed_at: MonotonicMs
    prefilled_at: MonotonicMs | None = None


class Paces:
    """What this node remembers of providers' speed."""

    def __init__(self) -> None:
        self._models: dict[ModelId, dict[AccountId, Pace]] = {}
        self._timed: dict[Hash, _Timed] = {}

    def of(self, model: ModelId) -> Mapping[AccountId, Pace]:
        """Everybody whose pace with a model is known."""
        return self._models.get(model, _NOBODY)

    def observe(self, event: Message, now: Now) -> None:
        """Something happened to a job of this node's buyer; other events are none of our business."""
        match event:
            case JobAgreed():
                if len(self._timed) < WATCHED_MAX:
                    self._timed[event.request] = _Timed(event.provider, event.model, now.monotonic_ms)
            case JobPrefilled():
                timed = self._timed.get(event.request)
                if timed is not None and timed.prefilled_at is None:
                    timed.prefilled_at = now.monotonic_ms
            case JobFinished():
                timed = self._timed.pop(event.request, None)
                if timed is not None and timed.prefilled_at is not None:
                    self._learn(timed, timed.prefilled_at, event.receipt.output_units, now.monotonic_ms)
            case AttemptFailed() | JobDelivered() | JobFailed() | JobCancelled():
                self._timed.pop(event.request, None)
            case _:
                pass

    def learn(self, model: ModelId, provider: AccountId, first_ms: int, unit_us: int) -> None:
        """One more job's figures."""
        known = self._models.pop(model, {})
        self._models[model] = known
        before = known.pop(provider, None)
        if before is not None:
            first_ms = before.first_ms + ((first_ms - before.first_ms) >> _WEIGHT_SHIFT)
            unit_us = before.unit_us + ((unit_us - before.unit_us) >> _WEIGHT_SHIFT)
        known[provider] = Pace(first_ms, unit_us, 1 + (before.jobs if before is not None else 0))
        if len(known) > PROVIDERS_PER_MODEL_MAX:
            del known[next(iter(known))]
        if len(self._models) > MODELS_MAX:
            del self._models[next(iter(self._models))]

    def _learn(self, timed: _Timed, prefilled_at: MonotonicMs, units: int, now: MonotonicMs) -> None:
        if units:
            unit_us = (now - prefilled_at) * 1000 // units
            self.learn(timed.model, timed.provider, prefilled_at - timed.agreed_at, unit_us)
