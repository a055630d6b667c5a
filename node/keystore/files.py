"""One encrypted file for each key: Argon2id makes the passphrase slow to guess, SecretBox seals the seed.

Law: a key file is created whole or not at all, is its owner's alone (0600), and is never overwritten. The cost of
Argon2id is recorded in the file, so a development network may choose a fast one without a second format.
Sources: RFC 9106 (Argon2id), NaCl's crypto_secretbox (XSalsa20-Poly1305).
"""

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta
from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.secret import SecretBox
from nacl.signing import SigningKey

from node.keystore.errors import KeyFileExists, KeyFileExposed, KeyFileMalformed, KeyFileMissing, PassphraseWrong
from node.keystore.keys import KeyPurpose, NodeKeys, address_of

FORMAT = "mercat-key/1"
KEY_FILE_BYTES_MAX = 4096
"""A key file has about 400 bytes."""


class Cost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one guess of the passphrase costs. The caps keep a planted file from stalling the node at start."""

    operations: Annotated[int, Meta(ge=1, le=16)]
    memory_bytes: Annotated[int, Meta(ge=8192, le=2**30)]


STRONG = Cost(operations=3, memory_bytes=256 * 1024 * 1024)
"""About 0.7 s and 256 MiB for each guess."""
FAST = Cost(operations=1, memory_bytes=64 * 1024)
"""For development keys, which are publicly known anyway."""


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key at rest. The address is readable without the passphrase; the seed is not."""

    format: str
    purpose: KeyPurpose
    address: Annotated[str, Meta(max_length=128)]
    kdf: Annotated[str, Meta(pattern="^argon2id$")]
    cost: Cost
    salt: Annotated[bytes, Meta(min_length=16, max_length=16)]
    box: Annotated[bytes, Meta(min_length=72, max_length=72)]
    """Nonce (24), tag (16) and sealed seed (32)."""


def key_path(directory: Path, purpose: KeyPurpose) -> Path:
    """Where a keystore keeps a key."""
    return directory / f"{purpose.value}.json"


def _box(passphrase: bytes, salt: bytes, cost: Cost) -> SecretBox:
    return SecretBox(
        argon2id.kdf(SecretBox.KEY_SIZE, passphrase, salt, opslimit=cost.operations, memlimit=cost.memory_bytes)
    )


def create_key(
    directory: Path, purpose: KeyPurpose, passphrase: bytes, cost: Cost = STRONG, key: SigningKey | None = None
) -> SigningKey:
    """Make a key (or take the given one) and write its file.

    Raises ``KeyFileExists`` if there is one already, ``KeyFileExposed`` if the directory is open to others.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    refuse_exposed(directory)
    path = key_path(directory, purpose)
    if path.exists():
        raise KeyFileExists(path)
    signing_key = key or SigningKey.generate()
    salt = secrets.token_bytes(argon2id.SALTBYTES)
    sealed = bytes(_box(passphrase, salt, cost).encrypt(bytes(signing_key)))
    record = KeyFile(FORMAT, purpose, address_of(purpose, signing_key), "argon2id", cost, salt, sealed)
    _write_new(path, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    return signing_key


def _write_new(path: Path, content: bytes) -> None:
    """The file appears under its name complete and durable, or not at all; an existing one stays."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise KeyFileExists(path) from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def refuse_exposed(path: Path) -> None:
    """Raise ``KeyFileExposed`` if anybody but the owner may read or change ``path``."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise KeyFileExposed(path, mode)


def read_key_file(path: Path) -> KeyFile:
    """A key file as it rests, without its secret.

    Raises ``KeyFileMissing``, ``KeyFileExposed`` or ``KeyFileMalformed``.
    """
    if not path.is_file():
        raise KeyFileMissing(path)
    refuse_exposed(path)
    content = path.read_bytes()
    if len(content) > KEY_FILE_BYTES_MAX:
        raise KeyFileMalformed(path, "too large")
    try:
        record = msgspec.json.decode(content, type=KeyFile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KeyFileMalformed(path, str(error)) from None
    if record.format != FORMAT:
        raise KeyFileMalformed(path, f"format {record.format!r}, this version reads {FORMAT!r}")
    return record


def open_key(directory: Path, purpose: KeyPurpose, passphrase: bytes) -> SigningKey:
    """Decrypt one key. Raises ``PassphraseWrong`` and what ``read_key_file`` raises."""
    path = key_path(directory, purpose)
    record = read_key_file(path)
    try:
        seed = _box(passphrase, record.salt, record.cost).decrypt(record.box)
    except CryptoError:
        raise PassphraseWrong(path) from None
    key = SigningKey(seed)
    if record.purpose is not purpose or address_of(purpose, key) != record.address:
        raise KeyFileMalformed(path, "its address does not belong to its key")
    return key


def open_keys(directory: Path, passphrase: bytes, authority: bool) -> NodeKeys:
    """All keys that a node signs with; the authority key only for an authority."""
    if directory.is_dir():
        refuse_exposed(directory)
    return NodeKeys(
        node=open_key(directory, KeyPurpose.NODE, passphrase),
        account=open_key(directory, KeyPurpose.ACCOUNT, passphrase),
        authority=open_key(directory, KeyPurpose.AUTHORITY, passphrase) if authority else None,
    )


def list_keys(directory: Path) -> tuple[KeyFile, ...]:
    """The keys of a keystore, without their secrets, in the order of ``KeyPurpose``."""
    paths = [key_path(directory, purpose) for purpose in KeyPurpose]
    return tuple(read_key_file(path) for path in paths if path.exists())
