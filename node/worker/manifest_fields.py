"""The parts that manifests and descriptions of models are made of, each judged on its own.

Law: whatever a stranger's file says, a part is what is documented here or the file is refused with ``BadDescription``.
"""

import re
from collections.abc import Mapping

from node.worker.errors import BadDescription

Fact = int | str

PATH_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,7}")
HASH_PATTERN = re.compile(r"[0-9a-f]{64}")
UNKNOWN_SHOWN = 8
FACT_MIN, FACT_MAX = -(2**63), 2**64 - 1  # what MessagePack can carry to a worker


def texts(table: Mapping[str, object], *names: str) -> list[str]:
    """Fields that are texts which can be shown to people."""
    found = []
    for name in names:
        value = table.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= 200:
            raise BadDescription(f"{name} must be a text of 1 to 200 characters")
        if not value.isprintable():  # people are shown these
            raise BadDescription(f"{name} must not hold control characters")
        found.append(value)
    return found


def _is_text(text: str) -> bool:
    """Whether UTF-8 can spell it: JSON lets half a character pair through."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def facts_of(value: object) -> dict[str, Fact]:
    """A table of settings."""
    if not isinstance(value, dict) or len(value) > 64:
        raise BadDescription("settings must be a table")
    facts: dict[str, Fact] = {}
    for name, fact in value.items():
        if not isinstance(name, str) or isinstance(fact, bool) or not isinstance(fact, int | str):
            raise BadDescription(f"setting {name!r} must be a whole number or a text")
        if isinstance(fact, int) and not FACT_MIN <= fact <= FACT_MAX:
            raise BadDescription(f"setting {name!r} is a number of more than 64 bits")
        if not _is_text(name) or (isinstance(fact, str) and not _is_text(fact)):
            raise BadDescription(f"setting {name!r} is not Unicode text")
        facts[name] = fact
    return facts


def hashes_of(value: object, what: str, count_max: int) -> tuple[str, ...]:
    """A sorted list of hashes in hexadecimal, each once."""
    if not isinstance(value, list) or len(value) > count_max:
        raise BadDescription(f"{what} must be a list of at most {count_max}")
    hashes = []
    for entry in value:
        if not isinstance(entry, str) or HASH_PATTERN.fullmatch(entry) is None:
            raise BadDescription(f"{what} holds something else than 64 hexadecimal digits: {str(entry)[:80]!r}")
        hashes.append(entry)
    if hashes != sorted(set(hashes)):
        raise BadDescription(f"{what} must be sorted, each once")
    return tuple(hashes)


def _shown(name: str) -> str:
    """A stranger's name for something, as part of a line."""
    return name if len(name) <= 40 and name.isprintable() else ascii(name[:40])


def check_only(table: Mapping[str, object], allowed: tuple[str, ...], what: str) -> None:
    """Refuse fields that nobody reads."""
    unknown = sorted(set(table) - set(allowed))
    if unknown:
        shown = ", ".join(_shown(name) for name in unknown[:UNKNOWN_SHOWN])
        raise BadDescription(f"{what} has unknown fields: {shown}")


def check_path(path: str) -> str:
    """A relative file name without anything that could lead elsewhere. Raises BadDescription."""
    if PATH_PATTERN.fullmatch(path) is None:
        raise BadDescription(f"not a usable file name: {path[:80]!r}")
    return path
