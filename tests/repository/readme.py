"""The transcripts of the README: run for real, compared with what is printed there, rewritten on demand.

Law: every ```console block is part of one story. All commands run in order in one shell with a home directory of its
own, so that what one block sets up the next one finds; a block whose output differs in more than ids, addresses,
process numbers, times and the like is a lie. ``python -m tests.repository.readme --write`` replaces such blocks.
"""

import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
SESSION_SECONDS_MAX = 110
PORT_SHOWN = 7400
"""The port that the README names; a run takes a free one in its stead."""

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARKER = "\x1e"
"""Record separator: what a command prints ends before it."""


class ReadmeBroken(Exception):
    """The README's blocks can't be read, or its commands did not end."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a block and the output that is printed below it."""

    command: str
    output: str


def blocks(text: str) -> list[list[Step]]:
    """Every console block as its steps. Raises ``ReadmeBroken`` on a block that doesn't start with a command."""
    return [_steps(block) for block in _BLOCK.findall(text)]


def _steps(block: str) -> list[Step]:
    steps: list[Step] = []
    lines = iter(block.splitlines(keepends=True))
    for line in lines:
        if line.startswith("$ "):
            command = line[2:]
            while command.endswith("\\\n"):
                command += next(lines).removeprefix("> ")
            steps.append(Step(command.rstrip("\n"), ""))
        elif steps:
            steps[-1] = Step(steps[-1].command, steps[-1].output + line)
        else:
            raise ReadmeBroken(f"a console block starts with {line!r}, not with a command")
    return steps


def render(steps: list[Step]) -> str:
    """A console block with its fences."""
    body = "".join(f"$ {step.command.replace(chr(10), chr(10) + '> ')}\n{step.output}" for step in steps)
    return f"```console\n{body}```"


_VARYING = (
    (re.compile(r"\b[0-9a-f]{12,}\b…?"), "HEX"),
    (re.compile(r"\bmc(|node|auth)1[02-9ac-hj-np-z]{8,}…?"), r"mc\1ADDRESS"),
    (re.compile(r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), "DATE"),
    (re.compile(r"\b127\.0\.0\.1:\d+"), "127.0.0.1:PORT"),
    (re.compile(r"\b\d+(\.\d+)? (ms|s)\b"), r"N \2"),
    (re.compile(r"\b(in block|block|at height) \d+"), r"\1 N"),
    (re.compile(r"^(\S+-\d +(?:up|stopped)) +\d+ +\d+ +\d+", re.MULTILINE), r"\1 PID HEIGHT PEERS"),
    (re.compile(r"^height +\d+", re.MULTILINE), "height N"),
    (re.compile(r"\b(active +)\d+"), r"\1N"),
    (re.compile(r"\bafter block \d+"), "after block N"),
    (re.compile(r"\d+ base units, nonce \d+"), "N base units, nonce N"),
    (re.compile(r"\bwrote (\S+), \d+ bytes"), r"wrote \1, N bytes"),
    (re.compile(r'"score":0\.\d+'), '"score":N'),
    (re.compile(r"^[+-]\d+\.\d{3}\b", re.MULTILINE), "+SECONDS"),
    (re.compile(r"[ \t]+"), " "),
)
"""What differs from run to run or from machine to machine, the width of columns included."""


def normalised(text: str) -> str:
    """Text without what may vary."""
    for pattern, replacement in _VARYING:
        text = pattern.sub(replacement, text)
    return text


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


def _script(commands: list[str], port: int) -> str:
    lines = ["trap 'kill $(jobs -p) 2>/dev/null; wait; mercat cluster stop --quiet >/dev/null 2>&1' EXIT"]
    for command in commands:
        lines += [command.replace(str(PORT_SHOWN), str(port)), f"printf '{_MARKER}'"]
    return "\n".join(lines) + "\n"


@contextmanager
def _home(models: Path) -> Iterator[Path]:
    """A user's home with the model cache of this machine and, as the place to work in, a checkout."""
    home = Path(tempfile.mkdtemp(prefix="mercat-readme-"))  # short: control sockets have short paths
    try:
        cache = home / ".cache" / "mercat"
        cache.mkdir(parents=True)
        (cache / "models").symlink_to(models)
        checkout = home / "mercat"
        checkout.mkdir()
        for name in ("scripts", "configs"):
            (checkout / name).symlink_to(ROOT / name)
        yield home
    finally:
        shutil.rmtree(home)


def run(commands: list[str], models: Path) -> list[str]:
    """What a user's terminal shows after each command. Raises ``ReadmeBroken`` when the commands do not end.

    ``models`` is the store to take model files from.
    """
    port = _free_port()
    with _home(models) as home:
        environment = {
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
            "TERM": "dumb",
        }
        shown = _in_terminal(_script(commands, port), home / "mercat", environment)
        left = processes_with(str(home))
    if left:
        raise ReadmeBroken(f"the commands left processes behind: {left}")
    outputs = shown.replace("\r\n", "\n").replace(str(home), "~").replace(str(port), str(PORT_SHOWN)).split(_MARKER)
    if len(outputs) != len(commands) + 1:
        raise ReadmeBroken(f"only {len(outputs) - 1} of {len(commands)} commands ended:\n{shown[-2000:]}")
    return outputs[:-1]


def _in_terminal(script: str, directory: Path, environment: dict[str, str]) -> str:
    """All that a shell prints to its terminal. The whole session is ended if it takes too long."""
    terminal, shell_side = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-c", script],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=shell_side,
        stderr=shell_side,
        start_new_session=True,
    )
    os.close(shell_side)
    deadline = time.monotonic() + SESSION_SECONDS_MAX
    shown = b""
    try:
        while select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
            try:
                piece = os.read(terminal, 65_536)
            except OSError:  # every holder of the other side has ended
                break
            if not piece:
                break
            shown += piece
    finally:
        os.close(terminal)
        try:
            shell.wait(1)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGTERM)  # it stops what it started before it ends
            shell.wait(30)
    return shown.decode("utf-8", "replace")


def processes_with(text: str) -> list[int]:
    """Numbers of the processes whose command line has ``text``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in command:
                found.append(int(entry.name))
    return found


def replayed(text: str, models: Path) -> list[tuple[list[Step], list[Step]]]:
    """For each block, its steps as printed and as a run gives them."""
    printed = blocks(text)
    outputs = iter(run([step.command for steps in printed for step in steps], models))
    return [(steps, [Step(step.command, next(outputs)) for step in steps]) for steps in printed]


def rewritten(text: str, models: Path) -> str:
    """The text with the output of a real run wherever the printed one differs in more than what may vary."""
    fresh = iter(
        [
            [old if normalised(old.output) == normalised(new.output) else new for old, new in zip(*pair, strict=True)]
            for pair in replayed(text, models)
        ]
    )
    return _BLOCK.sub(lambda _: render(next(fresh)), text)


def main() -> int:
    """``--write``: rewrite the README. Otherwise print what a run gives."""
    models = Path(os.environ.get("MERCAT_MODEL_CACHE") or ROOT / "var" / "models")
    text = rewritten(README.read_text("utf-8"), models)
    if sys.argv[1:] == ["--write"]:
        README.write_text(text, "utf-8")
    else:
        sys.stdout.writelines(f"{render(steps)}\n\n" for steps in blocks(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
