"""``mercat key``: make keys, and show their public halves."""

from pathlib import Path

import click

from node.cli.failures import CommandFailed, ExitCode
from node.cli.options import default_node_directory, directory_option, passphrase_options, with_output
from node.cli.output import Output, fields, table

KEYS_DEFAULT = "the default node's keys"


def _directory(flag: Path | None) -> Path:
    return flag or default_node_directory() / "keys"


@click.group()
def key() -> None:
    """Make and show keys."""


@key.command()
@click.option(
    "--role",
    type=click.Choice(["authority", "provider", "buyer", "follower"]),
    default="follower",
    show_default=True,
    help="An authority gets a consensus key beside node and account key.",
)
@click.option("--name", default="", help="Name in the public record; default: the directory's.")
@directory_option(KEYS_DEFAULT)
@passphrase_options
@with_output
def new(
    output: Output,
    role: str,
    name: str,
    directory: Path | None,
    passphrase_file: Path | None,
    passphrase_fd: int | None,
) -> None:
    """Make a node's keys in encrypted files and print its public record.

    The record (JSON on standard output) is what others need, for example to put an authority into a genesis. An
    existing key is never overwritten; missing ones are added under the same passphrase.
    """
    import msgspec

    from node.keystore.files import create_key, key_path, open_key
    from node.keystore.keys import KeyPurpose
    from node.keystore.passphrase import read_passphrase
    from node.keystore.records import public_record

    folder = _directory(directory)
    wanted = [KeyPurpose.NODE, KeyPurpose.ACCOUNT, *([KeyPurpose.AUTHORITY] if role == "authority" else [])]
    missing = [purpose for purpose in wanted if not key_path(folder, purpose).exists()]
    existing = [purpose for purpose in wanted if purpose not in missing]
    if not missing:
        raise CommandFailed(
            f"{folder} already has these keys; show them with: mercat key show --dir {folder}",
            ExitCode.KEYS_OR_FUNDS,
            "keys_exist",
        )
    passphrase = read_passphrase(passphrase_file, passphrase_fd, confirm=not existing)
    for purpose in existing:
        open_key(folder, purpose, passphrase)
    for purpose in missing:
        create_key(folder, purpose, passphrase)
    record = public_record(folder, name or folder.absolute().name)
    output.note(f"{', '.join(purpose.value for purpose in missing)} key in {folder}")
    text = msgspec.json.format(msgspec.json.encode(record), indent=2).decode()
    output.show(record, text, [record.account])


@key.command("list")
@directory_option(KEYS_DEFAULT)
@with_output
def list_(output: Output, directory: Path | None) -> None:
    """The keys of a keystore; needs no passphrase."""
    from node.keystore.files import key_path, list_keys

    folder = _directory(directory)
    keys = list_keys(folder)
    rows = [(record.purpose.value, record.address, str(key_path(folder, record.purpose))) for record in keys]
    view = [{"purpose": purpose, "address": address, "file": file} for purpose, address, file in rows]
    output.show(view, table(("KEY", "ADDRESS", "FILE"), rows), (address for _, address, _ in rows))


@key.command()
@click.option("--name", default="", help="Name in the public record; default: the directory's.")
@directory_option(KEYS_DEFAULT)
@with_output
def show(output: Output, name: str, directory: Path | None) -> None:
    """The public record of a keystore, to give to others."""
    from node.keystore.records import public_record

    folder = _directory(directory)
    record = public_record(folder, name or folder.absolute().name)
    pairs = [("name", record.name), ("node", record.node), ("account", record.account)]
    if record.authority:
        pairs.append(("authority", record.authority))
    output.show(record, fields(pairs), [record.account])
