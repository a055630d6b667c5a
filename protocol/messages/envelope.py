"""The signed envelope around everything that somebody vouches for.

Law: the signature covers the bytes as received: ``domain | genesis hash | kind | payload``. The id leaves the signature
out, so one statement has one id; before a signature has been checked only the hash of the *whole* envelope may be
remembered, else anybody could censor a message by sending it first with a broken signature.
"""

from functools import lru_cache
from typing import Annotated

from msgspec import Meta

from protocol.messages.kinds import MessageKind, payload_type
from protocol.primitives.codec import Message, decode, encode
from protocol.primitives.errors import MalformedMessage
from protocol.primitives.hashing import Domain, digest
from protocol.primitives.limits import ENVELOPE_PAYLOAD_BYTES_MAX
from protocol.primitives.signing import SignatureCheck
from protocol.primitives.units import Hash, MessageId, PublicKey, PublicKeyField, Signature, SignatureField

REMEMBERED_BYTES_MAX = 4096
"""Envelopes up to this size are decoded once while they are in use: 1,024 of them are 4 MiB at most."""


class Envelope(Message, frozen=True):
    """A payload, who says it, and the signature that proves it."""

    kind: MessageKind
    payload: Annotated[bytes, Meta(max_length=ENVELOPE_PAYLOAD_BYTES_MAX)]
    sender: PublicKeyField
    signature: SignatureField


def signing_bytes(genesis_hash: Hash, kind: MessageKind, payload: bytes) -> bytes:
    """What a signature covers."""
    return Domain.ENVELOPE + genesis_hash + kind.to_bytes(2, "big") + payload


def message_id(kind: MessageKind, sender: bytes, payload: bytes) -> MessageId:
    """The id of a statement, whoever relays it and however often it was signed."""
    return MessageId(digest(Domain.MESSAGE_ID, kind.to_bytes(2, "big"), sender, payload))


def envelope_id(envelope: Envelope) -> MessageId:
    """``message_id`` of an envelope."""
    return message_id(envelope.kind, envelope.sender, envelope.payload)


def envelope_bytes_hash(received: bytes) -> Hash:
    """Hash of the whole envelope, signature included: all that may be remembered before the signature is checked."""
    return digest(Domain.ENVELOPE_BYTES, received)


def signature_check(genesis_hash: Hash, envelope: Envelope) -> SignatureCheck:
    """The check that must hold before the envelope may be believed."""
    return SignatureCheck(
        PublicKey(envelope.sender), signing_bytes(genesis_hash, envelope.kind, envelope.payload), envelope.signature
    )


def open_envelope(received: bytes) -> tuple[Envelope, Message]:
    """Decode an envelope and its payload, both in their one spelling. Does not check the signature.

    Raises ``MalformedMessage``.
    """
    return _open_small(received) if len(received) <= REMEMBERED_BYTES_MAX else _open(received)


def _open(received: bytes) -> tuple[Envelope, Message]:
    envelope = decode(received, Envelope)
    return envelope, decode(envelope.payload, payload_type(envelope.kind))


# The door, the engine and a room each open what passes through them within one step or two.
_open_small = lru_cache(maxsize=1024)(_open)


def open_as(received: bytes, kind: MessageKind) -> tuple[Envelope, Message]:
    """``open_envelope`` that also insists on the kind."""
    envelope, payload = open_envelope(received)
    if envelope.kind is not kind:
        raise MalformedMessage(f"expected {kind.name}, got {envelope.kind.name}")
    return envelope, payload


def seal(kind: MessageKind, payload: bytes, sender: PublicKey, signature: bytes) -> bytes:
    """The bytes of an envelope from its parts."""
    return encode(Envelope(kind, payload, sender, Signature(signature)))
