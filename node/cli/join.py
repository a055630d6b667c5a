"""``mercat join``: everything that a person needs to take part in an existing network, in one command."""

import shlex
from pathlib import Path

import click
import msgspec

from node.cli.failures import CommandFailed, ExitCode
from node.cli.options import default_node_directory, directory_option, passphrase_options, with_output
from node.cli.output import Output, fields


class JoinResult(msgspec.Struct, frozen=True):
    """What was made and what comes next."""

    network: str
    genesis_hash: str
    node: str
    account: str
    config: str
    control: str
    next: str


@click.command()
@click.argument("genesis", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("seeds", nargs=-1, required=True, metavar="SEED...")
@directory_option("the default node's")
@click.option(
    "--role",
    type=click.Choice(["follower", "buyer", "provider", "authority"]),
    default="buyer",
    show_default=True,
)
@click.option("--model", "models", multiple=True, help="Model description to sell: name or path (repeatable).")
@click.option("--model-store", type=click.Path(path_type=Path, file_okay=False), help="Directory of model files.")
@click.option("--listen", default="127.0.0.1:0", show_default=True, metavar="HOST:PORT")
@click.option("--advertise", multiple=True, metavar="HOST:PORT", help="Address that peers can dial (repeatable).")
@passphrase_options
@click.option("--run", "run_now", is_flag=True, help="Run the node at once.")
@with_output
def join(
    output: Output,
    genesis: Path,
    seeds: tuple[str, ...],
    directory: Path | None,
    role: str,
    models: tuple[str, ...],
    model_store: Path | None,
    listen: str,
    advertise: tuple[str, ...],
    passphrase_file: Path | None,
    passphrase_fd: int | None,
    run_now: bool,
) -> None:
    """Join the network of the file GENESIS by way of the peers SEED (HOST:PORT).

    Makes keys (or keeps those of `mercat key new --dir DIR/keys`) and DIR/config.toml, then says what to run.
    """
    from node.config.genesis_file import load_genesis
    from node.config.loading import check_exposure, load_config
    from node.keystore.passphrase import read_passphrase
    from protocol.messages.genesis import genesis_hash

    folder = (directory or default_node_directory()).absolute()
    config = folder / "config.toml"
    if config.exists():
        raise CommandFailed(f"{config} exists; run it with: mercat node run --config {config}", ExitCode.USAGE)
    if role == "provider" and not models:
        raise CommandFailed("a provider names what it sells: --model NAME (repeatable)", ExitCode.USAGE, "usage")
    network = load_genesis(genesis)
    keys_exist = (folder / "keys" / "node.json").exists()
    passphrase = read_passphrase(passphrase_file, passphrase_fd, confirm=not keys_exist)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    node, account = make_keys(folder / "keys", passphrase, role == "authority")
    text = config_text(role, seeds, listen, advertise, models, model_store, passphrase_file)
    draft = folder / ".config.toml.draft"
    draft.write_text(text)
    try:
        (folder / "genesis.json").write_bytes(genesis.read_bytes())
        loaded = load_config(draft).config
        check_exposure(loaded, network)
        draft.rename(config)
    finally:
        draft.unlink(missing_ok=True)
    command = f"mercat node run --config {shlex.quote(str(config))}"
    result = JoinResult(
        network.network, genesis_hash(network).hex(), node, account, str(config), str(loaded.control_socket), command
    )
    pairs = [(name, str(value)) for name, value in msgspec.structs.asdict(result).items()]
    output.show(result, fields((name.replace("_", " "), value) for name, value in pairs), [account])
    if run_now:
        from node.cli.node import run_from_file

        output.note("running; stop with Ctrl-C")
        run_from_file(config, {}, passphrase_file, _reopened(passphrase))


def _reopened(passphrase: bytes) -> int:
    """A descriptor that gives the passphrase once more, so that nobody is asked twice."""
    import os

    reader, writer = os.pipe()
    os.write(writer, passphrase)  # at most 1 KiB, which a pipe holds
    os.close(writer)
    return reader


def make_keys(directory: Path, passphrase: bytes, authority: bool) -> tuple[str, str]:
    """Open the keys that are there and make those that lack; the addresses of node and account."""
    from node.keystore.files import create_key, key_path, open_key
    from node.keystore.keys import KeyPurpose, address_of

    addresses = []
    for purpose in (KeyPurpose.NODE, KeyPurpose.ACCOUNT):
        exists = key_path(directory, purpose).exists()
        key = (open_key if exists else create_key)(directory, purpose, passphrase)
        addresses.append(address_of(purpose, key))
    if authority:
        open_key(directory, KeyPurpose.AUTHORITY, passphrase)
    return addresses[0], addresses[1]


def config_text(
    role: str,
    seeds: tuple[str, ...],
    listen: str,
    advertise: tuple[str, ...],
    models: tuple[str, ...],
    model_store: Path | None,
    passphrase_file: Path | None,
) -> str:
    """The configuration of a node that joins."""
    from node.config.descriptions import description_path
    from node.config.settings import ProviderModel
    from node.config.writing import Table, Value, toml_text

    roles = [] if role == "follower" else ["provider", "buyer"] if role == "provider" else [role]
    top: dict[str, Value] = {
        "genesis": "genesis.json",
        "state": "state",
        "roles": roles,
        "listen": listen,
        "seeds": list(seeds),
    }
    if advertise:
        top["advertise"] = list(advertise)
    keystore: dict[str, Value] = {"directory": "keys"}
    if passphrase_file is not None:
        keystore["passphrase_file"] = str(passphrase_file.absolute())
    sections: dict[str, Table] = {"keystore": keystore}
    if model_store is not None:
        sections["provider"] = {"model_store": str(model_store.absolute())}
    prices = ProviderModel(description="")
    sold: list[Table] = [
        {
            "description": model if "/" not in model and not model.endswith(".toml") else str(description_path(model)),
            "request": prices.request,
            "input_per_thousand": prices.input_per_thousand,
            "output_per_thousand": prices.output_per_thousand,
        }
        for model in models
    ]
    comment = "A node of a mercat network. Prices are in base units; 1,000,000 base units are one credit."
    return toml_text(top, sections, {"provider.models": sold}, comment)
