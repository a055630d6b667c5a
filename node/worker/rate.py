"""Units given out, and how many a second: what an operator watches a model by."""

import asyncio

WINDOW_S = 5.0


class Rate:
    """A count, and a rate that follows the last seconds."""

    def __init__(self) -> None:
        self.units = 0
        """All units so far."""
        self._rate = 0.0
        self._counted_at = 0.0

    def count(self, units: int) -> None:
        """So many more were given out."""
        self._rate = self.per_second() + units / WINDOW_S
        self.units += units
        self._counted_at = asyncio.get_running_loop().time()

    def per_second(self) -> float:
        """The rate now."""
        passed = asyncio.get_running_loop().time() - self._counted_at
        return self._rate * max(0.0, 1 - passed / WINDOW_S)
