"""Listings, ids, prefixes, confirmations: what every command has in common."""

import json
import subprocess
import sys

import pytest

from node.cli.main import COMMANDS
from tests.api.fake_node import JOB, OTHER, OWN, FakeNode
from tests.cli.conftest import Mercat

HEAVY = (
    "aiohttp", "asyncio", "blake3", "cryptography", "msgspec", "nacl", "numpy", "onnxruntime", "platformdirs",
    "sqlite3", "structlog", "uvloop",
)  # fmt: skip


def imported_by(*arguments: str) -> set[str]:
    code = f"import sys; from node.cli.main import run_command; run_command({list(arguments)!r}); print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(ended.stdout.splitlines()[-1].split())


def test_help_imports_nothing_heavy() -> None:
    assert imported_by("--help").isdisjoint(HEAVY)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_of_a_command_imports_no_daemon(command: str) -> None:
    assert imported_by(command, "--help").isdisjoint({"aiohttp", "structlog", "uvloop", "numpy", "sqlite3"})


def test_client_needs_no_aiohttp() -> None:
    assert imported_by("status", "--control", "/nonexistent").isdisjoint({"aiohttp", "asyncio", "structlog"})


@pytest.mark.parametrize(
    ("arguments", "ids"),
    [
        (("job", "list"), [JOB, "abcd" + "0" * 60]),
        (("wallet", "balance"), [OWN]),
        (("offers",), [OTHER]),
        (("quote", "talker"), [OTHER]),
        (("channel", "list"), ["mcchan1abcd"]),
        (("wallet", "send", OTHER, "1", "-y"), ["aa" * 32]),
    ],
    ids=lambda value: " ".join(value[:2]),
)
def test_quiet_prints_ids_alone(mercat: Mercat, fake: FakeNode, arguments: tuple[str, ...], ids: list[str]) -> None:
    ended = mercat(*arguments, "-q")
    assert ended.out.splitlines() == ids
    assert ended.err == ""


def test_people_see_credits_and_programs_base_units(mercat: Mercat, fake: FakeNode) -> None:
    assert "1000.00 credits" in mercat("wallet", "balance").out
    assert json.loads(mercat("wallet", "balance", "--json").out)["balance"] == 1_000_000_000


def test_amount_is_typed_in_credits(mercat: Mercat, fake: FakeNode) -> None:
    mercat("wallet", "send", OTHER, "0.000001", "-y")
    mercat("provider", "bond", "2.5", "-y")
    assert fake.calls == [("send", OTHER, 1), ("bond", 2_500_000)]


def test_money_is_not_sent_unasked_without_a_terminal(mercat: Mercat, fake: FakeNode) -> None:
    ended = mercat("wallet", "send", OTHER, "1")
    assert ended.code == 2
    assert "-y" in ended.err
    assert fake.calls == []


def test_address_with_a_typing_error_sends_nothing(mercat: Mercat, fake: FakeNode) -> None:
    wrong = OTHER[:-1] + ("q" if OTHER[-1] != "q" else "p")
    ended = mercat("wallet", "send", wrong, "1", "-y")
    assert ended.code == 2
    assert "typing error" in ended.err
    assert fake.calls == []


def test_unique_prefix_names_a_job_and_an_ambiguous_one_is_refused(mercat: Mercat, fake: FakeNode) -> None:
    assert mercat("job", "show", "abab", "-q").out.strip() == JOB
    assert mercat("job", "cancel", "abcd").code == 0
    assert fake.calls == [("cancel", "abcd" + "0" * 60)]
    wide = mercat("job", "show", "ab")
    assert wide.code in (0, 1)  # too short for a prefix: the node judges it


def test_no_color_and_no_terminal_give_plain_text(mercat: Mercat, fake: FakeNode) -> None:
    assert "\x1b" not in mercat("status").out


def test_control_flag_goes_over_the_environment(
    mercat: Mercat, fake: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mercat("status", "--control", "/nonexistent").code == 5
    monkeypatch.delenv("MERCAT_CONTROL")
    assert mercat("status").code == 5


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_names_the_command(mercat: Mercat, shell: str) -> None:
    assert "_MERCAT_COMPLETE" in mercat("completion", shell).out


def test_version(mercat: Mercat) -> None:
    assert mercat("--version").out.startswith("mercat ")


def test_simulation_of_a_seed_replays_to_the_same_trace(mercat: Mercat) -> None:
    arguments = ("simulate", "--seeds", "1", "--from", "3", "--transfers", "1", "--seconds", "1", "-q")
    first, second = mercat(*arguments), mercat(*arguments)
    assert first.code == 0, first.err
    assert first.out == second.out
    assert len(first.out.splitlines()) == 1
