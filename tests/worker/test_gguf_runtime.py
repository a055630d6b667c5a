"""The language-model runtime in this process, without a sandbox: what can be counted step by step.

The model and llama.cpp are the real ones.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

import msgpack
import numpy
import pytest

from node.worker.child.frames import FramePipe, Value, encode
from node.worker.child.gguf import GgufRuntime
from node.worker.child.llama import Llama, Row
from node.worker.child.main import serve
from node.worker.child.runtime import Event, Piece, Prefilled, Refused, Rejected, Request
from node.worker.child.text_gbnf import grammar_of_gbnf
from node.worker.child.text_schema import Json
from node.worker.models import ModelId, ModelStore
from tests.worker.conftest import chat
from tests.worker.grammars import fitting
from tests.worker.json_rules import accepts

SLOTS = 3
VOYAGE = chat("Tell me about a ship that sails around the world and meets many kinds of people on the way home. " * 2)


@pytest.fixture(scope="module")
def loaded(store: ModelStore, smollm: ModelId) -> Iterator[GgufRuntime]:
    """One loaded model for this module; each test uses tenants of its own."""
    runtime = CountedRuntime()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)  # the library describes the model at length
    try:
        manifest = store.manifest(smollm)
        runtime.prepare()
        files = {file.path: str(store.file_path(file)) for file in manifest.files}
        runtime.load(files, {**manifest.settings, "canonical": 1}, SLOTS)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    yield runtime
    assert not runtime.busy()


class CountedRuntime(GgufRuntime):
    """Tells before each step."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.before: dict[int, bytes] = {}
        self.pipe = -1

    def step(self) -> list[Event]:
        self.steps += 1
        if frame := self.before.pop(self.steps, b""):
            os.write(self.pipe, frame)
        return super().step()


@dataclass
class Answer:
    """What came of one request."""

    payload: bytes
    tokens: tuple[int, ...]
    finish: str | None
    input_units: int
    rows: int
    pieces: list[bytes]


def ask(
    runtime: GgufRuntime, payload: bytes = VOYAGE, tenant: str = "", *, most: int = 24, seed: int = 0, heat: int = 0,
    stop: tuple[str, ...] = (), prefix: bytes = b"", output: str = "text", schema: str = "", logprobs: int = 0,
    form: str = "chat", grammar: str = "",
) -> Answer:  # fmt: skip
    """Run one request to its end. Raises Refused."""
    rows = runtime.rows_evaluated
    runtime.open(
        1, Request(form, payload, most, 4, seed, heat, stop, prefix, output, schema, logprobs, tenant, grammar)
    )
    for _ in range(most):
        runtime.grant(1)
    pieces: list[Piece] = []
    units = 0
    while not pieces or pieces[-1].finish is None:
        for event in runtime.step():
            match event:
                case Piece(1):
                    pieces.append(event)
                case Prefilled(1, units):
                    pass
                case Rejected(1, reason):
                    raise Refused(reason)
                case _:
                    assert event.job != 1
    parts = [piece.payload for piece in pieces]
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    return Answer(b"".join(parts), tokens, pieces[-1].finish, units, runtime.rows_evaluated - rows, parts)


def lines(answer: Answer) -> list[dict[str, object]]:
    return [json.loads(line) for line in answer.payload.splitlines()]


def test_only_the_same_tenant_gains_from_what_was_read_and_all_get_and_pay_the_same(loaded: GgufRuntime) -> None:
    first = ask(loaded, tenant="ann", seed=3, heat=900)
    again = ask(loaded, tenant="ann", seed=3, heat=900)
    other = ask(loaded, tenant="bob", seed=3, heat=900)
    nobody = ask(loaded, seed=3, heat=900)
    assert again.rows < first.rows - 30
    assert other.rows == nobody.rows == first.rows
    assert len({(each.payload, each.tokens, each.input_units) for each in (first, again, other, nobody)}) == 1


def test_a_conversation_goes_on_from_its_last_answer(loaded: GgufRuntime) -> None:
    question = "Name three harbours that a sailing ship could visit on a voyage around the whole world, please. " * 2
    answer = ask(loaded, chat(question), "eve")
    turns = msgpack.packb(
        [["user", question], ["assistant", answer.payload.decode()], ["user", "Tell me more about the second one."]]
    )
    warm = ask(loaded, turns, "eve")
    cold = ask(loaded, turns, "fay")
    assert warm.rows < cold.rows / 2
    assert (warm.payload, warm.tokens, warm.input_units) == (cold.payload, cold.tokens, cold.input_units)


def test_logits_are_the_same_bits_whatever_is_kept_and_wherever_it_is_cut(loaded: GgufRuntime) -> None:
    llama: Llama = loaded._llama
    tokens = llama.tokenize(
        "It was a bright cold day in April, and the clocks were striking. " * 9, markers=False, limit=99
    )
    whole = read(llama, tokens, cuts=(32,))
    for cuts, kept in (((7,), 0), ((1, 31, 5), 0), ((32,), 64), ((32,), 95), ((3,), 41)):
        assert numpy.array_equal(read(llama, tokens, cuts, kept), whole), (cuts, kept)
    llama.keep(0, 0)


def read(
    llama: Llama, tokens: list[int], cuts: tuple[int, ...], kept: int = 0
) -> "numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float32]]":
    """Logits behind the last token, the prompt being read in pieces of these sizes behind what is kept of it."""
    assert llama.keep(0, kept)
    place, number = kept, 0
    while True:
        end = min(len(tokens), place + cuts[number % len(cuts)])
        rows = [Row(0, tokens[at], at, at == len(tokens) - 1) for at in range(place, end)]
        logits = llama.evaluate(rows)
        if logits:
            return logits[0]
        place, number = end, number + 1


def test_output_goes_on_behind_each_piece_with_no_gap_and_no_repeat(loaded: GgufRuntime) -> None:
    whole = ask(loaded, most=24)
    for count in range(1, len(whole.pieces)):
        prefix = b"".join(whole.pieces[:count])
        rest = ask(loaded, most=24 - 4 * count, prefix=prefix, tenant="gus")
        assert prefix + rest.payload == whole.payload
        assert rest.tokens == whole.tokens[4 * count :]
        assert rest.input_units == whole.input_units + 4 * count, "prompt and prefix are the input"


def test_the_dice_fall_the_same_behind_a_prefix(loaded: GgufRuntime) -> None:
    whole = ask(loaded, most=24, seed=11, heat=700)
    prefix = b"".join(whole.pieces[:3])
    rest = ask(loaded, most=12, seed=11, heat=700, prefix=prefix)
    assert prefix + rest.payload == whole.payload


def test_lines_tell_of_each_token_and_hold_the_same_text(loaded: GgufRuntime) -> None:
    plain = ask(loaded, stop=("people",))
    told = ask(loaded, stop=("people",), output="tokens", logprobs=5)
    assert [line["id"] for line in lines(told)] == list(told.tokens) == list(plain.tokens)
    assert "".join(str(line["text"]) for line in lines(told)).encode() == plain.payload
    for line in lines(told):
        top = line["top"]
        assert isinstance(top, list)
        assert top[0]["id"] == line["id"], "without heat the likeliest is chosen"
        assert top[0]["logprob"] == line["logprob"]
        assert [one["logprob"] for one in top] == sorted((one["logprob"] for one in top), reverse=True)
        assert len(top) == 5
    assert [line["top"] for line in lines(ask(loaded, output="tokens"))] == [[]] * 24


def test_characters_and_stop_strings_across_tokens_stay_whole(loaded: GgufRuntime) -> None:
    """Letters that take several tokens: every piece is whole characters, as text and as lines."""
    payload = chat("Repeat exactly: 漢字 😀 ñandú €uro")
    plain = ask(loaded, payload, most=40)
    for piece in plain.pieces:
        piece.decode()
    told = ask(loaded, payload, most=40, output="tokens", logprobs=2)
    assert "".join(str(line["text"]) for line in lines(told)).encode() == plain.payload
    text = plain.payload.decode()
    stop = text[5:9]
    cut = ask(loaded, payload, most=40, stop=(stop,))
    assert cut.payload.decode() == text[: text.index(stop)]
    assert cut.finish == "stop"


PERSON: Json = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "married": {"type": "boolean"},
        "likes": {"type": "array", "items": {"enum": ["tea", "coffee", "milk"]}, "minItems": 1, "maxItems": 3},
        "home": {"type": ["object", "null"], "properties": {"street": {"type": "string"}}},
    },
    "required": ["name", "age", "married", "likes"],
}
ASKED = chat("Describe a person as JSON: name, age, married, likes, home.")


def test_an_answer_that_stops_is_json_of_its_schema(loaded: GgufRuntime) -> None:
    stopped = 0
    for seed in range(4):
        answer = ask(loaded, ASKED, most=80, seed=seed, heat=1000, schema=json.dumps(PERSON))
        if answer.finish == "stop":
            stopped += 1
            assert accepts(PERSON, json.loads(answer.payload))
    assert stopped >= 2
    assert ask(loaded, ASKED, schema='{"const":[1,"x"]}').payload == b'[1,"x"]'
    rest = ask(loaded, ASKED, schema='{"const":[1,"x"]}', prefix=b"[1")
    assert (rest.payload, rest.finish) == (b',"x"]', "stop")


STRICT: Json = {
    "$defs": {"day": {"type": "string", "format": "date"}},
    "type": "object",
    "properties": {
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
        "age": {"type": "integer", "minimum": 18, "maximum": 65},
        "share": {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.05},
        "born": {"$ref": "#/$defs/day"},
        "home": {"oneOf": [{"type": "null"}, {"type": "string", "minLength": 3, "maxLength": 8}]},
    },
    "required": ["code", "age", "share", "born", "home"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("heat", [0, 1500])
def test_keywords_bind_what_a_model_writes(loaded: GgufRuntime, heat: int) -> None:
    answer = ask(loaded, ASKED, most=120, seed=3, heat=heat, schema=json.dumps(STRICT))
    assert answer.finish == "stop"
    assert accepts(STRICT, json.loads(answer.payload)), answer.payload


GRAMMAR = r"""
root ::= "(" item (" " item)* ")"
item ::= [a-zé]{2,9} | root
"""


def test_an_answer_that_stops_is_of_its_grammar(loaded: GgufRuntime) -> None:
    for seed in range(3):
        answer = ask(loaded, ASKED, most=60, seed=seed, heat=1000, grammar=GRAMMAR)
        assert answer.payload.startswith(b"(")
        if answer.finish == "stop":
            assert fitting(grammar_of_gbnf(GRAMMAR), answer.payload)
    fixed = ask(loaded, ASKED, grammar='root ::= "yes" | "no, " [1-3]{2} "\u00e9"')
    assert fixed.finish == "stop"
    assert fitting(grammar_of_gbnf('root ::= "yes" | "no, " [1-3]{2} "\u00e9"'), fixed.payload)
    rest = ask(loaded, ASKED, grammar='root ::= "a" "b"*  "c"{3}', prefix=b"ac")
    assert (rest.payload, rest.finish) == (b"cc", "stop")


def test_a_schema_holds_whatever_the_neighbours_write(loaded: GgufRuntime) -> None:
    alone = ask(loaded, ASKED, most=24, seed=1, heat=1000, schema=json.dumps(PERSON))
    for number in (7, 8):
        loaded.open(number, Request("chat", VOYAGE, 30, 60, number, 900, (), tenant="hal"))
        loaded.grant(number)
    beside = ask(loaded, ASKED, most=24, seed=1, heat=1000, schema=json.dumps(PERSON))
    assert beside.tokens == alone.tokens
    for number in (7, 8):
        loaded.cancel(number)


HOSTILE: dict[str, dict[str, object]] = {
    "not UTF-8": {"prefix": b"\xff"},
    "not UTF-8 text": {"prefix": "é".encode()[:1]},
    "too long": {"prefix": b"word " * 3000},
    "bytes can't fit": {"prefix": b"x" * (1 << 20)},
    "can't have stop strings": {"schema": '{"type":"null"}', "stop": ("x",)},
    "not the beginning": {"schema": '{"type":"null"}', "prefix": b"nothing"},
    "nested deeper": {"schema": '{"allOf":[' * 40 + "{}" + "]}" * 40},
    "begin with itself": {"grammar": 'root ::= root "a" | "b"'},
    "there is no rule": {"grammar": "root ::= item"},
    "empty": {"payload": b"", "form": "text"},
}


@pytest.mark.parametrize("reason", HOSTILE)
def test_what_cannot_be_served_is_refused_and_takes_no_sequence(loaded: GgufRuntime, reason: str) -> None:
    for _ in range(SLOTS + 1):
        with pytest.raises(Refused, match=reason):
            ask(loaded, **HOSTILE[reason])  # type: ignore[arg-type]
    assert ask(loaded, most=1).finish == "length"


def test_a_cancelled_job_is_forgotten_after_the_step_in_which_the_cancel_came(loaded: CountedRuntime) -> None:
    """The real loop over real pipes: the cancel is written while a step is about to run, and no later one decodes."""
    request: dict[str, Value] = {
        "input_format": "chat", "payload": VOYAGE, "max_output_units": 500, "chunk_units": 500, "seed": 0,
        "temperature_milli": 0, "stop": [], "prefix": b"", "output": "text", "schema": "", "logprobs": 0,
        "tenant": "ian", "grammar": "",
    }  # fmt: skip
    inward, outward = os.pipe(), os.pipe()
    for number in (4, 5):
        os.write(inward[1], encode(["open", number, request]) + encode(["grant", number]))
    begun = loaded.steps
    in_prompt, in_answer = begun + 2, begun + 30
    loaded.pipe = inward[1]
    loaded.before = {in_prompt: encode(["cancel", 4]), in_answer: encode(["cancel", 5])}
    loaded.before[in_answer + 1] = encode(["grant", 5])  # never reached: nothing is left to step for
    os.set_blocking(inward[0], True)
    evaluated: list[int] = []

    class Watched(FramePipe):
        def write(self, value: Value) -> None:
            super().write(value)
            if isinstance(value, list) and value[0] == "cancelled":
                evaluated.append(loaded.steps)
                if len(evaluated) == 2:
                    os.close(inward[1])

    with pytest.raises(EOFError):
        serve(Watched(inward[0], outward[1]), loaded)
    assert evaluated == [in_prompt, in_answer]
    assert loaded.before.pop(in_answer + 1), "no step came after the last cancel"
    assert not loaded.busy()
    os.close(outward[1])
    with open(outward[0], "rb") as said:
        assert b"cancelled" in said.read()
    os.close(inward[0])
