"""What the README shows is what the program prints."""

import asyncio
import os
from pathlib import Path

import pytest

from node.cli.failures import ExitCode
from node.worker.models import ModelStore, load_description
from node.worker.packages import add_from_package
from tests.repository import readme

MODELS = ("smollm2-135m", "magika", "echo")


@pytest.fixture(scope="module")
def models() -> Path:
    """This machine's model cache, filled once."""
    store = Path(os.environ.get("MERCAT_MODEL_CACHE") or readme.ROOT / "var" / "models").absolute()
    for name in MODELS:
        description = load_description(readme.ROOT / "configs" / "models" / f"{name}.toml")
        asyncio.run(add_from_package(ModelStore(store), description))
    return store


def test_every_transcript_is_what_a_run_prints(models: Path) -> None:
    for printed, seen in readme.replayed(readme.README.read_text("utf-8"), models):
        for old, new in zip(printed, seen, strict=True):
            assert readme.normalised(new.output) == readme.normalised(old.output), (
                f"$ {old.command}\nprints now:\n{new.output}\n"
                "if that is right: python -m tests.repository.readme --write"
            )


def test_readme_names_every_exit_code() -> None:
    text = readme.README.read_text("utf-8")
    for code in ExitCode:
        assert f"| {code.value} |" in text


def test_readme_fits_the_reader_of_blocks() -> None:
    text = "a\n```console\n$ one\nout\n$ two \\\n> three\n```\nb\n```console\n$ four\n```\n"
    steps = readme.blocks(text)
    assert steps == [
        [readme.Step("one", "out\n"), readme.Step("two \\\nthree", "")],
        [readme.Step("four", "")],
    ]
    assert "".join(readme.render(block) for block in steps) in text.replace("\nb\n", "").replace("a\n", "")


def test_block_without_a_command_is_refused() -> None:
    with pytest.raises(readme.ReadmeBroken):
        readme.blocks("```console\noutput of nothing\n```\n")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("job 3307ec1da847bb7e", "job c45d253b12135853"),
        ("to mc15jqapqgdwq8kxtkmgtl7xpgrzksw6xxma", "to mc1mdxgu0gpz…"),
        ("at 127.0.0.1:1234  up", "at 127.0.0.1:54321 up"),
        ("settled in block 4 of 2026-11-23 08:40:04, 3 s ago", "settled in block 12 of 2027-01-01 00:00:00, 10 s ago"),
        ("provider-1   up     2362  0       6", "provider-1   up     31     10       5"),
    ],
)
def test_what_may_vary_is_not_compared(one: str, other: str) -> None:
    assert readme.normalised(one) == readme.normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("paid 0.00148 credits", "paid 0.00149 credits"),
        ("ok  receipt signature", "FAILED  receipt signature"),
        ("mcmodel1057wp4dyl2…", "mcmodel1acqh6z3svk…"),
        ("exit code 1", "exit code 0"),
        ("16 units in, 8 out", "16 units in, 9 out"),
    ],
)
def test_what_matters_is_compared(one: str, other: str) -> None:
    assert readme.normalised(one) != readme.normalised(other)
