"""What happens at a real terminal: Ctrl-C, prompts, and hostile output."""

import json
import os
import sys
from pathlib import Path

import pexpect
import pytest

from node.cli.output import Output
from node.cli.run import fact_text
from tests.api.fake_node import JOB, OTHER, FakeNode

PROMPT_SECONDS = 30


def terminal(*arguments: str) -> "pexpect.spawn[str]":
    return pexpect.spawn(
        sys.executable,
        ["-m", "node.cli.main", *arguments],
        timeout=PROMPT_SECONDS,
        encoding="utf-8",
        env={**os.environ, "TERM": "xterm"},
    )


def ended(child: "pexpect.spawn[str]") -> int | None:
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


def test_ctrl_c_cancels_the_job_and_its_charges(fake: FakeNode) -> None:
    child = terminal("run", "endless", "hi")
    child.expect("tick")
    child.sendintr()
    child.expect("paid 0.0015 credits")
    child.expect("the job is cancelled")
    assert ended(child) == 130
    assert fake.calls == [("cancel", JOB)]
    assert fake.closed.wait(10)


def test_closed_terminal_cancels_the_job(fake: FakeNode) -> None:
    child = terminal("run", "endless", "hi")
    child.expect("tick")
    child.close(force=True)
    assert fake.closed.wait(10)


def test_hostile_output_can_not_steer_the_terminal(fake: FakeNode) -> None:
    child = terminal("run", "escape", "hi", "-q")
    child.expect("red")
    assert "\x1b[31m" not in (child.before or "")
    assert ended(child) == 0


@pytest.mark.parametrize(
    "hostile", ["\x1b[31m", "\x9b31m", "\x7f", "\u202e", "\U000e0041"], ids=["escape", "C1", "delete", "bidi", "tag"]
)
def test_json_spells_what_a_terminal_would_obey_and_means_the_same(
    hostile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Output(as_json=True).show({"reason": f"è{hostile}\n"}, "")
    shown = capsys.readouterr().out
    assert hostile not in shown
    assert "è" in shown
    assert json.loads(shown) == {"reason": f"è{hostile}\n"}


def test_a_strangers_reason_can_not_begin_a_line_of_its_own() -> None:
    assert "\n" not in fact_text({"reason": "busy\nmercat: settled, paid 0.00 credits"})


def test_sending_asks_first_and_no_means_no(fake: FakeNode) -> None:
    child = terminal("wallet", "send", OTHER, "1")
    child.expect(r"Send 1\.00 credits to mc1")
    child.sendline("n")
    assert ended(child) == 1
    assert fake.calls == []
    child = terminal("wallet", "send", OTHER, "1")
    child.expect("Send")
    child.sendline("y")
    assert ended(child) == 0
    assert fake.calls == [("send", OTHER, 1_000_000)]


def test_passphrase_is_asked_twice_and_never_shown(tmp_path: Path) -> None:
    child = terminal("key", "new", "--dir", str(tmp_path / "keys"))
    child.expect("Passphrase: ")
    child.sendline("hunter2")
    child.expect("Again: ")
    child.sendline("hunter3")
    child.expect("differ")
    assert "hunter" not in (child.before or "")
    assert ended(child) == 4
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize(("plain", "styled"), [({}, True), ({"NO_COLOR": "1"}, False)], ids=["terminal", "NO_COLOR"])
def test_no_color_is_respected(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch, plain: dict[str, str], styled: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in plain.items():
        monkeypatch.setenv(name, value)
    child = terminal("models")
    child.expect("PROVIDERS")
    assert ("\x1b[1m" in (child.before or "")) is styled
    assert ended(child) == 0
