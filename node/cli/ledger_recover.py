"""``mercat ledger recover``: what operators do when more than a third of the authorities are gone for good."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.failures import CommandFailed, ExitCode
from node.cli.keys import KEYS_DEFAULT
from node.cli.options import (
    GENESIS_VARIABLE,
    confirm,
    default_node_directory,
    directory_option,
    passphrase_options,
    with_output,
    yes_option,
)
from node.cli.output import Output, fields

if TYPE_CHECKING:
    from protocol.messages.recovery import Recovery


@click.command()
@click.option(
    "--genesis",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    envvar=GENESIS_VARIABLE,
    help="The network's genesis file.",
)
@click.option("--height", type=click.IntRange(min=0, max=2**48), help="Height of the last decided block.")
@click.option("--block", metavar="HASH", help="Hash of the last decided block.")
@click.option(
    "--authority",
    "authorities",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="Public record of one who decides from the next height on (repeatable).",
)
@click.option("--attempt", type=click.IntRange(min=1, max=4_000), default=1, show_default=True, help="Of this height.")
@click.option(
    "--sign",
    "document",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Add this operator's signature to a document that another one made.",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@directory_option(KEYS_DEFAULT)
@passphrase_options
@yes_option
@with_output
def recover(
    output: Output,
    genesis: Path,
    height: int | None,
    block: str | None,
    authorities: tuple[Path, ...],
    attempt: int,
    document: Path | None,
    out: Path,
    directory: Path | None,
    passphrase_file: Path | None,
    passphrase_fd: int | None,
    yes: bool,
) -> None:
    """Make or sign a recovery document: another set of authorities decides from a block on.

    For when more than a third of the authorities are gone for good, and nothing else: whoever signs vouches that no
    block above this one was ever decided. Take the highest block that any node left holds (`mercat ledger status`).
    Operators compare and sign the document, then each sets `recovery = ["FILE"]` in his node's configuration and starts
    it again. Nodes without it stay behind.
    """
    from node.config.genesis_file import load_genesis
    from node.config.recovery_file import load_envelopes, recovery_to_json
    from node.keystore.files import open_key
    from node.keystore.keys import KeyPurpose
    from node.keystore.passphrase import read_passphrase
    from protocol.ledger.recovery import open_recovery
    from protocol.messages.envelope import seal, signing_bytes
    from protocol.messages.genesis import genesis_hash
    from protocol.messages.kinds import MessageKind
    from protocol.primitives.codec import encode
    from protocol.primitives.units import PublicKey

    network = genesis_hash(load_genesis(genesis))
    if document is not None:
        signed = load_envelopes(document, network)
        recovery, _ = open_recovery(network, signed)
    else:
        signed, recovery = (), _made(height, block, authorities, attempt)
    names = ", ".join(record.name for record in recovery.membership.records)
    confirm(
        f"Vouch that block {recovery.block_hash.hex()} at height {recovery.height} is the last one, and that {names} "
        "decide from then on?",
        yes,
    )
    key = open_key(
        directory or default_node_directory() / "keys",
        KeyPurpose.AUTHORITY,
        read_passphrase(passphrase_file, passphrase_fd),
    )
    payload, sender = encode(recovery), PublicKey(bytes(key.verify_key))
    signature = key.sign(signing_bytes(network, MessageKind.RECOVERY, payload)).signature
    envelope = seal(MessageKind.RECOVERY, payload, sender, signature)
    content = recovery_to_json(network, (*(each for each in signed if each != envelope), envelope))
    out.write_bytes(content)
    _, signers = open_recovery(network, load_envelopes(out, network))
    facts = {"file": str(out), "height": recovery.height, "block": recovery.block_hash.hex(), "signers": len(signers)}
    output.show(facts, fields([(name, str(value)) for name, value in facts.items()]), (str(out),))


def _made(height: int | None, block: str | None, authorities: tuple[Path, ...], attempt: int) -> "Recovery":
    from node.cli.genesis import authority_record
    from protocol.messages.genesis import Membership
    from protocol.messages.recovery import Recovery
    from protocol.primitives.units import BlockHash, Height

    if height is None or block is None or not authorities:
        raise CommandFailed("name the last block and who decides: --height, --block, --authority", ExitCode.USAGE)
    try:
        block_hash = BlockHash(bytes.fromhex(block))
        if len(block_hash) != 32:
            raise ValueError
    except ValueError:
        raise CommandFailed(f"--block {block}: expected 64 hexadecimal digits", ExitCode.USAGE) from None
    records = sorted((authority_record(path) for path in authorities), key=lambda record: record.authority)
    return Recovery(Height(height), block_hash, Membership(tuple(records)), attempt)
