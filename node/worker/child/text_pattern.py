"""Regular expressions of JSON schemas: the texts in which one is found, as an automaton over characters.

Understood: characters, `.`, classes, `\\d \\w \\s` and their opposites, escapes, groups, `|`, `* + ? {m,n}` (lazy ones
too: they accept the same texts), `^` and `$` at the ends of the whole or of its alternatives. What is no regular
language, or looks around, is refused and named.

Law: time and states are bounded; nothing here tries and takes back. A pattern without `^` may be found anywhere.

Source: ECMA-262, as JSON Schema recommends; the subset construction of Rabin and Scott.
"""

from itertools import chain, pairwise

from node.worker.child.text_characters import ANY, Characters, Ranges, TooManyStates, Work, others, ranges_of

PATTERN_CHARACTERS_MAX = 4096
GROUPS_MAX = 64  # within each other
REPEATED_MAX = 1024
NODES_MAX = 10_000
STATES_MAX = 2048

_DIGIT = ranges_of([(48, 57)])
_WORD = ranges_of([(48, 57), (65, 90), (95, 95), (97, 122)])
_SPACE = ranges_of(
    [(9, 13), (32, 32), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F),
     (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)]
)  # fmt: skip
_LINE_ENDS = ranges_of([(10, 10), (13, 13), (0x2028, 0x2029)])
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE, "D": others(_DIGIT), "W": others(_WORD), "S": others(_SPACE)}
_CONTROLS = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "0": 0}
_DIGITS = {"x": 2, "u": 4}


class PatternRefused(Exception):
    """The pattern is wrong, or is none that answers can be held to; the message says why."""


class _Builder:
    """A nondeterministic automaton over characters."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.steps: list[list[tuple[Ranges, int]]] = []
        self.free: list[list[int]] = []

    def add(self) -> int:
        self._work.spend(8)  # reading it again for each repetition costs more than a comparison
        if len(self.steps) >= NODES_MAX:
            raise PatternRefused("is too large")
        self.steps.append([])
        self.free.append([])
        return len(self.steps) - 1


class _Parser:
    """Reads a pattern twice where it repeats itself: a repetition reads its part again for each time."""

    def __init__(self, text: str, built: _Builder) -> None:
        self._text = text
        self._place = 0
        self._built = built

    def whole(self, begin: int) -> int:
        """The automaton behind a state; returns where the pattern was found, and anything may follow."""
        end = self._alternatives(begin, 0)
        if self._place < len(self._text):
            raise PatternRefused('has a ")" too many')
        return end

    def _peek(self) -> str:
        return self._text[self._place : self._place + 1]

    def _take(self) -> str:
        if self._place >= len(self._text):
            raise PatternRefused("ends too early")
        self._place += 1
        return self._text[self._place - 1]

    def _alternatives(self, begin: int, depth: int) -> int:
        if depth > GROUPS_MAX:
            raise PatternRefused("has groups within each other that are too many")
        built = self._built
        end = built.add()
        while True:
            first = built.add()
            built.free[begin].append(first)
            built.free[self._sequence(first, depth)].append(end)
            if self._peek() != "|":
                return end
            self._place += 1

    def _sequence(self, state: int, depth: int) -> int:
        built, top = self._built, depth == 0
        if top and self._peek() == "^":
            self._place += 1
        elif top:
            built.steps[state].append((ANY, state))
        while self._peek() not in ("", "|", ")"):
            if top and self._peek() == "$" and self._text[self._place + 1 : self._place + 2] in ("", "|"):
                self._place += 1
                return state
            state = self._repeated(state, depth)
        if top and self._peek() != ")":
            after = built.add()
            built.free[state].append(after)
            built.steps[after].append((ANY, after))
            return after
        return state

    def _repeated(self, state: int, depth: int) -> int:
        begin = self._place
        built = self._built
        first = built.add()
        built.free[state].append(first)
        end = self._atom(first, depth)
        lowest, highest = self._count()
        after = self._place
        if (lowest, highest) == (1, 1):
            return end
        if highest == 0:
            return state
        then = built.add()
        if lowest == 0:
            built.free[first].append(then)
        for number in range(2, (highest if highest is not None else lowest) + 1):
            self._place, first = begin, end
            end = self._atom(first, depth)
            if number > lowest:
                built.free[first].append(then)
        if highest is None:
            built.free[end].append(first)
        built.free[end].append(then)
        self._place = after
        return then

    def _count(self) -> tuple[int, int | None]:
        """How often: from, to (None: without end)."""
        sign = self._peek()
        if sign in ("*", "+", "?") and sign:
            self._place += 1
            found: tuple[int, int | None] = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        elif sign == "{":
            close = self._text.find("}", self._place)
            low, comma, high = self._text[self._place + 1 : close].partition(",")
            if close < 0 or not _is_count(low) or not (high == "" or _is_count(high)):
                raise PatternRefused('has a "{" that begins no repetition: write "\\{"')
            found = int(low), int(high) if high else None if comma else int(low)
            if found[1] is not None and found[1] < found[0]:
                raise PatternRefused("has a repetition whose end is below its beginning")
            if max(found[0], found[1] or 0) > REPEATED_MAX:
                raise PatternRefused(f"repeats something more than {REPEATED_MAX} times")
            self._place = close + 1
        else:
            return 1, 1
        if self._peek() == "?":
            self._place += 1
        if self._peek() in ("*", "+", "{") and self._peek():
            raise PatternRefused("repeats a repetition")
        return found

    def _atom(self, state: int, depth: int) -> int:
        sign = self._take()
        if sign == "(":
            return self._group(state, depth)
        if sign in "*+?{":
            raise PatternRefused(f'repeats nothing: "{sign}"')
        if sign in "^$":
            raise PatternRefused(f'has a "{sign}" inside, where it can\'t be kept')
        if sign == "[":
            ranges = self._class()
        elif sign == ".":
            ranges = others(_LINE_ENDS)
        elif sign == "\\":
            ranges = self._escape()
        else:
            ranges = ranges_of([(ord(sign), ord(sign))])
        end = self._built.add()
        self._built.steps[state].append((ranges, end))
        return end

    def _group(self, state: int, depth: int) -> int:
        if self._peek() == "?":
            self._place += 1
            kind = self._take()
            if kind == "<" and self._peek() not in ("=", "!"):
                while self._take() != ">":
                    pass
            elif kind != ":":
                raise PatternRefused("looks around, which no answer can be held to")
        end = self._alternatives(state, depth + 1)
        if self._peek() != ")":
            raise PatternRefused('has a "(" that nothing closes')
        self._place += 1
        return end

    def _escape(self) -> Ranges:
        sign = self._take()
        if sign in _CLASSES:
            return _CLASSES[sign]
        point = self._escaped(sign)
        return ranges_of([(point, point)])

    def _escaped(self, sign: str) -> int:
        """The code point of an escape of one character."""
        if sign in _CONTROLS and not (sign == "0" and self._peek().isdigit()):
            return _CONTROLS[sign]
        if sign == "u" and self._peek() == "{":
            close = self._text.find("}", self._place)
            digits, self._place = self._text[self._place + 1 : close], close + 1
            if close < 0:
                raise PatternRefused('has "\\u{" that nothing closes')
        elif sign in _DIGITS:
            digits = self._text[self._place : self._place + _DIGITS[sign]]
            self._place += _DIGITS[sign]
            if len(digits) < _DIGITS[sign]:
                raise PatternRefused(f'has "\\{sign}" without {_DIGITS[sign]} digits')
        elif sign.isalnum():
            raise PatternRefused(f'uses "\\{sign}", which answers can\'t be held to')
        else:
            return ord(sign)
        if not digits or len(digits) > 6 or any(letter not in "0123456789abcdefABCDEF" for letter in digits):
            raise PatternRefused(f'has "\\{sign}" without hexadecimal digits')
        if not any(low <= int(digits, 16) <= high for low, high in ANY):
            raise PatternRefused(f'has "\\{sign}{digits}", which is no character')
        return int(digits, 16)

    def _class(self) -> Ranges:
        opposite = self._peek() == "^"
        self._place += opposite
        pairs: list[tuple[int, int]] = []
        while (sign := self._take()) != "]":
            if sign == "\\" and self._peek() in _CLASSES and self._peek():
                pairs += _CLASSES[self._take()]
                continue
            low = self._class_point(sign)
            high = low
            if self._peek() == "-" and self._text[self._place + 1 : self._place + 2] not in ("]", ""):
                self._place += 1
                sign = self._take()
                if sign == "\\" and self._peek() in _CLASSES:
                    raise PatternRefused("has a range in a class that ends in a class")
                high = self._class_point(sign)
                if high < low:
                    raise PatternRefused("has a range in a class that ends before it begins")
            pairs.append((low, high))
        ranges = ranges_of(pairs)
        return others(ranges) if opposite else ranges

    def _class_point(self, sign: str) -> int:
        if sign != "\\":
            return ord(sign)
        sign = self._take()
        return 8 if sign == "b" else ord("-") if sign == "-" else self._escaped(sign)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 6


def characters_of(pattern: str, work: Work) -> Characters:
    """The texts in which a pattern is found. Raises PatternRefused, TooManyStates."""
    if len(pattern) > PATTERN_CHARACTERS_MAX:
        raise PatternRefused(f"has more than {PATTERN_CHARACTERS_MAX} characters")
    built = _Builder(work)
    begin = built.add()
    return _determined(built, begin, _Parser(pattern, built).whole(begin), work)


def _turns(ways: list[tuple[Ranges, int]]) -> list[tuple[int, list[tuple[int, int]]]]:
    """Code points at which something changes, ascending: where one more way leads from there on, or one less."""
    turns: dict[int, list[tuple[int, int]]] = {}
    for ranges, then in ways:
        for low, high in ranges:
            turns.setdefault(low, []).append((then, 1))
            turns.setdefault(high + 1, []).append((then, -1))
    return sorted(turns.items())


def _determined(built: _Builder, begin: int, end: int, work: Work) -> Characters:
    near: dict[int, tuple[int, ...]] = {}

    def around(state: int) -> tuple[int, ...]:
        if state not in near:
            reached = {state: None}
            waiting = [state]
            while waiting:
                for then in built.free[waiting.pop()]:
                    if then not in reached:
                        reached[then] = None
                        waiting.append(then)
            near[state] = tuple(each for each in reached if built.steps[each] or each == end)
            work.spend(len(reached))
        return near[state]

    first = frozenset(around(begin))
    known = {first: 0}
    sets = [first]
    steps: list[list[tuple[Ranges, int]]] = []
    for places in sets:
        ways = [(ranges, then) for place in sorted(places) for ranges, then in built.steps[place]]
        turns = _turns(ways)
        work.spend(sum(len(ranges) for ranges, _ in ways))
        open_ways: dict[int, int] = {}  # how many ways lead where
        pieces: dict[int, list[tuple[int, int]]] = {}
        for (low, change), (above, _) in pairwise(turns):
            for then, more in change:
                open_ways[then] = open_ways.get(then, 0) + more
                if not open_ways[then]:
                    del open_ways[then]
            near_ones = [around(then) for then in open_ways]
            work.spend(len(change) + len(near_ones) + sum(map(len, near_ones)) // 4)  # joined at once
            reached = frozenset(chain.from_iterable(near_ones))
            if not reached:
                continue
            if reached not in known:
                known[reached] = len(sets)
                sets.append(reached)
            pieces.setdefault(known[reached], []).append((low, above - 1))
            if len(sets) > STATES_MAX:
                raise TooManyStates
        steps.append([(ranges_of(pairs), then) for then, pairs in pieces.items()])
    return Characters(steps, [number for number, places in enumerate(sets) if end in places])
