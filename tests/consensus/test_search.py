"""All runs of the shipped machine, one authority lying, searched to the end."""

import pytest

from node.simulation.search import Disagreement, Search, Stuck
from protocol.consensus import outputs as out
from protocol.consensus.height import AuthorityHeight
from protocol.messages.effects import Now
from protocol.primitives.units import View
from tests.consensus.test_guards import BelievesUnjustifiedProposals, FinalisesSkippedViews, VotesAgain


@pytest.mark.parametrize("liar", [0, 1, 2], ids=["leads neither view", "leads view 1", "leads view 2"])
def test_no_run_of_two_views_decides_two_blocks_or_halts(liar: int) -> None:
    search = Search(liar, 2)
    assert search.run() > 3000
    assert search.endings > 100


@pytest.mark.parametrize(
    ("machine_type", "short"),
    [(FinalisesSkippedViews, 0), (BelievesUnjustifiedProposals, 0), (VotesAgain, 0), (AuthorityHeight, 1)],
    ids=["FINAL exclusivity", "skip check", "one VOTE a view", "Q - 1"],
)
def test_without_its_guard_the_search_finds_what_must_not_be(machine_type: type[AuthorityHeight], short: int) -> None:
    with pytest.raises(Disagreement):
        Search(2, 2, machine_type, short).run()


class NeverSkips(AuthorityHeight):
    """Waits for its leader for ever."""

    def _skip(self, view: View, outputs: list[out.Output]) -> None:
        pass


class ForgetsVotedBlocks(AuthorityHeight):
    """A leader proposes nothing where something was voted for before."""

    def _lead(self, now: Now, outputs: list[out.Output]) -> None:
        if self.held.base(self.current)[0] == 0:
            super()._lead(now, outputs)


class FinalisesWhereItStands(AuthorityHeight):
    """Gives up the view of a vote certificate as soon as it has left it."""

    def _finalise(self, view: View, outputs: list[out.Output]) -> None:
        if view > self.current:
            super()._finalise(view, outputs)


@pytest.mark.parametrize("machine_type", [NeverSkips, FinalisesWhereItStands])
def test_a_machine_that_can_halt_is_found_stuck(machine_type: type[AuthorityHeight]) -> None:
    with pytest.raises(Stuck, match="nothing is decided by views"):
        Search(1, 1, machine_type).run()


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("liar", [0, 1, 2, 3])
def test_no_run_of_three_views_decides_two_blocks_or_halts(liar: int) -> None:
    assert Search(liar, 3).run() > 10_000
