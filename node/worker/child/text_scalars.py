"""Strings and numbers of JSON schemas: what their keywords accept, as parts of a grammar, and whether a value does.

Law: without keywords of its own a string or number has every spelling that the grammar of JSON texts knows; with any,
one spelling for each character, and numbers of fifteen digits without an exponent. A keyword that leaves nothing is
told (`Impossible`), and so is one that takes too much (`Refused`).

Source: JSON Schema, draft 2020-12; RFC 8259 (JSON).
"""

import functools
from fractions import Fraction

from node.worker.child.runtime import Refused
from node.worker.child.text_characters import ANY, Characters, TooManyStates, Work, both, in_json, so_long, utf8
from node.worker.child.text_formats import FORMATS
from node.worker.child.text_grammar import Part, among, called, either, literal, maybe, repeated, sequence
from node.worker.child.text_numbers import Bounds, NoNumber, number
from node.worker.child.text_pattern import PatternRefused, characters_of

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Case = dict[str, Json]

COUNT_MAX = 4096  # of items, properties and characters
_DIGITS = range(ord("0"), ord("9") + 1)
_HEXADECIMAL = (_DIGITS, b"abcdefABCDEF")
_PLAIN = [symbol for symbol in range(0x20, 0x80) if symbol not in b'"\\']
_CHARACTER = called(
    "any character",
    "a character",
    lambda: either(
        among(_PLAIN),
        sequence(literal(b"\\"), among(b'"\\/bfnrt')),
        # \uXXXX without the halves of pairs: alone they are no characters
        sequence(literal(b"\\u"), among(_DIGITS, b"abcefABCEF"), *[among(*_HEXADECIMAL)] * 3),
        sequence(literal(b"\\u"), among(b"dD"), among(b"01234567"), *[among(*_HEXADECIMAL)] * 2),
        utf8(((0x80, ANY[0][1]), ANY[1])),
    ),
)
STRING = called("string", "a string", lambda: sequence(literal(b'"'), repeated(_CHARACTER, 0, None), literal(b'"')))
_DIGIT = among(_DIGITS)
INTEGER = sequence(maybe(literal(b"-")), either(literal(b"0"), sequence(among(b"123456789"), repeated(_DIGIT, 0, 14))))
NUMBER = sequence(
    INTEGER,
    maybe(sequence(literal(b"."), repeated(_DIGIT, 1, 15))),
    maybe(sequence(among(b"eE"), maybe(among(b"+-")), repeated(_DIGIT, 1, 2))),
)


class Impossible(Refused):
    """No value satisfies this; another alternative may do."""


def exactly(value: Json) -> Fraction:
    """A number as it is written."""
    assert isinstance(value, int | float)
    return Fraction(repr(value))


def is_of(value: Json, name: str) -> bool:
    """Whether a value is of a schema's type."""
    match name:
        case "object":
            return isinstance(value, dict)
        case "array":
            return isinstance(value, list)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer":
            whole = isinstance(value, float) and value.is_integer()
            return (isinstance(value, int) or whole) and not isinstance(value, bool)
        case _:
            return isinstance(value, int | float) and not isinstance(value, bool)


def same(one: Json, other: Json) -> bool:
    """Whether two values are equal as JSON: true is not 1, and 1.0 is."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return one == other


def bounds_of(case: Case) -> Bounds:
    """What a case says of numbers."""
    keywords = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
    return Bounds(*(exactly(case[keyword]) if keyword in case else None for keyword in keywords))


def numbers(case: Case, where: str, *, whole: bool) -> Part:
    """The numbers of a case. Raises Impossible, Refused."""
    bounds = bounds_of(case)
    if bounds == Bounds():
        return INTEGER if whole else NUMBER
    try:
        part = number(bounds, whole=whole)
    except NoNumber as error:
        raise Impossible(f"{where} {error}") from None
    return called((bounds, whole), where, lambda: part)


def _length(case: Case) -> tuple[int, int | None]:
    lowest, highest = case.get("minLength", 0), case.get("maxLength")
    assert isinstance(lowest, int)
    assert highest is None or isinstance(highest, int)
    return lowest, highest


@functools.cache
def _formatted(name: str) -> Characters:
    """The texts of a format; there are few formats."""
    return characters_of(FORMATS[name], Work())


class Strings:
    """The strings of one schema, whose patterns together may take so much work."""

    def __init__(self) -> None:
        self._work = Work()
        self._patterns: dict[str, Characters] = {}

    def part(self, case: Case, where: str) -> Part:
        """The strings of a case. Raises Impossible, Refused."""
        lowest, highest = _length(case)
        if highest is not None and highest < lowest:
            raise Impossible(f"maxLength of {where} is below its minLength")
        if "pattern" not in case and "format" not in case:
            if not lowest and highest is None:
                return STRING
            return sequence(literal(b'"'), repeated(_CHARACTER, lowest, highest), literal(b'"'))
        characters = self._characters(case, where).trimmed()
        if characters is None:
            raise Impossible(f"no text satisfies what {where} says of it")
        return called(("text", *map(str, case.items())), where, lambda: in_json(characters))

    def holds(self, value: str, case: Case, where: str) -> bool:
        """Whether a text satisfies what a case says of texts. Raises Refused."""
        lowest, highest = _length(case)
        if len(value) < lowest or (highest is not None and len(value) > highest):
            return False
        judged: Case = {name: case[name] for name in ("pattern", "format") if name in case}
        return not judged or value in self._characters(judged, where)

    def _pattern(self, pattern: str) -> Characters:
        if pattern not in self._patterns:
            self._patterns[pattern] = characters_of(pattern, self._work)
        return self._patterns[pattern]

    def _characters(self, case: Case, where: str) -> Characters:
        """The texts that satisfy a pattern or a format, and whatever else a case says. Raises Refused."""
        patterns, formats = case.get("pattern", []), case.get("format", [])
        assert isinstance(patterns, list)
        assert isinstance(formats, list)
        keyword = "pattern"
        try:
            parts = [self._pattern(str(pattern)) for pattern in patterns]
            parts += [_formatted(str(name)) for name in formats]
            keyword = "maxLength" if "maxLength" in case else "minLength"
            if keyword in case:
                parts.append(so_long(*_length(case)))
            keyword = "pattern, format or length"
            return functools.reduce(lambda one, other: both(one, other, self._work), parts)
        except PatternRefused as error:
            raise Refused(f"{keyword} of {where} {error}") from None
        except TooManyStates:
            raise Refused(f"{keyword} of {where} takes too many states") from None


def number_holds(value: int | float, case: Case) -> bool:
    """Whether a number satisfies what a case says of numbers."""
    return exactly(value) in bounds_of(case)
