"""The recovery document as operators exchange it: JSON with what people have to compare, and the signatures.

Law: what counts is inside the signed envelopes; the readable fields beside them have to say the same.
"""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from protocol.ledger.recovery import SIGNATURES_MAX, RecoveryRefused, open_recovery
from protocol.messages.recovery import Recovery
from protocol.primitives.addresses import AddressKind, format_address
from protocol.primitives.units import AuthorityId, Hash

RECOVERY_FILE_BYTES_MAX = 4 * 1024 * 1024
FORMAT = "mercat recovery 1"


class RecoveryFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file's fields."""

    format: str
    genesis: str
    height: int
    block: str
    attempt: int
    authorities: tuple[str, ...]
    """Addresses of the authority keys that decide from the next height on."""
    signatures: Annotated[tuple[str, ...], Meta(min_length=1, max_length=SIGNATURES_MAX)]
    """Envelopes in hexadecimal, one for each operator."""


def recovery_to_json(genesis_hash: Hash, envelopes: tuple[bytes, ...]) -> bytes:
    """The document of these envelopes. Raises ``RecoveryRefused``."""
    recovery, _ = open_recovery(genesis_hash, envelopes)
    return msgspec.json.format(msgspec.json.encode(_file(genesis_hash, recovery, envelopes)), indent=2) + b"\n"


def _file(genesis_hash: Hash, recovery: Recovery, envelopes: tuple[bytes, ...]) -> RecoveryFile:
    return RecoveryFile(
        FORMAT,
        genesis_hash.hex(),
        recovery.height,
        recovery.block_hash.hex(),
        recovery.attempt,
        tuple(format_address(AddressKind.AUTHORITY, record.authority) for record in recovery.membership.records),
        tuple(envelope.hex() for envelope in envelopes),
    )


def load_envelopes(path: Path, genesis_hash: Hash) -> tuple[bytes, ...]:
    """The envelopes of a document, all checked. Raises ``RecoveryRefused``."""
    try:
        with path.open("rb") as file:
            content = file.read(RECOVERY_FILE_BYTES_MAX + 1)
        found = msgspec.json.decode(content, type=RecoveryFile)
        envelopes = tuple(bytes.fromhex(text) for text in found.signatures)
    except OSError as error:
        raise RecoveryRefused(f"recovery document {path} can't be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise RecoveryRefused(f"{path} is not a recovery document: {error}") from None
    recovery, _ = open_recovery(genesis_hash, envelopes)
    if found != _file(genesis_hash, recovery, envelopes):
        raise RecoveryRefused(f"{path} says something else than what was signed")
    return envelopes


def load_recovery(path: Path, genesis_hash: Hash) -> tuple[Recovery, tuple[AuthorityId, ...]]:
    """The recovery and the keys that signed it. Raises ``RecoveryRefused``."""
    return open_recovery(genesis_hash, load_envelopes(path, genesis_hash))
