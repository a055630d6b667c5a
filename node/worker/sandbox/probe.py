"""The probe: what isolation this machine really gives, found out by attacking our own sandbox.

Law: a node publishes the level that it proved, never one that it was told. A single attack that gets through, or a
sandbox that can't be started, means `none`, and a node with `none` doesn't sell.
"""

import asyncio
from dataclasses import dataclass
from typing import Literal

from node.worker.child.canaries import ATTACKS
from node.worker.child.frames import MalformedFrame, Value, encode
from node.worker.errors import IsolationUnavailable, RuntimeUnavailable
from node.worker.frames import CanaryDone, Confined, FrameStalled, FrameTooLong, read_frame
from node.worker.limits import DEFAULT_LIMITS, WorkerLimits
from node.worker.runtimes import CHILD_SOURCE, child_binds
from node.worker.sandbox import seccomp
from node.worker.sandbox.launch import ALL_LAYERS, Command, Layers, SandboxedProcess, launch

IsolationLevel = Literal["strong", "none"]
PROBE_SLOT = 15
PROBE_S = 20.0
GAP_REMEDY = "this is a gap in the sandbox itself: don't sell, and report it with your kernel's version"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried: what it was, whether it is as it must be, what was seen, and what to do if not."""

    name: str
    passed: bool
    detail: str
    remedy: str


@dataclass(frozen=True, slots=True)
class IsolationReport:
    """The proven level and the checks behind it, in the order they were made."""

    level: IsolationLevel
    checks: tuple[Check, ...]

    def failures(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    def summary(self) -> str:
        """One sentence: the level, and what stands in the way if it is `none`."""
        if self.level == "strong":
            return f"isolation is strong: {len(self.checks)} checks passed"
        wrong = self.failures()[0]
        return f"no isolation: {wrong.name}: {wrong.detail}. {wrong.remedy}"


async def canaries(
    names: tuple[str, ...], limits: WorkerLimits, layers: Layers = ALL_LAYERS
) -> tuple[list[CanaryDone], SandboxedProcess, int]:
    """Try attacks in a fresh sandbox. Returns what came of each, the ended process and the launcher's exit status.

    An attack that the kernel answers by killing the process leaves the list short.
    """
    command = Command(CHILD_SOURCE, child_binds("echo"), limits.memory_bytes)
    process = await launch(command, limits, slot=PROBE_SLOT, layers=layers)
    done: list[CanaryDone] = []
    try:
        wanted: dict[str, Value] = {
            "canaries": [*names],
            "filter": seccomp.filter_after_imports() if layers.filter_after_imports else b"",
            "processes": limits.processes,
        }
        process.stdin.write(encode(["start", wanted]))
        async with asyncio.timeout(PROBE_S):
            while True:
                match await read_frame(process.stdout, limits.frame_s):
                    case CanaryDone() as canary:
                        done.append(canary)
                    case Confined():
                        pass
                    case _:
                        raise MalformedFrame("unexpected frame")
    except asyncio.IncompleteReadError:
        status = await process.end(kill=False)
    except (TimeoutError, MalformedFrame, FrameStalled, FrameTooLong) as error:
        await process.end()
        raise IsolationUnavailable(f"the probe's child misbehaved: {error!r}. {GAP_REMEDY}") from None
    except BaseException:
        await process.end()
        raise
    return done, process, status


async def probe(limits: WorkerLimits = DEFAULT_LIMITS, layers: Layers = ALL_LAYERS) -> IsolationReport:
    """Start a sandbox and attack it. Never raises for what the machine lacks: that is in the report."""
    names = tuple(ATTACKS)
    try:
        done, process, status = await canaries(names, limits, layers)
    except (IsolationUnavailable, RuntimeUnavailable) as error:
        reason, _, remedy = error.reason.partition(". ")
        return IsolationReport("none", (Check("start the sandbox", False, reason, remedy),))
    checks = [Check("start the sandbox", True, _description(process), "")]
    seen = {canary.name: canary for canary in done}
    for name in names:
        canary = seen.get(name)
        if canary is None:
            checks.append(Check(name, False, f"no answer, launcher status {status}", GAP_REMEDY))
        else:
            checks.append(Check(name, canary.stopped, canary.seen, "" if canary.stopped else GAP_REMEDY))
    level: IsolationLevel = "strong" if all(check.passed for check in checks) else "none"
    return IsolationReport(level, tuple(checks))


def _description(process: SandboxedProcess) -> str:
    user = "the node's own user in a user namespace" if process.uid is None else f"a user of its own ({process.uid})"
    return f"namespaces, system call filters, {user}; {process.group_description}"
