"""Prices: exact, rounded up once, monotone, bounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.messages.market import Prices
from protocol.primitives.errors import AmountOutOfRange
from protocol.primitives.units import AMOUNT_MAX, Amount
from protocol.settlement.pricing import amount_due


def prices(request: int, input_price: int, output_price: int) -> Prices:
    return Prices(Amount(request), Amount(input_price), Amount(output_price))


@pytest.mark.parametrize(
    ("listed", "input_units", "output_units", "due"),
    [
        (prices(0, 0, 0), 10, 10, 0),
        (prices(7, 0, 0), 0, 0, 7),
        (prices(0, 1, 1), 1, 1, 1),  # two thousandths: rounded up once, not twice
        (prices(0, 1, 1), 500, 500, 1),
        (prices(0, 1, 1), 500, 501, 2),
        (prices(100, 10_000, 50_000), 10, 25, 100 + 100 + 1250),
    ],
)
def test_price_is_the_request_and_one_rounding_over_both_parts(
    listed: Prices, input_units: int, output_units: int, due: int
) -> None:
    assert amount_due(listed, input_units, output_units) == due


@given(*[st.integers(0, 10**9)] * 3, *[st.integers(0, 10**6)] * 4)
def test_price_never_falls_as_units_rise(
    request_price: int, input_price: int, output_price: int, input_units: int, output_units: int, more: int, most: int
) -> None:
    listed = prices(request_price, input_price, output_price)
    before = amount_due(listed, input_units, output_units)
    after = amount_due(listed, input_units + more, output_units + most)
    exact = request_price * 1000 + input_price * input_units + output_price * output_units
    assert before <= after
    assert 0 <= before * 1000 - exact < 1000


def test_price_past_all_money_is_refused() -> None:
    assert amount_due(prices(AMOUNT_MAX, 0, 0), 0, 0) == AMOUNT_MAX
    with pytest.raises(AmountOutOfRange):
        amount_due(prices(AMOUNT_MAX, 1, 0), 1, 0)


@pytest.mark.parametrize(("input_units", "output_units"), [(-1, 0), (0, -1)])
def test_negative_units_are_refused(input_units: int, output_units: int) -> None:
    with pytest.raises(AmountOutOfRange):
        amount_due(prices(1, 1, 1), input_units, output_units)
