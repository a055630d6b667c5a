"""A second process of a benchmark: one of our modules, spoken to by lines, gone when its standard input closes."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

_ANSWER_SECONDS = 60.0


class Spoken:
    """A running process that answers by lines."""

    def __init__(self, writing: IO[str], reading: IO[str]) -> None:
        self._writing = writing
        self._reading = reading

    def say(self, line: str) -> None:
        """Send one line."""
        self._writing.write(line + "\n")
        self._writing.flush()

    async def heard(self) -> str:
        """The next line it says."""
        async with asyncio.timeout(_ANSWER_SECONDS):
            return (await asyncio.to_thread(self._reading.readline)).strip()


@contextmanager
def python_process(module: str, *arguments: str) -> Iterator[Spoken]:
    """Run a module as a program while the context lasts."""
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Spoken(process.stdin, process.stdout)
        finally:
            process.stdin.close()
            process.wait()
