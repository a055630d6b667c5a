"""llama.cpp called directly: the shortest loop around the worker's own settings, no sandbox, no jobs, no pieces.

Run as a program: its first line in is the model's file and the context, each later one a JSON ``Ask``; it answers each
with one line.
"""

import sys
import time

import msgspec

from node.worker.child.llama import BATCH_ROWS, Llama, Row
from scripts.benchmarks.direct_model import quietly


class Ask(msgspec.Struct, frozen=True):
    """Prompts, template included, and how many tokens each answer has."""

    prompts: list[str]
    tokens: int


class Answer(msgspec.Struct, frozen=True):
    """What came of it: in all, and until the first token of the first prompt. Processor time is of all processes."""

    seconds: float
    first_seconds: float
    processor_seconds: float
    tokens: int
    text: str


def _read(llama: Llama, prompt: list[int]) -> int:
    """The token behind a prompt, which is read in whole batches."""
    for start in range(0, len(prompt), BATCH_ROWS):
        piece = prompt[start : start + BATCH_ROWS]
        rows = [Row(0, token, start + place, start + place == len(prompt) - 1) for place, token in enumerate(piece)]
        logits = llama.evaluate(rows)
    return int(logits[0].argmax())


def _answer(llama: Llama, ask: Ask) -> Answer:
    (prompt,) = ask.prompts
    started, used = time.perf_counter(), time.process_time()
    tokens = llama.tokenize(prompt, markers=True, limit=llama.context_tokens)
    place, token = len(tokens), _read(llama, tokens)
    first = time.perf_counter() - started
    said: list[int] = []
    while len(said) < ask.tokens and not llama.ends(token):
        said.append(token)
        if len(said) < ask.tokens:
            (logits,) = llama.evaluate([Row(0, token, place, True)])
            place, token = place + 1, int(logits.argmax())
    text = b"".join(map(llama.text_of, said)).decode("utf-8", "replace")
    seconds = time.perf_counter() - started
    llama.keep(0, 0)
    return Answer(seconds, first, time.process_time() - used, len(said), text)


def main() -> None:
    """Serve until standard input closes."""
    path, context = sys.stdin.readline().split()
    with quietly():
        llama = Llama()
        llama.load(path, int(context), 1)
    print("ready", flush=True)
    for line in sys.stdin:
        print(msgspec.json.encode(_answer(llama, msgspec.json.decode(line, type=Ask))).decode(), flush=True)


if __name__ == "__main__":
    main()
