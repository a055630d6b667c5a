"""What the library computes on this machine, before it is given anything of a stranger's.

A small model of our own (`scripts/known_answer.py` writes it) is read with the settings of every job. A library that
gives other tokens than were seen here is refused. Whether logits are the same bits however the prompt is cut and
whatever else is in a batch, which canonical mode promises, is tried rather than believed: kernels are chosen by
processor, and not every processor was measured.

Law: the tokens of `ANSWERS` were ahead of all others by more than two, so that rounding can't swap them.
"""

from pathlib import Path

import numpy

from node.worker.child.llama import BATCH_ROWS, DecodeFailed, Llama, Logits, Row
from node.worker.child.runtime import LoadFailed

MODEL = Path(__file__).with_name("known_answer.gguf")
CONTEXT_TOKENS = 160
PROMPT = [(place * place * 5 + place * 3) % 64 for place in range(100)]
ANSWERS = {14: 12, 32: 19, 33: 55, 48: 40, 69: 18, 85: 48, 92: 10, 98: 43}
"""Place in the prompt → the token that should follow it."""
LAST = len(PROMPT) - 1
# Sizes of the pieces in which a prompt is read, and rows of another sequence beside each.
CUTS: tuple[tuple[tuple[int, ...], int], ...] = (((7,), 0), ((5, 11), 9), ((31, 1), 1))


def prove(llama: Llama) -> bool:
    """Whether bits depend on nothing but a job's own tokens here. Raises LoadFailed if the library computes wrongly."""
    llama.load(str(MODEL), CONTEXT_TOKENS, 2)
    try:
        found = _read(llama, 0, (BATCH_ROWS,), 0, [*ANSWERS, LAST])
        if {place: int(found[place].argmax()) for place in ANSWERS} != ANSWERS:
            raise LoadFailed("the library computes something else than it should: not the pinned build")
        return all(
            numpy.array_equal(_read(llama, sequence % 2, cuts, beside, [LAST])[LAST], found[LAST])
            for sequence, (cuts, beside) in enumerate(CUTS, start=1)
        )
    except DecodeFailed as error:
        raise LoadFailed(f"the library does not run: {error}") from None
    finally:
        llama.unload()


def _read(llama: Llama, sequence: int, cuts: tuple[int, ...], beside: int, wanted: list[int]) -> dict[int, Logits]:
    """Logits behind the wanted places, the prompt being cut like this and another one read beside it."""
    llama.keep(0, 0)
    llama.keep(1, 0)
    found: dict[int, Logits] = {}
    place = others = step = 0
    while place < len(PROMPT):
        end = min(len(PROMPT), place + cuts[step % len(cuts)])
        rows = [Row(1 - sequence, PROMPT[-1 - at % len(PROMPT)], at, False) for at in range(others, others + beside)]
        rows += [Row(sequence, PROMPT[at], at, at in wanted) for at in range(place, end)]
        asked = [at for at in range(place, end) if at in wanted]
        found.update(zip(asked, llama.evaluate(rows), strict=True))
        place, others, step = end, others + beside, step + 1
    return found
