"""``mercat model pull`` of a model from peers: what the node is asked, the progress line, and what is shown at the end.

Law: the rate shown is that of the last seconds, so that it says what is, not what was. A pull that is interrupted keeps
what it has; the same command goes on.
"""

import re
import time
from collections import deque

import click

from node.cli.failures import CommandFailed, ExitCode
from node.cli.options import Session
from node.cli.output import Progress, fields, short, table
from node.runtime.model_views import PullEvent, PullRequest

WINDOW_S = 3.0
BAR_CELLS = 24
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(|k|K|M|G|Ki|Mi|Gi)B?(?:/s)?")


class ByteRate(click.ParamType[int]):
    """Bytes a second as people type them: ``10MB/s``, ``500kB/s``, ``2MiB``."""

    name = "rate"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes a second."""
        if isinstance(value, int):
            return value
        found = _RATE.fullmatch(str(value).strip())
        rate = 0 if found is None else int(float(found[1]) * _UNITS["k" if found[2] == "K" else found[2]])
        if not 1_000 <= rate <= 2**40:
            self.fail(f"not a rate of at least 1 kB/s: {value!r} (such as 10MB/s)", param, ctx)
        return rate


BYTE_RATE = ByteRate()


class Pace:
    """How fast bytes have come lately."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, now_s: float, done: int) -> None:
        """So many bytes are there now."""
        self._seen.append((now_s, done))
        while now_s - self._seen[0][0] > WINDOW_S and len(self._seen) > 2:
            self._seen.popleft()

    def per_second(self) -> float:
        """Bytes a second; 0 while that is not known."""
        if len(self._seen) < 2 or self._seen[-1][0] <= self._seen[0][0]:
            return 0.0
        return (self._seen[-1][1] - self._seen[0][1]) / (self._seen[-1][0] - self._seen[0][0])


def bar(done: int, total: int) -> str:
    """A bar that is as full as the work is done."""
    full = BAR_CELLS if done >= total else BAR_CELLS * done // total
    return "[" + "#" * full + "." * (BAR_CELLS - full) + "]"


def duration(seconds: float) -> str:
    """A time that is left, for people."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02} min"


def progress_text(event: PullEvent, rate: float) -> str:
    """One line: how far, how fast, from how many, and for how long still."""
    name = event.name or short(event.model)
    if not event.bytes_total or event.stage != "pulling":
        return f"{name}: {event.stage}"
    giving = sum(1 for source in event.sources if source.pieces and not source.dropped)
    parts = [
        f"{name} {bar(event.bytes_done, event.bytes_total)} {event.bytes_done * 100 // event.bytes_total}%",
        f"{event.bytes_done / 1e6:.1f} of {event.bytes_total / 1e6:.1f} MB",
        f"{rate / 1e6:.1f} MB/s",
        f"{giving} source{'' if giving == 1 else 's'}",
    ]
    if rate > 0:
        parts.append(f"{duration((event.bytes_total - event.bytes_done) / rate)} left")
    return ", ".join(parts)


def pull_from_peers(session: Session, request: PullRequest, silence_s: float) -> PullEvent:
    """Pull one model and show how it goes; the last event. Raises ``CommandFailed``."""
    progress, pace, told = Progress(), Pace(), dict[str, None]()
    last: PullEvent | None = None
    try:
        for event in session.client.pull_model(request, silence_s):
            last = event
            for source in event.sources:
                if source.corrupt and source.source not in told:
                    told[source.source] = None
                    progress.clear()
                    session.output.note(f"dropped {source.source}: {source.state}")
            if event.event == "failed":
                raise CommandFailed(f"{request.model}: {event.reason}", event.exit_code, event.code)
            pace.add(time.monotonic(), event.bytes_done)
            progress.update(progress_text(event, pace.per_second()))
    finally:
        progress.clear()
    if last is None or last.event != "finished":
        raise CommandFailed(f"{request.model}: the node stopped; pull again to go on", ExitCode.FAILED, "interrupted")
    return last


def pulled_text(event: PullEvent) -> str:
    """A pulled model, for people."""
    pairs = [
        ("id", event.model),
        ("name", f"{event.name} {event.version}"),
        ("runtime", event.runtime),
        ("license", event.license),
        ("published", f"by {event.publisher}" if event.publisher else "by nobody on the ledger"),
        ("size", f"{event.bytes_total / 1e6:.1f} MB"),
    ]
    if not event.sources:
        return fields([*pairs, ("from", "this node's store: it was there, and whole")])
    if event.bytes_kept:
        pairs.append(("kept", f"{event.bytes_kept / 1e6:.1f} MB that were there before"))
    rows = [
        (short(source.source, 18), f"{source.bytes_received / 1e6:.1f} MB", str(source.pieces), _conduct(source.state))
        for source in event.sources
    ]
    return fields(pairs) + "\n\n" + table(("SOURCE", "CAME", "PIECES USED", "CONDUCT"), rows)


def _conduct(state: str) -> str:
    return "good" if state == "asked" else state
