"""The one codec: MessagePack through msgspec, one spelling for each value.

Law: ``encode(decode(b)) == b`` for everything that ``decode`` accepts. MessagePack decoders accept overlong integers
and other second spellings; two nodes that hash different bytes for the same value would disagree, so those are refused.
"""

from typing import TypeVar, cast

import msgspec

from protocol.primitives.errors import MalformedMessage

_ENCODER = msgspec.msgpack.Encoder()
T = TypeVar("T")


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of every message and stored record: immutable, positional, no unknown fields."""


_DECODERS: dict[object, msgspec.msgpack.Decoder[object]] = {}


def _decoder(kind: object) -> msgspec.msgpack.Decoder[object]:
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = msgspec.msgpack.Decoder(cast(type[object], kind))
    return decoder


def encode(value: object) -> bytes:
    """The canonical MessagePack bytes of a message or of plain tuples, ints, strings and bytes."""
    return _ENCODER.encode(value)


def decode(received: bytes, kind: type[T]) -> T:
    """Typed decoding with every length and range checked.

    Raises ``MalformedMessage`` on anything else than the canonical bytes of a ``kind``.
    """
    try:
        value = _decoder(kind).decode(received)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise MalformedMessage(f"not a {getattr(kind, '__name__', kind)}: {error}") from None
    if _ENCODER.encode(value) != received:
        raise MalformedMessage(f"not the canonical spelling of a {getattr(kind, '__name__', kind)}")
    return cast(T, value)
