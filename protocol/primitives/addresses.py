"""Addresses that people copy: bech32m with a checksum, one human-readable part for each role of key.

Source: BIP-350 (bech32m) and BIP-173 (alphabet, five-bit groups). Account ``mc1…``, node ``mcnode1…``, authority
``mcauth1…``, model ``mcmodel1…``: pasting one where another is meant is an error, not a loss.
"""

from collections.abc import Callable
from enum import Enum
from functools import lru_cache

from protocol.primitives.errors import UserError

_ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_CHECKSUM_CONSTANT = 0x2BC830A3
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM_LENGTH = 6
_KEY_LETTERS = 52
_PADDING_BITS = 4
"""A key's 256 bits fill 52 letters of five but for the last four."""


class AddressKind(Enum):
    """The human-readable part of each kind of address."""

    ACCOUNT = "mc"
    NODE = "mcnode"
    AUTHORITY = "mcauth"
    MODEL = "mcmodel"
    CHANNEL = "mcchan"
    JOB = "mcjob"


class AddressInvalid(UserError):
    """Text that is not an address of the expected kind."""


def _generated(top: int) -> int:
    """What the five bits that leave the checksum put into it."""
    mixed = 0
    for bit, generator in enumerate(_GENERATOR):
        if top >> bit & 1:
            mixed ^= generator
    return mixed


_GENERATED = tuple(map(_generated, range(32)))


def _polymod(values: list[int]) -> int:
    checksum = 1
    for value in values:
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value ^ _GENERATED[checksum >> 25]
    return checksum


def _expanded(prefix: str) -> list[int]:
    return [ord(letter) >> 5 for letter in prefix] + [0] + [ord(letter) & 31 for letter in prefix]


def _bytes_of(groups: list[int]) -> bytes | None:
    """The bytes in groups of five bits; ``None`` if what is left over is a whole group or not zero."""
    whole = 0
    for group in groups:
        whole = whole << 5 | group
    left_over = 5 * len(groups) % 8
    if left_over >= 5 or whole & (1 << left_over) - 1:
        return None
    return (whole >> left_over).to_bytes(5 * len(groups) // 8, "big")


@lru_cache(maxsize=4096)
def format_address(kind: AddressKind, key: bytes) -> str:
    """The bech32m text of 32 bytes, such as ``mc1…``."""
    assert len(key) == 32
    whole = int.from_bytes(key, "big") << 4  # 256 bits in 52 groups of five
    groups = [whole >> shift & 31 for shift in range(255, -1, -5)]
    checksum = _polymod(_expanded(kind.value) + groups + [0] * _CHECKSUM_LENGTH) ^ _CHECKSUM_CONSTANT
    tail = [checksum >> 5 * (_CHECKSUM_LENGTH - 1 - position) & 31 for position in range(_CHECKSUM_LENGTH)]
    return kind.value + "1" + "".join(_ALPHABET[group] for group in groups + tail)


@lru_cache(maxsize=4096)
def parse_address(kind: AddressKind, text: str) -> bytes:
    """The 32 bytes behind an address.

    Raises ``AddressInvalid`` on another kind of address, a typing error, mixed case or a wrong length.
    """
    if text != text.lower() and text != text.upper():
        raise AddressInvalid(f"address mixes upper and lower case: {text!r}")
    prefix, separator, rest = text.lower().rpartition("1")
    if not separator or prefix != kind.value:
        raise AddressInvalid(f"not an address that starts with {kind.value}1: {text!r}")
    if any(letter not in _ALPHABET for letter in rest):
        raise AddressInvalid(f"address holds a letter outside its alphabet: {text!r}")
    groups = [_ALPHABET.index(letter) for letter in rest]
    if len(groups) <= _CHECKSUM_LENGTH or _polymod(_expanded(prefix) + groups) != _CHECKSUM_CONSTANT:
        raise AddressInvalid(f"address has a typing error (its checksum does not match): {text!r}")
    key = _bytes_of(groups[:-_CHECKSUM_LENGTH])
    if key is None or len(key) != 32:
        raise AddressInvalid(f"address has a wrong length: {text!r}")
    return key


def begins_with(letters: str) -> Callable[[bytes], bool]:
    """Whether the address of a key begins, behind its kind and the ``1``, with these letters, for many keys at once.

    Letters of the checksum are not compared. Raises ``AddressInvalid`` on a letter outside the alphabet.
    """
    compared = letters.lower()[:_KEY_LETTERS]
    if any(letter not in _ALPHABET for letter in compared):
        raise AddressInvalid(f"address holds a letter outside its alphabet: {letters!r}")
    wanted = 0
    for letter in compared:
        wanted = wanted << 5 | _ALPHABET.index(letter)
    dropped = 5 * (_KEY_LETTERS - len(compared))
    return lambda key: int.from_bytes(key, "big") << _PADDING_BITS >> dropped == wanted
