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


def _polymod(values: list[int]) -> int:
    checksum = 1
    for value in values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_GENERATOR):
            if top >> bit & 1:
                checksum ^= generator
    return checksum


def _expanded(prefix: str) -> list[int]:
    return [ord(letter) >> 5 for letter in prefix] + [0] + [ord(letter) & 31 for letter in prefix]


def _regroup(values: bytes | list[int], width_from: int, width_to: int, pad: bool) -> list[int] | None:
    accumulator = bits = 0
    groups: list[int] = []
    for value in values:
        accumulator = accumulator << width_from | value
        bits += width_from
        while bits >= width_to:
            bits -= width_to
            groups.append(accumulator >> bits & (1 << width_to) - 1)
    rest = accumulator & (1 << bits) - 1
    if pad:
        if bits:
            groups.append(rest << width_to - bits)
    elif bits >= width_from or rest:
        return None
    return groups


@lru_cache(maxsize=4096)
def format_address(kind: AddressKind, key: bytes) -> str:
    """The bech32m text of 32 bytes, such as ``mc1…``."""
    groups = _regroup(key, 8, 5, pad=True)
    assert groups is not None
    assert len(key) == 32
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
    key = _regroup(groups[:-_CHECKSUM_LENGTH], 5, 8, pad=False)
    if key is None or len(key) != 32:
        raise AddressInvalid(f"address has a wrong length: {text!r}")
    return bytes(key)


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
