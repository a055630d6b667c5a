"""Where a passphrase comes from: a file, a file descriptor, or a person at the terminal.

Law: never a flag and never the environment; both are visible to other processes.
"""

import getpass
import os
import sys
from pathlib import Path

from node.keystore.errors import KeystoreError, PassphraseMissing
from node.keystore.files import refuse_exposed

PASSPHRASE_BYTES_MAX = 1024


def _checked(passphrase: bytes, source: str) -> bytes:
    passphrase = passphrase.rstrip(b"\r\n")
    if not passphrase or b"\0" in passphrase or len(passphrase) > PASSPHRASE_BYTES_MAX:
        raise KeystoreError(f"{source} must hold a passphrase of 1 to {PASSPHRASE_BYTES_MAX} bytes on one line")
    return passphrase


def passphrase_from_file(path: Path) -> bytes:
    """The passphrase in a file that only its owner can read; a line end is cut off."""
    if not path.is_file():
        raise PassphraseMissing(f"there is no passphrase file {path}")
    refuse_exposed(path)
    with path.open("rb") as file:
        return _checked(file.read(PASSPHRASE_BYTES_MAX + 2), str(path))


def passphrase_from_descriptor(descriptor: int) -> bytes:
    """The passphrase from an inherited file descriptor, read to its end and closed."""
    try:
        with os.fdopen(descriptor, "rb") as file:
            return _checked(file.read(PASSPHRASE_BYTES_MAX + 2), f"file descriptor {descriptor}")
    except OSError as error:
        raise PassphraseMissing(f"file descriptor {descriptor} can't be read: {error.strerror}") from None


def passphrase_from_terminal(confirm: bool) -> bytes:
    """Ask at the terminal, twice for a new key. Raises ``PassphraseMissing`` if there is none."""
    if not sys.stdin.isatty():
        raise PassphraseMissing("no terminal to ask for the passphrase; use --passphrase-file or --passphrase-fd")
    passphrase = _checked(getpass.getpass("Passphrase: ").encode(), "the answer")
    if confirm and getpass.getpass("Again: ").encode() != passphrase:
        raise KeystoreError("the two passphrases differ; nothing was written")
    return passphrase


def read_passphrase(file: Path | None, descriptor: int | None, confirm: bool = False) -> bytes:
    """The passphrase from the first source that is given, else from the terminal."""
    if descriptor is not None:
        return passphrase_from_descriptor(descriptor)
    if file is not None:
        return passphrase_from_file(file)
    return passphrase_from_terminal(confirm)
