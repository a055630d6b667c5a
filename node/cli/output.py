"""What commands print: results on standard output, everything else on standard error.

Law: with ``--json`` standard output holds JSON alone, with ``-q`` ids alone. Text that came from strangers never
reaches a terminal with control characters in it.
"""

import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from protocol.primitives.units import format_credits

_CONTROLS = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"
"""Format characters that scripts and emoji need and that move nothing."""


def printable(text: str, keep: str = "") -> str:
    """``text`` with control and direction-changing characters replaced, except those in ``keep``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character
        if character in keep or character in _JOINERS or unicodedata.category(character) not in _CONTROLS
        else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def printable_json(text: str) -> str:
    """The same JSON value with every such character spelled as an escape; the lines' ends of the layout stay."""
    if text.isascii() and "\x7f" not in text:
        return text  # an encoder spells the rest of ASCII's controls itself
    return "".join(
        character if character == "\n" or printable(character) == character else json.dumps(character)[1:-1]
        for character in text
    ).replace("\x7f", "\\u007f")


def credits_text(amount: int) -> str:
    """An amount for people, with its unit."""
    return f"{format_credits(amount)} credits"


def short(identifier: str, head: int = 12) -> str:
    """An id cut for a table; commands accept such a prefix where one id has it."""
    return identifier if len(identifier) <= head + 1 else identifier[:head] + "…"


def styled(stream_is_terminal: bool) -> bool:
    """Whether text for this stream may have colors and weights."""
    return stream_is_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], bold: bool | None = None) -> str:
    """Columns padded to their widest cell; numbers are the caller's to format."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max([len(header), *(len(row[column]) for row in cells)]) for column, header in enumerate(headers)]

    def line(row: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

    head = line(headers)
    if styled(sys.stdout.isatty()) if bold is None else bold:
        head = f"\033[1m{head}\033[0m"
    return "\n".join([head, *(line(row) for row in cells)])


def fields(pairs: Iterable[tuple[str, str]]) -> str:
    """``name  value`` lines, values aligned."""
    rows = [(name, printable(value)) for name, value in pairs]
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}".rstrip() for name, value in rows)


def note(text: str) -> None:
    """A line for people, on standard error."""
    print(printable(text, keep="\n"), file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Output:
    """How this command was asked to speak."""

    as_json: bool = False
    quiet: bool = False

    def show(self, view: object, text: str, ids: Iterable[str] = ()) -> None:
        """Print a result in the form asked for: ``view`` as JSON, ``ids`` alone, or ``text``."""
        if self.as_json:
            text = msgspec.json.format(msgspec.json.encode(view), indent=2).decode()
            sys.stdout.write(printable_json(text) + "\n")
        elif self.quiet:
            sys.stdout.writelines(f"{printable(identifier)}\n" for identifier in ids)
        elif text:
            sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A remark for people; not with ``-q`` or ``--json``."""
        if not self.quiet and not self.as_json:
            note(text)


class Progress:
    """One line on a terminal's standard error that is rewritten; silent elsewhere."""

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def update(self, text: str) -> None:
        """Show what is going on now."""
        if self._enabled:
            sys.stderr.write("\r\033[2K" + printable(text))
            sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self._enabled:
            sys.stderr.write("\r\033[2K")
            sys.stderr.flush()
