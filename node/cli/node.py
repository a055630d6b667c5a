"""``mercat node run``: this process becomes a node."""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.failures import CommandFailed, ExitCode
from node.cli.lifeline import hold_lifeline
from node.cli.options import passphrase_options
from node.cli.settings import config_file, config_options, flag_settings

if TYPE_CHECKING:
    from node.config.settings import NodeConfig
    from node.keystore.keys import NodeKeys
    from protocol.messages.genesis import Genesis


@click.group()
def node() -> None:
    """Run a node."""


@node.command()
@config_options
@passphrase_options
@click.option("--lifeline", type=int, hidden=True)
def run(
    config: Path | None,
    listen: str | None,
    seeds: tuple[str, ...],
    settings: tuple[str, ...],
    passphrase_file: Path | None,
    passphrase_fd: int | None,
    lifeline: int | None,
) -> None:
    """Run a node until SIGTERM or Ctrl-C.

    Settings: flag over MERCAT_NODE_* (MERCAT_NODE_PROVIDER_SLOTS=2) over the configuration file.
    """
    if lifeline is not None:
        hold_lifeline(lifeline)
    run_from_file(config_file(config), flag_settings(listen, seeds, settings), passphrase_file, passphrase_fd)


def run_from_file(
    path: Path,
    flags: dict[str, str],
    passphrase_file: Path | None = None,
    passphrase_fd: int | None = None,
    adjust: "Callable[[NodeConfig], NodeConfig] | None" = None,
) -> None:
    """Load settings and keys and run the node until it stops. ``adjust`` may say what the settings leave open."""
    gc.disable()  # a start makes hardly any garbage, and to look for it is a fifth of the start
    try:
        settings, keys, genesis = _load(path, flags, passphrase_file, passphrase_fd, adjust)
        import asyncio

        from node.cli.process import event_log, node_process
        from node.telemetry import event_logger
    finally:
        gc.enable()
    gc.freeze()  # what is there by now stays: no later search has to pass over it

    # The standard loop: uvloop 0.23 closes a descriptor twice when a dialed peer resets the connection, and the second
    # close hits whoever has the number by then, which may be the store.
    with event_log(settings.log), asyncio.Runner() as runner:
        try:
            runner.run(node_process(settings, keys, genesis))
        except ExceptionGroup as group:
            event_logger("process").error("failed", exc_info=True)
            raise CommandFailed(f"the node stopped: {_first(group)}", ExitCode.FAILED, "node_failed") from group


def _load(
    path: Path,
    flags: dict[str, str],
    passphrase_file: Path | None,
    passphrase_fd: int | None,
    adjust: "Callable[[NodeConfig], NodeConfig] | None",
) -> "tuple[NodeConfig, NodeKeys, Genesis]":
    """Settings, keys and genesis that fit each other; the state's directory exists."""
    from node.config.genesis_file import load_genesis
    from node.config.loading import check_exposure, load_config
    from node.config.settings import Role
    from node.keystore.files import open_keys
    from node.keystore.passphrase import read_passphrase

    settings = load_config(path, os.environ, flags).config
    if adjust is not None:
        settings = adjust(settings)
    genesis = load_genesis(settings.genesis)
    check_exposure(settings, genesis)
    passphrase = read_passphrase(passphrase_file or settings.keystore.passphrase_file, passphrase_fd)
    keys = open_keys(settings.keystore.directory, passphrase, Role.AUTHORITY in settings.roles)
    if keys.authority_id is not None and keys.authority_id not in {record.authority for record in genesis.authorities}:
        click.echo(
            f"the authority key in {settings.keystore.directory} is not one of the genesis's; it decides from when "
            "authorities have voted it in, until then this node follows",
            err=True,
        )
    settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    return settings, keys, genesis


def _first(error: BaseException) -> BaseException:
    """The first error inside nested groups: tasks that fell with it say less."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
