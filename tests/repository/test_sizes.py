"""The sizes that keep rooms small: functions of at most 70 lines, files of at most 500 (tests 600)."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500
TEST_FILE_LINES_MAX = 600
SOURCES = sorted(path for room in ("protocol", "node", "tests") for path in (ROOT / room).rglob("*.py"))


def _functions_too_long(tree: ast.AST) -> list[str]:
    return [
        f"{node.name} ({node.end_lineno - node.lineno + 1})"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_the_tree_is_not_empty() -> None:
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    limit = TEST_FILE_LINES_MAX if path.is_relative_to(ROOT / "tests") else FILE_LINES_MAX
    assert path.read_text().count("\n") <= limit
    assert _functions_too_long(_parsed(path)) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_of_ours_says_what_it_is(path: Path) -> None:
    if path.is_relative_to(ROOT / "tests") and path.name == "__init__.py":
        return
    assert ast.get_docstring(_parsed(path))
