"""A quote as people see it: who would, who would not, and everybody counted."""

from types import SimpleNamespace
from typing import cast

import pytest

from node.clock import read_clock
from node.runtime.control import ControlError, RunRequest
from node.runtime.ledger_views import account_text
from node.runtime.node import Node
from node.runtime.quotes import quote_view
from node.runtime.wishes import Wish
from protocol.market.order_book import OrderBook
from protocol.market.policies import BuyerPolicy
from protocol.messages.market import ModelOffer, Offer, Prices
from protocol.primitives.addresses import AddressKind, format_address
from protocol.primitives.units import (
    AccountId,
    Amount,
    MessageId,
    ModelId,
    NodeId,
    SequenceNumber,
    TimestampMs,
    WorkUnits,
)

MODEL = ModelId(bytes(range(32)))


def account(number: int) -> AccountId:
    return AccountId(bytes([number]) * 32)


def node_with(slots: list[int], demoted: tuple[AccountId, ...] = ()) -> Node:
    """As much of a node as a quote looks at: providers with so many free slots, each dearer than the one before."""
    book, now = OrderBook(), read_clock()
    for number, slots_free in enumerate(slots):
        prices = Prices(Amount(1_000 + 100 * number), Amount(10_000), Amount(40_000))
        served = ModelOffer(MODEL, "talker", "gguf", "b", "", prices, WorkUnits(4_096), WorkUnits(1_024))
        expires_at = TimestampMs(now.wall_ms + 60_000)
        offer = Offer(
            NodeId(bytes(32)), SequenceNumber(1), expires_at, ("a:1",), "", "strong", 4, slots_free, (served,)
        )
        book.consider_offer(MessageId(account(number)), offer, account(number), Amount(1), Amount(1), now)
    buyer = SimpleNamespace(policy=BuyerPolicy(), demoted=lambda at: demoted)
    config = SimpleNamespace(buyer=SimpleNamespace(price_max=10**6, auction_ms=0))
    keys = SimpleNamespace(account_id=AccountId(b"?" * 32))
    return cast(Node, SimpleNamespace(engine=SimpleNamespace(book=book, buyer=buyer), keys=keys, config=config))


def asked(model: str = "talker") -> RunRequest:
    return RunRequest(model, "chat", b"how are you?", output_units_max=100)


@pytest.mark.parametrize("model", ["talker", MODEL.hex(), MODEL.hex()[:12], format_address(AddressKind.MODEL, MODEL)])
def test_a_model_is_found_by_name_hash_beginning_of_a_hash_and_address(model: str) -> None:
    assert quote_view(Wish(node_with([1]), asked(model)), 10).model == "talker"


def test_a_model_that_nobody_offers_is_told_so() -> None:
    for model in ("walker", "00" * 16, format_address(AddressKind.MODEL, bytes(32))):
        with pytest.raises(ControlError, match="nobody offers"):
            quote_view(Wish(node_with([1]), asked(model)), 10)
    with pytest.raises(ControlError) as told:
        quote_view(Wish(node_with([1]), asked("mcmodel1nonsense")), 10)
    assert told.value.code == "bad_address"


def test_prices_scores_and_reasons_are_listed_best_first() -> None:
    view = quote_view(Wish(node_with([4, 4, 0]), asked()), 10)
    assert [row.would_take for row in view.rows] == [True, True, False]
    assert {row.reason for row in view.rows} == {None, "no free slots"}
    best = view.rows[0]
    assert (best.price_ceiling, best.price_expected) == (5_760, 5_760)
    assert best.expected_ms is None
    assert set(best.scores) == {"price", "speed", "reputation", "region", "total"}
    assert (view.would, view.would_not, view.reasons) == (2, 1, (("no free slots", 1),))


def test_everybody_is_counted_when_only_some_are_listed() -> None:
    view = quote_view(Wish(node_with([1] * 30 + [0] * 20), asked()), 5)
    assert len(view.rows) == 5
    assert (view.would, view.would_not, view.reasons) == (30, 20, (("no free slots", 20),))
    mixed = quote_view(Wish(node_with([1] * 3 + [0] * 20), asked()), 5)
    assert [row.would_take for row in mixed.rows] == [True] * 3 + [False] * 2


def test_who_failed_lately_is_last_and_says_so() -> None:
    view = quote_view(Wish(node_with([4, 4], demoted=(account(0),)), asked()), 10)
    assert [row.provider for row in view.rows] == [account_text(account(1)), account_text(account(0))]
    assert view.rows[0].reason is None
    assert view.rows[1].would_take
    assert str(view.rows[1].reason).startswith("failed lately")
