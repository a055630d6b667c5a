"""A few points of each kind for the quick suite; ``./scripts/test kill`` does thousands."""

from pathlib import Path

import pytest

from node.cli.cluster_layout import default_model_store
from tests.kill.rounds import kill_at_points
from tests.kill.store_points import StorePoints

SEED = 20_251


def test_store_killed_inside_commits_is_whole_and_the_guard_remembers(tmp_path: Path) -> None:
    found = StorePoints(tmp_path, SEED).run(40)
    assert found.heights > 20
    assert found.rows > 200
    assert found.reserved > 0


def test_market_killed_at_a_few_points_loses_and_doubles_nothing(short_path: Path) -> None:
    found = kill_at_points(short_path / "c", default_model_store(), 3, 3, SEED, print)
    assert found.jobs_done > 0
    assert found.guard_positions > 0


@pytest.mark.long
@pytest.mark.timeout(900)
def test_market_killed_at_many_points_loses_and_doubles_nothing(short_path: Path) -> None:
    found = kill_at_points(short_path / "c", default_model_store(), 150, 24, SEED, print)
    assert found.points >= 150
    assert found.power_cuts > 0
