"""Options that many commands share, and the session that they make."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import click

from node.cli.failures import CommandFailed, ExitCode
from node.cli.output import Output
from protocol.primitives.units import Amount, parse_credits

P = ParamSpec("P")
Command = Callable[..., None]

CONTROL_VARIABLE = "MERCAT_CONTROL"
GENESIS_VARIABLE = "MERCAT_GENESIS"


def default_node_directory() -> Path:
    """Where ``mercat join`` puts a node unless told otherwise."""
    from platformdirs import user_state_path

    return user_state_path("mercat") / "node"


def control_path(flag: Path | None) -> Path:
    """The node that a command talks to: ``--control``, ``MERCAT_CONTROL``, else this user's own node."""
    if flag is not None:
        return flag
    variable = os.environ.get(CONTROL_VARIABLE)
    return Path(variable) if variable else default_node_directory() / "state" / "control.sock"


class Session:
    """One command's way to speak and the node it speaks with."""

    def __init__(self, control: Path | None, output: Output) -> None:
        from node.cli.client import NodeClient

        self.client = NodeClient(control_path(control))
        self.output = output


def with_output(command: Callable[Concatenate[Output, P], None]) -> Command:
    """Adds ``--json`` and ``-q``; the command gets an ``Output`` first."""

    def wrapper(*positional: Any, as_json: bool, quiet: bool, **named: Any) -> None:
        command(Output(as_json, quiet), *positional, **named)

    return _output_options(_renamed(wrapper, command))


def with_node(command: Callable[Concatenate[Session, P], None]) -> Command:
    """Adds ``--control``, ``--json`` and ``-q``; the command gets a ``Session`` first."""

    def wrapper(*positional: Any, control: Path | None, as_json: bool, quiet: bool, **named: Any) -> None:
        command(Session(control, Output(as_json, quiet)), *positional, **named)

    option = click.option(
        "--control",
        type=click.Path(path_type=Path),
        help=f"Control socket of the node to talk to [env: {CONTROL_VARIABLE}].",
    )
    return option(_output_options(_renamed(wrapper, command)))


def _output_options(command: Command) -> Command:
    as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON; amounts are in base units.")
    quiet = click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
    return as_json(quiet(command))


def _renamed(wrapper: Command, command: Callable[..., None]) -> Command:
    wrapper.__name__ = command.__name__
    wrapper.__doc__ = command.__doc__
    parameters = getattr(command, "__click_params__", None)
    if parameters is not None:
        wrapper.__click_params__ = parameters  # type: ignore[attr-defined]
    return wrapper


class Credits(click.ParamType[Amount]):
    """An amount as people type it, in credits: ``0.5``."""

    name = "credits"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Amount:
        """Base units."""
        try:
            return parse_credits(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


CREDITS = Credits()


def confirm(question: str, yes: bool) -> None:
    """Ask before something that can't be undone. Without a terminal only ``-y`` goes on."""
    import sys

    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandFailed(f"{question} Not asked without a terminal; repeat with -y", ExitCode.USAGE, "unconfirmed")
    if not click.confirm(question, err=True):
        raise CommandFailed("nothing was done", ExitCode.FAILED, "declined")


def yes_option(command: Command) -> Command:
    """Adds ``-y``."""
    return click.option("-y", "--yes", is_flag=True, help="Don't ask.")(command)


def timeout_option(seconds: float, what: str) -> Callable[[Command], Command]:
    """Adds ``--timeout``, in seconds."""
    return click.option(
        "--timeout", type=click.FloatRange(min=0.1, max=86_400), default=seconds, show_default=True, help=what
    )


def directory_option(default_text: str) -> Callable[[Command], Command]:
    """Adds ``--dir``."""
    return click.option(
        "--dir", "directory", type=click.Path(path_type=Path, file_okay=False), help=f"Default: {default_text}."
    )


def passphrase_options(command: Command) -> Command:
    """Adds the ways to give a passphrase other than typing it."""
    file = click.option(
        "--passphrase-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Read the passphrase from this file (mode 0600).",
    )
    descriptor = click.option(
        "--passphrase-fd", type=click.IntRange(min=0), help="Read the passphrase from this open file descriptor."
    )
    return file(descriptor(command))
