"""A regular language over bytes: which byte may come next, and whether the text may end here.

A grammar is built from parts (`literal`, `among`, `sequence`, `either`, `maybe`, `repeated`) into a nondeterministic
automaton; the deterministic one is made as far as it is walked, and forgotten when it grows too large.

Law: the number of states is bounded while the grammar is built, and so is the number of them that are in force at once
while it is walked; both ends are told by `GrammarTooLarge`. From every state that is reached a complete text can be.

Source: Thompson, "Regular expression search algorithm"; the subset construction of Rabin and Scott.
"""

from collections.abc import Callable, Iterable

STATES_MAX = 20_000  # an object of some hundred properties; two hundred bytes each
AT_ONCE_MAX = 1024  # alternatives that a text leaves open: twice the values that one schema may list
REMEMBERED_MAX = 1 << 18  # members of remembered deterministic states: a few megabytes

State = tuple[int, ...]
"""Where a text has led: every state of the automaton in which it may be, ascending."""
Part = Callable[["Grammar", int], int]
"""Adds a part to a grammar behind a state; returns the state in which the part is complete."""


class GrammarTooLarge(Exception):
    """The grammar has more states, or leaves more of them open, than is allowed."""


class Grammar:
    """One language; `start` is where every text begins."""

    def __init__(self, whole: Part) -> None:
        """Raises GrammarTooLarge."""
        self._edges: list[list[tuple[int, int]]] = []
        self._free: list[list[int]] = []
        first = self.add()
        self._last = whole(self, first)
        self._known: dict[State, dict[int, State | None]] = {}
        self._remembered = 0
        self.start = self._closed([first])

    def add(self) -> int:
        """A new state."""
        if len(self._edges) >= STATES_MAX:
            raise GrammarTooLarge
        self._edges.append([])
        self._free.append([])
        return len(self._edges) - 1

    def on(self, state: int, symbols: int, then: int) -> None:
        """The bytes whose bits are set lead from one state to another."""
        self._edges[state].append((symbols, then))

    def freely(self, state: int, then: int) -> None:
        """Whoever is in the one state is in the other, too."""
        self._free[state].append(then)

    def _closed(self, states: Iterable[int]) -> State:
        """These and whatever is freely reached from them."""
        reached = dict.fromkeys(states)
        waiting = list(reached)
        while waiting:
            for then in self._free[waiting.pop()]:
                if then not in reached:
                    reached[then] = None
                    waiting.append(then)
        if len(reached) > AT_ONCE_MAX:
            raise GrammarTooLarge
        return tuple(sorted(reached))

    def _step(self, state: State, symbol: int) -> State | None:
        known = self._known.get(state)
        if known is None:
            self._remembered += len(state)
            if self._remembered > REMEMBERED_MAX:
                self._known.clear()
                self._remembered = len(state)
            known = self._known[state] = {}
        if symbol not in known:
            reached = [then for each in state for symbols, then in self._edges[each] if symbols >> symbol & 1]
            known[symbol] = self._closed(reached) if reached else None
        return known[symbol]

    def walk(self, state: State, text: bytes) -> State | None:
        """Where a piece of text leads; None if no text of the language goes on like this. Raises GrammarTooLarge."""
        here: State | None = state
        for symbol in text:
            if here is None:
                return None
            here = self._step(here, symbol)
        return here

    def complete(self, state: State) -> bool:
        """Whether the text may end here."""
        return self._last in state

    def next_bytes(self, state: State) -> list[int]:
        """The bytes that may come next, ascending."""
        symbols = 0
        for each in state:
            for accepted, _ in self._edges[each]:
                symbols |= accepted
        return [symbol for symbol in range(256) if symbols >> symbol & 1]


def literal(text: bytes) -> Part:
    """Exactly this text."""
    return sequence(*(among((symbol,)) for symbol in text))


def among(*ranges: Iterable[int]) -> Part:
    """One byte out of these."""
    symbols = sum(1 << symbol for symbol in {symbol for each in ranges for symbol in each})

    def build(grammar: Grammar, state: int) -> int:
        then = grammar.add()
        grammar.on(state, symbols, then)
        return then

    return build


def sequence(*parts: Part) -> Part:
    """One part behind the other."""

    def build(grammar: Grammar, state: int) -> int:
        for part in parts:
            state = part(grammar, state)
        return state

    return build


def either(*parts: Part) -> Part:
    """One of these parts."""

    def build(grammar: Grammar, state: int) -> int:
        ends = []
        for part in parts:
            begin = grammar.add()
            grammar.freely(state, begin)
            ends.append(part(grammar, begin))
        then = grammar.add()
        for end in ends:
            grammar.freely(end, then)
        return then

    return build


def maybe(part: Part) -> Part:
    """The part, or nothing."""
    return either(part, sequence())


def repeated(part: Part, lowest: int, highest: int | None) -> Part:
    """The part so many times; without a highest count as often as one likes."""

    def build(grammar: Grammar, state: int) -> int:
        for _ in range(lowest):
            state = part(grammar, state)
        then = grammar.add()
        grammar.freely(state, then)
        if highest is None:
            again = part(grammar, then)
            grammar.freely(again, then)
            return then
        for _ in range(highest - lowest):
            state = part(grammar, state)
            grammar.freely(state, then)
        return then

    return build
