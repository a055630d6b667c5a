"""What a measurement is: samples, percentiles, interleaved pairs, figures with units, targets, and the machine.

Law: a figure is named ``room.operation.quantity/key=value``. A ratio is the median over pairs whose two halves were
measured right after each other, alternating which comes first, so that a slow moment of the machine hits both.
"""

import asyncio
import os
import platform
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import TypeVar

import msgspec
import uvloop

T = TypeVar("T")

PAIRS = 12
"""Interleaved pairs of every ratio; ten is the least that a spread can be read from."""


class Figure(msgspec.Struct, frozen=True):
    """One number and its unit."""

    value: float
    unit: str


class Ratio(msgspec.Struct, frozen=True):
    """A ratio of two figures over interleaved pairs: median and spread."""

    value: float
    unit: str
    pairs: int
    lowest: float
    quarter: float
    three_quarters: float
    highest: float


class Target(msgspec.Struct, frozen=True):
    """What a figure should reach; ``bound`` is ``<=`` or ``>=``."""

    figure: str
    bound: str
    value: float


class Verdict(msgspec.Struct, frozen=True):
    """A target beside what was measured."""

    benchmark: str
    figure: str
    value: float
    unit: str
    bound: str
    target: float
    met: bool


class Report(msgspec.Struct):
    """What one benchmark found."""

    about: str
    figures: dict[str, Figure | Ratio]
    baselines: dict[str, Figure]
    targets: list[Target]
    notes: list[str]

    @classmethod
    def start(cls, about: str) -> "Report":
        """An empty report."""
        return cls(about, {}, {}, [], [])

    def add(self, name: str, value: float, unit: str) -> None:
        """A figure."""
        self.figures[name] = Figure(rounded(value), unit)

    def baseline(self, name: str, value: float, unit: str) -> None:
        """A figure of something simpler, measured in the same run."""
        self.baselines[name] = Figure(rounded(value), unit)

    def target(self, figure: str, bound: str, value: float) -> None:
        """Expect a figure on one side of a value."""
        assert bound in ("<=", ">=")
        assert figure in self.figures
        self.targets.append(Target(figure, bound, value))

    def latencies(self, name: str, seconds: Sequence[float], *, baseline: bool = False) -> None:
        """p50 and p99 of samples, in ms."""
        add = self.baseline if baseline else self.add
        for share in (50, 99):
            quantity, _, key = name.partition("/")
            add(f"{quantity}.p{share}" + (f"/{key}" if key else ""), percentile(seconds, share) * 1000, "ms")

    def ratio(self, name: str, above: Sequence[float], below: Sequence[float]) -> None:
        """The ratio of samples that were measured in pairs."""
        ratios = [first / second for first, second in zip(above, below, strict=True)]
        first, _, third = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else [ratios[0]] * 3
        values = [rounded(value) for value in (median(ratios), min(ratios), first, third, max(ratios))]
        self.figures[name] = Ratio(values[0], "ratio", len(ratios), *values[1:])

    def tell(self) -> None:
        """All figures, for people."""
        note(self.about)
        for name, figure in self.figures.items():
            spread = ""
            if isinstance(figure, Ratio):
                spread = f"  ({figure.pairs} pairs: {figure.lowest} … {figure.quarter} | {figure.three_quarters} …"
                spread += f" {figure.highest})"
            note(f"  {name:<58} {figure.value:>10} {figure.unit}{spread}")
        for name, figure in self.baselines.items():
            note(f"  baseline {name:<49} {figure.value:>10} {figure.unit}")
        for line in self.notes:
            note(f"  {line}")


def verdicts(benchmark: str, report: Report) -> list[Verdict]:
    """Every target of a report beside its figure."""
    judged = []
    for target in report.targets:
        figure = report.figures[target.figure]
        met = figure.value <= target.value if target.bound == "<=" else figure.value >= target.value
        judged.append(Verdict(benchmark, target.figure, figure.value, figure.unit, target.bound, target.value, met))
    return judged


def rounded(value: float) -> float:
    """Four significant digits: more would claim more than a shared machine can tell."""
    return float(f"{value:.4g}")


def percentile(samples: Sequence[float], share: int) -> float:
    """The smallest sample that at least ``share`` percent of all samples do not exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * share // 100) - 1))]


def note(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def machine() -> dict[str, str | int | list[float]]:
    """What the figures were measured on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def run_loop(work: Coroutine[None, None, T]) -> T:
    """Run a coroutine on the loop that nodes use."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
