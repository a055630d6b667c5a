"""Which deadlines this provider can keep, as it has seen itself.

Law: from this node's own jobs with each model, in memory alone, told to nobody but in a refusal. A deadline is promised
only if lately it took a good part less, and one that was missed not again until shorter work has shown otherwise; so a
buyer that means a provider to fail meets a refusal instead. Whoever gives ordinary time is never turned away: a slow
job does not close the shop.
"""

from msgspec import Struct

from protocol.primitives.units import DurationMs, ModelId

MARGIN = 2
"""Promised is twice what work lately took, or twice what was missed."""

FIRST_OUTPUT_MS_MAX = 10_000
STALL_MS_MAX = 5_000
"""Deadlines from here on are ordinary and never refused; the command's defaults are six times as long."""

MODELS_MAX = 256
"""Models remembered; the oldest goes first."""

_WEIGHT_SHIFT = 2
"""Each job moves the figures a quarter of the way."""


class _Needs(Struct):
    """Time to ask for: ms for the first output, µs for each unit of a chunk."""

    first_ms: int = 0
    unit_us: int = 0


class KeptDeadlines:
    """What this provider has learnt about its own pace."""

    def __init__(self) -> None:
        self._models: dict[ModelId, _Needs] = {}

    def first_output_ms(self, model: ModelId) -> DurationMs:
        """The shortest deadline for the first output that is promised now."""
        needs = self._models.get(model)
        return DurationMs(min(needs.first_ms, FIRST_OUTPUT_MS_MAX) if needs is not None else 0)

    def stall_ms(self, model: ModelId, chunk_units: int) -> DurationMs:
        """The shortest deadline between chunks of so many units that is promised now."""
        needs = self._models.get(model)
        return DurationMs(min(needs.unit_us * chunk_units // 1000, STALL_MS_MAX) if needs is not None else 0)

    def first_output_took(self, model: ModelId, took_ms: int) -> None:
        """An input was processed in time."""
        needs = self._of(model)
        needs.first_ms = _nearer(needs.first_ms, MARGIN * took_ms)

    def chunk_took(self, model: ModelId, units: int, took_ms: int) -> None:
        """A chunk was ready so long after it was due."""
        if units > 0:
            needs = self._of(model)
            needs.unit_us = _nearer(needs.unit_us, MARGIN * took_ms * 1000 // units)

    def first_output_missed(self, model: ModelId, deadline_ms: int) -> None:
        """An input took longer than was promised."""
        needs = self._of(model)
        needs.first_ms = max(needs.first_ms, MARGIN * deadline_ms)

    def chunk_missed(self, model: ModelId, chunk_units: int, deadline_ms: int) -> None:
        """A chunk took longer than was promised."""
        needs = self._of(model)
        needs.unit_us = max(needs.unit_us, MARGIN * deadline_ms * 1000 // chunk_units)

    def _of(self, model: ModelId) -> _Needs:
        needs = self._models.get(model)
        if needs is None:
            needs = self._models[model] = _Needs()
            if len(self._models) > MODELS_MAX:
                del self._models[next(iter(self._models))]
        return needs


def _nearer(before: int, seen: int) -> int:
    return before + ((seen - before) >> _WEIGHT_SHIFT)
