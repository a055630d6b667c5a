"""The gate: takes one layer of the sandbox away at a time and sees to it that the suite notices.

A layer whose loss nobody notices protects nothing, or nothing tests it. Prints which tests caught which layer.

    python -m tests.sandbox.gate [LAYER...]
"""

import dataclasses
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from node.worker.sandbox.layers import Layers
from tests.sandbox import arena

REPOSITORY = Path(__file__).parents[2]
ATTEMPTS = "tests/sandbox/test_attempts.py"
FAILED = re.compile(r"^FAILED \S+?::(\w+)(?:\[(.*?)(?:-[^-\]]*)?\])?(?: - |$)")
EXAMPLES = 3


def layers() -> tuple[str, ...]:
    """Every layer that this user has."""
    names = [field.name for field in dataclasses.fields(Layers)]
    return tuple(name for name in names if name != "own_user" or os.geteuid() == 0)


def caught(layer: str) -> list[tuple[str, str]]:
    """The tests that fail without a layer, each with the attempt that got through."""
    environment = {**os.environ, arena.WITHOUT: layer}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider", ATTEMPTS]
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    matches = [FAILED.match(line) for line in ended.stdout.splitlines()]
    return [(match[1], match[2] or "") for match in matches if match is not None]


def table(layer: str, failures: list[tuple[str, str]]) -> list[str]:
    """Lines about one layer: how many of each kind of test failed, and examples."""
    lines = [f"{layer:<22} {len(failures):>4} failures" + ("" if failures else "   NOBODY NOTICED")]
    for kind, count in Counter(name for name, _ in failures).items():
        examples = [attempt for name, attempt in failures if name == kind and attempt][:EXAMPLES]
        what = kind.removeprefix("test_").replace("_", " ")
        lines.append(f"    {count:>3}  {what}" + (f": {'; '.join(examples)}" if examples else ""))
    return lines


def main(chosen: tuple[str, ...]) -> int:
    """Run the gate. Returns the exit status."""
    unnoticed = []
    for layer in chosen or layers():
        failures = caught(layer)
        print("\n".join(table(layer, failures)), flush=True)
        if not failures:
            unnoticed.append(layer)
    print(f"{len(chosen or layers()) - len(unnoticed)} passed, {len(unnoticed)} failed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main(tuple(sys.argv[1:])))
