"""Random but well-typed messages, extremes preferred: what a hostile peer can send past the decoder."""

import random
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import inspect

EDGE_BYTES = (0, 1, 31, 32, 64, 200)

_type_info = lru_cache(maxsize=None)(inspect.type_info)


class Generator:
    """Draws values of message types from dice; ``pool`` holds ids that mean something to the node under test."""

    def __init__(self, dice: random.Random, pool: dict[int, list[bytes]]) -> None:
        self._dice = dice
        self._pool = pool

    def value(self, kind: Any) -> Any:
        """A random value of a type that messages use."""
        return self._of(_type_info(kind))

    def _of(self, info: inspect.Type) -> Any:
        match info:
            case inspect.Metadata():
                return self._of(info.type)
            case inspect.IntType():
                return self._int(info)
            case inspect.BytesType():
                return self._bytes(info)
            case inspect.StrType():
                length = self._dice.choice((info.min_length or 0, min(info.max_length or 8, 8)))
                return "x" * max(length, info.min_length or 0)
            case inspect.BoolType():
                return self._dice.random() < 0.5
            case inspect.NoneType():
                return None
            case inspect.EnumType():
                return self._dice.choice(list(info.cls))
            case inspect.UnionType():
                return self._of(self._dice.choice(info.types))
            case inspect.VarTupleType():
                return self._tuple(info)
            case inspect.StructType():
                return info.cls(*[self._of(field.type) for field in info.fields])
        raise AssertionError(f"no generator for {info}")

    def _int(self, info: inspect.IntType) -> int:
        low = info.ge if info.ge is not None else (info.gt + 1 if info.gt is not None else -(2**31))
        high = info.le if info.le is not None else (info.lt - 1 if info.lt is not None else 2**31)
        small = min(high, low + self._dice.randint(0, 5))
        return self._dice.choice((low, high, small, small, self._dice.randint(low, high)))

    def _bytes(self, info: inspect.BytesType) -> bytes:
        low, high = info.min_length or 0, info.max_length if info.max_length is not None else 256
        length = low if low == high else min(high, max(low, self._dice.choice(EDGE_BYTES)))
        known = self._pool.get(length, [])
        if known and self._dice.random() < 0.7:
            return self._dice.choice(known)
        return self._dice.randbytes(length)

    def _tuple(self, info: inspect.VarTupleType) -> tuple[Any, ...]:
        low, high = info.min_length or 0, min(info.max_length if info.max_length is not None else 4, 4)
        return tuple(self._of(info.item_type) for _ in range(self._dice.randint(low, max(low, high))))


def encodes(value: object) -> bool:
    """True if the value survives the codec: what a peer can really send."""
    try:
        msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type(value))
    except msgspec.MsgspecError:
        return False
    return True
