"""Prints the interpreter to make the environment with: this one, or a faster build of the same version.

Builds of one Python version differ by a factor of two: distributions optimise theirs by a profile, a plain
``configure && make`` does not. Nearly all of a node's time is the interpreter's, so it is worth a look.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_FASTER = 0.9
"""Another build is taken if the loop takes it less than this share of the time: the user's own choice is worth more
than a few percent."""
_ROUNDS = 8
"""Builds are measured in turn so many times, and each one's best counts: on a busy machine a single look would choose
by chance."""
_SECONDS_MAX = 20.0

_PROBE = """
import ensurepip, os, sqlite3, ssl, sys, time, venv
class Entry:
    def __init__(self, key): self.key = key
    def share(self, rows): return rows.get(self.key, 0) + len(rows) if isinstance(self.key, int) else None
def run():
    rows, taken = {}, []
    for number in range(20_000):
        rows[number % 50] = Entry(number).share(rows)
        taken.append(number)
        if len(taken) > 50: taken.clear()
best = None
for _ in range(10):
    began = time.perf_counter()
    run()
    spent = time.perf_counter() - began
    best = spent if best is None else min(best, spent)
print(best, "%d.%d" % sys.version_info[:2], os.path.realpath(sys.executable), sys.executable, sep="\\n")
"""


def candidates() -> Iterator[str]:
    """Interpreters of this minor version by their usual names, on the path and where distributions put theirs."""
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for folder in dict.fromkeys((*os.get_exec_path(), "/usr/bin", "/usr/local/bin")):
        path = Path(folder) / name
        if path.is_file() and os.access(path, os.X_OK):
            yield str(path)


def probed(python: str) -> tuple[float, str, str] | None:
    """Seconds for the loop, real path and executable; ``None`` for what could not make the environment."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=_SECONDS_MAX, check=True
        )
        seconds, version, real, executable = done.stdout.splitlines()
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    if version != f"{sys.version_info[0]}.{sys.version_info[1]}":
        return None
    return float(seconds), real, executable


def measured() -> dict[str, float]:
    """Executables of the builds that could make the environment, one for each real path, and each one's best time.

    This interpreter comes first; nothing comes at all if it could not make the environment itself.
    """
    best: dict[str, float] = {}
    names: dict[str, str] = {}
    pythons = [sys.executable, *candidates()]
    for _ in range(_ROUNDS):
        tried: dict[str, None] = {}
        for python in pythons:
            found = probed(python)
            if found is None or found[1] in tried:
                continue
            seconds, real, executable = found
            tried[real] = None
            names.setdefault(real, executable)
            best[real] = min(seconds, best.get(real, seconds))
        if os.path.realpath(sys.executable) not in tried:
            return {}
        pythons = [names[real] for real in tried]
    return {names[real]: seconds for real, seconds in best.items()}


def main() -> None:
    """Print the choice on stdout, and why on stderr if it is not this interpreter."""
    times = measured()
    if not times:  # no venv here, say: what follows tells how to get it
        print(sys.executable)
        return
    own, seconds = next(iter(times.items()))
    chosen, best = min(times.items(), key=lambda item: item[1])
    if best >= _FASTER * seconds:
        chosen = own
    if chosen != own:
        print(
            f"==> {chosen} runs the same loop in {best / seconds:.0%} of the time of {own}: taking it "
            "(MERCAT_PYTHON names another one)",
            file=sys.stderr,
        )
    print(chosen)


if __name__ == "__main__":
    main()
