"""``mercat why``: who says what, what it cost, and what differs, in lines that fit a terminal."""

import json

import pytest
from msgspec import structs

from node.cli.why import why_lines
from tests.api.fake_node import JOB, OTHER, FakeNode, why_example
from tests.cli.conftest import Mercat
from tests.cli.test_terminal import ended, terminal


def test_a_failed_over_job_is_told_by_attempts_lines_and_tellers(mercat: Mercat, fake: FakeNode) -> None:
    said = mercat("why", JOB)
    assert said.code == 0
    assert said.out.splitlines()[0].startswith(f"job {JOB[:16]}…  talker  done  paid 0.002 credits")
    for words in (
        f"attempt 1 {OTHER[:16]}… failed (provider's fault)",
        "provider stopped delivering",
        "[2 chunks, 0.0005 credits]",
        "ledger [1] block 7: channel opened 10.00 credits",
        "both 0.002 [2] chunks 1–2 delivered and paid",
        "contradiction: attempt 2: the provider says it delivered 5 chunks, this node has 3",
        "its node could not be reached within 3 s",
        "it has signed: acceptance; chunk 1 (0.0005 credits due)",
        "its signature holds; its clock is 12 ms ahead, times are corrected",
    ):
        assert words in " ".join(said.out.split()), words
    assert len(said.out.splitlines()) <= 20


def test_json_has_every_signed_statement_and_entry(mercat: Mercat, fake: FakeNode) -> None:
    view = json.loads(mercat("why", JOB[:12], "--json").out)
    assert [attempt["timelines"] for attempt in view["attempts"]] == [[], ["bb", "cc"]]
    assert [line["tellers"] for line in view["lines"]] == [["buyer"], ["ledger"], ["buyer"], ["buyer", "provider"]]
    assert view["paid"] == 2_000


def test_a_strangers_words_do_not_steer_the_terminal(mercat: Mercat, fake: FakeNode) -> None:
    assert "\x1b" not in mercat("why", JOB[:12]).out
    assert "\x1b[31m" not in mercat("why", JOB[:12], "--json").out


def test_a_liars_times_do_not_move_those_of_this_node() -> None:
    honest = why_example(JOB)
    liar = structs.replace(honest.lines[-1], at=0, until=0, tellers=("provider",), what="slept")
    head, *rest = why_lines(structs.replace(honest, lines=(liar, *honest.lines)), 120, False)
    assert head == next(why_lines(honest, 120, False))
    assert any(line.startswith("earlier") and line.endswith("slept") for line in rest)


@pytest.mark.parametrize("width", [80, 120])
def test_the_timeline_is_no_wider_than_the_terminal_and_drops_nothing(width: int) -> None:
    lines = list(why_lines(why_example(JOB), width, False))
    table = lines[lines.index("") + 1 : lines.index("", lines.index("") + 1)]
    assert max(map(len, table)) <= width
    words = " ".join(" ".join(table).split())
    assert "block 7: channel opened 10.00 credits: deposit of the buyer" in words


@pytest.mark.parametrize(("plain", "styled"), [({}, True), ({"NO_COLOR": "1"}, False)], ids=["terminal", "NO_COLOR"])
def test_colors_only_on_a_terminal_that_wants_them(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch, plain: dict[str, str], styled: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in plain.items():
        monkeypatch.setenv(name, value)
    child = terminal("why", JOB)
    child.expect("told by")
    assert ("\x1b[1m" in (child.before or "")) is styled
    assert ended(child) == 0


def test_an_unknown_job_ends_with_1(mercat: Mercat, fake: FakeNode) -> None:
    assert mercat("why", "cdcdcdcdcdcd").code == 1
