"""Settings as TOML text, for files that we make for people to edit."""

import json
from collections.abc import Mapping, Sequence

Scalar = str | int | bool
Value = Scalar | Sequence[str]
Table = Mapping[str, Value]


def _value(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # a JSON string is a TOML basic string
    return "[" + ", ".join(_value(item) for item in value) + "]"


def _lines(table: Table) -> str:
    return "".join(f"{key} = {_value(value)}\n" for key, value in table.items())


def toml_text(
    top: Table, sections: Mapping[str, Table], lists: Mapping[str, Sequence[Table]], comment: str = ""
) -> str:
    """A file: top-level keys, then ``[sections]``, then ``[[lists]]`` of tables. Empty sections are left out."""
    parts = ["".join(f"# {line}\n" for line in comment.splitlines()) + _lines(top)]
    parts += [f"[{name}]\n{_lines(table)}" for name, table in sections.items() if table]
    parts += [f"[[{name}]]\n{_lines(table)}" for name, tables in lists.items() for table in tables]
    return "\n".join(parts)
