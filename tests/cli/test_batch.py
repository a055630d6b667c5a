"""``mercat batch``: every line once, in order, under one ceiling, whatever ends the process in between."""

import asyncio
import io
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
import structlog
from msgspec.structs import replace

from node.cli.batch_journal import Journal, Result
from node.cli.batch_run import BACKOFF_SECONDS
from node.runtime.control import (
    ControlError,
    JobView,
    OfferView,
    QuoteRow,
    QuoteView,
    RequestView,
    RunEvent,
    RunRequest,
)
from node.telemetry import configure_events
from tests.api.fake_node import OTHER, FakeNode, served
from tests.cli.conftest import Ended, Mercat
from tests.cli.test_terminal import ended, terminal

PRICE = 100


class Market(FakeNode):
    """Upper-cases what it is given. The text of a prompt decides how its job goes."""

    def __init__(self) -> None:
        super().__init__()
        self.running = 0
        self.running_max = 0
        self.ceilings = 0
        self.died = "it died"
        self.ceilings_max = 0
        self.refused: set[str] = set()
        self.waiting = threading.Event()
        """Set once a prompt that waits is waiting."""
        self.stops: dict[str, asyncio.Event] = {}
        self.quoted: tuple[QuoteRow, ...] = (QuoteRow(OTHER, True, PRICE, None),)

    def offers(self) -> tuple[OfferView, ...]:
        offer = super().offers()[0]
        return (replace(offer, name="escape", model="mcmodel1escape", slots_total=4),)

    def quote(self, request: RunRequest, rows_max: int = 256) -> QuoteView:
        return QuoteView(request.model, self.quoted)

    async def _run(self, request: RunRequest) -> AsyncIterator[tuple[RunEvent, ...]]:
        self.requests.append(request)
        prompt = request.body.decode()
        if request.request in self.known:
            raise ControlError("request_known", "was made before", 2)
        self._refuse(prompt)
        self.running += 1
        self.ceilings += request.price_max
        self.running_max = max(self.running_max, self.running)
        self.ceilings_max = max(self.ceilings_max, self.ceilings)
        try:
            yield (RunEvent("request", {"request": request.request}),)
            async for events in self._work(request, prompt):
                yield events
        finally:
            self.running -= 1
            self.ceilings -= request.price_max

    def _refuse(self, prompt: str) -> None:
        if prompt.startswith("busy") and prompt not in self.refused:
            self.refused.add(prompt)
            raise ControlError("no_provider", "nobody takes this job: mc1…: no free slots", 5)
        if prompt.startswith("poor"):
            raise ControlError("no_funds", "the job may cost 1.00 credits; this account has 0.00", 4)

    async def _work(self, request: RunRequest, prompt: str) -> AsyncIterator[tuple[RunEvent, ...]]:
        if prompt.startswith("fail"):
            facts: dict[str, str | int | bool | None] = {"job": "00" * 32, "fault": "provider", "reason": self.died}
            yield (RunEvent("failed", {**facts, "paid": 30}),)
            return
        if prompt.startswith("full") and prompt not in self.refused:
            self.refused.add(prompt)
            yield (RunEvent("failed", {"job": "", "fault": "capacity", "reason": "no free slots", "paid": 0}),)
            return
        if prompt.startswith("wait"):
            self.known[request.request] = RequestView(request.request, "cancelled", paid=7, reason="hung up")
            stop = self.stops[request.request] = asyncio.Event()
            self.waiting.set()
            await stop.wait()
            yield (RunEvent("cancelled", {"job": "", "reason": "cancelled by the user", "paid": 7}),)
            return
        output = b"\xff\xfe" if prompt.startswith("bytes") else prompt.upper().encode()
        job = request.request[::-1]
        self.known[request.request] = RequestView(
            request.request, "done", job, OTHER, PRICE, "", "", 1, 2, "stop", output
        )  # fmt: skip
        if prompt.startswith("hang up"):
            return
        yield (RunEvent("output", {}, output),)
        facts = {"job": job, "provider": OTHER, "input_units": 1, "output_units": 2, "finish": "stop"}
        yield (RunEvent("finished", {**facts, "amount": PRICE, "paid": PRICE}),)

    async def cancel(self, job: str) -> JobView:
        self.calls.append(("cancel", job))
        self.stops[job].set()
        return self.job("ab" * 32)

    def asked(self) -> list[str]:
        return [request.body.decode() for request in self.requests]


@pytest.fixture
def market(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Market]:
    node, path = Market(), tmp_path / "control.sock"
    monkeypatch.setenv("MERCAT_CONTROL", str(path))
    configure_events(io.StringIO(), "error", as_json=True)
    with served(path, node):
        yield node
    structlog.reset_defaults()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "batch"
    made.mkdir()
    return made


def written(folder: Path, *prompts: str) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": f"p{n}", "prompt": text}) + "\n" for n, text in enumerate(prompts)))
    return path


def results(folder: Path, name: str = "prompts.out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def run(mercat: Mercat, path: Path, *options: str) -> Ended:
    return mercat("batch", str(path), "--model", "escape", *options)


def test_results_come_in_the_order_of_the_input_with_all_that_is_known(
    mercat: Mercat, market: Market, folder: Path
) -> None:
    path = written(folder, *(f"prompt {number}" for number in range(40)))
    said = run(mercat, path)
    assert said.code == 0, said.err
    rows = results(folder)
    assert [(row["id"], row["line"], row["text"]) for row in rows] == [
        (f"p{number}", number + 1, f"PROMPT {number}") for number in range(40)
    ]
    assert {(row["price"], row["provider"], row["finish"]) for row in rows} == {(PRICE, OTHER, "stop")}
    assert rows[0]["usage"] == {"input_units": 1, "output_units": 2}
    assert "error" not in rows[0]
    assert "40 of 40 lines done" in said.err
    assert market.running_max <= 4, "no more at once than there are slots"
    assert not list(folder.glob("*.partial"))


def test_openai_batch_lines_and_plain_text_are_read_too(mercat: Mercat, market: Market, folder: Path) -> None:
    path = folder / "in.jsonl"
    body = {"model": "talker", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {**body, "max_tokens": 9}}
    path.write_text(json.dumps(line) + "\n")
    mercat("batch", str(path))
    assert (market.requests[0].format, market.requests[0].output_units_max) == ("chat", 9)
    text = folder / "in.txt"
    text.write_text("one\n\ntwo\n")
    assert run(mercat, text, "--lines").code == 0
    assert [(row["id"], row["text"]) for row in results(folder, "in.out.txt")] == [("1", "ONE"), ("3", "TWO")]


BAD = {
    "not json": "not a line of a batch",
    '{"id": "x"}': "neither a prompt nor messages",
    '{"prompt": "a", "model": "unheard-of"}': "nobody offers",
    '{"prompt": "a", "max_tokens": 0}': "out of range",
    '{"id": "p0", "prompt": "again"}': "used twice",
    '{"body": {"messages": [{"role": "user", "content": "a"}], "n": 2}}': "n above 1",
    '{"body": {"messages": [{"role": "king", "content": "a"}]}}': "unknown role",
    '{"url": "/v1/embeddings", "body": {"messages": []}}': "not served in a batch",
}


@pytest.mark.parametrize(("line", "problem"), BAD.items(), ids=list(BAD.values()))
def test_a_bad_line_is_named_before_anything_is_run(
    mercat: Mercat, market: Market, folder: Path, line: str, problem: str
) -> None:
    path = written(folder, "good")
    path.write_text(path.read_text() + line + "\n")
    said = run(mercat, path)
    assert said.code == 2
    assert "line 2: " in said.err
    assert problem in said.err
    assert market.requests == []
    said = run(mercat, path, "--skip-bad")
    assert said.code == 0
    assert [row["id"] for row in results(folder)] == ["p0"]


def test_a_line_without_an_end_is_named_and_the_next_one_is_found(
    mercat: Mercat, market: Market, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.cli.batch_input.LINE_BYTES_MAX", 100)
    path = folder / "prompts.jsonl"
    path.write_text(f'{{"prompt": "{"x" * 250}"}}\n{{"prompt": "after"}}\n')
    said = run(mercat, path, "--skip-bad")
    assert "line 1: longer than 100 bytes" in said.err
    assert [(row["line"], row["text"]) for row in results(folder)] == [(2, "AFTER")]


def test_failed_lines_are_listed_and_run_again_on_request(mercat: Mercat, market: Market, folder: Path) -> None:
    path = written(folder, "one", "fail two", "three")
    said = run(mercat, path)
    assert said.code == 3
    assert "line 2 (p1) failed: it died [provider]" in said.err
    rows = results(folder)
    assert rows[1]["error"] == {"fault": "provider", "reason": "it died"}
    assert (rows[1]["price"], rows[0]["text"], rows[2]["text"]) == (30, "ONE", "THREE")
    assert run(mercat, path).code == 2, "a batch that has ended is not begun anew by chance"
    market.requests.clear()
    assert run(mercat, path, "--retry-failed").code == 3
    assert market.asked() == ["fail two"]
    assert results(folder)[1]["price"] == 60
    assert [row["text"] for row in results(folder)[::2]] == ["ONE", "THREE"]


def test_a_providers_words_stay_on_the_line_of_their_failure(mercat: Mercat, market: Market, folder: Path) -> None:
    market.died = "it died\nresults: /tmp/elsewhere"
    said = run(mercat, written(folder, "fail one"))
    assert "failed: it died\N{REPLACEMENT CHARACTER}results" in said.err


def test_a_kill_while_published_results_are_taken_over_costs_no_line_again(
    mercat: Mercat, market: Market, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(folder, "one", "fail two", "three", "four")
    assert run(mercat, path).code == 3
    market.requests.clear()
    adopt = Journal.adopt

    def killed(journal: Journal, result: Result, place: int) -> None:
        if place == 2:
            raise KeyboardInterrupt
        adopt(journal, result, place)

    with monkeypatch.context() as dying:
        dying.setattr(Journal, "adopt", killed)
        assert run(mercat, path, "--retry-failed").code == 130
    assert run(mercat, path, "--retry-failed").code == 3
    assert market.asked() == ["fail two"]
    assert [row["text"] for row in results(folder)[2:]] == ["THREE", "FOUR"]
    assert sum(row["price"] for row in results(folder)) == 3 * PRICE + 2 * 30


def test_capacity_makes_a_batch_slower_and_fails_no_line(
    mercat: Mercat, market: Market, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.cli.batch_run.BACKOFF_SECONDS", (0.01,) * len(BACKOFF_SECONDS))
    path = written(folder, "busy 1", "busy 2", "full 3", "4")
    assert run(mercat, path).code == 0
    assert [row["text"] for row in results(folder)] == ["BUSY 1", "BUSY 2", "FULL 3", "4"]


def test_the_total_is_never_at_risk_beyond_its_ceiling(mercat: Mercat, market: Market, folder: Path) -> None:
    path = written(folder, *(str(number) for number in range(20)))
    total = 10 * PRICE + PRICE // 2
    said = run(mercat, path, "--max-total", f"{total / 1_000_000:.6f}")
    assert said.code == 4
    assert "--max-total leaves too little" in said.err
    assert "10 of 20 lines done" in said.err
    assert market.ceilings_max <= total
    assert len(market.requests) == 10
    assert not (folder / "prompts.out.jsonl").exists()
    assert run(mercat, path, "--max-total", "1").code == 0, "with more to spend the same batch goes on"
    assert len(market.requests) == 20
    assert sum(row["price"] for row in results(folder)) == 20 * PRICE


def test_every_request_bears_the_price_of_its_line(mercat: Mercat, market: Market, folder: Path) -> None:
    run(mercat, written(folder, "a", "b"), "--max-price", "0.00015", "--max-total", "1", "--seed", "7")
    assert {(request.price_max, request.seed) for request in market.requests} == {(150, 7)}
    assert len({request.request for request in market.requests}) == 2


def test_an_empty_account_stops_the_batch_and_costs_no_line(mercat: Mercat, market: Market, folder: Path) -> None:
    said = run(mercat, written(folder, "poor"))
    assert said.code == 4
    assert "this account has 0.00" in said.err
    assert "1 lines are left" in said.err


def test_a_stream_that_breaks_off_is_looked_up_and_not_paid_again(mercat: Mercat, market: Market, folder: Path) -> None:
    assert run(mercat, written(folder, "hang up", "b")).code == 0
    assert [row["text"] for row in results(folder)] == ["HANG UP", "B"]
    assert len(market.requests) == 2


def test_output_that_is_no_text_is_base64(mercat: Mercat, market: Market, folder: Path) -> None:
    run(mercat, written(folder, "bytes"))
    assert results(folder)[0]["base64"] == "//4="


def test_json_holds_the_summary_alone(mercat: Mercat, market: Market, folder: Path) -> None:
    said = run(mercat, written(folder, "a", "fail"), "--json")
    summary = json.loads(said.out)
    assert (said.code, summary["done"], summary["failed"], summary["spent"]) == (3, 1, 1, PRICE + 30)
    assert json.loads(said.err)["error"]["code"] == "lines_failed"


def killed_midway(market: Market, folder: Path, path: Path) -> None:
    child = terminal("batch", str(path), "--model", "escape")
    child.expect("2/3")
    assert market.waiting.wait(10)
    os.kill(int(child.pid or 0), signal.SIGKILL)
    child.expect(pexpect.EOF)
    child.close()
    assert list(folder.glob("*.partial"))


def test_a_killed_batch_goes_on_and_pays_what_was_done_only_once(mercat: Mercat, market: Market, folder: Path) -> None:
    path = written(folder, "a", "wait b", "c")
    killed_midway(market, folder, path)
    done_before = market.asked()
    assert sorted(done_before) == ["a", "c", "wait b"]
    path.touch()
    market._work = answer_at_once(market)  # type: ignore[method-assign]
    said = run(mercat, path)
    assert said.code == 0, said.err
    assert market.asked() == [*done_before, "wait b"]
    assert len({request.request for request in market.requests}) == 4, "a second try has a name of its own"
    rows = results(folder)
    assert [row["text"] for row in rows] == ["A", "WAIT B", "C"]
    assert [row["price"] for row in rows] == [PRICE, PRICE + 7, PRICE], "what the broken-off try cost is told"


def answer_at_once(market: Market) -> Any:
    plain = Market._work

    def work(request: RunRequest, prompt: str) -> AsyncIterator[tuple[RunEvent, ...]]:
        return plain(market, request, prompt.replace("wait", "Wait"))

    return work


def test_a_try_that_finished_after_the_kill_is_taken_from_the_node(
    mercat: Mercat, market: Market, folder: Path
) -> None:
    path = written(folder, "a", "wait b", "c")
    killed_midway(market, folder, path)
    [name] = [name for name, view in market.known.items() if view.state == "cancelled"]
    market.known[name] = RequestView(name, "done", "ab" * 32, OTHER, 90, "", "", 1, 2, "stop", b"late")
    assert run(mercat, path).code == 0
    assert len(market.requests) == 3, "nothing was asked again"
    assert [(row["text"], row["price"]) for row in results(folder)][1] == ("late", 90)


def test_a_journal_that_was_cut_off_in_a_write_is_read_to_its_last_whole_line(
    mercat: Mercat, market: Market, folder: Path
) -> None:
    path = written(folder, "a", "wait b", "c")
    killed_midway(market, folder, path)
    [partial] = folder.glob("*.partial")
    partial.write_bytes(partial.read_bytes() + b'{"entry":"end","place":1,')
    market._work = answer_at_once(market)  # type: ignore[method-assign]
    assert run(mercat, path).code == 0
    assert len(results(folder)) == 3


def test_another_input_or_other_options_are_not_mixed_into_a_batch(
    mercat: Mercat, market: Market, folder: Path
) -> None:
    path = written(folder, "a", "wait b", "c")
    killed_midway(market, folder, path)
    said = run(mercat, path, "--seed", "9")
    assert (said.code, "other options" in said.err) == (2, True)
    written(folder, "a", "wait b", "d")
    said = run(mercat, path)
    assert (said.code, "another input" in said.err) == (2, True)


def test_ctrl_c_cancels_what_runs_keeps_what_is_done_and_says_how_to_go_on(market: Market, folder: Path) -> None:
    path = written(folder, "a", "wait b", "c")
    child = terminal("batch", str(path), "--model", "escape")
    child.expect("2/3")
    assert market.waiting.wait(10)
    child.sendintr()
    child.expect("2 of 3 lines done")
    child.expect("1 lines are left; the same command goes on with them")
    assert ended(child) == 130
    assert [call[0] for call in market.calls] == ["cancel"]


def test_progress_fits_the_terminal_and_is_silent_elsewhere(mercat: Mercat, market: Market, folder: Path) -> None:
    path = written(folder, *(str(number) for number in range(9)))
    assert "\r" not in run(mercat, path, "--out", str(folder / "first.jsonl")).err
    child = terminal("batch", str(path), "--model", "escape", "--out", str(folder / "second.jsonl"))
    child.setwinsize(24, 80)
    child.expect(pexpect.EOF)
    frames = (child.before or "").split("\r\x1b[2K")
    assert max(len(frame) for frame in frames[:-1]) <= 80
    assert any("9/9" in frame or "8/9" in frame for frame in frames)
    child.close()
