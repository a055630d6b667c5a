"""What a buyer's books keep in sums is what a recount of the lanes' rows gives, after every event."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.market.buyer_books import BuyerBooks
from protocol.primitives.units import Amount
from tests.market.test_interleavings import COMMON, acquainted, act, request
from tests.market.town import Town

Sums = tuple[dict[bytes, tuple[int, int, int]], dict[bytes, Amount], dict[bytes, dict[object, int]]]


def sums(books: BuyerBooks) -> Sums:
    """Those that are kept; debts of live jobs are noted when they end."""
    live = {(lane.channel, lane.lane) for lane in books.lanes() if lane.job is not None}
    dealings = {
        bytes(provider): (each.delivered, each.ahead, each.dropped) for provider, each in books._dealings.items()
    }
    debts = {
        bytes(provider): {name: debt for name, debt in owed.items() if name not in live}
        for provider, owed in books._debts.items()
    }
    committed = {bytes(channel): books.committed(channel) for channel in books.channels()}
    return (
        {provider: each for provider, each in dealings.items() if any(each)},
        committed,
        {provider: dict[object, int](owed) for provider, owed in debts.items() if owed},
    )


@pytest.mark.parametrize("ahead", [False, True])
@given(choices=st.lists(st.integers(0, 255), max_size=100))
@COMMON
def test_sums_are_what_a_recount_gives(ahead: bool, choices: Sequence[int]) -> None:
    town = acquainted() if ahead else Town()
    started: list[int] = [1]
    town.start(request(1))
    for choice in choices:
        act(town, choice, started)
        books = town.buyer.buyer.books
        assert sums(books) == sums(BuyerBooks(books.lanes()))
