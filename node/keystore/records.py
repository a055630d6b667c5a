"""What a person makes public about a node: the record that others put into a genesis."""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from node.keystore.errors import KeystoreError
from node.keystore.files import list_keys
from node.keystore.keys import KeyPurpose
from protocol.primitives.addresses import parse_address
from protocol.primitives.errors import UserError
from protocol.primitives.limits import TEXT_BYTES_MAX

RECORD_BYTES_MAX = 4096


class PublicRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The public halves of one node's keys, as addresses."""

    name: Annotated[str, Meta(min_length=1, max_length=TEXT_BYTES_MAX)]
    node: str
    account: str
    authority: str | None = None


def public_record(directory: Path, name: str) -> PublicRecord:
    """The record of a keystore; needs no passphrase."""
    addresses = {record.purpose: record.address for record in list_keys(directory)}
    if KeyPurpose.NODE not in addresses or KeyPurpose.ACCOUNT not in addresses:
        raise KeystoreError(
            f"{directory} has no node and account key; make them with: mercat key new --dir {directory}"
        )
    return PublicRecord(
        name, addresses[KeyPurpose.NODE], addresses[KeyPurpose.ACCOUNT], addresses.get(KeyPurpose.AUTHORITY)
    )


def read_record(path: Path) -> PublicRecord:
    """A record that somebody sent. Raises ``KeystoreError`` if it is none or an address has a typing error."""
    try:
        content = path.read_bytes()[: RECORD_BYTES_MAX + 1]
        record = msgspec.json.decode(content, type=PublicRecord)
        parse_address(KeyPurpose.NODE.address_kind, record.node)
        parse_address(KeyPurpose.ACCOUNT.address_kind, record.account)
        if record.authority is not None:
            parse_address(KeyPurpose.AUTHORITY.address_kind, record.authority)
    except OSError as error:
        raise KeystoreError(f"{path} can't be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, UserError) as error:
        raise KeystoreError(f"{path} is not a public record: {error}") from None
    return record
