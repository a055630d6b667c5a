"""The import contracts of the rooms hold: a room that reaches where it may not is a defect like any other."""

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports


def test_every_room_imports_only_what_it_may() -> None:
    assert lint_imports(no_cache=True) == EXIT_STATUS_SUCCESS
