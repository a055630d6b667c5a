"""``mercat run`` of a job that was delivered whole and has no receipt yet: the answer is there, with a warning."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.runtime.control import RunEvent, RunRequest
from tests.api.fake_node import JOB, FakeNode
from tests.cli.conftest import Mercat

REASON = "delivered and paid, the receipt is missing: the link to the provider was lost"


@pytest.fixture(autouse=True)
def delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake node's provider dies behind its last chunk."""

    async def output(fake: FakeNode, name: str, request: RunRequest) -> AsyncIterator[tuple[RunEvent, ...]]:
        yield (RunEvent("output", {}, b"Hello"),)
        facts: dict[str, str | int | bool | None] = {
            "job": JOB, "input_units": 3, "output_units": 2, "amount": 7, "paid": 7,
            "receipt": "missing", "reason": REASON,
        }  # fmt: skip
        yield (RunEvent("finished", facts),)

    monkeypatch.setattr(FakeNode, "_output", output)


def test_the_answer_is_printed_and_the_job_has_succeeded(mercat: Mercat, fake: FakeNode) -> None:
    ended = mercat("run", "talker", "hi")
    assert (ended.code, ended.out) == (0, "Hello\n")
    assert f"{REASON}; once the provider is back: mercat job receipt {JOB[:16]}" in ended.err


@pytest.mark.parametrize("wanted", ["--receipt", "--settle"])
def test_whoever_asked_for_the_proof_is_told_that_it_is_missing_and_has_the_answer(
    mercat: Mercat, fake: FakeNode, tmp_path: Path, wanted: str
) -> None:
    options = (wanted, str(tmp_path / "receipt.json")) if wanted == "--receipt" else (wanted,)
    ended = mercat("run", "talker", "hi", *options, "--json")
    assert ended.code == 3
    assert json.JSONDecoder().raw_decode(ended.out)[0]["output"] == "Hello"
    assert "receipt_missing" in ended.out + ended.err
    assert not (tmp_path / "receipt.json").exists()
    assert not [call for call in fake.calls if call[0] == "settle"]
