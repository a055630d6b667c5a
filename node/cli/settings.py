"""``mercat config``: the settings of a node and where each comes from."""

import os
from enum import Enum
from pathlib import Path
from typing import Any

import click

from node.cli.failures import CommandFailed, ExitCode
from node.cli.options import Command, default_node_directory, with_output
from node.cli.output import Output, table

CONFIG_VARIABLE = "MERCAT_CONFIG"


def config_options(command: Command) -> Command:
    """Adds ``--config`` and the flags that go over it."""
    for option in (
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set any key (repeatable)."),
        click.option("--seed", "seeds", multiple=True, metavar="HOST:PORT", help="Peer to dial first (repeatable)."),
        click.option("--listen", metavar="HOST:PORT", help="Where to listen."),
        click.option(
            "--config",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            envvar=CONFIG_VARIABLE,
            help="Configuration file; default: config.toml where `mercat join` puts it.",
            show_envvar=True,
        ),
    ):
        command = option(command)
    return command


def config_file(flag: Path | None) -> Path:
    """The configuration to read. Raises ``CommandFailed`` if there is none."""
    path = flag or default_node_directory() / "config.toml"
    if not path.is_file():
        raise CommandFailed(
            f"no configuration {path}; make one with `mercat join GENESIS SEED…` or name one with --config",
            ExitCode.USAGE,
            "no_configuration",
        )
    return path


def flag_settings(listen: str | None, seeds: tuple[str, ...], settings: tuple[str, ...]) -> dict[str, str]:
    """Dotted keys given as flags."""
    flags: dict[str, str] = {}
    for text in settings:
        key, separator, value = text.partition("=")
        if not separator:
            raise CommandFailed(f"--set {text}: expected KEY=VALUE", ExitCode.USAGE, "usage")
        flags[key] = value
    if listen is not None:
        flags["listen"] = listen
    if seeds:
        flags["seeds"] = ",".join(seeds)
    return flags


def _plain(value: Any) -> Any:
    """A setting's value as JSON has it."""
    import msgspec

    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, msgspec.Struct):
        return {name: _plain(item) for name, item in msgspec.structs.asdict(value).items()}
    return value


@click.group()
def config() -> None:
    """Settings and where each comes from."""


@config.command()
@config_options
@with_output
def show(
    output: Output, config: Path | None, listen: str | None, seeds: tuple[str, ...], settings: tuple[str, ...]
) -> None:
    """Every setting, its value, and the flag, variable or file that it comes from."""
    import msgspec

    from node.config.loading import load_config

    loaded = load_config(config_file(config), os.environ, flag_settings(listen, seeds, settings))
    rows: list[tuple[str, str, str]] = []
    view: dict[str, dict[str, Any]] = {}
    for key, source in loaded.sources.items():
        value: Any = loaded.config
        for part in key.split("."):
            value = getattr(value, part)
        view[key] = {"value": _plain(value), "source": source}
        rows.append((key, source, "-" if value is None else msgspec.json.encode(_plain(value)).decode()))
    output.show(view, table(("KEY", "SOURCE", "VALUE"), rows), (key for key, _, _ in rows))
