"""Languages over characters: deterministic automata whose steps are ranges of code points, and what is made of them.

A `Characters` automaton judges the text *inside* a JSON string, however it is spelled there; `in_json` turns it into a
part of a grammar over bytes. Halves of pairs (D800 to DFFF) are no characters and in no range.

Law: states and work are bounded (`TooManyStates`), and every state that is left after `trimmed` leads to a whole text.
In JSON each character has one spelling: itself, or the shortest escape where it needs one.

Source: RFC 8259 (which characters need an escape); the well-formed sequences of the Unicode standard, table 3-7.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from operator import itemgetter

from node.worker.child.text_grammar import Grammar, Part, among, called, either, literal, sequence

CODE_POINT_MAX = 0x10FFFF
STATES_MAX = 4096
WORK_MAX = 1 << 18  # ranges and places looked at for one schema: a quarter of a second
Ranges = tuple[tuple[int, int], ...]
"""Code points from the first to the last of each pair; ascending, disjoint, not touching."""
ANY: Ranges = ((0, 0xD7FF), (0xE000, CODE_POINT_MAX))
_SHORT_ESCAPES = {8: b"\\b", 9: b"\\t", 10: b"\\n", 12: b"\\f", 13: b"\\r", 34: b'\\"', 92: b"\\\\"}
_UTF8_ENDS = (0x7F, 0x7FF, 0xFFFF, CODE_POINT_MAX)


class TooManyStates(Exception):
    """The automaton has more states, or takes more work, than is allowed."""


class Work:
    """What may still be spent on the automata of one schema."""

    def __init__(self) -> None:
        self._left = WORK_MAX

    def spend(self, count: int) -> None:
        """Raises TooManyStates when nothing is left."""
        self._left -= count
        if self._left < 0:
            raise TooManyStates


def ranges_of(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """Pairs in any order, joined, without halves of pairs."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        elif low <= high:
            joined.append((low, high))
    return _both(tuple(joined), ANY)


def others(ranges: Ranges) -> Ranges:
    """All other characters."""
    left: list[tuple[int, int]] = []
    begin = 0
    for low, high in ranges:
        left.append((begin, low - 1))
        begin = high + 1
    left.append((begin, CODE_POINT_MAX))
    return ranges_of((low, high) for low, high in left if low <= high)


def _both(one: Ranges, other: Ranges) -> Ranges:
    """What is in both, in one walk along both: a class may have thousands of ranges."""
    found = []
    left = right = 0
    while left < len(one) and right < len(other):
        low, high = max(one[left][0], other[right][0]), min(one[left][1], other[right][1])
        if low <= high:
            found.append((low, high))
        if one[left][1] < other[right][1]:
            left += 1
        else:
            right += 1
    return tuple(found)


class Characters:
    """A deterministic automaton; state 0 is where every text begins."""

    def __init__(self, steps: Sequence[Sequence[tuple[Ranges, int]]], accepting: Iterable[int]) -> None:
        self.steps = [list(each) for each in steps]
        self.accepting = dict.fromkeys(accepting)
        self._ordered: dict[int, list[tuple[int, int, int]]] = {}

    def __contains__(self, text: str) -> bool:
        state = 0
        for letter in text:
            ways = self._ways(state)
            place = bisect_right(ways, ord(letter), key=itemgetter(0)) - 1
            if place < 0 or ord(letter) > ways[place][1]:
                return False
            state = ways[place][2]
        return state in self.accepting

    def _ways(self, state: int) -> list[tuple[int, int, int]]:
        """Ranges and where they lead, ascending; made once for each state in which a text was."""
        if state not in self._ordered:
            self._ordered[state] = sorted(
                (low, high, then) for ranges, then in self.steps[state] for low, high in ranges
            )
        return self._ordered[state]

    def trimmed(self) -> "Characters | None":
        """The same without what leads to no text; None if there is no text at all."""
        backwards: list[list[int]] = [[] for _ in self.steps]
        for state, steps in enumerate(self.steps):
            for _, then in steps:
                backwards[then].append(state)
        alive = dict(self.accepting)
        waiting = list(alive)
        while waiting:
            for before in backwards[waiting.pop()]:
                if before not in alive:
                    alive[before] = None
                    waiting.append(before)
        if 0 not in alive:
            return None
        return Characters([[step for step in steps if step[1] in alive] for steps in self.steps], self.accepting)


def so_long(lowest: int, highest: int | None) -> Characters:
    """All texts of so many characters."""
    last = lowest if highest is None else highest
    if last >= STATES_MAX:
        raise TooManyStates
    steps: list[list[tuple[Ranges, int]]] = [[(ANY, state + 1)] for state in range(last)]
    steps.append([(ANY, last)] if highest is None else [])
    return Characters(steps, range(lowest, last + 1))


def none_of(texts: Iterable[str]) -> Characters:
    """All texts but these."""
    free = 0
    tree: list[dict[int, int]] = [{}]
    whole: dict[int, None] = {}
    for text in texts:
        state = 0
        for letter in text:
            if ord(letter) not in tree[state]:
                tree.append({})
                tree[state][ord(letter)] = len(tree) - 1
            state = tree[state][ord(letter)]
        whole[state] = None
    free = len(tree)
    steps: list[list[tuple[Ranges, int]]] = []
    for branches in tree:
        row: list[tuple[Ranges, int]] = [(((point, point),), then) for point, then in branches.items()]
        row.append((others(ranges_of((point, point) for point in branches)), free))
        steps.append(row)
    steps.append([(ANY, free)])
    return Characters(steps, [state for state in range(free + 1) if state not in whole])


def both(one: Characters, other: Characters, work: Work) -> Characters:
    """The texts of both. Raises TooManyStates."""
    known = {(0, 0): 0}
    pairs = [(0, 0)]
    steps: list[list[tuple[Ranges, int]]] = []
    for left, right in pairs:
        row = []
        for ranges, then in one.steps[left]:
            for others_ranges, further in other.steps[right]:
                work.spend(len(ranges) + len(others_ranges))
                common = _both(ranges, others_ranges)
                if not common:
                    continue
                if (then, further) not in known:
                    known[then, further] = len(pairs)
                    pairs.append((then, further))
                row.append((common, known[then, further]))
        if len(pairs) > STATES_MAX:
            raise TooManyStates
        steps.append(row)
    accepting = [known[pair] for pair in pairs if pair[0] in one.accepting and pair[1] in other.accepting]
    return Characters(steps, accepting)


# Into bytes


def utf8(ranges: Ranges) -> Part:
    """One character out of these, as it is."""
    return either(
        *(
            sequence(*(among(range(low, high + 1)) for low, high in each))
            for low, high in ranges
            for each in _sequences(low, high)
        )
    )


def _sequences(low: int, high: int) -> list[list[tuple[int, int]]]:
    """Ranges of bytes, one behind the other, that spell exactly the characters from one to another."""
    for end in _UTF8_ENDS:
        if low <= end < high:
            return _sequences(low, end) + _sequences(end + 1, high)
    first, last = chr(low).encode(), chr(high).encode()
    for place in range(len(first) - 1, 0, -1):
        # a cut is due where the bytes behind a place run from some to some, and not from the first to the last
        below = (1 << 6 * place) - 1
        if low >> 6 * place != high >> 6 * place:
            if low & below:
                return _sequences(low, low | below) + _sequences((low | below) + 1, high)
            if high & below != below:
                return _sequences(low, (high & ~below) - 1) + _sequences(high & ~below, high)
    return [list(zip(first, last, strict=True))]


def json_character(ranges: Ranges) -> Part:
    """One character out of these, as it is spelled in a JSON string."""
    plain = [pair for pair in _both(ranges, others(((0, 31), (34, 34), (92, 92)))) if pair[0] <= pair[1]]
    escaped = [
        point for low, high in ranges for point in range(low, min(high, 92) + 1) if point < 32 or point in (34, 92)
    ]
    spelled = [literal(_SHORT_ESCAPES.get(point, b"\\u%04x" % point)) for point in escaped]
    if plain and plain[-1][1] < 128 and not spelled:
        return among(*(range(low, high + 1) for low, high in plain))
    return called(
        ("character", ranges), "a character", lambda: either(*([utf8(tuple(plain))] if plain else []), *spelled)
    )


def in_json(characters: Characters) -> Part:
    """The texts of a trimmed automaton, as JSON strings between their quotes, the quotes included."""

    def build(grammar: Grammar, state: int) -> int:
        begin = literal(b'"')(grammar, state)
        places = [begin, *(grammar.add() for _ in characters.steps[1:])]
        end = grammar.add()
        for place, steps in enumerate(characters.steps):
            for ranges, then in steps:
                grammar.freely(json_character(ranges)(grammar, places[place]), places[then])
            if place in characters.accepting:
                grammar.freely(places[place], end)
        return literal(b'"')(grammar, end)

    return build
