"""What work costs.

Law: the price of a job is a function of its agreement and its units alone, never falls as units rise, and is rounded
up once, over the sum of both parts, so that cutting a job into chunks changes nothing.
"""

from protocol.messages.market import Prices
from protocol.primitives.errors import AmountOutOfRange
from protocol.primitives.units import AMOUNT_MAX, Amount

UNITS_PER_PRICE = 1000
"""Prices are named for this many work units."""


def amount_due(prices: Prices, input_units: int, output_units: int) -> Amount:
    """What ``input_units`` and ``output_units`` cost together, in base units.

    ``request + ⌈(input × input price + output × output price) / 1000⌉``. Raises ``AmountOutOfRange`` past 2^63−1 or
    for negative units.
    """
    if input_units < 0 or output_units < 0:
        raise AmountOutOfRange(min(input_units, output_units))
    metered = prices.input_per_thousand * input_units + prices.output_per_thousand * output_units
    total = prices.request + -(-metered // UNITS_PER_PRICE)
    if total > AMOUNT_MAX:
        raise AmountOutOfRange(total)
    return Amount(total)
