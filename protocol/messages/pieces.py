"""What is said on a connection that carries pieces of models, and on no other.

Law: such a connection is not a link. It begins with ``PROLOGUE`` in the clear, which the listener answers with one
byte, and goes on inside TLS like a link. The asker says which network it belongs to, then asks questions, each answered
in turn: by ``Refused``, or by ``Granted`` and exactly as many bytes as that says. Nothing is compressed, and what is
asked for is named by numbers and hashes alone: no path or name of an asker's reaches the answerer.
"""

from typing import Annotated

from msgspec import Meta

from protocol.primitives.codec import Message, decode, encode
from protocol.primitives.errors import MalformedMessage
from protocol.primitives.limits import MODEL_FILES_MAX, MODEL_PIECES_MAX, PIECE_MESSAGE_BYTES_MAX, TEXT_BYTES_MAX
from protocol.primitives.units import HashField, ModelIdField

PROLOGUE = b"mercat pieces 1\n"
"""Told from TLS by its first byte: a TLS record that opens a connection begins with 22."""
WELCOME, BUSY = b"\x01", b"\x00"
LENGTH_BYTES = 2
"""Before each message: how long it is, most significant byte first."""

FileNumber = Annotated[int, Meta(ge=0, lt=MODEL_FILES_MAX)]
"""Which of the files that the manifest lists, from 0."""
PieceNumber = Annotated[int, Meta(ge=0, lt=MODEL_PIECES_MAX)]


class PieceGreeting(Message, frozen=True, tag=1):
    """The asker's first message: on another network nothing is shared."""

    genesis_hash: HashField


class ManifestWanted(Message, frozen=True, tag=2):
    """The manifest of a model: the bytes that its id is the hash of."""

    model: ModelIdField


class PieceListWanted(Message, frozen=True, tag=3):
    """The hashes of all pieces of a file."""

    model: ModelIdField
    file: FileNumber


class PieceWanted(Message, frozen=True, tag=4):
    """One piece of a file."""

    model: ModelIdField
    file: FileNumber
    piece: PieceNumber


class Granted(Message, frozen=True, tag=5):
    """So many bytes follow."""

    size: Annotated[int, Meta(ge=0, le=2**32)]


class Refused(Message, frozen=True, tag=6):
    """Nothing follows. ``later``: it may be asked again, the answerer is short of room, not of the thing."""

    reason: Annotated[str, Meta(max_length=TEXT_BYTES_MAX)]
    later: bool


PieceQuestion = ManifestWanted | PieceListWanted | PieceWanted
PieceMessage = PieceGreeting | PieceQuestion | Granted | Refused


class _Spoken(Message, frozen=True):
    message: PieceMessage


def encode_piece_message(message: PieceMessage) -> bytes:
    """A message with its length in front."""
    content = encode(_Spoken(message))
    assert len(content) <= PIECE_MESSAGE_BYTES_MAX
    return len(content).to_bytes(LENGTH_BYTES, "big") + content


def piece_message_length(received: bytes) -> int:
    """How many bytes of a message follow these. Raises ``MalformedMessage``."""
    length = int.from_bytes(received, "big")
    if not 0 < length <= PIECE_MESSAGE_BYTES_MAX:
        raise MalformedMessage(f"a message of {length} bytes among pieces")
    return length


def decode_piece_message(received: bytes) -> PieceMessage:
    """A message from its bytes, without the length. Raises ``MalformedMessage``."""
    return decode(received, _Spoken).message
