"""JSON schemas for answers: the grammar of the JSON texts that one schema accepts, or a clear refusal.

Understood: `type`, `enum`, `const`; `properties`, `required`, `additionalProperties`, `minProperties`, `maxProperties`;
`items`, `prefixItems`, `minItems`, `maxItems`; `minLength`, `maxLength`, `pattern`, `format`; `minimum`, `maximum`,
`exclusiveMinimum`, `exclusiveMaximum`, `multipleOf`; `$ref` within the schema, with or without recursion, `allOf`,
`anyOf`, and `oneOf` whose alternatives can be told apart; annotations. Anything else is refused, never ignored: an
answer must not look checked when it isn't.

Law: every text of the grammar is JSON that the schema accepts. It is not every such text: properties come in the
schema's order and others behind them; where a schema names properties or first items, there are others only if it says
so; there is at most one space behind a comma or colon, numbers have at most fifteen digits, and a value of `enum`, or a
character of a string with a pattern, has one spelling. Depth, entries and the grammar's states are bounded.

Source: JSON Schema, draft 2020-12; RFC 8259 (JSON).
"""

import functools
import json
from hashlib import blake2b

from node.worker.child.runtime import Refused
from node.worker.child.text_cases import ANNOTATIONS, Cases, types_of
from node.worker.child.text_characters import TooManyStates, in_json, none_of
from node.worker.child.text_grammar import (
    Grammar,
    GrammarTooLarge,
    GrammarUnusable,
    Part,
    called,
    either,
    literal,
    maybe,
    repeated,
    sequence,
    words,
)
from node.worker.child.text_scalars import NUMBER, STRING, Case, Impossible, Json, numbers

__all__ = ["Json", "grammar_of"]

NESTED_MAX = 64  # lists and tables within each other, of which a schema is written
OPTIONAL_MAX = 400  # properties of one object that may be left out: each is a way to go on
_SPACE = maybe(literal(b" "))
_COMMA = sequence(literal(b","), _SPACE)
_COLON = sequence(literal(b":"), _SPACE)


def grammar_of(schema: str) -> Grammar:
    """The grammar of a schema's JSON texts. Raises Refused, naming the part that is at fault."""
    try:
        read: Json = json.loads(schema, parse_constant=_no_number, object_pairs_hook=_table)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the schema is not JSON: {str(error)[:100]}") from None
    _refuse_depth(read)
    try:
        return Grammar(_Compiler(read).part(read, ""))
    except GrammarTooLarge:
        raise Refused("the schema is too large: it describes too many different answers") from None
    except GrammarUnusable as error:
        raise Refused(f"the schema can't be followed: {error}") from None
    except RecursionError:
        raise Refused("the schema is nested too deep") from None


def _no_number(spelling: str) -> Json:
    raise ValueError(f"{spelling} is no JSON number")


def _table(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name is there twice in one object, so one of both would be ignored")
    return table


def _refuse_depth(schema: Json) -> None:
    level: list[Json] = [schema]
    for _ in range(NESTED_MAX):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    if level:
        raise Refused(f"the schema is nested deeper than {NESTED_MAX} levels")


class _Compiler:
    """Turns one schema into a part of a grammar. Objects, arrays and references become rules, made when called."""

    def __init__(self, document: Json) -> None:
        self._cases = Cases(document)

    def part(self, schema: Json, place: str) -> Part:
        """The texts that a schema accepts; `place` is where it stands, for people. Raises Refused."""
        self._cases.refuse_document(schema, place)
        said = [name for name in schema if name not in ANNOTATIONS] if isinstance(schema, dict) else []
        if isinstance(schema, dict) and said == ["$ref"]:
            return self._reference(schema["$ref"], place)
        if isinstance(schema, dict) and said in (["anyOf"], ["oneOf"]):
            cases = self._cases.of(schema, place) if said == ["oneOf"] else None  # are its alternatives apart?
            alternatives = schema[said[0]]
            if isinstance(alternatives, list) and alternatives and cases != []:
                self._cases.count(len(alternatives))
                return self._one_of(
                    [
                        functools.partial(self.part, alternative, f"{place}/{said[0]}/{index}")
                        for index, alternative in enumerate(alternatives)
                    ],
                    place,
                )
        return self._one_of(
            [functools.partial(self._case, case, place) for case in self._cases.of(schema, place)], place
        )

    def _reference(self, reference: Json, place: str) -> Part:
        target = self._cases.target(reference, place)
        assert isinstance(reference, str)
        where = reference[1:]
        return called(("$ref", reference), where or "the schema", lambda: self.part(target, where))

    def _one_of(self, makers: "list[functools.partial[Part]]", place: str) -> Part:
        """Alternatives, those left out that nothing satisfies."""
        parts, reasons = [], []
        for make in makers:
            try:
                parts.append(make())
            except Impossible as error:
                reasons.append(error)
        if not parts:
            raise reasons[0] if reasons else Impossible(f"no answer satisfies {place or 'the schema'}")
        return parts[0] if len(parts) == 1 else either(*parts)

    def _case(self, case: Case, place: str) -> Part:
        where = place or "the schema"
        if not case:
            return _anything()
        if isinstance(case.get("enum"), list):
            return self._values(case, where)
        types = types_of(case)
        if "number" in types:
            types = tuple(name for name in types if name != "integer")
        return self._one_of([functools.partial(self._typed, name, case, place) for name in types], place)

    def _values(self, case: Case, where: str) -> Part:
        values = case["enum"]
        assert isinstance(values, list)
        self._cases.count(len(values))
        spelled = [_spelling(value, where) for value in values]
        fitting = [text for text, value in zip(spelled, values, strict=True) if self._cases.holds(value, case)]
        if not fitting:
            raise Impossible(f"no value of {where} satisfies the rest of it")
        return words(fitting)

    def _typed(self, name: str, case: Case, place: str) -> Part:
        where = place or "the schema"
        match name:
            case "object":
                return self._rule(name, case, place, functools.partial(self._object, case, place))
            case "array":
                return self._rule(name, case, place, functools.partial(self._array, case, place))
            case "string":
                return self._cases.strings.part(case, where)
            case "boolean":
                return words([b"true", b"false"])
            case "null":
                return literal(b"null")
            case _:
                return numbers(case, where, whole=name == "integer")

    @staticmethod
    def _rule(name: str, case: Case, place: str, body: "functools.partial[Part]") -> Part:
        """A rule for equal cases wherever they stand: that is what ends the recursion of references."""
        key = blake2b(json.dumps([name, case]).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        return called(key, place or "the schema", body)

    # Objects

    def _object(self, case: Case, place: str) -> Part:
        where = place or "the schema"
        table, required = case.get("properties", {}), case.get("required", [])
        assert isinstance(table, dict)
        assert isinstance(required, list)
        more = case.get("additionalProperties", "properties" not in case)
        properties: dict[str, Json] = dict(table)
        for name in required:
            assert isinstance(name, str)
            if name not in properties:
                properties[name] = case.get("additionalProperties", True)
            if properties[name] is False:
                raise Impossible(f"{where} requires {json.dumps(name)[:80]}, which it does not allow")
        self._cases.count(len(properties))
        members = []
        for name, schema in properties.items():
            if schema is not False:
                key = literal(_spelling(name, where))
                value = self.part(schema, f"{place}/properties/{_pointed(name)}")
                members.append((sequence(key, _COLON, value), name in required))
        if len(members) - sum(needed for _, needed in members) > OPTIONAL_MAX:
            raise Refused(f"{where} has more than {OPTIONAL_MAX} optional properties")
        extra = None
        if more is not False:
            value = self.part(more, f"{place}/additionalProperties")
            extra = sequence(_other_name(list(properties), where), _COLON, value)
        lowest, highest = _counts(case, "Properties", where)
        if not members and extra is not None:
            if lowest > 1:
                raise Refused(f"minProperties of {where} can't be kept: a name could be written twice, and counts once")
            inner = _several(extra, lowest, highest)
        else:
            possible = len(members) if extra is None else None
            sure = sum(needed for _, needed in members)
            if lowest > sure or (highest is not None and (possible is None or possible > highest)):
                raise Refused(f"minProperties and maxProperties of {where} can't be kept beside its named properties")
            inner = _members(members, extra)
        return sequence(literal(b"{"), inner, literal(b"}"))

    # Arrays

    def _array(self, case: Case, place: str) -> Part:
        where = place or "the schema"
        first = case.get("prefixItems", [])
        assert isinstance(first, list)
        more = case.get("items", not first)
        lowest, highest = _counts(case, "Items", where)
        self._cases.count(len(first))
        parts = []
        for index, schema in enumerate(first):
            if schema is False:
                more = False
                break
            parts.append(self._item(schema, f"{place}/prefixItems/{index}"))
        if more is False and lowest > len(parts):
            raise Impossible(f"minItems of {where} asks for more items than it allows")
        if not parts:
            if more is False or highest == 0:
                return literal(b"[]")
            inner = _several(self._item(more, f"{place}/items"), lowest, highest)
        else:
            other = self._item(more, f"{place}/items") if more is not False else None
            inner = _ordered(parts, other, lowest, highest)
        return sequence(literal(b"["), inner, literal(b"]"))

    def _item(self, schema: Json, place: str) -> Part:
        """An item as a rule, because there may be hundreds."""
        key = blake2b(json.dumps(["item", schema]).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        part = self.part(schema, place)
        return called(key, place, lambda: part)


def _counts(case: Case, what: str, where: str) -> tuple[int, int | None]:
    lowest, highest = case.get(f"min{what}", 0), case.get(f"max{what}")
    assert isinstance(lowest, int)
    assert highest is None or isinstance(highest, int)
    if highest is not None and highest < lowest:
        raise Impossible(f"max{what} of {where} is below its min{what}")
    return lowest, highest


def _several(part: Part, lowest: int, highest: int | None) -> Part:
    """The part so many times, with commas between."""
    if highest == 0:
        return sequence()
    others = repeated(sequence(_COMMA, part), max(0, lowest - 1), highest - 1 if highest is not None else None)
    some = sequence(part, others)
    return some if lowest else maybe(some)


def _ordered(parts: list[Part], other: Part | None, lowest: int, highest: int | None) -> Part:
    """The first items, each of its own kind, and others behind them: as many in all as are allowed."""

    def build(grammar: Grammar, state: int) -> int:
        then = grammar.add()
        for index, part in enumerate(parts):
            if index >= lowest:
                grammar.freely(state, then)
            if highest is not None and index >= highest:
                return then
            state = part(grammar, _COMMA(grammar, state) if index else state)
        count = len(parts)
        if other is not None:
            left = None if highest is None else highest - count
            state = repeated(sequence(_COMMA, other), max(0, lowest - count), left)(grammar, state)
        grammar.freely(state, then)
        return then

    return build


def _members(members: list[tuple[Part, bool]], extra: Part | None) -> Part:
    """Members of an object in their order, with commas between those that are there; required ones always are.

    `extra`: a member of another name, of which any number may follow.
    """

    several = [*members, *([(extra, False)] if extra is not None else [])]
    needed = [index for index, (_, required) in enumerate(several) if required]
    first, last = (needed[0], needed[-1]) if needed else (len(several), -1)

    def build(grammar: Grammar, state: int) -> int:
        then = grammar.add()
        commas = [grammar.add() for _ in range(len(several) + 1)]
        # Behind a comma: its member or, if that is optional, a later one. So a comma is one way on to all of them.
        if not needed:
            grammar.freely(state, then)
        for index, (member, required) in enumerate(several):
            begin, after = grammar.add(), grammar.add()
            if index <= first:
                grammar.freely(state, begin)
            grammar.freely(commas[index], begin)
            if not required:
                grammar.freely(commas[index], commas[index + 1])
            grammar.freely(member(grammar, begin), after)
            again = extra is not None and index == len(members)
            grammar.freely(_COMMA(grammar, after), begin if again else commas[index + 1])
            if index >= last:
                grammar.freely(after, then)
        return then

    return build


def _other_name(names: list[str], where: str) -> Part:
    """A name of a member that is none of these."""
    if not names:
        return STRING
    try:
        return in_json(none_of(names))
    except TooManyStates:
        raise Refused(f"the names of {where} take too many states") from None


def _anything() -> Part:
    """Any JSON value, with values in it as deep as the grammar goes."""

    def body() -> Part:
        value = _anything()
        member = sequence(STRING, _COLON, value)
        return either(
            STRING,
            NUMBER,
            words([b"true", b"false", b"null"]),
            sequence(literal(b"{"), _several(member, 0, None), literal(b"}")),
            sequence(literal(b"["), _several(value, 0, None), literal(b"]")),
        )

    return called("anything", "any value", body)


def _pointed(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _spelling(value: Json, where: str) -> bytes:
    """The one spelling of a value in answers. Raises Refused for what has none, such as half a character pair."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        raise Refused(f"a value of {where} can't be written as JSON") from None
