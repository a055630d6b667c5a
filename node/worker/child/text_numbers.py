"""JSON numbers within bounds: the automaton of all decimal texts between two values and divisible by a third.

Law: a text has at most fifteen significant digits, no exponent, no sign before zero, and no digit before the first that
counts: whoever reads it as a double finds it on the same side of every bound. Each place of a text is a state of its
own; bounds and remainders are exact integers.

Source: RFC 8259; IEEE 754 (a double tells apart all decimals of fifteen digits).
"""

import math
from dataclasses import dataclass
from fractions import Fraction

from node.worker.child.text_grammar import Grammar, Part, literal

DIGITS_MAX = 15
REMAINDERS_MAX = 1000


class NoNumber(Exception):
    """No number is left, or none that can be told; the message says why."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a number must satisfy. A bound that is None does not bind; the values at bounds belong to them."""

    lowest: Fraction | None = None
    highest: Fraction | None = None
    above: Fraction | None = None
    below: Fraction | None = None
    multiple: Fraction | None = None

    def __contains__(self, value: Fraction) -> bool:
        return (
            (self.lowest is None or value >= self.lowest)
            and (self.highest is None or value <= self.highest)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (self.multiple is None or (value / self.multiple).denominator == 1)
        )

    def negated(self) -> "Bounds":
        """The bounds of the same numbers with the other sign."""
        return Bounds(_minus(self.highest), _minus(self.lowest), _minus(self.below), _minus(self.above), self.multiple)


def _minus(value: Fraction | None) -> Fraction | None:
    return None if value is None else -value


def number(bounds: Bounds, *, whole: bool) -> Part:
    """The texts of all numbers within bounds; `whole`: integers alone. Raises NoNumber."""
    places = 0 if whole else _places(bounds.multiple)
    choices = [
        (sign, found)
        for bound, sign in ((bounds, b""), (bounds.negated(), b"-"))
        for digits in range(1, DIGITS_MAX + 1)
        if (found := _of_digits(bound, digits, places, sign)) is not None
    ]
    if not choices:
        raise NoNumber(f"leaves no number of at most {DIGITS_MAX} digits")

    def build(grammar: Grammar, state: int) -> int:
        end = grammar.add()
        shared: dict[_Place, int] = {}
        for sign, scaled in choices:
            begin = grammar.add()
            grammar.freely(state, begin)
            scaled.build(grammar, literal(sign)(grammar, begin), end, shared)
        return end

    return build


def _places(multiple: Fraction | None) -> int:
    """Digits behind the point that a multiple may need."""
    if multiple is None:
        return DIGITS_MAX
    for places in range(DIGITS_MAX):
        if (multiple * 10**places).denominator == 1:
            return places
    raise NoNumber(f"has multiples that are not told in {DIGITS_MAX} digits")


def _of_digits(bounds: Bounds, digits: int, places: int, sign: bytes) -> "_Scaled | None":
    """The numbers with so many digits before the point; None if there are none."""
    behind = min(places, DIGITS_MAX - digits)
    scale = 10**behind
    least = 10 ** (digits - 1) * scale if digits > 1 else 1 if sign else 0
    most = 10**digits * scale - 1
    if bounds.lowest is not None:
        least = max(least, math.ceil(bounds.lowest * scale))
    if bounds.above is not None:
        least = max(least, math.floor(bounds.above * scale) + 1)
    if bounds.highest is not None:
        most = min(most, math.floor(bounds.highest * scale))
    if bounds.below is not None:
        most = min(most, math.ceil(bounds.below * scale) - 1)
    # Multiples that are integers once they are scaled: every so manyth integer.
    divisor = (bounds.multiple * scale).numerator if bounds.multiple is not None else 1
    if divisor > REMAINDERS_MAX:
        raise NoNumber(f"has a multipleOf with more than {REMAINDERS_MAX} remainders")
    if least > most or -(-least // divisor) * divisor > most:
        return None
    return _Scaled(least, most, divisor, digits, behind)


_Place = tuple[int, int, bool, bool, int]
"""Digits that are left before the point, or below nothing those behind it; digits behind it in all; whether the text
may still touch the lower and the upper bound; the remainder so far."""


@dataclass(frozen=True, slots=True)
class _Scaled:
    """Integers from one to another that are divisible; of their digits some stand before the point and some behind."""

    least: int
    most: int
    divisor: int
    digits: int
    behind: int

    def build(self, grammar: Grammar, begin: int, end: int, shared: dict[_Place, int]) -> None:
        """Add their texts between two states. `shared`: places that no bound touches any more, of other lengths too."""
        length = self.digits + self.behind
        lower, upper = f"{self.least:0{length}}", f"{self.most:0{length}}"
        touching: dict[_Place, int] = {(self.digits, self.behind, True, True, 0): begin}
        waiting = [(self.digits, self.behind, True, True, 0)]
        while waiting:
            place = waiting.pop()
            left, _, low, high, rest = place
            here = touching.get(place, shared.get(place, begin))
            done = self.digits - left
            if (
                left <= 0
                and (not low or int(lower[done:] or "0") == 0)
                and rest * 10 ** (length - done) % self.divisor == 0
            ):
                grammar.freely(here, end)
            if done == length:
                continue
            if left == 0:
                here = literal(b".")(grammar, here)
            for digit in range(int(lower[done]) if low else 0, (int(upper[done]) if high else 9) + 1):
                lowest, highest = low and digit == int(lower[done]), high and digit == int(upper[done])
                then = (left - 1, self.behind, lowest, highest, (rest * 10 + digit) % self.divisor)
                known = touching if lowest or highest else shared
                if then not in known:
                    known[then] = grammar.add()
                    waiting.append(then)
                grammar.on(here, 1 << (48 + digit), known[then])
