"""Key files: sealed, private, whole or absent, never overwritten."""

from pathlib import Path

import msgspec
import pytest
from nacl.signing import SigningKey

from node.keystore.development import development_key, development_keys
from node.keystore.errors import (
    KeyFileExists,
    KeyFileExposed,
    KeyFileMalformed,
    KeyFileMissing,
    KeystoreError,
    PassphraseMissing,
    PassphraseWrong,
)
from node.keystore.files import FAST, create_key, key_path, list_keys, open_key, open_keys
from node.keystore.keys import KeyPurpose, address_of
from node.keystore.passphrase import passphrase_from_file, read_passphrase
from node.keystore.records import public_record, read_record

PASSPHRASE = b"correct horse"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def make(keys: Path, purpose: KeyPurpose = KeyPurpose.NODE) -> SigningKey:
    return create_key(keys, purpose, PASSPHRASE, FAST)


def test_key_opened_with_its_passphrase_is_the_key_that_was_made(keys: Path) -> None:
    made = make(keys)
    assert bytes(open_key(keys, KeyPurpose.NODE, PASSPHRASE)) == bytes(made)


def test_wrong_passphrase_is_a_clear_error(keys: Path) -> None:
    make(keys)
    with pytest.raises(PassphraseWrong, match="does not open"):
        open_key(keys, KeyPurpose.NODE, b"wrong")


def test_secret_is_nowhere_in_the_file(keys: Path) -> None:
    made = make(keys)
    content = key_path(keys, KeyPurpose.NODE).read_bytes()
    assert bytes(made) not in content
    assert bytes(made).hex().encode() not in content
    assert address_of(KeyPurpose.NODE, made).encode() in content


def test_existing_key_is_never_overwritten(keys: Path) -> None:
    made = make(keys)
    with pytest.raises(KeyFileExists):
        make(keys)
    assert bytes(open_key(keys, KeyPurpose.NODE, PASSPHRASE)) == bytes(made)


def test_key_that_appears_while_another_is_written_stays(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check before writing can be overtaken; the link that publishes the file can not."""
    made = make(keys)
    monkeypatch.setattr(Path, "exists", lambda self: False)
    with pytest.raises(KeyFileExists):
        make(keys)
    monkeypatch.undo()
    assert bytes(open_key(keys, KeyPurpose.NODE, PASSPHRASE)) == bytes(made)
    assert [path.name for path in keys.iterdir()] == ["node.json"]


def test_files_are_their_owners_alone(keys: Path) -> None:
    make(keys)
    assert keys.stat().st_mode & 0o777 == 0o700
    assert key_path(keys, KeyPurpose.NODE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_file_open_to_others_is_refused(keys: Path, mode: int) -> None:
    make(keys)
    key_path(keys, KeyPurpose.NODE).chmod(mode)
    with pytest.raises(KeyFileExposed, match="chmod 600"):
        open_key(keys, KeyPurpose.NODE, PASSPHRASE)


def test_directory_open_to_others_is_refused(keys: Path) -> None:
    make(keys)
    make(keys, KeyPurpose.ACCOUNT)
    keys.chmod(0o755)
    with pytest.raises(KeyFileExposed, match="chmod 700"):
        open_keys(keys, PASSPHRASE, authority=False)
    with pytest.raises(KeyFileExposed):
        make(keys, KeyPurpose.AUTHORITY)


def test_missing_key_is_named(keys: Path) -> None:
    make(keys)
    make(keys, KeyPurpose.ACCOUNT)
    assert open_keys(keys, PASSPHRASE, authority=False).authority_id is None
    with pytest.raises(KeyFileMissing, match=r"authority\.json"):
        open_keys(keys, PASSPHRASE, authority=True)


def test_address_that_belongs_to_another_key_is_refused(keys: Path) -> None:
    make(keys)
    path = key_path(keys, KeyPurpose.NODE)
    record = msgspec.json.decode(path.read_bytes())
    record["address"] = address_of(KeyPurpose.NODE, development_key("other"))
    path.write_bytes(msgspec.json.encode(record))
    with pytest.raises(KeyFileMalformed, match="does not belong"):
        open_key(keys, KeyPurpose.NODE, PASSPHRASE)


def test_key_file_put_in_another_roles_place_is_refused(keys: Path) -> None:
    make(keys, KeyPurpose.NODE)
    key_path(keys, KeyPurpose.NODE).rename(key_path(keys, KeyPurpose.ACCOUNT))
    with pytest.raises(KeyFileMalformed):
        open_key(keys, KeyPurpose.ACCOUNT, PASSPHRASE)


@pytest.mark.parametrize(
    ("field", "value"),
    [("cost", {"operations": 1, "memory_bytes": 2**40}), ("cost", {"operations": 10**6, "memory_bytes": 8192})],
)
def test_cost_that_would_stall_the_node_is_refused(keys: Path, field: str, value: object) -> None:
    make(keys)
    path = key_path(keys, KeyPurpose.NODE)
    record = msgspec.json.decode(path.read_bytes())
    record[field] = value
    path.write_bytes(msgspec.json.encode(record))
    with pytest.raises(KeyFileMalformed):
        open_key(keys, KeyPurpose.NODE, PASSPHRASE)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"x" * 5000])
def test_file_that_is_no_key_is_refused(keys: Path, content: bytes) -> None:
    make(keys)
    key_path(keys, KeyPurpose.NODE).write_bytes(content)
    with pytest.raises(KeyFileMalformed):
        open_key(keys, KeyPurpose.NODE, PASSPHRASE)


def test_listing_needs_no_passphrase(keys: Path) -> None:
    node, account = make(keys), make(keys, KeyPurpose.ACCOUNT)
    assert [record.address for record in list_keys(keys)] == [
        address_of(KeyPurpose.NODE, node),
        address_of(KeyPurpose.ACCOUNT, account),
    ]


def test_public_record_survives_the_way_to_somebody_else(keys: Path, tmp_path: Path) -> None:
    make(keys)
    make(keys, KeyPurpose.ACCOUNT)
    record = public_record(keys, "alice")
    (tmp_path / "alice.json").write_bytes(msgspec.json.encode(record))
    assert read_record(tmp_path / "alice.json") == record


def test_public_record_with_a_typing_error_is_refused(keys: Path, tmp_path: Path) -> None:
    make(keys)
    make(keys, KeyPurpose.ACCOUNT)
    content = msgspec.json.encode(public_record(keys, "alice"))
    position = content.index(b"mcnode1") + 12
    other = b"q" if content[position : position + 1] != b"q" else b"p"
    (tmp_path / "alice.json").write_bytes(content[:position] + other + content[position + 1 :])
    with pytest.raises(KeystoreError, match="typing error"):
        read_record(tmp_path / "alice.json")


def test_development_keys_are_the_same_everywhere_and_differ_by_name() -> None:
    assert development_keys("a", True).node_id == development_keys("a", False).node_id
    ids = [
        development_keys("a", True).node_id,
        development_keys("a", True).account_id,
        development_keys("b", True).node_id,
    ]
    assert len(dict.fromkeys(ids)) == 3
    assert development_key("authority-1/node").verify_key.encode().hex() == (
        "ef3e9e1fc9daea3e9e7e3529e99578bc7c8bb6e74bc44dfbc49debd1ad95a6db"
    )


def test_keys_do_not_show_in_their_repr() -> None:
    keys = development_keys("a", True)
    assert bytes(keys.account).hex() not in repr(keys)
    assert "SigningKey" not in repr(keys)


class TestPassphrase:
    def test_line_end_is_cut_off(self, tmp_path: Path) -> None:
        path = tmp_path / "passphrase"
        path.write_bytes(b"two words\n")
        path.chmod(0o600)
        assert passphrase_from_file(path) == b"two words"

    def test_file_open_to_others_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "passphrase"
        path.write_bytes(b"x\n")
        path.chmod(0o644)
        with pytest.raises(KeyFileExposed):
            passphrase_from_file(path)

    @pytest.mark.parametrize("content", [b"", b"\n", b"a\0b", b"x" * 2000])
    def test_unusable_passphrase_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "passphrase"
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(KeystoreError):
            passphrase_from_file(path)

    def test_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(PassphraseMissing, match="no passphrase file"):
            passphrase_from_file(tmp_path / "none")

    def test_descriptor_goes_before_file(self, tmp_path: Path) -> None:
        import os

        reading, writing = os.pipe()
        os.write(writing, b"from a pipe\n")
        os.close(writing)
        assert read_passphrase(tmp_path / "none", reading) == b"from a pipe"

    def test_closed_descriptor_is_a_clear_error(self) -> None:
        with pytest.raises(PassphraseMissing, match="descriptor"):
            read_passphrase(None, 987_654)
