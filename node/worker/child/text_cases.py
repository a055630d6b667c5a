"""JSON schemas taken apart: `$ref`, `allOf`, `anyOf` and `oneOf` become a list of plain cases, any of which may hold.

A case is a table of keywords that judge a value directly. Two cases that must both hold are merged keyword by keyword.

Law: nothing that a schema says is lost: a keyword that is not understood is refused, with its name and place. Cases are
bounded in number, and references that lead in a circle without an object or array between are refused.

Source: JSON Schema, draft 2020-12; RFC 6901 (JSON pointers).
"""

import json
import math
from collections.abc import Callable
from fractions import Fraction

from node.worker.child.runtime import Refused
from node.worker.child.text_formats import FORMATS
from node.worker.child.text_scalars import (
    COUNT_MAX,
    Case,
    Impossible,
    Json,
    Strings,
    exactly,
    is_of,
    number_holds,
    numbers,
    same,
)

DEPTH_MAX = 32
CASES_MAX = 256
NUMBERS_END = 10**300
SPELLED_AT_ONCE = 32  # characters, in the time in which a keyword is looked at
LOOKS_MAX = 1 << 17  # keywords looked at while a schema is taken apart
ENTRIES_MAX = 2048  # properties, values of enums and alternatives in one schema
ANNOTATIONS = (
    "title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions", "deprecated",
    "readOnly", "writeOnly", "discriminator",
)  # fmt: skip
COMBINING = ("$ref", "allOf", "anyOf", "oneOf")
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_OF_TYPE = {
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}


def types_of(case: Case) -> tuple[str, ...]:
    """The types of a case: as it says, or those that its keywords are about, or all."""
    given = case.get("type")
    if isinstance(given, list):
        return tuple(name for name in TYPES if name in given)
    about = tuple(name for name, keywords in _OF_TYPE.items() if any(keyword in case for keyword in keywords))
    return about or TYPES


# What a keyword's value must be


def _count(value: Json, what: str) -> Json:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= COUNT_MAX:
        raise Refused(f"{what} must be a whole number from 0 to {COUNT_MAX}")
    return value


def _number(value: Json, what: str) -> Json:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < NUMBERS_END:
        raise Refused(f"{what} must be a number of at most 300 digits")
    return value


def _positive(value: Json, what: str) -> Json:
    if not exactly(_number(value, what)) > 0:
        raise Refused(f"{what} must be above 0")
    return value


def _types(value: Json, what: str) -> Json:
    types: list[Json] = value if isinstance(value, list) else [value]
    if not types or len([name for name in TYPES if name in types]) != len(types):
        raise Refused(f"{what} must be one or more of " + ", ".join(TYPES) + ", each once")
    return types


def _table(value: Json, what: str) -> Json:
    if not isinstance(value, dict):
        raise Refused(f"{what} must be a JSON object")
    return value


def _schema(value: Json, what: str) -> Json:
    if not isinstance(value, dict | bool):
        raise Refused(f"{what} must be a JSON object that says what is accepted, true or false")
    return value


def _names(value: Json, what: str) -> Json:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise Refused(f"{what} must be a list of names")
    return list(dict.fromkeys(value))


def _texts(value: Json, what: str) -> Json:
    if not isinstance(value, str):
        raise Refused(f"{what} must be text")
    return [value]


def _format(value: Json, what: str) -> Json:
    if not isinstance(value, str) or value not in FORMATS:
        shown = json.dumps(value)[:80]
        raise Refused(f"{what} is {shown}, which answers can't be held to; known: " + ", ".join(FORMATS))
    return [value]


def _list(value: Json, what: str) -> list[Json]:
    if not isinstance(value, list) or not value:
        raise Refused(f"{what} must be a list with at least one entry")
    return value


def _no(value: Json, what: str) -> Json:
    if value is not False:
        raise Refused(f"{what} can't be kept: answers are not held to it here")
    return value


_CHECKS: dict[str, Callable[[Json, str], Json]] = {
    "type": _types, "enum": _list, "properties": _table, "required": _names, "additionalProperties": _schema,
    "minProperties": _count, "maxProperties": _count, "items": _schema, "prefixItems": _list, "minItems": _count,
    "maxItems": _count, "uniqueItems": _no, "minLength": _count, "maxLength": _count, "pattern": _texts,
    "format": _format, "minimum": _number, "maximum": _number, "exclusiveMinimum": _number,
    "exclusiveMaximum": _number, "multipleOf": _positive,
}  # fmt: skip
_LEAST = ("minItems", "minLength", "minProperties", "minimum", "exclusiveMinimum")
_MOST = ("maxItems", "maxLength", "maxProperties", "maximum", "exclusiveMaximum")


class Cases:
    """One schema document; counts what it is taken apart into."""

    def __init__(self, document: Json) -> None:
        self._document = document
        self._entries = 0
        self._looks = 0
        self.strings = Strings()

    def count(self, entries: int) -> None:
        """So many more properties, values or alternatives. Raises Refused."""
        self._entries += entries
        if self._entries > ENTRIES_MAX:
            raise Refused(f"the schema has more than {ENTRIES_MAX} properties, values and alternatives")

    def _look(self, count: int) -> None:
        self._looks += count
        if self._looks > LOOKS_MAX:
            raise Refused("the schema is too large: its parts are combined too often")

    def refuse_document(self, schema: Json, where: str) -> None:
        """A document within the document, whose references would mean places of its own. Raises Refused."""
        if isinstance(schema, dict) and "$id" in schema and schema is not self._document:
            raise Refused(f"{where} has a $id of its own: only the whole schema can have one")

    def target(self, reference: Json, place: str) -> Json:
        """What a reference within the document names. Raises Refused."""
        shown = json.dumps(reference)[:80]
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise Refused(
                f"$ref of {place or 'the schema'} is {shown}: only places of the same schema can be named, as #/…"
            )
        found = self._document
        self._look(reference.count("/"))
        for part in reference.split("/")[1:]:
            name = _unquoted(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and name in found:
                found = found[name]
            elif isinstance(found, list) and name.isascii() and name.isdigit() and int(name[:9]) < len(found):
                found = found[int(name[:9])]
            else:
                raise Refused(f"$ref of {place or 'the schema'} is {shown}, and there is nothing")
        return found

    def of(self, schema: Json, place: str, depth: int = DEPTH_MAX, passed: tuple[str, ...] = ()) -> list[Case]:
        """The cases of a schema; none if nothing satisfies it. Raises Refused."""
        where = place or "the schema"
        self.refuse_document(schema, where)
        self._look(1 + (len(schema) if isinstance(schema, dict) else 0))
        if isinstance(schema, bool):
            return [{}] if schema else []
        if not isinstance(schema, dict):
            raise Refused(f"{where} must be a JSON object that says what is accepted, true or false")
        if depth == 0:
            raise Refused(f"{where} is nested deeper than {DEPTH_MAX} levels")
        found = [_plain(schema, where)]
        if "$ref" in schema:
            reference = schema["$ref"]
            target = self.target(reference, place)
            assert isinstance(reference, str)
            if reference in passed:
                raise Refused(f"$ref of {where} leads in a circle")
            found = self._all(found, self.of(target, reference[1:], depth - 1, (*passed, reference)))
        for index, each in enumerate(_list(schema["allOf"], f"allOf of {where}") if "allOf" in schema else ()):
            found = self._all(found, self.of(each, f"{place}/allOf/{index}", depth - 1, passed))
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                listed = _list(schema[keyword], f"{keyword} of {where}")
                self.count(len(listed))
                several = [
                    self.of(each, f"{place}/{keyword}/{index}", depth - 1, passed) for index, each in enumerate(listed)
                ]
                if keyword == "oneOf":
                    self._refuse_overlap(several, where, depth)
                found = self._all(found, [one for cases in several for one in cases])
        return found

    def _all(self, some: list[Case], others: list[Case]) -> list[Case]:
        """Cases in which one of each list holds."""
        if len(some) * len(others) > CASES_MAX:
            raise Refused(f"the schema has more than {CASES_MAX} alternatives in one place")
        merged = (self._merged(one, other) for one in some for other in others)
        return [one for one in merged if one is not None]

    def _merged(self, one: Case, other: Case) -> Case | None:
        """A case that says what both say, its work counted: what is in them is compared as it is spelled."""
        self._look(1 + (_size(one) + _size(other) if one and other else 0))
        return merge(one, other)

    # oneOf

    def _refuse_overlap(self, several: list[list[Case]], where: str, depth: int) -> None:
        for index, cases in enumerate(several):
            for other in range(index):
                if not all(self._apart(one, two, depth) for one in cases for two in several[other]):
                    raise Refused(
                        f"oneOf of {where}: its alternatives {other} and {index} could hold for the same answer; say "
                        "anyOf, or tell them apart by type, by const, or by a required property"
                    )

    def _apart(self, one: Case, other: Case, depth: int) -> bool:
        """Whether no answer of one case satisfies the other. False where that is not known."""
        self.count(1)
        for listed, judge in ((one, other), (other, one)):
            values = listed.get("enum")
            if isinstance(values, list):
                return not any(self.holds(value, listed) and self.holds(value, judge, loose=True) for value in values)
        common = set(_told(types_of(one))) & set(_told(_said(other))) | set(_told(types_of(other))) & set(
            _told(_said(one))
        )
        return all(self._kind_apart(kind, one, other, depth) for kind in sorted(common))

    def _kind_apart(self, kind: str, one: Case, other: Case, depth: int) -> bool:
        """The same for answers of one type."""
        if kind == "object" and self._objects_apart(one, other, depth):
            return True
        both = self._merged(one, other)
        if both is None:
            return True
        try:
            if kind == "string":
                self.strings.part(both, "oneOf")
            elif kind == "number":
                numbers(both, "oneOf", whole="number" not in types_of(both))
        except Impossible:
            return True
        return False

    def _objects_apart(self, one: Case, other: Case, depth: int) -> bool:
        """By a property that one of both requires: it is of two kinds, or the other may not have it."""
        for name in dict.fromkeys((*_required(one), *_required(other))):
            schemas = [_properties(case).get(name, case.get("additionalProperties", True)) for case in (one, other)]
            first, second = (self.of(schema, f"/{name}", depth - 1) for schema in schemas)
            if all(self._apart(left, right, depth - 1) for left in first for right in second):
                return True
        return False

    def holds(self, value: Json, case: Case, *, loose: bool = False) -> bool:
        """Whether a value satisfies a case; `loose`: of whatever type, where the case names none."""
        types = _said(case) if loose else types_of(case)
        listed = case.get("enum")
        if not any(is_of(value, name) for name in types):
            return False
        if isinstance(listed, list) and not any(same(value, each) for each in listed):
            return False
        if isinstance(value, dict):
            return self._object_holds(value, case, loose)
        if isinstance(value, list):
            return self._array_holds(value, case, loose)
        if isinstance(value, str):
            self._look(len(value))
            return self.strings.holds(value, case, "a value")
        return isinstance(value, bool | None) or number_holds(value, case)

    def _any_holds(self, value: Json, schema: Json, loose: bool) -> bool:
        return any(self.holds(value, case, loose=loose) for case in self.of(schema, ""))

    def _object_holds(self, value: dict[str, Json], case: Case, loose: bool) -> bool:
        known, more = _properties(case), case.get("additionalProperties", True)
        return (
            all(name in value for name in _required(case))
            and _within(len(value), case, "Properties")
            and all(self._any_holds(member, known.get(name, more), loose) for name, member in value.items())
        )

    def _array_holds(self, value: list[Json], case: Case, loose: bool) -> bool:
        first, more = case.get("prefixItems", []), case.get("items", True)
        assert isinstance(first, list)
        schemas = [*first[: len(value)], *[more] * (len(value) - len(first))]
        return _within(len(value), case, "Items") and all(
            self._any_holds(item, schema, loose) for item, schema in zip(value, schemas, strict=True)
        )


def _unquoted(text: str) -> str:
    """Text of a URI's fragment, its escapes resolved; wrong ones stay as they are."""
    first, *rest = text.encode("utf-8", "replace").split(b"%")
    for piece in rest:
        escaped = len(piece) >= 2 and all(symbol in b"0123456789abcdefABCDEF" for symbol in piece[:2])
        first += bytes((int(piece[:2], 16),)) + piece[2:] if escaped else b"%" + piece
    return first.decode("utf-8", "replace")


def _said(case: Case) -> tuple[str, ...]:
    """The types that a case allows, whatever its keywords are about."""
    return types_of(case) if "type" in case else TYPES


def _told(types: tuple[str, ...]) -> list[str]:
    """Types as they are told apart: an integer is a number."""
    return ["number" if name == "integer" else name for name in types]


def _size(case: Case) -> int:
    """How much there is to look at in a case when it is merged: keywords, entries, and some for what is in those."""
    tables: list[Json] = [value for value in case.values() if isinstance(value, dict | list)]
    inner = len(_spelled(tables)) // SPELLED_AT_ONCE if tables else 0
    return 1 + len(case) + sum(len(each) for each in tables if isinstance(each, dict | list)) + inner


def _required(case: Case) -> list[str]:
    names = case.get("required", [])
    assert isinstance(names, list)
    return [str(name) for name in names]


def _properties(case: Case) -> dict[str, Json]:
    table = case.get("properties", {})
    assert isinstance(table, dict)
    return table


def _within(count: int, case: Case, what: str) -> bool:
    lowest, highest = case.get(f"min{what}", 0), case.get(f"max{what}", count)
    assert isinstance(lowest, int)
    assert isinstance(highest, int)
    return lowest <= count <= highest


def _plain(schema: dict[str, Json], where: str) -> Case:
    """What a schema says beside its combinations. Raises Refused for what is not understood."""
    case: Case = {}
    for name, value in schema.items():
        if name == "const":
            listed = case.get("enum")
            case["enum"] = [value] if not isinstance(listed, list) else [each for each in listed if same(each, value)]
        elif name == "enum" and "enum" in case:
            listed = case["enum"]
            assert isinstance(listed, list)
            case["enum"] = [each for each in listed if any(same(each, one) for one in _list(value, f"enum of {where}"))]
        elif name in _CHECKS:
            checked = _CHECKS[name](value, f"{name} of {where}")
            if name != "uniqueItems":
                case[name] = checked
        elif name not in ANNOTATIONS and name not in COMBINING:
            raise Refused(f"{where} uses {json.dumps(name)[:80]}, which answers can't be held to here")
    return case


def conjunction(one: Json, other: Json) -> Json:
    """A schema that says what both say."""
    if one is True or _spelled(one) == _spelled(other):
        return other
    if other is True:
        return one
    if one is False or other is False:
        return False
    parts: list[Json] = []
    for each in (one, other):
        joined = isinstance(each, dict) and list(each) == ["allOf"]
        assert isinstance(each, dict)
        for part in _list(each["allOf"], "allOf") if joined else [each]:
            if _spelled(part) not in map(_spelled, parts):
                parts.append(part)
    return {"allOf": parts}


def _spelled(schema: Json) -> str:
    return json.dumps(schema)  # not ==: to Python 1 and true are the same


def merge(one: Case, other: Case) -> Case | None:
    """A case that says what both say; None if no value can satisfy both."""
    if not one or not other:
        return dict(one or other)
    merged: Case = {**one, **other}
    for name in merged:
        if name not in one or name not in other:
            continue
        left, right = one[name], other[name]
        if name in _LEAST or name in _MOST:
            assert isinstance(left, int | float)
            assert isinstance(right, int | float)
            merged[name] = max(left, right) if name in _LEAST else min(left, right)
        elif name == "multipleOf":
            merged[name] = _common_multiple(left, right)
        elif isinstance(left, list) and isinstance(right, list) and name in ("required", "pattern", "format"):
            merged[name] = [*left, *(each for each in right if each not in left)]
    for join in (_join_types, _join_values, _join_properties, _join_items):
        if not join(one, other, merged):
            return None
    return merged


def _common_multiple(left: Json, right: Json) -> Json:
    first, second = exactly(left), exactly(right)
    scale = math.lcm(first.denominator, second.denominator)
    whole = Fraction(math.lcm(int(first * scale), int(second * scale)), scale)
    if whole > COUNT_MAX:
        raise Refused(f"multipleOf {left} and {right} together have a common multiple that is too large")
    return whole.numerator if whole.denominator == 1 else float(whole)


def _join_types(one: Case, other: Case, merged: Case) -> bool:
    if "type" in one and "type" in other:
        left, right = types_of(one), types_of(other)
        both: list[Json] = [name for name in TYPES if name in left and name in right]
        if "number" not in both and (
            ("number" in left and "integer" in right) or ("number" in right and "integer" in left)
        ):
            both += ["integer"] if "integer" not in both else []
        merged["type"] = both
        return bool(both)
    return True


def _join_values(one: Case, other: Case, merged: Case) -> bool:
    left, right = one.get("enum"), other.get("enum")
    if isinstance(left, list) and isinstance(right, list):
        merged["enum"] = [value for value in left if any(same(value, each) for each in right)]
        return bool(merged["enum"])
    return True


def _join_properties(one: Case, other: Case, merged: Case) -> bool:
    if not any(name in case for case in (one, other) for name in ("properties", "additionalProperties")):
        return True
    left, right = _properties(one), _properties(other)
    more_left, more_right = one.get("additionalProperties"), other.get("additionalProperties")
    joined: dict[str, Json] = {}
    for name in {**left, **right}:
        schema = conjunction(
            left.get(name, True if more_left is None else more_left),
            right.get(name, True if more_right is None else more_right),
        )
        if schema is False and name in _required(merged):
            return False
        joined[name] = schema
    if "properties" in one or "properties" in other:
        merged["properties"] = joined
    if more_left is not None and more_right is not None:
        merged["additionalProperties"] = conjunction(more_left, more_right)
    return True


def _join_items(one: Case, other: Case, merged: Case) -> bool:
    if not any(name in case for case in (one, other) for name in ("items", "prefixItems")):
        return True
    left, right = one.get("prefixItems", []), other.get("prefixItems", [])
    assert isinstance(left, list)
    assert isinstance(right, list)
    more_left, more_right = one.get("items", True), other.get("items", True)
    length = max(len(left), len(right))
    if length:
        merged["prefixItems"] = [
            conjunction(schemas[0], schemas[1])
            for schemas in zip(
                [*left, *[more_left] * (length - len(left))],
                [*right, *[more_right] * (length - len(right))],
                strict=True,
            )
        ]
    if "items" in one and "items" in other:
        merged["items"] = conjunction(more_left, more_right)
    return True
