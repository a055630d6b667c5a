"""The state root: a lattice hash over a set of rows, independent of the order in which they came and went.

Law: the sum over all rows of 1,024 lanes of 16 bits, each row's lanes being BLAKE3 output over its key and value, is
a homomorphic hash: adding or removing a row costs one BLAKE3 call and two big-integer additions, whatever the size of
the state. Forging a set with the same sum is a shortest-vector problem.

Source: LtHash (Bellare and Micciancio 1997; Lewi, Kim, Maykov and Weis, "Securing update propagation with homomorphic
hashing", 2019), the same parameters: 1,024 lanes of 16 bits.
"""

from collections.abc import Iterable
from typing import NamedTuple

from blake3 import blake3

from protocol.primitives.hashing import Domain, digest
from protocol.primitives.units import Hash

LANES = 1024
LANE_BYTES = 2
SUM_BYTES = LANES * LANE_BYTES

# Lanes are kept in two integers, even and odd ones, each lane in a slot of 32 bits: the upper half takes carries.
_SLOTS = LANES // 2
_LANE_MASK = int.from_bytes(b"\xff\xff\0\0" * _SLOTS, "little")
_LANE_MODULUS = int.from_bytes(b"\0\0\x01\0" * _SLOTS, "little")
_ADDITIONS_BEFORE_CARRY_MAX = 2**14
"""Each addition grows a slot by at most 2^16; a slot holds 2^32. Reduced long before."""


class LatticeSum(NamedTuple):
    """The sum of the rows' lanes: even and odd lanes, one in each 32 bits."""

    even: int
    odd: int


EMPTY_LATTICE = LatticeSum(0, 0)


def _row_lanes(key: bytes, value: bytes) -> tuple[int, int]:
    framed = Domain.STATE_ROW.value + len(key).to_bytes(4, "big") + key + value
    lanes = int.from_bytes(blake3(framed).digest(length=SUM_BYTES), "little")
    return lanes & _LANE_MASK, lanes >> 16 & _LANE_MASK


def updated(
    lattice: LatticeSum, removed: Iterable[tuple[bytes, bytes]], added: Iterable[tuple[bytes, bytes]]
) -> LatticeSum:
    """The sum after some rows went and others came. Each row is (key, value)."""
    even, odd = lattice
    pending = 0
    for coming, rows in ((False, removed), (True, added)):
        for key, value in rows:
            row_even, row_odd = _row_lanes(key, value)
            even += row_even if coming else _LANE_MODULUS - row_even
            odd += row_odd if coming else _LANE_MODULUS - row_odd
            pending += 1
            if pending == _ADDITIONS_BEFORE_CARRY_MAX:
                even, odd, pending = even & _LANE_MASK, odd & _LANE_MASK, 0
    return LatticeSum(even & _LANE_MASK, odd & _LANE_MASK)


def lattice_root(lattice: LatticeSum) -> Hash:
    """The 32 bytes that a header carries."""
    return digest(Domain.STATE_ROOT, lattice_bytes(lattice))


def lattice_bytes(lattice: LatticeSum) -> bytes:
    """The sum as it is stored: ``SUM_BYTES`` bytes, lane after lane, each in little-endian order."""
    return (lattice.even | lattice.odd << 16).to_bytes(SUM_BYTES, "little")


def lattice_from_bytes(stored: bytes) -> LatticeSum:
    """Inverse of ``lattice_bytes``; any ``SUM_BYTES`` bytes are a sum."""
    lanes = int.from_bytes(stored, "little")
    return LatticeSum(lanes & _LANE_MASK, lanes >> 16 & _LANE_MASK)
