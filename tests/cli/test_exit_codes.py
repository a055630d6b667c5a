"""The exit codes that scripts rely on, each by what causes it."""

import json
from pathlib import Path

import pytest

from node.cli.failures import EXIT_CODES_TEXT, ExitCode
from tests.api.fake_node import JOB, OTHER, FakeNode
from tests.cli.conftest import Mercat

WITH_NODE = [
    (("status",), 0),
    (("models",), 0),
    (("offers",), 0),
    (("quote", "talker"), 0),
    (("run", "talker", "hi"), 0),
    (("run", "talker", "hi", "--dry-run"), 0),
    (("job", "list"), 0),
    (("job", "show", JOB), 0),
    (("job", "receipt", JOB), 0),
    (("job", "cancel", JOB), 0),
    (("why", JOB), 0),
    (("why", "zz" * 32), 1),
    (("batch", "/nonexistent", "--model", "talker"), 2),
    (("wallet", "balance"), 0),
    (("wallet", "send", OTHER, "0.5", "-y"), 0),
    (("channel", "list"), 0),
    (("channel", "close", "mcchan1", "-y"), 0),
    (("provider", "status"), 0),
    (("provider", "show", OTHER[:12]), 0),
    (("provider", "show", "mc1nobody"), 1),
    (("provider", "bond", "5", "-y"), 0),
    (("ledger", "status"), 0),
    (("ledger", "block"), 0),
    (("ledger", "account", OTHER), 0),
    (("ledger", "supply"), 1),
    (("ledger", "block", "99"), 1),
    (("job", "show", "zz" * 32), 1),
    (("run",), 2),
    (("run", "talker", "hi", "--max-price", "cheap"), 2),
    (("run", "talker", "hi", "--max-tokens", "0"), 2),
    (("wallet", "send", "nonsense", "1", "-y"), 2),
    (("wallet", "send", OTHER, "-1", "-y"), 2),
    (("wallet", "send", OTHER, "1"), 2),
    (("run", "broken", "hi"), 3),
    (("run", "poor", "hi"), 4),
    (("wallet", "send", OTHER, "100000", "-y"), 4),
    (("run", "unheard-of", "hi"), 5),
    (("run", "late", "hi"), 5),
    (("run", "hangup", "hi"), 5),
    (("run", "slow", "hi"), 124),
    (("provider", "unbond", "5", "-y"), 124),
]


@pytest.mark.parametrize(("arguments", "code"), WITH_NODE, ids=str)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_exit_code_says_how_it_ended(
    mercat: Mercat, fake: FakeNode, arguments: tuple[str, ...], code: int, as_json: bool
) -> None:
    ended = mercat(*arguments, *(("--json",) if as_json else ()))
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    if code and as_json:
        error = json.loads(ended.err.splitlines()[-1])["error"]
        assert error["exit_code"] == code
        assert error["message"]
        assert ended.out == ""
    elif code:
        assert ended.err
    elif as_json:
        json.loads(ended.out)


@pytest.mark.parametrize(
    "arguments",
    [("status",), ("run", "m", "x"), ("job", "list"), ("wallet", "balance"), ("ledger", "status"), ("models",)],
    ids=lambda value: value[0],
)
def test_no_node_is_unreachable_and_says_how_to_start_one(
    mercat: Mercat, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    ended = mercat(*arguments, "--control", str(tmp_path / "none.sock"))
    assert ended.code == ExitCode.UNREACHABLE
    assert "mercat node run" in ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("unheard-of",),
        ("status", "--unheard-of"),
        ("key", "new", "--role", "king"),
        ("verify", "none.json"),
        ("node", "run"),
        ("node", "run", "--config", "none.toml"),
        ("cluster", "up", "--authorities", "0"),
        ("genesis", "new"),
        ("completion", "tcsh"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_two(mercat: Mercat, arguments: tuple[str, ...]) -> None:
    assert mercat(*arguments).code == ExitCode.USAGE


def test_failed_without_a_cluster(mercat: Mercat) -> None:
    for command in ("status", "env", "stop", "logs"):
        ended = mercat("cluster", command)
        assert ended.code == ExitCode.FAILED
        assert "mercat cluster up" in ended.err


def test_every_exit_code_is_in_the_help(mercat: Mercat) -> None:
    out = mercat("--help").out
    for code in ExitCode:
        assert f"  {code.value} " in EXIT_CODES_TEXT
        assert f"  {code.value} " in out
