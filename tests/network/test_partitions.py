"""Parted networks: who holds a quorum goes on, who does not stands still, and all go on within 10 s of healing."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.network.namespaces import why_unavailable
from tests.network.network import Network, real_network
from tests.network.payments import Load
from tests.network.waiting import stays

REASON = why_unavailable()
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(REASON is not None, reason=f"no network namespaces here: {REASON}"),
]

HEALED_SECONDS = 10.0
PARTED_SECONDS = 20.0
"""Longer than links take to notice that nobody answers, so that they have to be made anew."""


def healed(network: Network, what: str) -> None:
    """Everybody's payments are decided in time again, and everything adds up."""
    network.switch.heal()
    seconds = network.probe(HEALED_SECONDS)
    print(f"{what}: payments of all decided {seconds:.2f} s after healing; {network.switch.carried}")


@pytest.mark.parametrize(
    ("authorities", "sides"),
    [(4, ([0, 1], [2, 3])), (7, ([0, 1, 2, 3], [4, 5, 6]))],
    ids=["2|2 of 4", "4|3 of 7"],
)
@pytest.mark.parametrize("seconds", [6.0, PARTED_SECONDS, 90.0], ids=lambda seconds: f"{seconds:.0f} s")
def test_without_a_quorum_on_any_side_nothing_is_decided_until_healed(
    tmp_path: Path, authorities: int, sides: Sequence[Sequence[int]], seconds: float
) -> None:
    with real_network(tmp_path, authorities, seed=authorities) as network:
        with Load(network.payers, network.book):
            network.probe(5.0)
            network.switch.part(*sides)
            network.wait_still()
            stopped_at = network.heights()
            stays(lambda: network.heights() == stopped_at, seconds, "a side without a quorum decided a block")
            healed(network, f"{[len(side) for side in sides]} for {seconds:.0f} s")
        network.audit()


@pytest.mark.parametrize(
    ("authorities", "sides"),
    [(4, ([0, 1, 2], [3])), (7, ([0, 1, 2, 3, 4], [5, 6])), (7, ([0, 1, 2, 3, 4], [5], [6]))],
    ids=["3|1 of 4", "5|2 of 7", "5|1|1 of 7"],
)
def test_side_with_a_quorum_goes_on_and_the_others_catch_up(
    tmp_path: Path, authorities: int, sides: Sequence[Sequence[int]]
) -> None:
    with real_network(tmp_path, authorities, seed=authorities) as network:
        with Load(network.payers, network.book):
            network.probe(5.0)
            network.switch.part(*sides)
            network.probe(HEALED_SECONDS, sides[0])
            cut_off = [place for side in sides[1:] for place in side]
            stopped_at = {place: network.members[place].height() for place in cut_off}
            until = time.monotonic() + PARTED_SECONDS
            while time.monotonic() < until:
                network.probe(HEALED_SECONDS, sides[0])
                assert {place: network.members[place].height() for place in cut_off} == stopped_at
            healed(network, f"{[len(side) for side in sides]} for {PARTED_SECONDS:.0f} s")
        network.audit()


@pytest.mark.parametrize("hears", [True, False], ids=["hears and can't speak", "speaks and can't hear"])
def test_one_way_loss_of_one_authority_stops_nobody_else(tmp_path: Path, hears: bool) -> None:
    with real_network(tmp_path, 4, seed=11) as network:
        with Load(network.payers, network.book):
            network.probe(5.0)
            others = (1, 2, 3)
            network.switch.deafen([(0, other) if hears else (other, 0) for other in others])
            until = time.monotonic() + PARTED_SECONDS
            slowest = 0.0
            while time.monotonic() < until:
                slowest = max(slowest, network.probe(HEALED_SECONDS, others))
            print(f"slowest payment of the others meanwhile: {slowest:.2f} s")
            healed(network, "one way loss of one authority")
        network.audit()


def test_one_way_loss_between_two_authorities_stops_nobody(tmp_path: Path) -> None:
    with real_network(tmp_path, 4, seed=12) as network:
        with Load(network.payers, network.book):
            network.probe(5.0)
            network.switch.deafen([(0, 1), (2, 3)])
            until = time.monotonic() + PARTED_SECONDS
            slowest = 0.0
            while time.monotonic() < until:
                slowest = max(slowest, network.probe(HEALED_SECONDS))
            print(f"slowest payment of all meanwhile: {slowest:.2f} s")
            healed(network, "one way loss between two pairs")
        network.audit()
