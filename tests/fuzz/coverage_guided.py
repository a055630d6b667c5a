"""Fuzz by coverage: ``./scripts/test fuzz [--inputs N] [--target T]…``, with atheris (libFuzzer for Python).

Each target runs in a process of its own under a memory limit; inputs that reach new lines of ``protocol`` and ``node``
are kept in ``var/fuzz/corpus`` and are the start of the next run. A finding's input is kept in ``var/fuzz/findings``.
"""

import argparse
import importlib
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.mutation import mutated, restructured

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "var" / "fuzz"
LOCK = Path(__file__).parent / "requirements.lock"
MEMORY_MIB_MAX = 1024
INPUT_SECONDS_MAX = 20
_CHILD = "--child"
_DONE = re.compile(rb"#(\d+)\s+DONE\s+cov: (\d+).*?corp: (\d+)", re.DOTALL)
_LAST = re.compile(rb"#(\d+)\s+\w+\s+cov: (\d+).*?corp: (\d+)")
_PEAK = re.compile(rb"stat::peak_rss_mb:\s+(\d+)")


class Outcome(NamedTuple):
    """What a target's run came to."""

    inputs: int
    branches: int
    kept: int
    memory_mib: int
    seconds: float
    finding: bool


def install() -> Path:
    """The fuzzer in a directory of its own, by version and hash; nothing to do the second time."""
    packages = PLACE / "packages"
    stamp = packages / "lock"
    if not stamp.exists() or stamp.read_bytes() != LOCK.read_bytes():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
        pip += ["--no-deps", "--require-hashes", "--only-binary=:all:", "--target", str(packages), "-r", str(LOCK)]
        subprocess.run(pip, check=True)
        stamp.write_bytes(LOCK.read_bytes())
    return packages


def run_target(name: str, inputs: int, packages: Path) -> Outcome:
    """One target in a process of its own."""
    began = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": f"{packages}{os.pathsep}{ROOT}", "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "tests.fuzz.coverage_guided", _CHILD, name, str(inputs)]
    log = PLACE / f"{name}.log"
    with log.open("wb") as written:
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=written, stderr=written).returncode
    said = log.read_bytes()
    found = _DONE.findall(said) or _LAST.findall(said) or [(b"0", b"0", b"0")]
    peak = _PEAK.search(said)
    tried, branches, kept = (int(number) for number in found[-1])
    seconds = time.monotonic() - began
    return Outcome(tried, branches, kept, int(peak.group(1)) if peak else 0, seconds, code != 0)


def be_fuzzed(name: str, inputs: int) -> None:
    """The child: never returns."""
    atheris = importlib.import_module("atheris")

    with atheris.instrument_imports(include=["protocol", "node"]):
        from tests.fuzz.targets import TARGETS, attempt
    target = TARGETS[name]
    corpus, seeds = PLACE / "corpus" / name, PLACE / "seeds" / name
    findings = PLACE / "findings"
    for directory in (corpus, seeds, findings):
        directory.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(target.seeds()):
        (seeds / f"{number:03}").write_bytes(content)
    run: Callable[[bytes], None] = lambda content: attempt(target, content)  # noqa: E731
    options = [f"-runs={inputs}", f"-max_len={target.bytes_max}", f"-rss_limit_mb={MEMORY_MIB_MAX}"]
    options += [f"-timeout={INPUT_SECONDS_MAX}", "-print_final_stats=1", f"-artifact_prefix={findings}/{name}-"]
    good = target.seeds()

    def mutate(content: bytes, size_max: int, seed: int) -> bytes:
        dice = random.Random(seed)
        if not good or dice.random() < 0.4:
            return bytes(atheris.Mutate(content, size_max))
        changed = restructured(dice.choice((content, *good)), dice) if dice.random() < 0.6 else None
        return (changed or mutated(content, good, dice))[:size_max]

    atheris.Setup([sys.argv[0], *options, str(corpus), str(seeds)], run, custom_mutator=mutate)
    atheris.Fuzz()


def fuzz(command_line: list[str]) -> int:
    """Run the targets one after the other; 1 when something was found."""
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="scripts/test fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all targets together (100000)")
    parser.add_argument("--target", action="append", choices=[*TARGETS], help="only this one; may be repeated")
    arguments = parser.parse_args(command_line)
    packages = install()
    chosen: list[str] = arguments.target or [*TARGETS]
    shares = sum(TARGETS[name].share for name in chosen)
    outcomes: dict[str, Outcome] = {}
    for name in chosen:
        outcome = run_target(name, arguments.inputs * TARGETS[name].share // shares, packages)
        outcomes[name] = outcome
        verdict = f"FOUND something, see {PLACE / (name + '.log')}" if outcome.finding else "nothing found"
        print(
            f"{name:16} {outcome.inputs:>9} inputs {outcome.branches:>6} branches {outcome.kept:>5} kept "
            f"{outcome.memory_mib:>5} MiB {outcome.seconds:>7.0f} s  {verdict}",
            flush=True,
        )
    total = sum(outcome.inputs for outcome in outcomes.values())
    found = sum(outcome.finding for outcome in outcomes.values())
    print(f"{total} inputs, {found} targets with findings")
    return 1 if found else 0


if __name__ == "__main__":
    if sys.argv[1:2] == [_CHILD]:
        be_fuzzed(sys.argv[2], int(sys.argv[3]))
    sys.exit(fuzz(sys.argv[1:]))
