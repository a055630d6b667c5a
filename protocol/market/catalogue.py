"""What is on offer under which name and up to what limits, without looking at every offer.

Law: a summary of the order book's offers and nothing of its own. Offers that describe a model alike are counted, not
kept, so that a request costs the same among ten offers and among ten thousand.
"""

from bisect import bisect_left, insort
from typing import TypeVar

from msgspec import Struct

from protocol.messages.market import ModelOffer
from protocol.primitives.units import ModelId, WorkUnits

Key = TypeVar("Key")

PREFIX_DIGITS_MIN = 8
"""A model may be named by the beginning of its hash from so many hexadecimal digits on."""


class Description(Struct, frozen=True, gc=False):
    """What one or more offers say of a model."""

    name: str
    runtime: str
    input_units_max: WorkUnits
    output_units_max: WorkUnits


class Listing(Struct, frozen=True, gc=False):
    """A model as most of those who serve it describe it, with the widest limits among them."""

    model: ModelId
    name: str
    runtime: str
    input_units_max: WorkUnits
    output_units_max: WorkUnits


class Catalogue:
    """All models on offer."""

    def __init__(self) -> None:
        self._descriptions: dict[ModelId, dict[Description, int]] = {}
        self._named: dict[str, dict[ModelId, int]] = {}
        self._sorted: list[ModelId] = []

    def add(self, served: ModelOffer) -> None:
        """One more offer of a model."""
        model = ModelId(served.model)
        if model not in self._descriptions:
            self._descriptions[model] = {}
            insort(self._sorted, model)
        _count(self._descriptions[model], _described(served), 1)
        _count(self._named.setdefault(served.name, {}), model, 1)

    def remove(self, served: ModelOffer) -> None:
        """An offer that was added is gone."""
        model = ModelId(served.model)
        _count(self._descriptions[model], _described(served), -1)
        _count(self._named[served.name], model, -1)
        if not self._named[served.name]:
            del self._named[served.name]
        if not self._descriptions[model]:
            del self._descriptions[model]
            del self._sorted[bisect_left(self._sorted, model)]

    def find(self, wanted: str) -> tuple[ModelId, ...]:
        """The models with this name, or whose hash begins with these digits, sorted."""
        found = {**self._named.get(wanted, {}), **dict.fromkeys(self._beginning(wanted.lower()))}
        return tuple(sorted(found))

    def listing(self, model: ModelId) -> Listing | None:
        """One model's offers as one: the runtime that most of them name, and the widest limits of those.

        A model's manifest fixes its runtime, so whoever names another one lies; a job that was cut to fit a single
        offer, however strange, would fail at all other providers.
        """
        described = self._descriptions.get(model)
        if described is None:
            return None
        runtimes: dict[str, int] = {}
        for description, count in described.items():
            _count(runtimes, description.runtime, count)
        runtime = max(sorted(runtimes), key=runtimes.__getitem__)
        honest = {each: count for each, count in described.items() if each.runtime == runtime}
        _, name = min((-count, each.name) for each, count in honest.items())
        inputs = max(each.input_units_max for each in honest)
        return Listing(model, name, runtime, inputs, max(each.output_units_max for each in honest))

    def _beginning(self, digits: str) -> list[ModelId]:
        if not PREFIX_DIGITS_MIN <= len(digits) <= 64 or not set(digits) <= set("0123456789abcdef"):
            return []
        found: list[ModelId] = []
        for model in self._sorted[bisect_left(self._sorted, bytes.fromhex(digits[: len(digits) & ~1])) :]:
            if not model.hex().startswith(digits):
                if model.hex()[: len(digits)] > digits:
                    break
                continue
            found.append(model)
        return found


def _described(served: ModelOffer) -> Description:
    return Description(served.name, served.runtime, served.input_units_max, served.output_units_max)


def _count(counts: dict[Key, int], key: Key, by: int) -> None:
    counts[key] = counts.get(key, 0) + by
    if counts[key] == 0:
        del counts[key]
