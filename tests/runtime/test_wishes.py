"""What is told before anything is signed, and what is worth waiting for."""

from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace

from node.config.settings import BuyerConfig
from node.runtime.control import ControlError
from node.runtime.node import Node
from node.runtime.wishes import Wish
from protocol.market.policies import BuyerPolicy
from protocol.primitives.units import DurationMs
from tests.runtime.test_quotes import asked, node_with


def node_of(slots: list[int], patience_ms: int = 10_000) -> Node:
    """Providers with so many free slots, and a buyer that waits so long for one."""
    node = cast(SimpleNamespace, node_with(slots))
    node.config = SimpleNamespace(buyer=BuyerConfig())
    node.engine.buyer.policy = BuyerPolicy(patience_ms=DurationMs(patience_ms))
    node.addresses = ()
    return cast(Node, node)


def test_a_job_that_lacks_a_free_slot_alone_is_asked_for_all_the_same() -> None:
    assert Wish(node_of([0, 0]), asked()).job().patient


@pytest.mark.parametrize(
    ("patience_ms", "changes"),
    [(0, {}), (10_000, {"price_max": 1}), (10_000, {"region": "x"}), (10_000, {"replicas": 2})],
)
def test_what_a_free_slot_would_not_cure_is_told_at_once(patience_ms: int, changes: dict[str, object]) -> None:
    wanted = replace(asked(), **changes)
    with pytest.raises(ControlError) as told:
        Wish(node_of([0, 0], patience_ms), wanted).job()
    assert told.value.code == "no_provider"


def test_a_wait_that_was_asked_for_is_taken_for_anything() -> None:
    job = Wish(node_of([0]), replace(asked(), price_max=1, wait_ms=5_000)).job()
    assert job.choose_ms == 5_000
