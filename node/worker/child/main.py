"""The child's main loop: start as told, confine itself, then serve frames until the pipe closes.

Order: keep only the pipes → imports of the wanted runtime → second filter → read the model → serve. Between steps of
work the pipe is polled, so a cancel is seen after at most one step. When the node goes away the pipe ends, and so does
this process.

Frames in: ["start", {...}], ["open", job, request], ["grant", job], ["cancel", job].
Frames out: ["confined", settings], ["ready", context_tokens], ["failed", reason], ["prefilled", job, units],
["piece", job, payload, units, tokens, finish], ["refused", job, reason], ["broken", job, reason],
["cancelled", job], ["canary", name, stopped, seen].
"""

import os
import sys
import traceback
from typing import assert_never

from node.worker.child import confine
from node.worker.child.frames import FramePipe, MalformedFrame, Value
from node.worker.child.runtime import (
    Broken,
    Event,
    LoadFailed,
    Piece,
    Prefilled,
    Refused,
    Rejected,
    Runtime,
    parse_request,
)

EXIT_FAILED = 1
EXIT_MISUSED = 3


class Misused(Exception):
    """The node sent something that it never sends."""


def make_runtime(name: str) -> Runtime:
    """The runtime with this name; its packages are imported here, before the second filter."""
    if name == "echo":
        from node.worker.child.echo import EchoRuntime

        return EchoRuntime()
    if name == "onnx":
        from node.worker.child.onnx import OnnxRuntime

        return OnnxRuntime()
    if name == "gguf":
        from node.worker.child.gguf import GgufRuntime

        return GgufRuntime()
    if name == "wasm":
        from node.worker.child.wasm import WasmRuntime

        return WasmRuntime()
    raise Misused(f"no runtime {name!r}")


def _plain(reason: str) -> str:
    """A reason as a frame can hold it: it may name what a stranger wrote, and half a pair of characters is no text."""
    return reason.encode("utf-8", "backslashreplace").decode()


def event_frame(event: Event) -> Value:
    """An event as a frame."""
    match event:
        case Prefilled(job, units):
            return ["prefilled", job, units]
        case Piece(job, payload, units, tokens, finish):
            return ["piece", job, payload, units, list(tokens), finish]
        case Rejected(job, reason):
            return ["refused", job, _plain(reason)]
        case Broken(job, reason):
            return ["broken", job, _plain(reason)]
        case _:
            assert_never(event)


def handle(pipe: FramePipe, runtime: Runtime, frame: Value) -> None:
    """Act on one frame from the node."""
    match frame:
        case ["open", int(job), request]:
            try:
                parsed = parse_request(request)
                runtime.refuse_unsupported(parsed)
                runtime.open(job, parsed)
            except Refused as refusal:
                pipe.write(["refused", job, _plain(str(refusal))])
        case ["grant", int(job)]:
            runtime.grant(job)
        case ["cancel", int(job)]:
            runtime.cancel(job)
            pipe.write(["cancelled", job])
        case _:
            raise Misused("unknown frame")


def serve(pipe: FramePipe, runtime: Runtime) -> None:
    """Serve until the node closes the pipe (EOFError)."""
    while True:
        while (frame := pipe.read(0.0 if runtime.busy() else None, runtime.wakes)) is not None:
            handle(pipe, runtime, frame)
        for event in runtime.step():
            pipe.write(event_frame(event))


def run_canaries(pipe: FramePipe, names: list[Value], program: bytes) -> None:
    """Try attacks on our own sandbox and report what came of each."""
    from node.worker.child import canaries

    texts = [name for name in names if isinstance(name, str)]
    early = [name for name in texts if name.startswith(canaries.EARLY)]

    def report(name: str) -> None:
        stopped, seen = canaries.attempt(name)
        pipe.write(["canary", name, stopped, seen[:200]])

    for name in early:
        report(name)
    if program:
        confine.apply_filter(program)
    pipe.write(["confined", {}])
    for name in texts:
        if name not in early:
            report(name)


def start(pipe: FramePipe) -> None:
    """Do what the first frame says."""
    match pipe.read(None):
        case ["start", {"canaries": list(names), "filter": bytes(program), "processes": int(processes)}]:
            confine.limit_processes(processes)
            run_canaries(pipe, names, program)
        case [
            "start",
            {
                "runtime": str(name),
                "files": dict(files),
                "settings": dict(settings),
                "slots": int(slots),
                "filter": bytes(program),
                "processes": int(processes),
            },
        ]:
            confine.limit_processes(processes)
            runtime = make_runtime(name)
            facts: dict[str, Value] = {**runtime.prepare()}
            if program:
                confine.apply_filter(program)
            pipe.write(["confined", facts])  # said before the first stranger's byte, so the node may believe it
            loaded = runtime.load({key: str(value) for key, value in files.items()}, settings, slots)
            pipe.write(["ready", loaded.context_tokens])
            serve(pipe, runtime)
        case _:
            raise Misused("the first frame must be a start")


def main() -> None:
    """Entry point inside the sandbox."""
    reading, writing = confine.keep_only_pipes()
    pipe = FramePipe(reading, writing)
    try:
        start(pipe)
    except (EOFError, BrokenPipeError):
        pass
    except LoadFailed as failure:
        pipe.write(["failed", _plain(str(failure))])
    except (Misused, MalformedFrame, confine.ConfinementFailed) as problem:
        print(f"worker: {problem}", file=sys.stderr)
        os._exit(EXIT_MISUSED)
    except BaseException:  # leave at once: a normal exit would wait for threads that a runtime left behind
        traceback.print_exc()
        os._exit(EXIT_FAILED)
    sys.stderr.flush()
    os._exit(0)
