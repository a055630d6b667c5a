"""What is said among pieces: pinned bytes, and any other bytes are refused."""

from random import Random

import pytest

from protocol.messages.pieces import (
    Granted,
    ManifestWanted,
    PieceGreeting,
    PieceListWanted,
    PieceMessage,
    PieceWanted,
    Refused,
    decode_piece_message,
    encode_piece_message,
    piece_message_length,
)
from protocol.primitives.errors import MalformedMessage
from protocol.primitives.units import Hash, ModelId

MODEL = ModelId(bytes(range(32)))
MODEL_HEX = "c420" + MODEL.hex()
PINNED: list[tuple[PieceMessage, str]] = [
    (PieceGreeting(Hash(bytes(range(32)))), "002591 9201" + MODEL_HEX),
    (ManifestWanted(MODEL), "002591 9202" + MODEL_HEX),
    (PieceListWanted(MODEL, 63), "002691 9303" + MODEL_HEX + "3f"),
    (PieceWanted(MODEL, 0, 65_535), "002991 9404" + MODEL_HEX + "00cdffff"),
    (Granted(1 << 20), "000891 9205ce00100000"),
    (Refused("no", True), "000791 9306a26e6fc3"),
]


@pytest.mark.parametrize(("message", "pinned"), PINNED, ids=lambda value: type(value).__name__)
def test_bytes_on_the_wire_never_change(message: PieceMessage, pinned: str) -> None:
    content = bytes.fromhex(pinned)
    assert encode_piece_message(message) == content
    assert piece_message_length(content[:2]) == len(content) - 2
    assert decode_piece_message(content[2:]) == message


def test_mutated_messages_are_messages_or_malformed_and_nothing_else() -> None:
    dice = Random(20_261_123)
    refused = 0
    for _ in range(5_000):
        content = bytearray(encode_piece_message(dice.choice(PINNED)[0])[2:])
        for _ in range(dice.randrange(1, 4)):
            content[dice.randrange(len(content))] = dice.randrange(256)
        try:
            message = decode_piece_message(bytes(content))
        except MalformedMessage:
            refused += 1
        else:
            assert encode_piece_message(message)[2:] == bytes(content)
    assert refused > 500


@pytest.mark.parametrize(
    "content",
    [
        "91" + "9404" + MODEL_HEX + "40" + "00",  # the 65th file
        "91" + "9404" + MODEL_HEX + "00" + "ce00010000",  # the 65,537th piece
        "91" + "9404" + MODEL_HEX + "ff" + "00",  # a file before the first
        "91" + "9404" + MODEL_HEX + "cc00" + "00",  # a second spelling of 0
        "91" + "9202" + "c41f" + MODEL.hex()[2:],  # a short id
        "91" + "9306" + "d90101" + "ff" * 1,  # cut off
    ],
)
def test_numbers_and_ids_out_of_range_are_refused(content: str) -> None:
    with pytest.raises(MalformedMessage):
        decode_piece_message(bytes.fromhex(content))
