"""Dice whose throws are the bytes of an input: what the fuzzer changes in the bytes changes what is drawn.

Law: used-up bytes throw zeros for ever, so that every input ends, and the same input draws the same.
"""

import random


class InputDice(random.Random):
    """Draws from an input instead of from a seed. ``used_up`` tells when to stop."""

    def __new__(cls, content: bytes) -> "InputDice":
        return super().__new__(cls)

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0
        super().__init__()

    def seed(self, *arguments: object, **named: object) -> None:
        """The input is the seed."""

    @property
    def used_up(self) -> bool:
        """True when no byte is left."""
        return self._position >= len(self._content)

    def getrandbits(self, k: int, /) -> int:
        """The next bits of the input."""
        length = (k + 7) // 8
        taken = self._content[self._position : self._position + length]
        self._position += length
        return int.from_bytes(taken.ljust(length, b"\x00"), "little") & ((1 << k) - 1)

    def random(self) -> float:
        """A 256th of resolution: one byte."""
        return self.getrandbits(8) / 256

    def randbytes(self, n: int) -> bytes:
        """Up to eight bytes of the input, repeated: long random contents teach nothing."""
        pattern = self.getrandbits(8 * min(n, 8)).to_bytes(min(n, 8), "little") or b"\x00"
        return (pattern * (n // len(pattern) + 1))[:n]
