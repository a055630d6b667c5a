"""What is told before anything is signed, and what is worth waiting for."""

from types import SimpleNamespace
from typing import cast

import pytest
from msgspec.structs import replace

from node.clock import read_clock
from node.config.settings import BuyerConfig
from node.runtime.control import ControlError
from node.runtime.node import Node
from node.runtime.wishes import Wish
from protocol.market.policies import BuyerPolicy
from protocol.primitives.units import Amount, DurationMs
from tests.runtime.test_quotes import MODEL, account, asked, node_with


def node_of(slots: list[int], patience_ms: int = 10_000) -> Node:
    """Providers with so many free slots, and a buyer that waits so long for one."""
    node = cast(SimpleNamespace, node_with(slots))
    node.config = SimpleNamespace(buyer=BuyerConfig())
    node.engine.buyer.policy = BuyerPolicy(patience_ms=DurationMs(patience_ms))
    node.addresses = ()
    return cast(Node, node)


def with_funds(node: Node, balance: int, held: int) -> Node:
    """The same, with so many base units and so many in a channel."""
    channels = ((b"", SimpleNamespace(held=held)),)
    paying = SimpleNamespace(balance=Amount(balance))
    state = SimpleNamespace(account=lambda own: paying, channels_paid_by=lambda own: channels)
    cast(SimpleNamespace, node).engine.replica = SimpleNamespace(state=state)
    return node


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


@pytest.mark.parametrize("tried", [(), (0,), (1,), (2,), (1, 2)])
def test_funds_are_asked_for_the_price_of_somebody_who_would_do_it_whoever_was_tried_before(
    tried: tuple[int, ...],
) -> None:
    """The cheapest has no free slot; the next one costs 5,860 at the limits, the last one 5,960."""
    for balance, funded in ((5_859, False), (5_860, True)):
        node = with_funds(node_of([0, 1, 1]), balance - 1_000, 1_000)
        for number in tried:
            node.engine.book.paces.learn(MODEL, account(number), 10, 10)
        if funded:
            assert Wish(node, asked()).job().model == MODEL
            continue
        with pytest.raises(ControlError, match=r"0\.004859 and 0\.001 in channels") as told:
            Wish(node, asked()).job()
        assert told.value.code == "no_funds"


def test_a_provider_that_was_tried_is_nobody_once_its_offer_has_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    node, now = with_funds(node_of([1], patience_ms=0), 10**6, 0), read_clock()
    node.engine.book.paces.learn(MODEL, account(0), 10, 10)
    assert Wish(node, asked()).job().model == MODEL
    late = replace(now, wall_ms=now.wall_ms + 120_000)
    monkeypatch.setattr("node.runtime.wishes.read_clock", lambda: late)
    with pytest.raises(ControlError) as told:
        Wish(node, asked()).job()
    assert told.value.code == "no_provider"
