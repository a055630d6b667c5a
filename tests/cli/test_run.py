"""``mercat run``: output alone on standard output, facts on standard error."""

import base64
import json
from pathlib import Path

import msgspec
import pytest

from tests.api.fake_node import JOB, OTHER, FakeNode
from tests.cli.conftest import Mercat


def test_output_alone_is_on_standard_output(mercat: Mercat, fake: FakeNode) -> None:
    ended = mercat("run", "talker", "hi")
    assert ended.out == "Hello é\n"
    assert f"{OTHER[:16]}… does it for at most 0.25 credits" in ended.err
    assert f"3 units in, 2 out, paid 1.2345 credits; proof: mercat job receipt {JOB[:16]}" in ended.err


def test_quiet_says_nothing_on_standard_error(mercat: Mercat, fake: FakeNode) -> None:
    ended = mercat("run", "talker", "hi", "-q")
    assert (ended.out, ended.err) == ("Hello é\n", "")


def test_json_holds_output_and_facts_in_base_units(mercat: Mercat, fake: FakeNode) -> None:
    ended = mercat("run", "talker", "hi", "--json")
    result = json.loads(ended.out)
    assert result["output"] == "Hello é"
    assert result["facts"]["amount"] == 1_234_500
    assert result["facts"]["provider"] == OTHER
    assert ended.err == ""


def test_options_reach_the_node_in_its_units(mercat: Mercat, fake: FakeNode) -> None:
    options = ("--max-price", "0.5", "--max-tokens", "9", "--seed", "7", "--temperature", "0.7", "--timeout", "3.5")
    assert mercat("run", "talker", "hi", *options, "--stop", "a", "--stop", "b", "--system", "be brief").code == 0
    request = fake.requests[0]
    assert (request.price_max, request.output_units_max, request.seed) == (500_000, 9, 7)
    assert (request.temperature_milli, request.timeout_ms, request.stop) == (700, 3_500, ("a", "b"))
    assert request.format == "chat"
    assert msgspec.msgpack.decode(request.body) == [["system", "be brief"], ["user", "hi"]]


def test_schema_and_logprobs_reach_the_node(mercat: Mercat, fake: FakeNode, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type":"string"}')
    assert mercat("run", "talker", "hi", "--schema", str(schema), "--logprobs", "3").code == 0
    request = fake.requests.pop()
    assert (request.schema, request.output, request.logprobs) == ('{"type":"string"}', "tokens", 3)
    assert mercat("run", "talker", "hi").code == 0
    plain = fake.requests.pop()
    assert (plain.schema, plain.output, plain.logprobs) == ("", "text", 0)
    schema.write_bytes(b"\xff")
    ended = mercat("run", "talker", "hi", "--schema", str(schema))
    assert (ended.code, fake.requests) == (2, [])
    assert mercat("run", "talker", "hi", "--logprobs", "21").code == 2


def test_a_grammar_reaches_the_node_and_never_beside_a_schema(mercat: Mercat, fake: FakeNode, tmp_path: Path) -> None:
    grammar = tmp_path / "answer.gbnf"
    grammar.write_text('root ::= "é"')
    assert mercat("run", "talker", "hi", "--grammar", str(grammar)).code == 0
    request = fake.requests.pop()
    assert (request.grammar, request.schema) == ('root ::= "é"', "")
    ended = mercat("run", "talker", "hi", "--grammar", str(grammar), "--schema", str(grammar))
    assert (ended.code, fake.requests) == (2, [])
    assert "one of --schema and --grammar" in ended.err
    grammar.write_bytes(b"\xff")
    ended = mercat("run", "talker", "hi", "--grammar", str(grammar))
    assert (ended.code, fake.requests) == (2, [])
    assert "can't be read as a grammar" in ended.err


def test_auction_and_replicas_reach_the_node(mercat: Mercat, fake: FakeNode) -> None:
    assert mercat("run", "talker", "hi").code == 0
    assert mercat("run", "talker", "hi", "--auction").code == 0
    assert mercat("run", "talker", "hi", "--auction", "900").code == 0
    assert mercat("run", "talker", "hi", "--auction", "0").code == 0
    assert [request.auction_ms for request in fake.requests] == [None, 400, 900, 0]
    assert mercat("run", "talker", "hi", "--replicas", "3").code == 0
    assert mercat("run", "talker", "hi", "--replicas", "3", "--replicas-min", "2").code == 0
    asked = [(request.replicas, request.replicas_min) for request in fake.requests]
    assert asked == [(1, 1)] * 4 + [(3, 3), (3, 2)]


@pytest.mark.parametrize(
    "options",
    [
        ("--replicas", "2", "--auction", "100"),
        ("--replicas", "2", "--provider", OTHER),
        ("--replicas", "2", "--wait", "3"),
        ("--replicas", "2", "--replicas-min", "3"),
        ("--replicas", "17"),
        ("--auction", "20001"),
    ],
)
def test_terms_that_contradict_each_other_are_wrong_usage(
    mercat: Mercat, fake: FakeNode, options: tuple[str, ...]
) -> None:
    assert mercat("run", "talker", "hi", *options).code == 2
    assert fake.requests == []


def test_prompt_comes_from_standard_input(mercat: Mercat, fake: FakeNode) -> None:
    for arguments in (("run", "talker"), ("run", "talker", "-")):
        assert mercat(*arguments, stdin="vom Rohr é".encode()).code == 0
        assert msgspec.msgpack.decode(fake.requests.pop().body) == [["user", "vom Rohr é"]]


def test_language_model_refuses_bytes_that_are_no_text(mercat: Mercat, fake: FakeNode) -> None:
    ended = mercat("run", "talker", stdin=b"\xff\xfe")
    assert ended.code == 2
    assert "UTF-8" in ended.err
    assert fake.requests == []


def test_file_goes_as_bytes_to_a_model_of_bytes_and_comes_back_unchanged(
    mercat: Mercat, fake: FakeNode, tmp_path: Path
) -> None:
    content = bytes(range(128))
    (tmp_path / "input").write_bytes(content)
    ended = mercat("run", "bytes", "--file", str(tmp_path / "input"))
    assert ended.out.encode() == content
    assert (fake.requests[0].format, fake.requests[0].body) == ("bytes", content)


def test_output_that_is_no_text_is_base64_in_json(mercat: Mercat, fake: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"\xff\x00")
    result = json.loads(mercat("run", "bytes", "--file", str(tmp_path / "input"), "--json").out)
    assert result["output"] is None
    assert base64.b64decode(result["output_base64"]) == b"\xff\x00"


def test_tensors_from_json_become_messagepack(mercat: Mercat, fake: FakeNode, tmp_path: Path) -> None:
    tensor = {"dtype": "<f4", "shape": [1], "data": base64.b64encode(b"\0\0\x80?").decode()}
    (tmp_path / "t.json").write_text(json.dumps({"x": tensor}))
    assert mercat("run", "bytes", "--tensors", str(tmp_path / "t.json")).code == 0
    assert fake.requests[0].format == "tensors"
    assert msgspec.msgpack.decode(fake.requests[0].body) == {"x": {"dtype": "<f4", "shape": [1], "data": b"\0\0\x80?"}}


@pytest.mark.parametrize("content", ["{", '{"x": 1}', '{"x": {"data": "?"}}'])
def test_json_that_is_no_tensors_is_wrong_usage(mercat: Mercat, fake: FakeNode, tmp_path: Path, content: str) -> None:
    (tmp_path / "t.json").write_text(content)
    assert mercat("run", "bytes", "--tensors", str(tmp_path / "t.json")).code == 2


def test_two_inputs_are_wrong_usage(mercat: Mercat, fake: FakeNode, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    assert mercat("run", "talker", "hi", "--file", str(tmp_path / "f")).code == 2


def test_input_above_the_cap_is_refused_before_it_is_sent(mercat: Mercat, fake: FakeNode) -> None:
    assert mercat("run", "talker", stdin=b"x" * (1024 * 1024 + 1)).code == 2
    assert fake.requests == []


def test_failed_job_keeps_what_came_and_says_what_was_paid(mercat: Mercat, fake: FakeNode) -> None:
    ended = mercat("run", "broken", "hi")
    assert ended.code == 3
    assert ended.out == "half\n"
    assert "the worker died (paid 0.0015 credits)" in ended.err


def test_dry_run_quotes_and_runs_nothing(mercat: Mercat, fake: FakeNode) -> None:
    ended = mercat("run", "talker", "hi", "--dry-run")
    assert "0.25 credits" in ended.out
    assert "no slot free" in ended.out
    assert not fake.closed.is_set()


def test_receipt_is_written_and_settled_on_request(mercat: Mercat, fake: FakeNode, tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    ended = mercat("run", "talker", "hi", "--receipt", str(path), "--settle")
    assert path.read_bytes() == b'{"receipt": true}\n'
    assert ("settle", JOB, 120_000) in fake.calls
    assert f"mercat verify {path}" in ended.err


def test_control_characters_pass_to_a_file_but_not_into_facts(mercat: Mercat, fake: FakeNode) -> None:
    assert mercat("run", "escape", "hi").out == "\x1b[31mred\x1b[0m\n"
    listed = mercat("offers").out
    assert "\x1b" not in listed
    assert "talker" in listed
