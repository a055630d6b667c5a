"""All runs of the shipped machine, one authority lying, searched to the end."""

import pytest

from protocol.consensus.height import AuthorityHeight
from tests.consensus.search import Disagreement, Search
from tests.consensus.test_guards import BelievesUnjustifiedProposals, FinalisesSkippedViews


@pytest.mark.parametrize("liar", [0, 1, 2], ids=["leads neither view", "leads view 1", "leads view 2"])
def test_no_run_of_two_views_decides_two_blocks(liar: int) -> None:
    assert Search(liar, 2).run() > 3000


@pytest.mark.parametrize(
    ("machine_type", "short"),
    [(FinalisesSkippedViews, 0), (BelievesUnjustifiedProposals, 0), (AuthorityHeight, 1)],
    ids=["FINAL exclusivity", "skip check", "Q - 1"],
)
def test_without_its_guard_the_search_finds_two_decided_blocks(machine_type: type[AuthorityHeight], short: int) -> None:
    with pytest.raises(Disagreement, match="two blocks decided"):
        Search(2, 2, machine_type, short).run()


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("liar", [0, 1, 2, 3])
def test_no_run_of_three_views_decides_two_blocks(liar: int) -> None:
    assert Search(liar, 3).run() > 10_000
