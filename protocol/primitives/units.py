"""Ids and quantities, each with a type of its own, and sums that can't overflow.

Law: money is an integer in base units between 0 and ``AMOUNT_MAX``; 1 credit is ``CREDIT`` base units. Nothing here
wraps around: a sum past the cap raises ``AmountOutOfRange``.
"""

from collections.abc import Iterable
from typing import Annotated, NewType

from msgspec import Meta

from protocol.primitives.errors import AmountOutOfRange

Hash = NewType("Hash", bytes)
"""A BLAKE2b-256 digest, 32 bytes."""
MessageId = NewType("MessageId", bytes)
"""The id of a signed message: hash of kind, sender and payload, without the signature."""
BlockHash = NewType("BlockHash", bytes)
"""Hash of a block's header; what authorities vote on."""
ChannelId = NewType("ChannelId", bytes)
ModelId = NewType("ModelId", bytes)
"""BLAKE3 hash of a model's manifest, 32 bytes."""
NodeId = NewType("NodeId", bytes)
"""A node's Ed25519 public key: TLS identity and gossip."""
AccountId = NewType("AccountId", bytes)
"""An account's Ed25519 public key: money, offers, bids, agreements, receipts."""
AuthorityId = NewType("AuthorityId", bytes)
"""An authority's Ed25519 public key: consensus."""
PublicKey = NewType("PublicKey", bytes)
"""An Ed25519 public key whose role the message kind decides."""
Signature = NewType("Signature", bytes)
Salt = NewType("Salt", bytes)

Amount = NewType("Amount", int)
Height = NewType("Height", int)
View = NewType("View", int)
Nonce = NewType("Nonce", int)
Lane = NewType("Lane", int)
SequenceNumber = NewType("SequenceNumber", int)
WorkUnits = NewType("WorkUnits", int)
"""What a runtime meters: tokens for language models, requests or bytes for others; the manifest says which."""
TimestampMs = NewType("TimestampMs", int)
"""Wall-clock milliseconds since the Unix epoch."""
LedgerTimeMs = NewType("LedgerTimeMs", int)
"""Milliseconds of ledger time: grows in each block by at most 30 s, so a halted ledger eats nobody's window."""
MonotonicMs = NewType("MonotonicMs", int)
"""Milliseconds on a node's monotonic clock; means nothing to another node."""
DurationMs = NewType("DurationMs", int)

CREDIT = 1_000_000
AMOUNT_MAX = 2**63 - 1

# The same types as message fields, with the lengths and ranges that decoding checks.
HashField = Annotated[Hash, Meta(min_length=32, max_length=32)]
MessageIdField = Annotated[MessageId, Meta(min_length=32, max_length=32)]
BlockHashField = Annotated[BlockHash, Meta(min_length=32, max_length=32)]
ChannelIdField = Annotated[ChannelId, Meta(min_length=32, max_length=32)]
ModelIdField = Annotated[ModelId, Meta(min_length=32, max_length=32)]
NodeIdField = Annotated[NodeId, Meta(min_length=32, max_length=32)]
AccountIdField = Annotated[AccountId, Meta(min_length=32, max_length=32)]
AuthorityIdField = Annotated[AuthorityId, Meta(min_length=32, max_length=32)]
PublicKeyField = Annotated[PublicKey, Meta(min_length=32, max_length=32)]
SignatureField = Annotated[Signature, Meta(min_length=64, max_length=64)]
SaltField = Annotated[Salt, Meta(min_length=32, max_length=32)]
AmountField = Annotated[Amount, Meta(ge=0, le=AMOUNT_MAX)]
HeightField = Annotated[Height, Meta(ge=0, le=2**48)]
ViewField = Annotated[View, Meta(ge=0, le=2**32)]
NonceField = Annotated[Nonce, Meta(ge=0, le=2**48)]
LaneField = Annotated[Lane, Meta(ge=0, lt=64)]
SequenceField = Annotated[SequenceNumber, Meta(ge=0, le=2**48)]
WorkUnitsField = Annotated[WorkUnits, Meta(ge=0, le=2**40)]
TimestampField = Annotated[TimestampMs, Meta(ge=0, le=2**48)]
LedgerTimeField = Annotated[LedgerTimeMs, Meta(ge=0, le=2**48)]
DurationField = Annotated[DurationMs, Meta(ge=0, le=2**40)]


def checked_sum(amounts: Iterable[int]) -> Amount:
    """Sum of amounts in base units.

    Raises ``AmountOutOfRange`` when a term or the sum leaves 0…``AMOUNT_MAX``.
    """
    total = 0
    for amount in amounts:
        if not 0 <= amount <= AMOUNT_MAX:
            raise AmountOutOfRange(amount)
        total += amount
    if total > AMOUNT_MAX:
        raise AmountOutOfRange(total)
    return Amount(total)


def checked_add(left: int, right: int) -> Amount:
    """``left + right`` in base units, or ``AmountOutOfRange``."""
    return checked_sum((left, right))


def checked_subtract(left: int, right: int) -> Amount:
    """``left − right`` in base units, or ``AmountOutOfRange`` when it would fall below zero."""
    if not 0 <= right <= AMOUNT_MAX or not 0 <= left - right <= AMOUNT_MAX:
        raise AmountOutOfRange(left - right)
    return Amount(left - right)


def format_credits(amount: int) -> str:
    """An amount for people: ``1234567`` → ``1.234567``, trailing zeros kept to two places."""
    whole, rest = divmod(abs(amount), CREDIT)
    decimals = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount < 0 else ''}{whole}.{decimals}"


def parse_credits(text: str) -> Amount:
    """Inverse of ``format_credits``: ``"0.5"`` → 500000 base units; at most six decimals.

    Raises ``ValueError`` when the text is not a non-negative decimal number in range.
    """
    whole, _, decimals = text.strip().partition(".")
    digits = whole + decimals
    if not digits or len(decimals) > 6 or not digits.isascii() or not digits.isdigit():
        raise ValueError(f"not an amount in credits: {text!r}")
    amount = int(whole or "0") * CREDIT + int(decimals.ljust(6, "0"))
    if amount > AMOUNT_MAX:
        raise ValueError(f"amount too large: {text!r}")
    return Amount(amount)
