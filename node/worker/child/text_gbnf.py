"""Grammars in GBNF, the notation of llama.cpp: the language of one grammar's `root`, or a clear refusal.

    root   ::= "[" ws (item ("," ws item)*)? "]"    # a comment
    item   ::= [0-9]{1,4} | "\\"" [^"\\x00-\\x1F]* "\\""
    ws     ::= " "?

Understood: rules, texts in quotes, classes of characters, `.`, groups, `|`, `* + ? {m} {m,} {m,n}`, the escapes
`\\n \\r \\t \\\\ \\" \\[ \\] \\xHH \\uHHHH \\UHHHHHHHH`, comments; a rule goes on over line ends until the next
one begins. Characters are those of Unicode. Rules may call each other and themselves, but not begin with themselves.
Tokens of a vocabulary can't be named.

Law: a stranger's grammar costs no more than a bounded number of states and of steps, whatever it repeats; everything
that is refused is told with its line.

Source: the description of the notation in `grammars/README.md` of the llama.cpp project.
"""

from node.worker.child.runtime import Refused
from node.worker.child.text_characters import CODE_POINT_MAX, Ranges, others, ranges_of, utf8
from node.worker.child.text_grammar import (
    Grammar,
    GrammarTooLarge,
    GrammarUnusable,
    Part,
    called,
    either,
    literal,
    repeated,
    sequence,
    words,
)

ROOT = "root"
GROUPS_MAX = 64  # within each other
REPEATED_MAX = 4096
_ESCAPES = {"n": 10, "r": 13, "t": 9, "\\": 92, '"': 34, "[": 91, "]": 93, "-": 45, "^": 94, "'": 39}
_DIGITS = {"x": 2, "u": 4, "U": 8}
_HEXADECIMAL = "0123456789abcdefABCDEF"
_SIGNS = {"*": (0, None), "+": (1, None), "?": (0, 1)}
ANY = others(())


def grammar_of_gbnf(text: str) -> Grammar:
    """The grammar that a text in GBNF describes. Raises Refused."""
    try:
        return Grammar(_Parser(text).whole())
    except GrammarTooLarge:
        raise Refused("the grammar is too large: it describes too many different answers") from None
    except GrammarUnusable as error:
        raise Refused(f"the grammar can't be followed: {error}") from None


def _is_name(letter: str) -> bool:
    return letter.isascii() and (letter.isalnum() or letter in "-_")


def _character(ranges: Ranges) -> Part:
    """One character out of these; a rule where it takes more than one state."""
    if ranges[-1][1] < 128:
        return utf8(ranges)
    # The key is a text because its hash is kept: a class may have thousands of ranges, and be called as often.
    return called(f"character {ranges}", "a character", lambda: utf8(ranges))


def _part(part: Part | bytes) -> Part:
    return literal(part) if isinstance(part, bytes) else part


class _Parser:
    """Reads rules; what a rule calls is looked up once all are read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0
        self._rules: dict[str, Part] = {}
        self._calls: dict[str, int] = {}
        """Names that were called, and where for the first time."""

    def whole(self) -> Part:
        """The part that `root` is. Raises Refused."""
        self._skip()
        while self._place < len(self._text):
            self._rule()
        for name, place in self._calls.items():
            if name not in self._rules:
                raise self._refused(f"there is no rule {name}", place)
        if ROOT not in self._rules:
            raise Refused(f"the grammar has no rule {ROOT}, with which every answer begins")
        return self._call(ROOT)

    def _refused(self, reason: str, place: int | None = None) -> Refused:
        line = self._text.count("\n", 0, self._place if place is None else place) + 1
        return Refused(f"line {line} of the grammar: {reason}")

    def _peek(self, count: int = 1) -> str:
        return self._text[self._place : self._place + count]

    def _take(self) -> str:
        if self._place >= len(self._text):
            raise self._refused("it ends too early")
        self._place += 1
        return self._text[self._place - 1]

    def _skip(self) -> None:
        """Over spaces, line ends and comments."""
        while (letter := self._peek()) and letter in " \t\r\n#":
            if letter == "#":
                end = self._text.find("\n", self._place)
                self._place = end if end >= 0 else len(self._text)
            else:
                self._place += 1

    def _name(self) -> str:
        begin = self._place
        while (letter := self._peek()) and _is_name(letter):
            self._place += 1
        return self._text[begin : self._place]

    def _rule(self) -> None:
        name = self._name()
        self._skip()
        if not name or self._peek(3) != "::=":
            raise self._refused('a rule is expected here: its name, and then "::="')
        if name in self._rules:
            raise self._refused(f"there are two rules {name}")
        self._place += 3
        self._rules[name] = self._alternatives(0)
        if self._peek() == ")":
            raise self._refused('a ")" that closes nothing')

    def _alternatives(self, depth: int) -> Part:
        if depth > GROUPS_MAX:
            raise self._refused(f"more than {GROUPS_MAX} groups within each other")
        choices = [self._sequence(depth)]
        while self._peek() == "|":
            self._place += 1
            choices.append(self._sequence(depth))
        texts = [choice for choice in choices if isinstance(choice, bytes)]
        parts = [choice for choice in choices if not isinstance(choice, bytes)]
        if texts:
            parts.append(words(texts))
        return parts[0] if len(parts) == 1 else either(*parts)

    def _sequence(self, depth: int) -> Part | bytes:
        """One alternative; as bytes if it is one text."""
        parts: list[Part | bytes] = []
        self._skip()
        while (letter := self._peek()) not in ("", "|", ")"):
            if _is_name(letter) and self._begins_a_rule():
                break
            parts.append(self._repeated(self._atom(depth)))
            self._skip()
        texts = [part for part in parts if isinstance(part, bytes)]
        return b"".join(texts) if len(texts) == len(parts) else sequence(*map(_part, parts))

    def _begins_a_rule(self) -> bool:
        """Whether a name is followed by "::=": it is no call, then."""
        place = self._place
        self._name()
        self._skip()
        begins = self._peek(3) == "::="
        self._place = place
        return begins

    def _atom(self, depth: int) -> Part | bytes:
        letter = self._peek()
        if _is_name(letter):
            place, name = self._place, self._name()
            self._calls.setdefault(name, place)
            return self._call(name)
        self._place += 1
        if letter == '"':
            return self._quoted()
        if letter == "[":
            return _character(self._class())
        if letter == ".":
            return _character(ANY)
        if letter == "(":
            inner = self._alternatives(depth + 1)
            if self._peek() != ")":
                raise self._refused('a "(" that nothing closes')
            key = ("group", self._place)
            self._place += 1
            return called(key, "a group", lambda: inner)
        if letter in ("<", "!"):
            raise self._refused("tokens can't be named here, only characters")
        raise self._refused(f"{letter!r} has no meaning here")

    def _call(self, name: str) -> Part:
        return called(("rule", name), f"rule {name}", lambda: self._rules[name])

    def _quoted(self) -> bytes:
        points = []
        while (letter := self._take()) != '"':
            points.append(self._point(letter))
        return "".join(map(chr, points)).encode()

    def _class(self) -> Ranges:
        opposite = self._peek() == "^"
        self._place += opposite
        pairs = []
        while (letter := self._take()) != "]":
            low = high = self._point(letter)
            if self._peek() == "-" and self._peek(2) != "-]":
                self._place += 1
                high = self._point(self._take())
                if high < low:
                    raise self._refused("a range of characters that ends before it begins")
            pairs.append((low, high))
        ranges = ranges_of(pairs)
        if opposite:
            ranges = others(ranges)
        if not ranges:
            raise self._refused("a class without characters")
        return ranges

    def _point(self, letter: str) -> int:
        """The code point of a character or of an escape."""
        point = ord(letter)
        if letter == "\\":
            sign = self._take()
            if sign in _DIGITS:
                digits = self._peek(_DIGITS[sign])
                self._place += _DIGITS[sign]
                if len(digits) < _DIGITS[sign] or any(digit not in _HEXADECIMAL for digit in digits):
                    raise self._refused(f'"\\{sign}" needs {_DIGITS[sign]} hexadecimal digits')
                point = int(digits, 16)
            elif sign in _ESCAPES:
                point = _ESCAPES[sign]
            else:
                raise self._refused(f'"\\{sign}" is no escape')
        if point > CODE_POINT_MAX or 0xD800 <= point <= 0xDFFF:
            raise self._refused(f"{point:X} is no character")
        return point

    def _repeated(self, part: Part | bytes) -> Part | bytes:
        self._skip_on_line()
        while (sign := self._peek()) and sign in "*+?{":
            if sign == "{":
                lowest, highest = self._count()
            else:
                self._place += 1
                lowest, highest = _SIGNS[sign]
            part = repeated(_part(part), lowest, highest)
            self._skip_on_line()
        return part

    def _skip_on_line(self) -> None:
        while (letter := self._peek()) and letter in " \t":
            self._place += 1

    def _count(self) -> tuple[int, int | None]:
        close = self._text.find("}", self._place)
        low, comma, high = (part.strip() for part in self._text[self._place + 1 : max(close, 0)].partition(","))
        known = [part for part in (low, high) if part]
        if close < 0 or not low or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in known):
            raise self._refused("a repetition is {m}, {m,} or {m,n}")
        lowest, highest = int(low), int(high) if high else None if comma else int(low)
        if max(lowest, highest or 0) > REPEATED_MAX:
            raise self._refused(f"a repetition of more than {REPEATED_MAX}")
        if highest is not None and highest < lowest:
            raise self._refused("a repetition whose end is below its beginning")
        self._place = close + 1
        return lowest, highest
