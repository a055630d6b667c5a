"""A context-free language over bytes: which byte may come next, and whether the text may end here.

A grammar is built from parts (`literal`, `among`, `sequence`, `either`, `maybe`, `repeated`, `words`, `called`) into a
recursive automaton: one nondeterministic automaton for each rule, with calls between them. It is walked as the set of
all configurations (a state, and the stack of states to return to) in which a text may be; such sets are remembered as
far as they were met, and forgotten when they grow too many.

Law: states, configurations in force at once, depth of calls and work between two choices are all bounded, and
`GrammarTooLarge` tells of it; nothing depends on what is remembered. From every state that is reached a complete text
can be, within the depth: a way that would need more is never entered. A rule that could begin with itself is refused
(`GrammarUnusable`), so every walk over no byte ends. The last call of a rule takes no room on the stack.

Source: Woods, "Transition network grammars for natural language analysis"; Thompson, "Regular expression search
algorithm"; the generalisation of Dijkstra's algorithm by Knuth (1977) for the least depth of a rule.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple
from weakref import WeakValueDictionary

from node.worker.child.text_grammar_checks import ENDLESS, least_depths, refuse_left_recursion, tails

PARTS_MAX = 200_000  # built one behind the other, states or none
STATES_MAX = 30_000  # an object of some hundred properties, a text of some thousand characters; 500 bytes each
AT_ONCE_MAX = 512  # configurations that a text leaves open
DEPTH_MAX = 256  # calls within calls: some hundred levels of arrays in arrays
WORK_MAX = 1 << 17  # configurations looked at between two choices: a fifth of a second at worst
CLOSING_MAX = 1 << 14  # of that, for one byte
REMEMBERED_MAX = 1 << 16  # configurations of remembered sets, and ways between them: some megabytes


class GrammarTooLarge(Exception):
    """The grammar has more states, or leaves more of them open, than is allowed."""


class GrammarUnusable(Exception):
    """The grammar has a rule that begins with itself, or no text at all."""


class Frame:
    """One entry of a stack: where to go on, and what lies beneath. Equal stacks are the same object."""

    __slots__ = ("__weakref__", "back", "beneath", "depth")

    def __init__(self, back: int, beneath: "Frame | None") -> None:
        self.back = back
        self.beneath = beneath
        self.depth: int = 1 + (beneath.depth if beneath is not None else 0)


Configuration = tuple[int, Frame | None]


class State:
    """Where a text has led: every configuration in which it may be that reads a byte, and whether it may end."""

    __slots__ = ("complete", "configurations", "next", "symbols")

    def __init__(self, configurations: frozenset[Configuration], complete: bool, symbols: int) -> None:
        self.configurations = configurations
        self.complete = complete
        self.symbols = symbols
        """The bytes that may come next, as bits."""
        self.next: dict[int, tuple[State | None, int]] = {}
        """Where a byte leads, and the work of finding it out: it counts each time, so that nothing depends on this."""


class _Near(NamedTuple):
    """What is freely reached from a state in its own rule: states that read, calls, whether the rule may end."""

    readers: tuple[int, ...]
    calls: tuple[tuple[int, int], ...]
    ends: bool
    work: int


Part = Callable[["Grammar", int], int]
"""Adds a part to a grammar behind a state; returns the state in which the part is complete."""


class Grammar:
    """One language; `start` is where every text begins."""

    def __init__(self, whole: Part) -> None:
        """Raises GrammarTooLarge, GrammarUnusable."""
        self.edges: list[list[tuple[int, int]]] = []
        self.free: list[list[int]] = []
        self.calls: list[list[tuple[int, int]]] = []
        """From each state: the first state of the rule that is called, and where to go on behind it."""
        self.names: dict[int, str] = {}
        """What people call the rule that begins at a state."""
        self._parts = 0
        self._rules: dict[Hashable, int] = {}
        self._unbuilt: list[tuple[int, Callable[[], Part]]] = []
        first = self.add()
        self.ends = {whole(self, first): None}
        while self._unbuilt:
            begin, body = self._unbuilt.pop()
            self.ends[body()(self, begin)] = None
        refusal = refuse_left_recursion(self)
        if refusal is not None:
            raise GrammarUnusable(refusal)
        self._tails = tails(self)
        self._depths = least_depths(self, self._tails)
        if self._depths[first] >= min(DEPTH_MAX, ENDLESS):
            raise GrammarUnusable("no text of it is ever complete within the depth that is allowed")
        self._near: dict[int, _Near] = {}
        self._frames: WeakValueDictionary[tuple[int, int], Frame] = WeakValueDictionary()
        self._known: dict[tuple[frozenset[Configuration], bool], State] = {}
        self._remembered = 0
        self.work = 0
        """Configurations looked at since somebody set this to nothing."""
        start, _ = self._closed([(first, None)])
        assert start is not None
        self.start: State = start

    # Building

    def add(self) -> int:
        """A new state."""
        if len(self.edges) >= STATES_MAX:
            raise GrammarTooLarge
        self.edges.append([])
        self.free.append([])
        self.calls.append([])
        return len(self.edges) - 1

    def count_part(self) -> None:
        """One more part is built, though it may be of no state at all."""
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise GrammarTooLarge

    def on(self, state: int, symbols: int, then: int) -> None:
        """The bytes whose bits are set lead from one state to another."""
        self.edges[state].append((symbols, then))

    def freely(self, state: int, then: int) -> None:
        """Whoever is in the one state is in the other, too."""
        self.free[state].append(then)

    def call(self, state: int, key: Hashable, name: str, body: Callable[[], Part], then: int) -> None:
        """A whole text of a rule leads from one state to another; the rule is built once, when it is first called."""
        begin = self._rules.get(key)
        if begin is None:
            begin = self._rules[key] = self.add()
            self.names[begin] = name
            self._unbuilt.append((begin, body))
        self.calls[state].append((begin, then))

    # Walking

    def _around(self, state: int) -> "_Near":
        """What is freely reached in a state's own rule."""
        near = self._near.get(state)
        if near is None:
            reached = {state: None}
            waiting = [state]
            while waiting:
                for then in self.free[waiting.pop()]:
                    if then not in reached and self._depths[then] < ENDLESS:
                        reached[then] = None
                        waiting.append(then)
                if len(reached) > 8 * AT_ONCE_MAX:
                    raise GrammarTooLarge
            near = self._near[state] = _Near(
                tuple(each for each in reached if self.edges[each]),
                tuple(call for each in reached for call in self.calls[each]),
                any(each in self.ends for each in reached),
                1 + len(reached) // 8,  # a configuration costs about as much as eight states in one rule
            )
        return near

    def _frame(self, back: int, beneath: Frame | None) -> Frame:
        key = (back, id(beneath))  # whoever is beneath lives as long as what lies on it
        frame = self._frames.get(key)
        if frame is None:
            frame = self._frames[key] = Frame(back, beneath)
        return frame

    def _closed(self, seeds: Iterable[Configuration]) -> tuple[State | None, int]:
        """The set of what is reached from these over no byte, None if no text goes on or ends there; and the work."""
        seen = dict.fromkeys(seeds)
        waiting = list(seen)
        reading: dict[Configuration, None] = {}
        complete = False
        symbols = work = 0
        while waiting:
            state, frame = waiting.pop()
            room = DEPTH_MAX - (frame.depth if frame is not None else 0)
            if self._depths[state] > room:
                continue
            readers, calls, ends, cost = self._around(state)
            work += cost
            for each in readers:
                if (each, frame) not in reading and self._depths[each] <= room:
                    reading[each, frame] = None
                    for accepted, then in self.edges[each]:
                        if self._depths[then] <= room:
                            symbols |= accepted
            reached: list[Configuration] = []
            for begin, then in calls:
                if self._tails[then]:
                    reached.append((begin, frame))
                elif self._depths[begin] < room and self._depths[then] <= room:
                    reached.append((begin, self._frame(then, frame)))
            if ends and frame is None:
                complete = True
            elif ends and frame is not None:
                reached.append((frame.back, frame.beneath))
            for configuration in reached:
                if configuration not in seen:
                    seen[configuration] = None
                    waiting.append(configuration)
            if len(reading) > AT_ONCE_MAX or len(seen) > 8 * AT_ONCE_MAX or work > CLOSING_MAX:
                raise GrammarTooLarge
        found = self._interned(frozenset(reading), complete, symbols) if symbols or complete else None
        return found, work

    def _interned(self, configurations: frozenset[Configuration], complete: bool, symbols: int) -> State:
        key = configurations, complete
        state = self._known.get(key)
        if state is None:
            self._remember(1 + len(configurations))
            state = self._known[key] = State(configurations, complete, symbols)
        return state

    def _remember(self, count: int) -> None:
        """Make room for so much more."""
        self._remembered += count
        if self._remembered > REMEMBERED_MAX:
            for each in self._known.values():
                each.next.clear()
            self._known.clear()
            self._remembered = count

    def step(self, state: State, symbol: int) -> State | None:
        """Where one more byte leads; None if no text goes on like this. Raises GrammarTooLarge."""
        self.work += 1 + len(state.configurations)
        if self.work > WORK_MAX:
            raise GrammarTooLarge
        if not state.symbols >> symbol & 1:
            return None
        if symbol not in state.next:
            reached = [
                (then, frame)
                for each, frame in state.configurations
                for symbols, then in self.edges[each]
                if symbols >> symbol & 1
            ]
            self._remember(1)
            state.next[symbol] = self._closed(reached)
        there, work = state.next[symbol]
        self.work += work
        return there

    def walk(self, state: State, text: bytes) -> State | None:
        """Where a piece of text leads; None if no text of the language goes on like this. Raises GrammarTooLarge."""
        here: State | None = state
        for symbol in text:
            if here is None:
                return None
            here = self.step(here, symbol)
        return here

    def complete(self, state: State) -> bool:
        """Whether the text may end here."""
        return state.complete

    def next_bytes(self, state: State) -> list[int]:
        """The bytes that may come next, ascending."""
        return [symbol for symbol in range(256) if state.symbols >> symbol & 1]


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
            grammar.count_part()
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
            grammar.count_part()
            state = part(grammar, state)
        then = grammar.add()
        grammar.freely(state, then)
        if highest is None:
            again = part(grammar, then)
            grammar.freely(again, then)
            return then
        for _ in range(highest - lowest):
            grammar.count_part()
            state = part(grammar, state)
            grammar.freely(state, then)
        return then

    return build


def words(texts: Sequence[bytes]) -> Part:
    """One of these texts; what they have in common at their beginnings is there once."""

    def build(grammar: Grammar, state: int) -> int:
        then = grammar.add()
        known: dict[tuple[int, int], int] = {}
        for text in dict.fromkeys(texts):
            here = state
            for symbol in text:
                if (here, symbol) not in known:
                    known[here, symbol] = grammar.add()
                    grammar.on(here, 1 << symbol, known[here, symbol])
                here = known[here, symbol]
            grammar.freely(here, then)
        return then

    return build


def called(key: Hashable, name: str, body: Callable[[], Part]) -> Part:
    """A rule that is there once, however often it is called, and may call itself. `name` is what people call it."""

    def build(grammar: Grammar, state: int) -> int:
        then = grammar.add()
        grammar.call(state, key, name, body, then)
        return then

    return build
