"""Where a node's processor time goes: a profile, parted by what the code is for.

Law: every second of the profile is in exactly one stage. What the interpreter's own functions take counts for their
callers, but for those that are a stage's work themselves: signatures, the disk, sockets.
"""

import pstats
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from scripts.benchmarks.measure import Report

Function = tuple[str, int, str]
_Row = tuple[int, int, float, float, dict[Function, tuple[int, int, float, float]]]

_NATIVE = (
    ("signatures", ("_sodium", "nacl")),
    ("disk", ("sqlite3.",)),
    ("links: WebSocket, TLS, sockets", ("_socket.socket", "_ssl.", "aiohttp._websocket")),
    ("waiting", ("select.epoll",)),
)
_FILES = (
    ("signatures", ("/nacl/", "protocol/primitives/signing.py", "node/runtime/signer.py", "node/runtime/door.py")),
    ("disk", ("node/store/", "node/runtime/executor.py")),
    ("links: WebSocket, TLS, sockets", ("node/transport/", "aiohttp/_websocket", "web_ws", "client_ws", "sslproto")),
    ("control API and its events", ("node/api/", "aiohttp/", "job_stream", "event_stream", "run_events", "wishes")),
    ("worker's pipes", ("node/worker/", "node/runtime/work.py", "asyncio/streams.py")),
    ("log", ("structlog/", "node/telemetry.py")),
    ("market's rules", ("protocol/market/", "protocol/settlement/")),
    ("bytes: encoding, hashes", ("protocol/messages/", "protocol/primitives/")),
    ("engine, ledger, gossip", ("protocol/",)),
    ("event loop", ("asyncio/", "selectors.py", "contextlib.py")),
    ("runtime", ("node/",)),
)
_OTHERS = "interpreter"


def _stage(function: Function) -> str | None:
    """What a function is for; ``None`` for one of the interpreter's own."""
    path, _, name = function
    if path == "~":
        return next((stage for stage, marks in _NATIVE if any(mark in name for mark in marks)), None)
    return next((stage for stage, marks in _FILES if any(mark in path for mark in marks)), _OTHERS)


def parted(rows: dict[Function, _Row]) -> dict[str, float]:
    """Seconds by stage, the largest first; waiting for something to do is none."""
    seconds: dict[str, float] = {}
    for function, (_, _, own, _, callers) in rows.items():
        stage = _stage(function)
        if stage is not None:
            seconds[stage] = seconds.get(stage, 0.0) + own
            continue
        for caller, (_, _, of_caller, _) in callers.items():
            called_by = _stage(caller) or _OTHERS
            seconds[called_by] = seconds.get(called_by, 0.0) + of_caller
    seconds.pop("waiting", None)
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def _calls(rows: dict[Function, _Row], marks: Iterable[tuple[str, str]]) -> int:
    return sum(row[1] for function, row in rows.items() if any(a in function[0] and b == function[2] for a, b in marks))


def tell_stages(report: Report, role: str, profile: Path, jobs: int, milliseconds: float) -> None:
    """A node's processor time for a job by stage, and how often it did what costs most.

    The shares are the profile's, the time is what was measured without one: profiling makes small functions dearer.
    """
    rows = cast(dict[Function, _Row], pstats.Stats(str(profile)).stats)  # type: ignore[attr-defined]
    seconds = parted(rows)
    whole = sum(seconds.values())
    report.notes.append(
        f"{role}'s node: {milliseconds:.2f} ms of processor time for a job, by a profile of {jobs} jobs:"
    )
    for stage, of_stage in seconds.items():
        report.notes.append(f"  {stage:<34} {of_stage / whole * milliseconds:6.3f} ms  {of_stage / whole:6.1%}")
    commits = _calls(rows, [("node/runtime/executor.py", "_shorten_log")])  # one call behind each, in whatever thread
    for name, count in (
        ("commits", commits),
        ("signatures_made", _calls(rows, [("crypto_sign.py", "crypto_sign")])),
        ("signatures_checked", _calls(rows, [("crypto_sign.py", "crypto_sign_open")])),
        ("frames_sent", _calls(rows, [("node/transport/link.py", "send_frame")])),
        ("engine_steps", _calls(rows, [("protocol/engine/engine.py", "step")])),
        ("function_calls", sum(row[1] for row in rows.values())),
    ):
        report.add(f"market.job.{name}/node={role}", count / jobs, "1/job")
