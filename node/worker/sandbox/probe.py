"""The probe: what isolation this machine really gives, found out by attacking our own sandbox.

Law: a node publishes the level that it proved, never one that it was told. `strong`: every attack was stopped.
`fallback`: the kernel has no namespaces for us, and every attack was stopped but those that only namespaces stop.
Anything less, or a sandbox that can't be started, is `none`, and a node with `none` doesn't sell.
"""

import asyncio
from dataclasses import dataclass
from typing import Literal

from node.worker.child.canaries import ATTACKS
from node.worker.child.frames import MalformedFrame, Value, encode
from node.worker.errors import IsolationUnavailable, RuntimeUnavailable
from node.worker.frames import CanaryDone, Confined, FrameReader, FrameStalled, FrameTooLong
from node.worker.limits import DEFAULT_LIMITS, WorkerLimits
from node.worker.runtimes import CHILD_SOURCE, child_binds
from node.worker.sandbox import facts, seccomp
from node.worker.sandbox.facts import Check
from node.worker.sandbox.launch import launch
from node.worker.sandbox.layers import FALLBACK_LAYERS, STRONG_LAYERS, Bind, Command, Layers
from node.worker.sandbox.running import SandboxedProcess, adopt_orphans

__all__ = ["Check", "IsolationLevel", "IsolationReport", "canaries", "probe"]

IsolationLevel = Literal["strong", "fallback", "none"]
PROBE_S = 20.0
GAP_REMEDY = "this is a gap in the sandbox itself: don't sell, and report it with your kernel's version"
NAMESPACE_ONLY = ("find files by their names", "learn the host's name")
NAMESPACE_REMEDY = "only namespaces stop this: see the remedy for them"


@dataclass(frozen=True, slots=True)
class IsolationReport:
    """The proven level, the checks behind it in the order they were made, and the layers to run workers with."""

    level: IsolationLevel
    checks: tuple[Check, ...]
    layers: Layers = STRONG_LAYERS

    def failures(self) -> tuple[Check, ...]:
        """What lowers the level."""
        return tuple(check for check in self.checks if check.needed and not check.passed)

    def summary(self) -> str:
        """One sentence: the level, and what stands in the way of a better one."""
        if self.level == "strong":
            return f"isolation is strong: {len(self.checks)} checks passed"
        wrong = self.failures()[0]
        so = "isolation is fallback" if self.level == "fallback" else "no isolation"
        return f"{so}: {wrong.name}: {wrong.detail}. {wrong.remedy}"


async def canaries(
    names: tuple[str, ...],
    limits: WorkerLimits,
    layers: Layers = STRONG_LAYERS,
    source: str = CHILD_SOURCE,
    binds: tuple[Bind, ...] = (),
) -> tuple[list[CanaryDone], SandboxedProcess, int]:
    """Try attacks in a fresh sandbox. Returns what came of each, the ended process and the launcher's exit status.

    An attack that the kernel answers by killing the process leaves the list short. Raises IsolationUnavailable.
    """
    command = Command(source, (*child_binds("echo"), *binds), limits.memory_bytes)
    process = await launch(command, limits, layers=layers)
    done: list[CanaryDone] = []
    confined = False
    adopted_before = adopt_orphans(True)  # what the worker left running outlives its launcher by a moment
    try:
        wanted: dict[str, Value] = {
            "canaries": [*names],
            "filter": seccomp.filter_after_imports() if layers.filter_after_imports else b"",
            "processes": process.processes_max,
        }
        process.stdin.write(encode(["start", wanted]))
        frames = FrameReader(process.stdout, limits.frame_s)
        async with asyncio.timeout(PROBE_S):
            while True:
                match await frames.next():
                    case CanaryDone() as canary:
                        done.append(canary)
                    case Confined():
                        confined = True
                    case _:
                        raise MalformedFrame("unexpected frame")
    except asyncio.IncompleteReadError:
        said = b"" if confined else await process.stderr.read(4096)
        status = await process.end(kill=False)
    except (TimeoutError, MalformedFrame, FrameStalled, FrameTooLong) as error:
        await process.end()
        raise IsolationUnavailable(f"the probe's child misbehaved: {error!r}. {GAP_REMEDY}") from None
    except BaseException:
        await process.end()
        raise
    finally:
        adopt_orphans(adopted_before)
    if not confined:
        words = said.decode("utf-8", "replace").strip() or f"status {status}"
        raise IsolationUnavailable(f"the worker did not start: {words[-300:]}. {facts.START_REMEDY}")
    return done, process, status


async def _attempts(limits: WorkerLimits, layers: Layers, name: str) -> tuple[Check, list[Check]]:
    """The start of a sandbox with these layers, and every attack on it."""
    names = tuple(ATTACKS)
    try:
        done, process, status = await canaries(names, limits, layers)
    except (IsolationUnavailable, RuntimeUnavailable) as error:
        reason, _, remedy = error.reason.partition(". ")
        return Check(name, False, reason, remedy), []
    seen = {canary.name: canary for canary in done}
    attacks = []
    for attack in names:
        canary = seen.get(attack)
        remedy = GAP_REMEDY if layers.namespaces or attack not in NAMESPACE_ONLY else NAMESPACE_REMEDY
        if canary is None:
            attacks.append(Check(attack, False, f"no answer, launcher status {status}", remedy, attack=True))
        else:
            attacks.append(Check(attack, canary.stopped, canary.seen, "" if canary.stopped else remedy, attack=True))
    return Check(name, True, _description(process, layers), ""), attacks


async def probe(limits: WorkerLimits = DEFAULT_LIMITS, layers: Layers = STRONG_LAYERS) -> IsolationReport:
    """Start a sandbox and attack it. Never raises for what the machine lacks: that is in the report."""
    started, attacks = await _attempts(limits, layers, "start the sandbox")
    circumstances = facts.circumstances()
    checks = (started, *circumstances, *attacks)
    if started.passed or not facts.has_landlock():
        held = started.passed and all(check.passed for check in attacks)
        return IsolationReport("strong" if held else "none", checks, layers)
    again, attacks = await _attempts(limits, FALLBACK_LAYERS, "start the sandbox without namespaces")
    checks = (started, *circumstances, again, *attacks)
    held = again.passed and all(check.passed or check.name in NAMESPACE_ONLY for check in attacks)
    return IsolationReport("fallback" if held else "none", checks, FALLBACK_LAYERS)


def _description(process: SandboxedProcess, layers: Layers) -> str:
    kept = "namespaces" if layers.namespaces else "path rules (Landlock)"
    if process.uid is None:
        user = "the node's own user" + (" in a user namespace" if layers.namespaces else "")
    else:
        user = f"a user of its own ({process.uid})"
    return f"{kept}, system call filters, {user}; {process.group_description}"
