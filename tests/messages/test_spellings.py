"""One spelling for each value: any bytes give a message in its canonical bytes or ``RemoteProtocolError``."""

import contextlib

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.messages.envelope import open_envelope
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Voucher
from protocol.messages.wire import encode_message, join_frame, split_frame
from protocol.primitives.codec import decode, encode
from protocol.primitives.errors import MalformedMessage, RemoteProtocolError
from tests.messages import examples

ENVELOPES = [examples.sealed(kind) for kind in MessageKind]
FRAMES = [join_frame([encode_message(message)]) for message in examples.WIRE]

MUTATIONS = st.lists(
    st.tuples(st.sampled_from(("flip", "insert", "remove")), st.integers(0, 2**16), st.integers(0, 255)), max_size=4
)


def mutated(original: bytes, mutations: list[tuple[str, int, int]]) -> bytes:
    """Some bytes flipped, inserted or removed."""
    content = bytearray(original)
    for action, position, value in mutations:
        index = position % (len(content) + 1)
        if action == "insert":
            content.insert(index, value)
        elif content:
            index %= len(content)
            if action == "flip":
                content[index] ^= value
            else:
                del content[index]
    return bytes(content)


@settings(max_examples=400, deadline=None)
@given(original=st.sampled_from(FRAMES), mutations=MUTATIONS)
def test_any_near_miss_of_a_frame_is_canonical_or_refused(
    original: bytes, mutations: list[tuple[str, int, int]]
) -> None:
    received = mutated(original, mutations)
    try:
        messages = split_frame(received)
    except RemoteProtocolError:
        return
    assert messages == () or join_frame([encode_message(message) for message in messages]) == received


@settings(max_examples=400, deadline=None)
@given(original=st.sampled_from(ENVELOPES), mutations=MUTATIONS)
def test_any_near_miss_of_an_envelope_is_canonical_or_refused(
    original: bytes, mutations: list[tuple[str, int, int]]
) -> None:
    received = mutated(original, mutations)
    try:
        envelope, payload = open_envelope(received)
    except RemoteProtocolError:
        return
    assert encode(envelope) == received
    assert encode(payload) == envelope.payload


@settings(max_examples=300, deadline=None)
@given(received=st.binary(max_size=300))
def test_any_bytes_give_a_message_or_remote_protocol_error(received: bytes) -> None:
    for parse in (split_frame, open_envelope):
        with contextlib.suppress(RemoteProtocolError):
            parse(received)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=64) | st.text(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(value=PLAIN)
def test_any_well_formed_messagepack_gives_a_message_or_remote_protocol_error(value: object) -> None:
    received = msgpack.packb(value)
    for parse in (split_frame, open_envelope):
        with contextlib.suppress(RemoteProtocolError):
            parse(received)


@pytest.mark.parametrize("received", [b"\x91" * 100_000, b"\x81\x01" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xc9" * 9])
def test_nesting_and_false_lengths_are_refused(received: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        split_frame(received)


def second_spellings(canonical: bytes) -> dict[str, bytes]:
    """The same voucher in other MessagePack spellings that decoders accept."""
    assert canonical[0] == 0x97
    fields = msgpack.unpackb(canonical)
    position = 1 + 34 + 34
    lane = canonical[position : position + 1]
    assert lane == bytes((fields[2],))
    return {
        "array 16 for a short array": b"\xdc\x00\x07" + canonical[1:],
        "array 32 for a short array": b"\xdd\x00\x00\x00\x07" + canonical[1:],
        "uint 8 for a small integer": canonical[:position] + b"\xcc" + canonical[position:],
        "uint 64 for a small integer": canonical[:position] + b"\xcf" + bytes(7) + canonical[position:],
        "int 8 for a small integer": canonical[:position] + b"\xd0" + canonical[position:],
        "float for an integer": canonical[:position] + b"\xca\x40\x40\x00\x00" + canonical[position + 1 :],
        "bin 16 for short bytes": canonical[:1] + b"\xc5\x00\x20" + canonical[3:],
        "text for bytes": canonical[:1] + b"\xd9\x20" + canonical[3:],
        "a byte behind the end": canonical + b"\x00",
        "a field more": b"\x98" + canonical[1:] + b"\x00",
        "a field less": b"\x96" + canonical[1:-1],
        "a map": msgpack.packb(dict(enumerate(fields))),
    }


CANONICAL = encode(examples.PAYLOADS[MessageKind.VOUCHER])


@pytest.mark.parametrize("spelling", sorted(second_spellings(CANONICAL)))
def test_second_spelling_is_refused(spelling: str) -> None:
    assert decode(CANONICAL, Voucher) == examples.PAYLOADS[MessageKind.VOUCHER]
    with pytest.raises(MalformedMessage):
        decode(second_spellings(CANONICAL)[spelling], Voucher)


@pytest.mark.parametrize(
    ("position", "value"),
    [(0, b"c" * 31), (0, b"c" * 33), (2, 64), (2, -1), (3, 2**48 + 1), (4, 2**63), (4, -1), (6, 2**32 + 1), (0, None)],
)
def test_field_out_of_its_range_is_refused(position: int, value: object) -> None:
    fields = msgpack.unpackb(CANONICAL)
    fields[position] = value
    with pytest.raises(MalformedMessage):
        decode(msgpack.packb(fields), Voucher)


def test_unknown_kind_and_unknown_tag_are_refused() -> None:
    envelope = msgpack.unpackb(examples.sealed(MessageKind.BID))
    with pytest.raises(MalformedMessage):
        open_envelope(msgpack.packb([99, *envelope[1:]]))
    with pytest.raises(MalformedMessage):
        split_frame(msgpack.packb([[[99]]]))
