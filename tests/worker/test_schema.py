"""Answers held to a schema: every text that the grammar lets through is JSON that the schema accepts."""

import json
import random

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.worker.child.runtime import Refused
from node.worker.child.sampling import NothingFits, choose
from node.worker.child.text_grammar import Grammar, GrammarTooLarge, either, literal, repeated, sequence
from node.worker.child.text_guide import Guide, Vocabulary
from node.worker.child.text_schema import Json, grammar_of
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
    grammar = grammar_of(json.dumps(schema))
    state = grammar.walk(grammar.start, text.encode() if isinstance(text, str) else text)
    return state is not None and grammar.complete(state)


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
VALUES: st.SearchStrategy[Json] = st.none() | st.booleans() | st.integers(-9, 99) | st.floats(-9, 9) | NAMES


def deeper(inner: "st.SearchStrategy[Json]") -> "st.SearchStrategy[Json]":
    def array(item: Json, lowest: int, more: int) -> Json:
        return {"type": "array", "items": item, "minItems": lowest, "maxItems": lowest + more}

    def thing(properties: dict[str, Json], picks: list[bool]) -> Json:
        required: list[Json] = [name for name, wanted in zip(properties, picks, strict=False) if wanted]
        return {"type": ["object", "null"], "properties": properties, "required": required}

    return (
        st.builds(array, inner, st.integers(0, 2), st.integers(0, 2))
        | st.builds(thing, st.dictionaries(NAMES, inner, max_size=4), st.lists(st.booleans(), max_size=4))
        | st.lists(inner, min_size=1, max_size=3).map(lambda alternatives: {"anyOf": alternatives})
    )


def of_type(types: list[str]) -> Json:
    return {"type": [*types]}


def one_of(values: list[Json]) -> Json:
    return {"enum": values}


def only(value: Json) -> Json:
    return {"const": value}


SCALARS: st.SearchStrategy[Json] = (
    st.lists(st.sampled_from(["string", "number", "integer", "boolean", "null"]), min_size=1, unique=True).map(of_type)
    | st.lists(VALUES, min_size=1, max_size=5).map(one_of)
    | VALUES.map(only)
)
SCHEMAS = st.recursive(SCALARS, deeper, max_leaves=6)


@settings(max_examples=150, deadline=None)
@given(SCHEMAS, st.randoms(use_true_random=False))
def test_whatever_way_a_grammar_is_walked_its_text_is_accepted_json(schema: Json, dice: random.Random) -> None:
    grammar = grammar_of(json.dumps(schema))
    state, text = grammar.start, b""
    while not grammar.complete(state) or (dice.random() < 0.8 and grammar.next_bytes(state)):
        symbols = grammar.next_bytes(state)
        closing = [symbol for symbol in symbols if symbol in b'"]}']
        symbol = dice.choice(closing) if closing and dice.random() < 0.3 else dice.choice(symbols)
        text += bytes((symbol,))
        there = grammar.walk(state, bytes((symbol,)))
        assert there is not None, "a byte that may come next leads on"
        state = there
    assert accepts(schema, json.loads(text)), text


REFUSED: list[tuple[str, str]] = [
    ("", "not JSON"),
    ("nonsense", "not JSON"),
    ("[" * 60_000, "not JSON"),
    ("9" * 5_000, "not JSON"),
    ('{"const":NaN}', "NaN"),
    ('{"const":1e999}', "can't be written"),
    ('{"const":"\\ud800"}', "can't be written"),
    ('{"type":"object","properties":{"\\udc00":{"type":"null"}}}', "can't be written"),
    ("true", "must be a JSON object"),
    ("{}", "must have a type"),
    ('{"type":"text"}', "must be one or more of"),
    ('{"type":["string","string"]}', "each once"),
    ('{"type":[]}', "must be one or more of"),
    ('{"type":[["string"]]}', "must be one or more of"),
    ('{"enum":[]}', "at least one entry"),
    ('{"enum":["a"],"type":"integer"}', "no value"),
    ('{"type":"string","pattern":"(a*)*b"}', '"pattern"'),
    ('{"type":"string","minLength":3}', '"minLength"'),
    ('{"type":"integer","minimum":3}', '"minimum"'),
    ('{"$ref":"#"}', "must have a type"),
    ('{"type":"object","properties":{"a":{"$ref":"#"}}}', "must have a type"),
    ('{"type":"object","$defs":{},"properties":{}}', '"$defs"'),
    ('{"oneOf":[{"type":"null"}]}', "must have a type"),
    ('{"type":"object","properties":[]}', "must be a JSON object"),
    ('{"type":"object","properties":{"a":1}}', "must be a JSON object"),
    ('{"type":"object","required":["a"]}', 'requires "a"'),
    ('{"type":"object","required":[1]}', "list of names"),
    ('{"type":"object","additionalProperties":{"type":"string"}}', "true or false"),
    ('{"type":"array"}', "what its items are"),
    ('{"type":"array","items":{"type":"null"},"minItems":2,"maxItems":1}', "below its minItems"),
    ('{"type":"array","items":{"type":"null"},"minItems":true}', "from 0 to"),
    ('{"type":"array","items":{"type":"null"},"minItems":1e3}', "from 0 to"),
    ('{"type":"array","items":{"type":"null"},"maxItems":1000000}', "from 0 to"),
    ('{"type":"array","items":' * 20 + '{"type":"null"}' + "}" * 20, "nested deeper"),
    ('{"type":"array","minItems":256,"items":' * 12 + '{"type":"null"}' + "}" * 12, "too large"),
    (json.dumps({"enum": list(range(600))}), "more than 512"),
    (json.dumps({"enum": [f"{'x' * 100}{number}" for number in range(400)]}), "too large"),
    (json.dumps({"type": "object", "properties": {str(number): {"type": "null"} for number in range(600)}}), "more"),
]


@pytest.mark.parametrize(("schema", "reason"), REFUSED)
def test_what_cannot_be_kept_is_refused_and_named(schema: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason.replace("$", r"\$")):
        grammar_of(schema)


def test_a_grammar_that_leaves_too_much_open_is_given_up() -> None:
    counted = either(*(repeated(literal(b"a"), count, count) for count in range(180)))
    with pytest.raises(GrammarTooLarge):
        Grammar(sequence(*[counted] * 2))
    grammar = Grammar(counted)
    state = grammar.walk(grammar.start, b"a" * 179)
    assert state is not None
    assert grammar.complete(state)
    assert grammar.next_bytes(state) == []
    with pytest.raises(GrammarTooLarge):
        Grammar(either(*[repeated(either(literal(b"a"), literal(b"b")), 0, None)] * 400))


PIECES = [b"", b"{", b'{"', b'"', b'a"', b":", b'":', b"1", b"12", b"}", b"1}", b"x", b"\xc3", b"\xa9", b" ", b""]
END = len(PIECES) - 1


def guide(schema: Json, prefix: bytes = b"") -> Guide:
    return Guide(grammar_of(json.dumps(schema)), Vocabulary(PIECES, [END]), prefix)


def test_tokens_are_allowed_as_whole_pieces_and_the_end_only_behind_a_whole_answer() -> None:
    answer = guide({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    said = []
    scores = numpy.array([9, 1, 2, 3, 4, 1, 5, 6, 7, 1, 8, 9, 9, 9, 9, 0], dtype=numpy.float32)
    while (token := choose(scores, 0, 0, 0, answer)) != END:
        answer.take(token)
        said.append(PIECES[token])
        scores[7] = scores[8] = 0  # else the number would grow as long as it may
    assert said == [b'{"', b'a"', b":", b" ", b"1}"]
    assert choose(scores, 0, 0, 0, answer) == END


def test_the_winner_is_the_best_of_what_is_allowed_whatever_the_temperature() -> None:
    dice = numpy.random.default_rng(7)
    for position in range(200):
        answer = guide({"type": "object", "properties": {"a": {"type": "integer"}}}, b'{"a":'[: position % 6])
        scores = dice.normal(size=len(PIECES)).astype(numpy.float32)
        allowed = [token for token in range(len(PIECES)) if answer.allows(token)]
        assert allowed == [token for token in numpy.flatnonzero(answer.possible()) if answer.allows(int(token))]
        for temperature in (0, 700):
            token = choose(scores, temperature, 5, position, answer)
            only = numpy.full(len(PIECES), -numpy.inf, dtype=numpy.float32)
            only[allowed] = scores[allowed]
            assert token == choose(only, temperature, 5, position)


def test_nothing_is_chosen_where_no_token_fits() -> None:
    with pytest.raises(NothingFits):
        choose(numpy.zeros(len(PIECES), dtype=numpy.float32), 0, 0, 0, guide({"type": "array", "items": PERSON}))


def test_an_answer_goes_on_behind_what_is_there_and_nowhere_else() -> None:
    answer = guide({"enum": ["aé"]}, b'"a')
    assert [PIECES[token] for token in range(END) if answer.allows(token)] == [b"\xc3"]
    with pytest.raises(Refused, match="not the beginning"):
        guide({"enum": ["aé"]}, b'"b')
