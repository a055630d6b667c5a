"""One short partition of real processes, for the quick suite; where namespaces are not allowed it says why."""

from pathlib import Path

import pytest

from tests.network.namespaces import why_unavailable
from tests.network.network import real_network
from tests.network.payments import Load
from tests.network.waiting import stays

REASON = why_unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no network namespaces here: {REASON}")

HEALED_SECONDS = 10.0


def test_network_parted_in_halves_stops_and_goes_on_once_healed(tmp_path: Path) -> None:
    with real_network(tmp_path, 4, seed=1) as network:
        with Load(network.payers, network.book):
            network.probe(5.0)
            network.switch.part([0, 1], [2, 3])
            network.wait_still()
            stopped_at = network.heights()
            stays(lambda: network.heights() == stopped_at, 2.0, "half of the authorities decided a block")
            network.switch.heal()
            network.probe(HEALED_SECONDS)
        chain = network.audit()
        assert chain.height > max(stopped_at)
        assert len(network.book.decided()) >= 8
