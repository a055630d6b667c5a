"""The sign guard: one statement at a position, whatever crashes or asks twice."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.store.errors import DiskFull, GuardRefused, StoreCorrupt, StoreLocked
from node.store.sign_guard import SignGuard
from protocol.messages.effects import GuardClass, GuardPosition
from protocol.primitives.units import Height, View


def at(height: int, view: int = 1, guard_class: GuardClass = GuardClass.VOTE) -> GuardPosition:
    return GuardPosition(Height(height), View(view), guard_class)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "guard.sqlite"


@pytest.fixture
def guard(path: Path) -> Iterator[SignGuard]:
    opened = SignGuard.open(path)
    yield opened
    opened.close()


def test_a_free_position_takes_the_bytes_and_a_taken_one_gives_back_its_own(guard: SignGuard) -> None:
    assert guard.reserve([(at(1), b"x")]) == [b"x"]
    assert guard.reserve([(at(1), b"y")]) == [b"x"]
    assert guard.reserve([(at(1), b"y"), (at(1, 2), b"y"), (at(2), b"y")]) == [b"x", b"y", b"y"]


def test_classes_and_views_are_positions_of_their_own(guard: SignGuard) -> None:
    positions = [at(1, view, guard_class) for view in (1, 2) for guard_class in GuardClass]
    assert guard.reserve([(position, bytes((place,))) for place, position in enumerate(positions)]) == [
        bytes((place,)) for place in range(6)
    ]


def test_within_one_group_the_first_to_ask_wins(guard: SignGuard) -> None:
    final = at(1, 1, GuardClass.FINAL)
    assert guard.reserve([(final, b"block"), (final, b"skip")]) == [b"block", b"block"]


def test_what_was_reserved_is_held_after_a_reopening(path: Path, guard: SignGuard) -> None:
    guard.reserve([(at(3, 2), b"b"), (at(3, 1), b"a")])
    guard.raise_watermark(Height(2))
    guard.close()
    again = SignGuard.open(path)
    assert again.held() == [(at(3, 1), b"a"), (at(3, 2), b"b")]
    assert again.watermark() == 2
    assert again.reserve([(at(3, 1), b"z")]) == [b"a"]
    again.close()


def test_at_or_below_the_watermark_nothing_is_signed_not_even_what_was_signed_before(guard: SignGuard) -> None:
    guard.reserve([(at(1), b"x"), (at(2), b"x"), (at(3), b"x")])
    guard.raise_watermark(Height(2))
    assert guard.held() == [(at(3), b"x")]
    for height in (1, 2):
        with pytest.raises(GuardRefused) as caught:
            guard.reserve([(at(height), b"x")])
        assert (caught.value.height, caught.value.watermark) == (height, 2)
    assert guard.reserve([(at(3), b"y")]) == [b"x"]


def test_a_group_with_a_closed_height_reserves_nothing_at_all(guard: SignGuard) -> None:
    guard.raise_watermark(Height(4))
    with pytest.raises(GuardRefused):
        guard.reserve([(at(5), b"x"), (at(4), b"x")])
    assert guard.held() == []
    assert guard.reserve([(at(5), b"y")]) == [b"y"]


def test_the_watermark_never_falls(guard: SignGuard) -> None:
    guard.raise_watermark(Height(9))
    guard.raise_watermark(Height(3))
    assert guard.watermark() == 9
    with pytest.raises(GuardRefused):
        guard.reserve([(at(9), b"x")])


def test_a_second_guard_on_the_same_file_does_not_open(path: Path, guard: SignGuard) -> None:
    with pytest.raises(StoreLocked):
        SignGuard.open(path)


def test_a_full_disk_reserves_nothing(guard: SignGuard) -> None:
    guard.reserve([(at(1), b"x")])
    connection = guard._database.conn
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(DiskFull):
        guard.reserve([(at(2, view), b"y" * 100) for view in range(100)])
    assert guard.held() == [(at(1), b"x")]


def test_a_damaged_guard_is_refused_rather_than_started_afresh(path: Path, guard: SignGuard) -> None:
    guard.reserve([(at(1), b"x")])
    guard.close()
    path.write_bytes(b"\0" * 100 + path.read_bytes()[100:])
    with pytest.raises(StoreCorrupt, match="must not be replaced"):
        SignGuard.open(path)


_RESERVE_THEN_WAIT = """
import sys
from pathlib import Path
from node.store.sign_guard import SignGuard
from tests.store.test_sign_guard import at
guard = SignGuard.open(Path(sys.argv[1]))
print(guard.reserve([(at(7), b"first"), (at(7, 2), b"second")]), flush=True)
sys.stdin.read()
"""


def test_a_process_killed_between_reserving_and_signing_is_answered_the_same_after_its_restart(path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _RESERVE_THEN_WAIT, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "[b'first', b'second']\n"
        with pytest.raises(StoreLocked):
            SignGuard.open(path)
        child.kill()
    assert child.returncode == -signal.SIGKILL
    guard = SignGuard.open(path)
    assert guard.reserve([(at(7), b"other"), (at(7, 2), b"other")]) == [b"first", b"second"]
    guard.close()
