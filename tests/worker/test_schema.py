"""Answers held to a schema: every text that the grammar lets through is JSON that the schema accepts."""

import json
import random
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.worker.child.runtime import Refused
from node.worker.child.text_cases import merge
from node.worker.child.text_formats import FORMATS
from node.worker.child.text_scalars import Case
from node.worker.child.text_schema import OPTIONAL_MAX, Json, grammar_of
from protocol.primitives.limits import SCHEMA_BYTES_MAX
from tests.worker.grammars import fitting, walked
from tests.worker.json_rules import accepts

PERSON: Json = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "description": "as the passport has it"},
        "age": {"type": ["integer", "null"]},
        "likes": {"type": "array", "items": {"enum": ["tea", "milk", 1, 12, None]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "likes"],
    "additionalProperties": False,
}


def fits(schema: Json, text: str | bytes) -> bool:
    """Whether a text is a complete answer."""
    return fitting(grammar_of(json.dumps(schema)), text)


TREE: Json = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
        }
    },
    "$ref": "#/$defs/node",
}
SHAPES: Json = {
    "oneOf": [
        {"properties": {"kind": {"const": "circle"}, "radius": {"type": "number"}}, "required": ["kind", "radius"]},
        {"properties": {"kind": {"const": "square"}, "side": {"type": "number"}}, "required": ["kind", "side"]},
    ]
}
EXPRESSION: Json = {
    "definitions": {"a/b~c": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}},
    "anyOf": [{"type": "boolean"}, {"$ref": "#/definitions/a~1b~0c"}],
}


ANSWERS: list[tuple[Json, str, bool]] = [
    ({"type": "string"}, '""', True),
    ({"type": "string"}, '"a\\n\\u00e9\\\\ é 漢 😀"', True),
    ({"type": "string"}, '"\\ud83d"', False),
    ({"type": "string"}, '"\\x41"', False),
    ({"type": "string"}, '"a\nb"', False),
    ({"type": "string"}, '"a" ', False),
    ({"type": "string"}, "a", False),
    ({"type": "integer"}, "-120", True),
    ({"type": "integer"}, "012", False),
    ({"type": "integer"}, "1.5", False),
    ({"type": "integer"}, "1234567890123456", False),
    ({"type": "number"}, "-0.25e+10", True),
    ({"type": "number"}, ".5", False),
    ({"type": "number"}, "1e400", False),
    ({"type": ["boolean", "null"]}, "null", True),
    ({"type": "boolean"}, "True", False),
    ({"const": {"a": [1, "é"]}}, '{"a":[1,"é"]}', True),
    ({"enum": [1, 12]}, "12", True),
    ({"enum": [1, 12]}, "2", False),
    ({"enum": ["a", 1], "type": "integer"}, '"a"', False),
    ({"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "null"}}]}, "[null, null]", True),
    ({"type": "array", "items": {"type": "null"}, "maxItems": 0}, "[]", True),
    ({"type": "array", "items": {"type": "null"}, "minItems": 2}, "[null]", False),
    ({"type": "object"}, "{}", True),
    (PERSON, '{"name":"A", "age": null,"likes":["tea"]}', True),
    (PERSON, '{"name":"A","likes":[12, 1]}', True),
    (PERSON, '{"likes":[12],"name":"A"}', False),
    (PERSON, '{"name":"A"}', False),
    (PERSON, '{"name":"A","likes":["tea"],"more":1}', False),
    (PERSON, '{"name":"A","name":"B","likes":["tea"]}', False),
    (PERSON, '{"name":"A","likes":[]}', False),
    (PERSON, '{,"name":"A","likes":["tea"]}', False),
    ({}, '{"a": [1, {"b":null}], "":-1.5e3}', True),
    (True, "[[],{}]", True),
    ({"type": "object"}, '{"a":{"b":[]}}', True),
    ({"type": "object", "properties": {}}, '{"a":1}', False),
    ({"type": "array"}, '[1,"a",[]]', True),
    ({"title": "a number", "minimum": 3}, "3", True),
    ({"type": "integer", "minimum": -7, "maximum": 12}, "-7", True),
    ({"type": "integer", "minimum": -7, "maximum": 12}, "-8", False),
    ({"type": "integer", "minimum": -7, "maximum": 12}, "13", False),
    ({"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 11}, "10", True),
    ({"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 11}, "9", False),
    ({"type": "number", "minimum": 0.5, "exclusiveMaximum": 1}, "0.999", True),
    ({"type": "number", "minimum": 0.5, "exclusiveMaximum": 1}, "0.49", False),
    ({"type": "number", "minimum": 0.5, "exclusiveMaximum": 1}, "1.0", False),
    ({"type": "number", "multipleOf": 0.05}, "-12.35", True),
    ({"type": "number", "multipleOf": 0.05}, "12.34", False),
    ({"type": "integer", "multipleOf": 7}, "-49", True),
    ({"type": "integer", "multipleOf": 7}, "48", False),
    ({"type": "string", "minLength": 2, "maxLength": 3}, '"é😀"', True),
    ({"type": "string", "minLength": 2, "maxLength": 3}, '"\\n"', False),
    ({"type": "string", "maxLength": 3}, '"abcd"', False),
    ({"type": "string", "pattern": "^[A-Z]{2}-\\d+$"}, '"AB-12"', True),
    ({"type": "string", "pattern": "^[A-Z]{2}-\\d+$"}, '"AB-"', False),
    ({"type": "string", "pattern": '"x'}, '"a\\"xb"', True),
    ({"type": "string", "pattern": "^a*$", "minLength": 2, "maxLength": 3}, '"aaaa"', False),
    ({"type": "string", "pattern": "^a*$", "minLength": 2, "maxLength": 3}, '"aaa"', True),
    ({"type": "string", "format": "date"}, '"2024-02-29"', True),
    ({"type": "string", "format": "date"}, '"2023-02-29"', False),
    ({"type": "string", "format": "uuid"}, '"123e4567-e89b-12d3-a456-426614174000"', True),
    ({"type": "string", "format": "date-time"}, '"2026-01-31T23:59:59.5Z"', True),
    ({"type": "string", "format": "email"}, '"nobody"', False),
    (
        {"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": {"type": "integer"}},
        "[null,true,1, 2]",
        True,
    ),
    ({"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}]}, "[null]", True),
    ({"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}]}, "[null,true,1]", False),
    (
        {"type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "null"}, "minItems": 2, "maxItems": 3},
        "[null]",
        False,
    ),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, '{"a":1, "b":2}', True),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, '{"a":"1"}', False),
    ({"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 1, "maxProperties": 2}, "{}", False),
    ({"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": True}, '{"a":1}', False),
    (
        {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": True},
        '{"a":null,"ab":1}',
        True,
    ),
    ({"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": True}, '{"b":1}', True),
    ({"type": "object", "required": ["a"]}, "{}", False),
    ({"type": "object", "required": ["a"]}, '{"a":[1]}', True),
    ({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}, "6", False),
    ({"allOf": [{"type": ["integer", "null"]}, {"type": "number"}], "maximum": 5}, "5", True),
    ({"type": "object", "properties": {"a": {"type": "integer"}}, "allOf": [{"required": ["a"]}]}, "{}", False),
    ({"enum": [1, 2, 3, "x"], "minimum": 2}, "3", True),
    ({"enum": [1, 2, 3, "x"], "minimum": 2}, "1", False),
    ({"type": "integer", "anyOf": [{"maximum": 3}, {"minimum": 9}]}, "9", True),
    ({"type": "integer", "anyOf": [{"maximum": 3}, {"minimum": 9}]}, "5", False),
    ({"anyOf": [{"type": "integer", "minimum": 3, "maximum": 2}, {"type": "null"}]}, "null", True),
    (SHAPES, '{"kind":"circle","radius":1.5}', True),
    (SHAPES, '{"kind":"square","radius":1.5}', False),
    ({"oneOf": [{"type": "null"}, {"type": "string"}]}, "null", True),
    ({"oneOf": [{"type": "integer", "maximum": 3}, {"type": "number", "exclusiveMinimum": 3}]}, "3.5", True),
    ({"oneOf": [{"type": "integer", "maximum": 3}, {"type": "number", "exclusiveMinimum": 3}]}, "2.5", False),
    ({"oneOf": [{"type": "string", "pattern": "^a"}, {"type": "string", "pattern": "^b"}]}, '"bc"', True),
    ({"oneOf": [{"type": "string", "maxLength": 2}, {"type": "string", "format": "date"}]}, '"ab"', True),
    (TREE, '{"value":1,"next":{"value":2,"next":null}}', True),
    (TREE, '{"value":1,"next":{"value":2}}', False),
    (EXPRESSION, "[[true],[[],false]]", True),
    (EXPRESSION, "[[true,1]]", False),
    ({"$ref": "#/$defs/x", "$defs": {"x": {"$ref": "#/$defs/y"}, "y": {"type": "null"}}}, "null", True),
]


@pytest.mark.parametrize(("schema", "text", "expected"), ANSWERS)
def test_a_text_is_an_answer_exactly_if_it_should_be(schema: Json, text: str, expected: bool) -> None:
    assert fits(schema, text) is expected


@pytest.mark.parametrize("sequence", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe4\xbd", b"\x80"])
def test_bytes_that_are_no_character_are_in_no_answer(sequence: bytes) -> None:
    assert not fits({"type": "string"}, b'"' + sequence + b'"')


@given(st.characters(codec="utf-8"))
def test_every_character_can_stand_in_a_string(letter: str) -> None:
    assert fits({"type": "string"}, json.dumps(letter, ensure_ascii=False))
    assert fits({"type": "string"}, json.dumps(letter)) == (ord(letter) < 0x10000)


NAMES = st.text(st.characters(codec="utf-8"), max_size=4)
FRACTIONS = st.floats(-9, 9).filter(lambda value: not value.is_integer())  # 0.0 is 0, and has another spelling
VALUES: st.SearchStrategy[Json] = st.none() | st.booleans() | st.integers(-9, 99) | FRACTIONS | NAMES
BOUNDS = st.integers(-30, 30) | st.integers(-300, 300).map(lambda tenths: tenths / 10)
POOL: list[Json] = [
    None, True, False, *range(-12, 25), 100, -999, 0.5, -0.5, 2.25, 9.9, 1.05, "", "a", "ab", "ba", "aab", "a1", "é",
    "b\"\\", "2024-02-29", "😀a",
]  # fmt: skip


def having(**keywords: st.SearchStrategy[Json]) -> st.SearchStrategy[dict[str, Json]]:
    """Some of these keywords."""
    return st.fixed_dictionaries({}, optional=keywords)


def of_type(name: str, **keywords: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    """A type, and some of the keywords that are about it."""

    def said(more: dict[str, Json]) -> Json:
        return {"type": name, **more}

    return having(**keywords).map(said)


def of_types(types: list[str]) -> Json:
    return {"type": [*types]}


def one_of(values: list[Json]) -> Json:
    return {"enum": values}


def only(value: Json) -> Json:
    return {"const": value}


PATTERNS = st.sampled_from(["^a+b?$", "b", "^[^b]*$", "a|é", "^\\w{1,2}$", "1$"])
SCALARS: st.SearchStrategy[Json] = (
    st.lists(st.sampled_from(["string", "number", "integer", "boolean", "null"]), min_size=1, unique=True).map(of_types)
    | st.lists(VALUES, min_size=1, max_size=5).map(one_of)
    | VALUES.map(only)
    | of_type("integer", minimum=BOUNDS, exclusiveMaximum=BOUNDS, multipleOf=st.sampled_from([1, 2, 7]))
    | of_type("number", exclusiveMinimum=BOUNDS, maximum=BOUNDS, multipleOf=st.sampled_from([0.5, 0.05, 3]))
    | of_type("string", pattern=PATTERNS, minLength=st.integers(0, 2), maxLength=st.integers(1, 4))
    | of_type("string", format=st.just("date"))
)


def joined(keyword: str, inner: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    return st.lists(inner, min_size=1, max_size=3).map(lambda schemas: {keyword: schemas})


def deeper(inner: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    def array(item: Json, first: list[Json], lowest: int, more: int) -> Json:
        return {"type": "array", "items": item, "prefixItems": first, "minItems": lowest, "maxItems": lowest + more}

    def thing(properties: dict[str, Json], picks: list[bool], others: Json) -> Json:
        required: list[Json] = [name for name, wanted in zip(properties, picks, strict=False) if wanted]
        said: dict[str, Json] = {"type": ["object", "null"], "properties": properties, "required": required}
        return said if others is None else {**said, "additionalProperties": others}

    return (
        st.builds(array, inner, st.lists(inner, min_size=1, max_size=2), st.integers(0, 2), st.integers(0, 2))
        | st.builds(
            thing,
            st.dictionaries(NAMES, inner, max_size=4),
            st.lists(st.booleans(), max_size=4),
            st.sampled_from([None, False]) | inner,
        )
        | joined("anyOf", inner)
        | joined("allOf", inner)
        | joined("oneOf", inner)
    )


SCHEMAS = st.recursive(SCALARS, deeper, max_leaves=6)


@settings(max_examples=150, deadline=None)
@given(SCHEMAS, st.randoms(use_true_random=False))
def test_whatever_way_a_grammar_is_walked_its_text_is_accepted_json(schema: Json, dice: random.Random) -> None:
    try:
        grammar = grammar_of(json.dumps(schema))
    except Refused:
        return  # most of them because nothing satisfies all of an allOf, or alternatives of a oneOf can't be told apart
    text = walked(grammar, dice)
    assert accepts(schema, json.loads(text)), text


@settings(max_examples=150, deadline=None)
@given(st.recursive(SCALARS, lambda inner: joined("anyOf", inner) | joined("allOf", inner), max_leaves=4))
def test_a_value_can_be_written_exactly_if_the_schema_accepts_it(schema: Json) -> None:
    """Of values that hold no others, each that the schema accepts, and none that it doesn't."""
    try:
        grammar = grammar_of(json.dumps(schema))
    except Refused:
        assert not any(accepts(schema, value) for value in POOL)
        return
    for value in POOL:
        assert fitting(grammar, json.dumps(value, ensure_ascii=False)) is accepts(schema, value), value


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), SCALARS, min_size=1), st.sets(st.sampled_from("abcd")), st.data())
def test_every_object_in_the_schemas_order_can_be_written_if_it_is_accepted(
    properties: dict[str, Json], required: set[str], choice: st.DataObject
) -> None:
    names: list[Json] = [name for name in properties if name in required]
    schema: Json = {"type": "object", "properties": properties, "required": names, "additionalProperties": False}
    try:
        grammar = grammar_of(json.dumps(schema))
    except Refused:
        return  # a property that nothing satisfies
    for _ in range(8):
        value: Json = {name: choice.draw(st.sampled_from(POOL)) for name in properties if choice.draw(st.booleans())}
        assert fitting(grammar, json.dumps(value, ensure_ascii=False, separators=(",", ":"))) is accepts(schema, value)


@pytest.mark.parametrize("name", FORMATS)
def test_every_text_of_a_format_is_of_it(name: str) -> None:
    grammar, dice = grammar_of(json.dumps({"type": "string", "format": name})), random.Random(name)
    for _ in range(100):
        text = json.loads(walked(grammar, dice))
        assert accepts({"type": "string", "format": name}, text), text


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([TREE, EXPRESSION, SHAPES, {}]), st.randoms(use_true_random=False))
def test_recursive_schemas_are_followed_to_an_end(schema: Json, dice: random.Random) -> None:
    assert accepts(schema, json.loads(walked(grammar_of(json.dumps(schema)), dice)))


REFUSED: list[tuple[str, str]] = [
    ("", "not JSON"),
    ("nonsense", "not JSON"),
    ("[" * 60_000, "not JSON"),
    ("9" * 5_000, "not JSON"),
    ('{"const":NaN}', "NaN"),
    ('{"const":1e999}', "can't be written"),
    ('{"const":"\\ud800"}', "can't be written"),
    ('{"type":"object","properties":{"\\udc00":{"type":"null"}}}', "can't be written"),
    ("3", "must be a JSON object"),
    ("false", "no answer satisfies"),
    ('{"type":"text"}', "must be one or more of"),
    ('{"type":["string","string"]}', "each once"),
    ('{"type":[]}', "must be one or more of"),
    ('{"type":[["string"]]}', "must be one or more of"),
    ('{"enum":[]}', "at least one entry"),
    ('{"enum":["a"],"type":"integer"}', "no value"),
    ('{"type":"string","pattern":"(a)\\\\1"}', 'pattern of the schema uses "\\1"'),
    ('{"type":"string","pattern":"(?=a)b"}', "looks around"),
    ('{"type":"string","pattern":"a(?!b)"}', "looks around"),
    ('{"type":"string","pattern":"\\\\bword"}', "answers can't be held to"),
    ('{"type":"string","pattern":"\\\\p{L}"}', "answers can't be held to"),
    ('{"type":"string","pattern":"(a"}', "nothing closes"),
    ('{"type":"string","pattern":"[z-a]"}', "ends before it begins"),
    ('{"type":"string","pattern":"x{99999}"}', "more than 1024"),
    ('{"type":"string","pattern":"^(((a{99}){99}){99}){99}$"}', "too large|too many"),
    ('{"type":"string","pattern":"^(a|b)*a(a|b){20}$"}', "too many states"),
    ('{"type":"string","pattern":"^ab$","maxLength":1}', "no text satisfies"),
    ('{"type":"string","minLength":5000}', "minLength of the schema must be a whole number from 0 to"),
    ('{"type":"string","minLength":2,"maxLength":1}', "below its minLength"),
    ('{"type":"string","format":"iri"}', 'format of the schema is "iri"'),
    ('{"type":"object","properties":{"a":{"type":"string","format":"regex"}}}', "format of /properties/a"),
    ('{"type":"integer","minimum":3,"maximum":2}', "no number"),
    ('{"type":"integer","minimum":0.1,"maximum":0.9}', "no number"),
    ('{"type":"integer","minimum":1e15}', "no number"),
    ('{"type":"integer","exclusiveMinimum":true}', "must be a number"),
    ('{"type":"number","multipleOf":0}', "above 0"),
    ('{"type":"number","multipleOf":1e-20}', "not told in 15 digits"),
    ('{"type":"number","multipleOf":12345}', "remainders"),
    ('{"$ref":"#"}', "begin with itself"),
    ('{"anyOf":[{"type":"null"},{"$ref":"#"}]}', "begin with itself"),
    ('{"allOf":[{"$ref":"#"}]}', "leads in a circle"),
    ('{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}', "ever complete"),
    ('{"$ref":"#/$defs/none"}', "there is nothing"),
    ('{"$ref":"other.json#/x"}', "only places of the same schema"),
    ('{"$ref":"#name"}', "only places of the same schema"),
    ('{"oneOf":[{"type":"string","pattern":"a"},{"type":"string","pattern":"b"}]}', "could hold"),
    ('{"oneOf":[{"type":"number","maximum":3},{"type":"number","minimum":3}]}', "could hold"),
    ('{"oneOf":[{"type":"boolean"},{"type":["boolean","null"]}]}', "could hold"),
    ('{"oneOf":[{"type":"integer"},{"type":"number"}]}', "oneOf of the schema: its alternatives 0 and 1"),
    ('{"oneOf":[{"type":"object","properties":{"a":{}}},{"type":"object","properties":{"b":{}}}]}', "could hold"),
    ('{"allOf":[{"type":"null"},{"type":"string"}]}', "no answer satisfies"),
    ('{"type":"object","properties":{"x":{"not":{}}}}', '/properties/x uses "not"'),
    ('{"type":"array","items":{"if":{}}}', '/items uses "if"'),
    ('{"type":"object","patternProperties":{}}', '"patternProperties"'),
    ('{"type":"object","propertyNames":{}}', '"propertyNames"'),
    ('{"type":"array","contains":{}}', '"contains"'),
    ('{"type":"array","uniqueItems":true}', "uniqueItems of the schema can't be kept"),
    ('{"type":"object","dependentRequired":{}}', '"dependentRequired"'),
    ('{"type":"object","properties":{"a":{}},"minProperties":1}', "minProperties and maxProperties"),
    ('{"type":"object","minProperties":2}', "a name could be written twice"),
    ('{"type":"string","type":"integer"}', "twice in one object"),
    ('{"items":{"$id":"https://example.org/","anyOf":[{"$ref":"#/$defs/x"}]},"$defs":{"x":{}}}', "a $id of its own"),
    (
        '{"items":{"$id":"https://example.org/","properties":{"p":{"$ref":"#/$defs/x"}}},"$defs":{"x":{}}}',
        "a $id of its own",
    ),
    ('{"type":"object","properties":[]}', "must be a JSON object"),
    ('{"type":"object","properties":{"a":1}}', "must be a JSON object"),
    ('{"type":"object","properties":{"a":false},"required":["a"]}', 'requires "a"'),
    ('{"type":"object","additionalProperties":false,"required":["a"]}', 'requires "a"'),
    ('{"type":"object","required":[1]}', "list of names"),
    ('{"type":"object","additionalProperties":1}', "true or false"),
    ('{"type":"array","items":{"type":"null"},"minItems":2,"maxItems":1}', "below its minItems"),
    ('{"type":"array","prefixItems":[true],"items":false,"minItems":2}', "more items than it allows"),
    ('{"type":"array","items":{"type":"null"},"minItems":true}', "from 0 to"),
    ('{"type":"array","items":{"type":"null"},"maxItems":1000000}', "from 0 to"),
    ('{"allOf":[' * 40 + "{}" + "]}" * 40, "nested deeper"),
    (json.dumps({"enum": list(range(3000))}), "more than 2048"),
    (json.dumps({"enum": [f"{number}{'x' * 100}" for number in range(600)]}), "too large"),
    (json.dumps({"type": "object", "properties": {str(number): {"type": "null"} for number in range(3000)}}), "more"),
    (
        json.dumps({"type": "object", "properties": {str(number): {"type": "null"} for number in range(600)}}),
        "optional properties",
    ),
]
# One schema whose parts are combined four to the power of twelve times.
DOUBLED = {str(number): {"allOf": [{"$ref": f"#/$defs/{number + 1}"}] * 4} for number in range(12)}
REFUSED.append((json.dumps({"$ref": "#/$defs/0", "$defs": {**DOUBLED, "12": {"type": "null"}}, "maximum": 1}), "often"))


def _table(count: int, schema: Callable[[int], Json]) -> str:
    """As many required properties as a schema's bytes have room for."""
    properties = {str(number): schema(number) for number in range(count)}
    return json.dumps({"type": "object", "required": [*properties], "properties": properties})


WIDE = "".join(chr(0x100 + 2 * number) for number in range(4000))
"""Characters of which no two are neighbours: a class of them is as many ranges."""
HOSTILE = [
    json.dumps({"pattern": f"^[{WIDE[:3990]}]{{30}}$"}, ensure_ascii=False),
    json.dumps({"allOf": [{"pattern": f"^[{WIDE[first:1000]}]{{60}}$"} for first in (0, 1)]}, ensure_ascii=False),
    json.dumps(
        {
            "anyOf": [{"minLength": n} for n in range(200)],
            "pattern": f"^[{WIDE[:2000]}]*$",
            "enum": [WIDE[1999] * 2000],
        },
        ensure_ascii=False,
    ),
    _table(200, lambda number: {"type": "string", "pattern": f"^(a|b)*a(a|b){{{7 + number % 3}}}c{{{number}}}$"}),
    _table(240, lambda number: {"type": "string", "format": "uri", "maxLength": 9 + number % 40}),
    _table(160, lambda number: {"type": "number", "minimum": number + 0.123, "maximum": 9e13, "multipleOf": 0.001}),
    json.dumps({"anyOf": [{"type": "integer", "multipleOf": 900 + number} for number in range(90)]}),
    json.dumps({"enum": [f"{'a' * 12}{number}" for number in range(600)], "pattern": "^(a|b)*a(a|b){9}"}),
    json.dumps({"type": "object", "properties": {f"p{number}": {"$ref": "#"} for number in range(390)}}),
    '{"type":"array","items":' * 60 + "{}" + "}" * 60,
    '{"allOf":[' * 30 + "{}" + "]}" * 30,
]


def test_as_many_optional_properties_as_are_taken_can_all_be_written() -> None:
    names = [f"p{number}" for number in range(OPTIONAL_MAX)]
    grammar = grammar_of(json.dumps({"properties": {name: {"enum": [1]} for name in names}, "required": ["p7"]}))
    assert fitting(grammar, json.dumps(dict.fromkeys(names, 1)))
    assert fitting(grammar, json.dumps(dict.fromkeys(names[7::3], 1)))
    assert not fitting(grammar, json.dumps(dict.fromkeys(names[8:], 1)))
    assert not fitting(grammar, '{"p7": 1,}')


@pytest.mark.parametrize(
    ("text", "expected"),
    [("P1Y2M3D", True), ("P1Y2D", False), ("PT1H2M3S", True), ("PT1H3S", False), ("P2DT3M", True), ("P1W", True)],
)
def test_a_duration_leaves_no_unit_out_between_two_others(text: str, expected: bool) -> None:
    assert fits({"type": "string", "format": "duration"}, json.dumps(text)) is expected


def test_parts_that_are_combined_often_are_counted_with_all_that_is_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    large: Json = {"properties": {f"p{number}": {"type": "string"} for number in range(200)}}
    again: Json = {"title": "the same in other words", "properties": {"p1": {"type": "string"}}}
    tables: dict[str, Json] = {"large": {"properties": {"a": large}}, "again": {"properties": {"a": again}}}
    for number in range(3):
        tables[str(number)] = {"allOf": [{"$ref": f"#/$defs/{number + 1}"}] * 30}
    tables["3"] = {"allOf": [{"$ref": "#/$defs/large"}, {"$ref": "#/$defs/again"}] * 15}
    merges = 0

    def count(one: Case, other: Case) -> Case | None:
        nonlocal merges
        merges += 1
        return merge(one, other)

    monkeypatch.setattr("node.worker.child.text_cases.merge", count)
    with pytest.raises(Refused, match="combined too often"):
        grammar_of(json.dumps({"$ref": "#/$defs/0", "$defs": tables}))
    assert merges < 1_000


@pytest.mark.parametrize("schema", HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_a_schema_says_it_costs_a_bounded_number_of_calls(schema: str) -> None:
    assert len(schema.encode()) <= SCHEMA_BYTES_MAX
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        with suppress(Refused):
            grammar_of(schema)
    finally:
        sys.setprofile(None)
    assert calls < 1_500_000


@pytest.mark.parametrize(("schema", "reason"), REFUSED)
def test_what_cannot_be_kept_is_refused_and_named(schema: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason if "|" in reason else re.escape(reason)):
        grammar_of(schema)
