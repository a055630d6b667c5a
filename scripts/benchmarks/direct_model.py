"""A language model called directly: the worker's own runtime in a plain process, no sandbox, no market.

Run as a program: its first line in is the model's id, each later one a JSON ``Ask``; it answers each with one line.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator

import msgspec

from node.worker.child.gguf import GgufRuntime
from node.worker.child.runtime import Piece, Prefilled, Request
from node.worker.models import ModelStore
from scripts.benchmarks.network import MODEL_STORE


class Ask(msgspec.Struct, frozen=True):
    """One prompt, as the runtime takes it."""

    payload: bytes
    tokens_max: int
    chunk_units: int


class Answer(msgspec.Struct, frozen=True):
    """What came of it."""

    seconds: float
    tokens: int
    text: bytes


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """The runtime's library describes every model at length on standard error."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _load(model_id: str, slots: int) -> GgufRuntime:
    store = ModelStore(MODEL_STORE)
    manifest = store.verify(model_id)
    runtime = GgufRuntime()
    runtime.prepare()
    files = {file.path: str(store.file_path(file)) for file in manifest.files}
    runtime.load(files, dict(manifest.settings), slots)
    return runtime


def _answer(runtime: GgufRuntime, ask: Ask, number: int) -> Answer:
    started = time.perf_counter()
    runtime.open(number, Request("chat", ask.payload, ask.tokens_max, ask.chunk_units, 0, 0, ()))
    for _ in range(ask.tokens_max):
        runtime.grant(number)
    text, tokens = b"", 0
    while runtime.busy():
        for event in runtime.step():
            match event:
                case Piece(_, payload, units, _, _):
                    text += payload
                    tokens += units
                case Prefilled():
                    pass
                case _:
                    raise AssertionError(event)
    return Answer(time.perf_counter() - started, tokens, text)


def main() -> None:
    """Serve until standard input closes."""
    model_id = sys.stdin.readline().strip()
    with quietly():
        runtime = _load(model_id, 2)
    print("ready", flush=True)
    for number, line in enumerate(sys.stdin):
        answer = _answer(runtime, msgspec.json.decode(line, type=Ask), number)
        print(msgspec.json.encode(answer).decode(), flush=True)


if __name__ == "__main__":
    main()
