"""JSON schemas for answers: the grammar of all JSON texts that one schema accepts, or a clear refusal.

Understood: `type` (object, array, string, number, integer, boolean, null, or a list of them), `properties`, `required`,
`additionalProperties` (a boolean), `items`, `minItems`, `maxItems`, `enum`, `const`, `anyOf`, and annotations (`title`,
`description`, `default`, `examples`, `$schema`, `$id`, `$comment`). Anything else is refused, never ignored: an answer
must not look checked when it isn't.

Law: every text of the grammar is JSON that the schema accepts. It is not every such text: properties come in the
schema's order and no others appear, there is at most one space behind a comma or colon, numbers have at most fifteen
digits, and a value of `enum` or `const` has one spelling. Depth, entries and the grammar's states are bounded.

Source: JSON Schema, draft 2020-12; RFC 8259 (JSON); the well-formed sequences of the Unicode standard, table 3-7.
"""

import json

from node.worker.child.runtime import Refused
from node.worker.child.text_grammar import (
    Grammar,
    GrammarTooLarge,
    Part,
    among,
    either,
    literal,
    maybe,
    repeated,
    sequence,
)

RULES = 1
"""The version of this module's law; what an answer says depends on it."""
DEPTH_MAX = 16
ENTRIES_MAX = 512  # properties, values of enums and alternatives in one schema
ITEMS_MAX = 256
ANNOTATIONS = ("title", "description", "default", "examples", "$schema", "$id", "$comment")
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

_DIGITS = range(ord("0"), ord("9") + 1)
_CONTINUED = range(0x80, 0xC0)
_HEXADECIMAL = (_DIGITS, b"abcdefABCDEF")
_PLAIN = [symbol for symbol in range(0x20, 0x80) if symbol not in b'"\\']
_CHARACTER = either(
    among(_PLAIN),
    sequence(literal(b"\\"), among(b'"\\/bfnrt')),
    # \uXXXX without the halves of pairs: alone they are no characters
    sequence(literal(b"\\u"), among(_DIGITS, b"abcefABCEF"), *[among(*_HEXADECIMAL)] * 3),
    sequence(literal(b"\\u"), among(b"dD"), among(b"01234567"), *[among(*_HEXADECIMAL)] * 2),
    sequence(among(range(0xC2, 0xE0)), among(_CONTINUED)),
    sequence(literal(b"\xe0"), among(range(0xA0, 0xC0)), among(_CONTINUED)),
    sequence(among(range(0xE1, 0xED), b"\xee\xef"), *[among(_CONTINUED)] * 2),
    sequence(literal(b"\xed"), among(range(0x80, 0xA0)), among(_CONTINUED)),
    sequence(literal(b"\xf0"), among(range(0x90, 0xC0)), *[among(_CONTINUED)] * 2),
    sequence(among(b"\xf1\xf2\xf3"), *[among(_CONTINUED)] * 3),
    sequence(literal(b"\xf4"), among(range(0x80, 0x90)), *[among(_CONTINUED)] * 2),
)
_STRING = sequence(literal(b'"'), repeated(_CHARACTER, 0, None), literal(b'"'))
_DIGIT = among(_DIGITS)
_INTEGER = sequence(maybe(literal(b"-")), either(literal(b"0"), sequence(among(b"123456789"), repeated(_DIGIT, 0, 14))))
_NUMBER = sequence(
    _INTEGER,
    maybe(sequence(literal(b"."), repeated(_DIGIT, 1, 15))),
    maybe(sequence(among(b"eE"), maybe(among(b"+-")), repeated(_DIGIT, 1, 2))),
)
_SCALARS: dict[str, Part] = {
    "string": _STRING,
    "number": _NUMBER,
    "integer": _INTEGER,
    "boolean": either(literal(b"true"), literal(b"false")),
    "null": literal(b"null"),
}
_SPACE = maybe(literal(b" "))
_COMMA = sequence(literal(b","), _SPACE)
_COLON = sequence(literal(b":"), _SPACE)


def grammar_of(schema: str) -> Grammar:
    """The grammar of a schema's JSON texts. Raises Refused, naming the part that is at fault."""
    try:
        read: Json = json.loads(schema, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the schema is not JSON: {str(error)[:100]}") from None
    try:
        return Grammar(_Compiler().part(read, "", DEPTH_MAX))
    except GrammarTooLarge:
        raise Refused("the schema is too large: it describes too many different answers") from None


def _no_number(spelling: str) -> Json:
    raise ValueError(f"{spelling} is no JSON number")


class _Compiler:
    """Turns a schema into a part of a grammar, and counts what it meets."""

    def __init__(self) -> None:
        self._entries = 0

    def part(self, schema: Json, place: str, depth: int) -> Part:
        """The texts that a schema accepts; `place` is where it stands, for people."""
        where = place or "the schema"
        if not isinstance(schema, dict):
            raise Refused(f"{where} must be a JSON object that says what is accepted")
        if depth == 0:
            raise Refused(f"the schema is nested deeper than {DEPTH_MAX} levels")
        named = {name: value for name, value in schema.items() if name not in ANNOTATIONS}
        if "enum" in named or "const" in named:
            return self._values(named, where)
        if "anyOf" in named:
            _only(named, ("anyOf",), where)
            return either(
                *(self.part(one, f"{place}/anyOf/{index}", depth - 1)
                  for index, one in enumerate(self._list(named["anyOf"], f"anyOf of {where}")))
            )  # fmt: skip
        return self._typed(named, place, depth)

    def _count(self, entries: int) -> None:
        self._entries += entries
        if self._entries > ENTRIES_MAX:
            raise Refused(f"the schema has more than {ENTRIES_MAX} properties, values and alternatives")

    def _list(self, value: Json, what: str) -> list[Json]:
        if not isinstance(value, list) or not value:
            raise Refused(f"{what} must be a list with at least one entry")
        self._count(len(value))
        return value

    def _values(self, named: dict[str, Json], where: str) -> Part:
        if "enum" in named:
            _only(named, ("enum", "type"), where)
            values = self._list(named["enum"], f"enum of {where}")
        else:
            _only(named, ("const", "type"), where)
            values = [named["const"]]
        types = _types(named, where) if "type" in named else TYPES
        fitting = [value for value in values if any(_is(value, name) for name in types)]
        if not fitting:
            raise Refused(f"no value of {where} has its type")
        return either(*(literal(_spelling(value, where)) for value in fitting))

    def _typed(self, named: dict[str, Json], place: str, depth: int) -> Part:
        where = place or "the schema"
        if "type" not in named:
            raise Refused(f"{where} must have a type, an enum, a const or anyOf")
        types = _types(named, where)
        allowed = ["type"]
        parts = []
        for name in types:
            if name == "object":
                allowed += ["properties", "required", "additionalProperties"]
                parts.append(self._object(named, place, depth))
            elif name == "array":
                allowed += ["items", "minItems", "maxItems"]
                parts.append(self._array(named, place, depth))
            else:
                parts.append(_SCALARS[name])
        _only(named, tuple(allowed), where)
        return either(*parts)

    def _object(self, named: dict[str, Json], place: str, depth: int) -> Part:
        where = place or "the schema"
        properties = named.get("properties", {})
        required = named.get("required", [])
        if not isinstance(properties, dict):
            raise Refused(f"properties of {where} must be a JSON object")
        if not isinstance(named.get("additionalProperties", False), bool):
            raise Refused(f"additionalProperties of {where} must be true or false")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise Refused(f"required of {where} must be a list of names")
        missing = [name for name in required if name not in properties]
        if missing:
            raise Refused(f"{where} requires {json.dumps(missing[0])[:80]}, which is none of its properties")
        self._count(len(properties))
        members = []
        for name, schema in properties.items():
            key = literal(_spelling(name, where))
            members.append((sequence(key, _COLON, self.part(schema, f"{place}/{name}", depth - 1)), name in required))
        return sequence(literal(b"{"), _members(members), literal(b"}"))

    def _array(self, named: dict[str, Json], place: str, depth: int) -> Part:
        where = place or "the schema"
        lowest = _length(named.get("minItems", 0), f"minItems of {where}")
        highest = _length(named["maxItems"], f"maxItems of {where}") if "maxItems" in named else None
        if highest is not None and highest < lowest:
            raise Refused(f"maxItems of {where} is below its minItems")
        if "items" not in named:
            raise Refused(f"{where} must say what its items are")
        item = self.part(named["items"], f"{place}/items", depth - 1)
        if highest == 0:
            return literal(b"[]")
        others = repeated(sequence(_COMMA, item), max(0, lowest - 1), highest - 1 if highest is not None else None)
        some = sequence(item, others)
        return sequence(literal(b"["), some if lowest else maybe(some), literal(b"]"))


def _members(members: list[tuple[Part, bool]]) -> Part:
    """Members of an object in their order, with commas between those that are there; required ones always are."""

    def build(grammar: Grammar, state: int) -> int:
        none, some = state, grammar.add()  # nothing written yet; something written
        bare = True  # whether `none` can still be reached
        for member, required in members:
            begin = grammar.add()
            if bare:
                grammar.freely(none, begin)
            grammar.freely(_COMMA(grammar, some), begin)
            end = member(grammar, begin)
            after = grammar.add()
            grammar.freely(end, after)
            if required:
                bare = False
            else:
                grammar.freely(some, after)
            some = after
        then = grammar.add()
        grammar.freely(some, then)
        if bare:
            grammar.freely(none, then)
        return then

    return build


def _only(named: dict[str, Json], allowed: tuple[str, ...], where: str) -> None:
    for name in named:
        if name not in allowed:
            raise Refused(f"{where} uses {json.dumps(name)[:80]}, which answers can't be held to here")


def _types(named: dict[str, Json], where: str) -> tuple[str, ...]:
    given = named["type"]
    types = given if isinstance(given, list) else [given]
    known = [name for name in TYPES if name in types]
    if not types or len(known) != len(types):
        raise Refused(f"the type of {where} must be one or more of " + ", ".join(TYPES) + ", each once")
    return tuple(known)


def _is(value: Json, name: str) -> bool:
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


def _length(value: Json, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= ITEMS_MAX:
        raise Refused(f"{what} must be a whole number from 0 to {ITEMS_MAX}")
    return value


def _spelling(value: Json, where: str) -> bytes:
    """The one spelling of a value in answers. Raises Refused for what has none, such as half a character pair."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        raise Refused(f"a value of {where} can't be written as JSON") from None
