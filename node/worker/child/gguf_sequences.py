"""Which sequence of a model's memory serves which job, and what each still holds of the last one.

A finished job leaves the tokens that it had evaluated in its sequence. The same tenant's next job goes on from as many
of them as its prompt begins with.

Law: nothing is ever shared between tenants: whoever else takes a sequence finds it empty, and a job without a named
tenant leaves nothing. No memory is taken beyond that of the sequences themselves: an empty one is taken first, the one
with the lowest number, then the one that has been idle longest. What a job is charged does not depend on what was held.
"""

from collections.abc import Callable
from dataclasses import dataclass

WORTH_KEEPING = 32  # tokens, one batch: fewer cost a step anyway, and another sequence would lose what it holds


@dataclass(frozen=True, slots=True)
class _Held:
    tenant: str
    tokens: list[int]


class Sequences:
    """The sequences of one model that no job uses; the one given back first comes first."""

    def __init__(self, count: int, keep: Callable[[int, int], bool], *, remember: bool) -> None:
        """``keep(sequence, tokens)`` drops all but so many of a sequence's first tokens; False if it could not.

        Without ``remember`` every job finds its sequence empty.
        """
        self._keep = keep
        self._remember = remember
        self._idle = {sequence: _Held("", []) for sequence in range(count)}

    def any_idle(self) -> bool:
        """Whether a job could be taken."""
        return bool(self._idle)

    def take(self, tenant: str, prompt: list[int]) -> tuple[int, int]:
        """A sequence for a job, and how many of its prompt's tokens that sequence holds: at most all but the last."""
        sequence, common = self._best(tenant, prompt)
        del self._idle[sequence]
        if common and self._keep(sequence, common):
            return sequence, common
        self._keep(sequence, 0)
        return sequence, 0

    def _best(self, tenant: str, prompt: list[int]) -> tuple[int, int]:
        empty = (sequence for sequence, held in self._idle.items() if not held.tokens)
        best, most = min(empty, default=next(iter(self._idle))), 0  # neighbours in number are computed together
        for sequence, held in self._idle.items():
            if tenant and held.tenant == tenant:
                common = _common(held.tokens, prompt)
                if common >= WORTH_KEEPING and common > most:
                    best, most = sequence, common
        return best, most

    def give_back(self, sequence: int, tenant: str, tokens: list[int]) -> None:
        """A job has left its sequence; `tokens` are what the model's memory holds of it."""
        if not self._remember or not tenant:
            self._keep(sequence, 0)
            tenant, tokens = "", []
        self._idle[sequence] = _Held(tenant, tokens)

    def forget(self, sequence: int) -> None:
        """A job has left its sequence, and nobody knows what the model's memory holds of it."""
        self._keep(sequence, 0)
        self._idle[sequence] = _Held("", [])


def _common(held: list[int], prompt: list[int]) -> int:
    """How many tokens both begin with; one of the prompt is left to evaluate, for its logits."""
    longest = min(len(held), len(prompt) - 1)
    for place in range(longest):
        if held[place] != prompt[place]:
            return place
    return longest
