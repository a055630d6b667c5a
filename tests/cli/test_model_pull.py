"""``mercat model pull`` from peers: what is asked of the node, what is shown meanwhile and at the end."""

import json
from pathlib import Path

import click
import msgspec
import pytest

from node.cli.failures import ExitCode
from node.cli.model_pull import ByteRate, Pace, bar, duration, progress_text, pulled_text
from node.cli.provider import as_provider
from node.config.settings import KeystoreConfig, NodeConfig
from node.runtime.model_views import PullEvent, PullRequest, PullSourceView
from protocol.primitives.addresses import AddressKind, format_address
from tests.api.fake_node import FakeNode
from tests.cli.conftest import Mercat
from tests.cli.test_terminal import ended, terminal

MODEL = "ab" * 32
GIVER = PullSourceView("mcnode1giver", "asked", False, False, 40_000_000, 40)
PULLING = PullEvent(
    "progress", MODEL, "pulling", "tiny", "1", "onnx", "MIT", None, 100_000_000, 40_000_000, 0, (GIVER,)
)


def test_a_pull_is_asked_of_the_node_and_says_who_was_dropped_and_what_came(mercat: Mercat, fake: FakeNode) -> None:
    ended = mercat("model", "pull", MODEL, "--from", "127.0.0.1:7400", "--limit", "10MB/s", "--wait", "2")
    assert ended.code == 0
    assert ("pull", PullRequest(MODEL, ("127.0.0.1:7400",), 10_000_000, 2_000)) in fake.calls
    assert "dropped mcnode1liar: sent a corrupt piece: piece 3 of a.onnx" in ended.err
    assert "license    MIT" in ended.out
    assert "mcnode1giver" in ended.out
    assert "good" in ended.out


@pytest.mark.parametrize(
    ("model", "code", "said"),
    [("nobody", ExitCode.UNREACHABLE, "nobody on offer has it"), ("broken", ExitCode.FAILED, "No space left")],
)
def test_a_pull_that_fails_says_why_with_its_exit_code(
    mercat: Mercat, fake: FakeNode, model: str, code: int, said: str
) -> None:
    ended = mercat("model", "pull", model, "--peers")
    assert ended.code == code
    assert said in ended.err
    assert ended.out == ""


def test_json_is_the_last_event_alone_and_quiet_the_id(mercat: Mercat, fake: FakeNode) -> None:
    shown = json.loads(mercat("model", "pull", MODEL, "--json").out)
    assert (shown["event"], shown["model"], shown["sources"][0]["corrupt"]) == ("finished", MODEL, True)
    assert mercat("model", "pull", MODEL, "-q").out == f"{MODEL}\n"


def test_a_name_that_ships_with_a_description_goes_to_peers_only_when_asked(
    mercat: Mercat, fake: FakeNode, tmp_path: Path
) -> None:
    assert "echo" in mercat("model", "pull", "echo", "--model-store", str(tmp_path / "s")).out
    assert not [call for call in fake.calls if call[0] == "pull"]
    mercat("model", "pull", "echo", "--peers")
    mercat("model", "pull", "no-such-description")
    assert [call[1].model for call in fake.calls if isinstance(call[1], PullRequest)] == [
        "echo",
        "no-such-description",
    ]
    ended = mercat("model", "pull", MODEL, "--model-store", str(tmp_path / "s"))
    assert (ended.code, "node's store" in ended.err) == (ExitCode.USAGE, True)
    assert mercat("model", "pull", "./none.toml").code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10MB/s", 10**7),
        ("1.5 MB/s", 1_500_000),
        ("500kB/s", 500_000),
        ("500K", 500_000),
        ("2MiB", 2**21),
        ("1000", 1000),
    ],
)
def test_rates_as_people_type_them(text: str, rate: int) -> None:
    assert ByteRate().convert(text, None, None) == rate


@pytest.mark.parametrize("text", ["", "fast", "-1MB", "1B/s", "9999999GB/s", "1e9", "10 MB/h"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="not a rate"):
        ByteRate().convert(text, None, None)


def test_the_line_tells_how_far_how_fast_from_how_many_and_for_how_long() -> None:
    assert progress_text(PULLING, 6e6) == (
        "tiny [#########...............] 40%, 40.0 of 100.0 MB, 6.0 MB/s, 1 source, 10 s left"
    )
    assert progress_text(PULLING, 0.0).endswith("0.0 MB/s, 1 source")
    assert (
        progress_text(msgspec.structs.replace(PULLING, stage="checking the whole"), 1.0) == "tiny: checking the whole"
    )
    assert bar(5, 5) == "[" + "#" * 24 + "]"
    assert [duration(seconds) for seconds in (5.4, 65, 3_700)] == ["5 s", "1 min 05 s", "1 h 01 min"]


def test_the_rate_is_that_of_the_last_seconds() -> None:
    pace = Pace()
    assert pace.per_second() == 0
    pace.add(0, 0)
    for second in range(1, 11):
        pace.add(float(second), 1_000_000 if second < 6 else 1_000_000 + (second - 6) * 100)
    assert pace.per_second() == pytest.approx(100)


def test_what_was_there_before_is_told() -> None:
    done = msgspec.structs.replace(PULLING, event="finished", bytes_kept=5_000_000)
    assert "5.0 MB that were there before" in pulled_text(done)
    assert "by nobody on the ledger" in pulled_text(done)
    assert "it was there, and whole" in pulled_text(msgspec.structs.replace(done, sources=()))


def test_on_a_terminal_the_line_is_drawn_and_ctrl_c_ends_the_pull(fake: FakeNode) -> None:
    child = terminal("model", "pull", "endless", "--peers")
    child.expect_exact("tiny [#########...............] 40%")
    child.sendintr()
    assert ended(child) == ExitCode.INTERRUPTED
    assert fake.closed.wait(10)


def test_a_provider_may_be_given_the_address_of_a_model_that_it_does_not_have() -> None:
    config = NodeConfig(genesis=Path("/n"), state=Path("/n"), keystore=KeystoreConfig(Path("/n")))
    address = format_address(AddressKind.MODEL, bytes.fromhex(MODEL))
    for text in (address, MODEL):
        assert [model.description for model in as_provider(config, (text,)).provider.models] == [MODEL]
