"""Answers held to a grammar: the automaton and its bounds, GBNF, and tokens along it."""

import json
import random
import re
from collections.abc import Iterator

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.worker.child.runtime import Refused
from node.worker.child.sampling import NothingFits, choose
from node.worker.child.text_gbnf import grammar_of_gbnf
from node.worker.child.text_grammar import (
    DEPTH_MAX,
    WORK_MAX,
    Grammar,
    GrammarTooLarge,
    State,
    among,
    either,
    literal,
    repeated,
    sequence,
    words,
)
from node.worker.child.text_guide import MASKS_MAX, Guide, Vocabulary
from node.worker.child.text_schema import Json, grammar_of
from tests.worker.grammars import fitting, walked

LISTS = """
# lists of small numbers and texts, within each other
root   ::= list "\\n"?
list   ::= "[" ws (item ("," ws item)*)? "]"
item   ::= number | text | list
number ::= "-"? ("0" | [1-9] [0-9]{0,3})
text   ::= "\\"" ([^"\\\\\\x00-\\x1F] | "\\\\" ["\\\\])* "\\""
ws     ::= " "?   # at most one
"""
GBNF: list[tuple[str, str, bool]] = [
    (LISTS, "[]", True),
    (LISTS, '[1, [-20,"é😀\\\\"], []]\n', True),
    (LISTS, "[012]", False),
    (LISTS, "[10000]", False),
    (LISTS, "[1,]", False),
    (LISTS, "[1", False),
    ('root ::= "a" | "b"\n | "c"', "c", True),
    ('root ::= "a"\nb ::= "x"', "a", True),
    ('root::="a" b "c"\nb::="x"?', "ac", True),
    ('root ::= ("a" "b"){2,3}', "abab", True),
    ('root ::= ("a" "b"){2,3}', "abababab", False),
    ('root ::= "a"{2}', "aaa", False),
    ('root ::= "a"{2,}', "aaaaa", True),
    ('root ::= "a"+ * ', "", True),
    ("root ::= .", "\n", True),
    ("root ::= [^a-cé]", "é", False),
    ("root ::= [^a-cé]", "d", True),
    ("root ::= [a\\-z-]", "-", True),
    ("root ::= [\\]\\[]", "]", True),
    ('root ::= "\\x41\\u00e9\\U0001F600"', "Aé😀", True),
    ('root ::= ""', "", True),
    ('root ::= "a" "b" | "a" | "c"?', "ab", True),
    ('root ::= "a" "b" | "a" | "c"?', "", True),
    ('root ::= ("a" | "b")+', "abba", True),
    ("root ::= ", "", True),
    ('root ::= "a" # the end', "a", True),
    ('root ::= "(" root ")" | ""', "((()))", True),
    ('root ::= "(" root ")" | ""', "((())", False),
    ("root ::= [0-9] root |", "0123456789" * 100, True),
]


@pytest.mark.parametrize(("grammar", "text", "expected"), GBNF)
def test_a_text_is_of_a_grammar_exactly_if_it_should_be(grammar: str, text: str, expected: bool) -> None:
    assert fitting(grammar_of_gbnf(grammar), text) is expected


REFUSED: list[tuple[str, str]] = [
    ("", "no rule root"),
    ('a ::= "x"', "no rule root"),
    ("root ::= x", "line 1 of the grammar: there is no rule x"),
    ('root ::= "a"\n\nroot ::= "b"', "line 3 of the grammar: there are two rules root"),
    ('root = "a"', "a rule is expected here"),
    ('root ::= "a', "ends too early"),
    ("root ::= [a", "ends too early"),
    ('root ::= ("a"', "nothing closes"),
    ('root ::= "a")', "closes nothing"),
    ("root ::= [z-a]", "ends before it begins"),
    ("root ::= []", "a class without characters"),
    ('root ::= "\\q"', "is no escape"),
    ('root ::= "\\x4"', "2 hexadecimal digits"),
    ('root ::= "\\uD800"', "D800 is no character"),
    ('root ::= "\\U00110000"', "110000 is no character"),
    ("root ::= <|end|>", "tokens can't be named"),
    ("root ::= 'a'", "has no meaning"),
    ('root ::= "a"{}', "a repetition is"),
    ('root ::= "a"{3,2}', "below its beginning"),
    ('root ::= "a"{5000}', "more than 4096"),
    ('root ::= root "a" | "a"', "rule root could begin with itself"),
    ('root ::= a\na ::= b? a "x" | "y"\nb ::= "z"', "rule a could begin with itself"),
    ('root ::= ("b"? root)+ | "a"', "begin with itself"),
    ('root ::= "a" root', "ever complete"),
    ("root ::= " + "(" * 70 + '"a"' + ")" * 70, "within each other"),
    ('root ::= ""{4096}{4096}{4096}', "too large"),
    ('root ::= ("a"{4096}){4096}{4096}', "too large"),
    ("root ::= " + "[a-zé]" * 2000 + "{4000}" * 3, "too large"),
    ("root ::= " + "a? " * 3000 + '\na ::= "x"', "too large"),
]


@pytest.mark.parametrize(("grammar", "reason"), REFUSED)
def test_a_grammar_that_cannot_be_followed_is_refused_and_told_why(grammar: str, reason: str) -> None:
    with pytest.raises(Refused, match=re.escape(reason)):
        grammar_of_gbnf(grammar)


def _sizes(grammar: Grammar, text: bytes) -> Iterator[int]:
    """How many configurations are in force behind each byte of a text."""
    state: State | None = grammar.start
    for symbol in text:
        grammar.work = 0
        assert state is not None
        state = grammar.step(state, symbol)
        yield len(state.configurations) if state is not None else 0


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "a" | "a" root | "a" root "b"',  # every a may end in another number of ways
        'root ::= ("a" | "a" "a"){0,900} ("a" | "a" "a" "a"){0,900}',
        'root ::= x x x x x x x x\nx ::= ("a"{0,400})',
        'root ::= ("a" root "b" | "a" root "c" | "a" root "d")?',
    ],
)
def test_a_grammar_that_leaves_ever_more_open_is_given_up_and_not_followed(grammar: str) -> None:
    built = grammar_of_gbnf(grammar)
    sizes = _sizes(built, b"a" * 4_000)
    with pytest.raises(GrammarTooLarge):
        assert max(sizes) <= 0, "it ends with the first byte that leaves more open than is allowed"


def test_work_between_two_choices_is_counted_and_bounded() -> None:
    grammar = grammar_of_gbnf('root ::= [a-z]* "!"')
    with pytest.raises(GrammarTooLarge):
        grammar.walk(grammar.start, b"a" * WORK_MAX)
    assert grammar.work > WORK_MAX


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "x" "a"?{500} ""?{1500} "b"',  # five hundred ways, and behind each fifteen hundred empty ones
        'root ::= "x" "a" e{0,1500} ""?{1500} "b"\ne ::= ""',
    ],
)
def test_ways_over_no_byte_are_counted_whether_they_are_remembered_or_not(grammar: str) -> None:
    built = grammar_of_gbnf(grammar)
    state: State | None = built.start
    assert state is not None
    state = built.step(state, ord("x"))
    assert state is not None
    with pytest.raises(GrammarTooLarge):
        built.step(state, ord("a"))
    lists = grammar_of_gbnf(LISTS)
    works = []
    for _ in range(2):
        lists.work = 0
        lists.walk(lists.start, b'["a", [1, 2]]')
        works.append(lists.work)
    assert works[0] == works[1]


def test_a_beginning_that_takes_too_much_work_is_given_up() -> None:
    grammar = Grammar(either(*[repeated(among(range(97, 100)), count, None) for count in range(100)]))
    with pytest.raises(GrammarTooLarge):
        Guide(grammar, Vocabulary(PIECES, [END]), b"abc" * 20_000)


def test_nesting_ends_where_there_is_room_to_come_back() -> None:
    grammar = grammar_of_gbnf('root ::= "(" root ")" | "x" y "x"\ny ::= "y" z "y"\nz ::= "z"')
    state, depth = grammar.start, 0
    while (there := grammar.step(state, ord("("))) is not None:
        grammar.work = 0
        state, depth = there, depth + 1
    assert DEPTH_MAX - 4 <= depth <= DEPTH_MAX
    assert grammar.walk(state, b"xyzyx" + b")" * depth) is not None


def test_what_repeats_itself_at_its_end_takes_no_room() -> None:
    grammar = grammar_of_gbnf('root ::= "x" more\nmore ::= "," "x" more | ""')
    state = grammar.start
    for _ in range(20 * DEPTH_MAX):
        grammar.work = 0
        there = grammar.walk(state, b"x,")
        assert there is not None
        state = there
    assert all(frame is None for _, frame in state.configurations)


# Small grammars against Python's regular expressions

ATOMS = st.sampled_from(['"a"', '"ab"', "[ab]", "[^a]", '"b"'])


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return (
        st.tuples(inner, inner).map(" ".join)
        | st.tuples(inner, inner).map(lambda both: f"({both[0]} | {both[1]})")
        | st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{2,}"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        )
    )


def _as_expression(grammar: str) -> str:
    return re.sub(r'"(\w+)"', r"\1", grammar).replace(" ", "")


@settings(max_examples=150, deadline=None)
@given(st.recursive(ATOMS, _grown, max_leaves=6), st.lists(st.text("abc", max_size=6), max_size=20))
def test_a_grammar_without_recursion_is_the_regular_expression_that_it_looks_like(body: str, texts: list[str]) -> None:
    grammar, expression = grammar_of_gbnf("root ::= " + body), re.compile(f"(?:{_as_expression(body)})")
    for text in texts:
        assert fitting(grammar, text) is (expression.fullmatch(text) is not None)
    assert expression.fullmatch(walked(grammar, random.Random(body), closing=b"ab").decode()) is not None


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False))
def test_whatever_way_a_recursive_grammar_is_walked_its_text_is_whole(dice: random.Random) -> None:
    text = walked(grammar_of_gbnf(LISTS), dice).decode()
    value = eval(text, {"__builtins__": {}})  # noqa: S307 - lists, numbers and texts of this grammar are Python's, too
    assert isinstance(value, list)


def test_a_grammar_that_leaves_too_much_open_is_given_up() -> None:
    counted = either(*(repeated(literal(b"a"), count, count) for count in range(120)))
    grammar = Grammar(counted)
    state = grammar.walk(grammar.start, b"a" * 119)
    assert state is not None
    assert grammar.complete(state)
    assert grammar.next_bytes(state) == []
    several = Grammar(sequence(*[counted] * 2))
    with pytest.raises(GrammarTooLarge):
        several.walk(several.start, b"a" * 119)
    with pytest.raises(GrammarTooLarge):
        Grammar(either(*[repeated(either(literal(b"a"), literal(b"b")), 0, None)] * 400))


def test_a_choice_of_thousands_of_texts_leaves_one_way_open_each_time() -> None:
    grammar = grammar_of_gbnf("root ::= [0-9]{3} | " + " | ".join(f'"city {number}"' for number in range(3000)))
    assert fitting(grammar, "city 2999")
    assert fitting(grammar, "299")
    assert not fitting(grammar, "city 3000")
    assert len(grammar.start.configurations) == 2


def test_values_that_begin_alike_are_one_way_until_they_differ() -> None:
    grammar = Grammar(words([b"value %d" % number for number in range(4000)]))
    state = grammar.walk(grammar.start, b"value 12")
    assert state is not None
    assert grammar.complete(state)
    assert len(state.configurations) == 1


# Tokens

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


def test_all_tokens_at_once_are_judged_as_each_alone_and_few_judgements_are_kept() -> None:
    """Real tokens are pieces of words: here every piece of up to three of some characters, and longer ones."""
    dice = random.Random(3)
    letters = [letter.encode() for letter in '[]" ,-0123é😀ab']
    pieces = [b"".join(dice.choices(letters, k=dice.randint(0, 3))) for _ in range(3_000)] + [b'["aab', b"\xc3", b""]
    vocabulary = Vocabulary(pieces, [len(pieces) - 1])
    answer = Guide(grammar_of_gbnf(LISTS), vocabulary, b"")
    for _ in range(3 * MASKS_MAX):
        exact = answer.exact()
        assert exact.tolist() == [answer.allows(token) for token in range(len(pieces))]
        assert not (exact & ~answer.possible()).any()
        assert len(answer._masks) <= MASKS_MAX
        token = dice.choice(numpy.flatnonzero(exact).tolist())
        if token in vocabulary.ends:
            break
        answer.take(token)


def test_judging_all_tokens_costs_a_step_for_each_way_that_differs_and_not_for_each_token() -> None:
    pieces = [bytes((first, second)) for first in range(97, 123) for second in range(97, 123)] * 100
    grammar = grammar_of_gbnf("root ::= [a-z]*")
    answer = Guide(grammar, Vocabulary([*pieces, b""], [len(pieces)]), b"")
    assert answer.exact().all()
    once = Grammar(repeated(among(range(97, 123)), 0, None))
    once.step(once.start, 97)
    assert grammar.work == 2 * 26 * once.work


def test_nothing_is_chosen_where_no_token_fits() -> None:
    with pytest.raises(NothingFits):
        choose(
            numpy.zeros(len(PIECES), dtype=numpy.float32), 0, 0, 0, guide({"type": "array", "items": {"type": "null"}})
        )


def test_an_answer_goes_on_behind_what_is_there_and_nowhere_else() -> None:
    answer = guide({"enum": ["aé"]}, b'"a')
    assert [PIECES[token] for token in range(END) if answer.allows(token)] == [b"\xc3"]
    with pytest.raises(Refused, match="not the beginning"):
        guide({"enum": ["aé"]}, b'"b')
