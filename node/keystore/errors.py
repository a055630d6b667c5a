"""What can be wrong with keys at rest: always the operator's to mend."""

from pathlib import Path

from protocol.primitives.errors import UserError


class KeystoreError(UserError):
    """Root of this room's errors."""


class PassphraseWrong(KeystoreError):
    """The passphrase does not open a key file, or the file was altered: the cipher can't tell the two apart."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"the passphrase does not open {path} (or the file was altered)")


class PassphraseMissing(KeystoreError):
    """No passphrase was given and nobody is at a terminal to ask."""


class KeyFileExposed(KeystoreError):
    """A secret file that other users of the machine may read."""

    def __init__(self, path: Path, mode: int) -> None:
        super().__init__(
            f"{path} is open to other users (mode {mode:04o}); close it with: chmod {_closed(path)} {path}"
        )


def _closed(path: Path) -> str:
    return "700" if path.is_dir() else "600"


class KeyFileMissing(KeystoreError):
    """A key that should be in the keystore is not."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"there is no key file {path}; make keys with: mercat key new --dir {path.parent}")


class KeyFileExists(KeystoreError):
    """A key is never overwritten: it may be the only way to somebody's money."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} exists and is never overwritten; choose another directory")


class KeyFileMalformed(KeystoreError):
    """A file that is no key file of ours."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is not a mercat key file: {reason}")
