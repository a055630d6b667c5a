"""``mercat params``: the numbers and the version of the rules that a network agrees on, and changing them by vote."""

import click

from node.cli.failures import CommandFailed, ExitCode
from node.cli.motion import LEDGER_WAIT, add_vote, propose
from node.cli.options import Session, timeout_option, with_node, yes_option
from node.cli.output import fields, table
from node.runtime.motion_bodies import ParametersBody, SubjectBody, VersionBody


@click.group()
def params() -> None:
    """The numbers and the version that a network agrees on, and changing them by vote."""


@params.command()
@with_node
def show(session: Session) -> None:
    """Every parameter and the range in which a vote may set it. Durations in ms, amounts in base units."""
    view = session.client.parameters()
    version = str(view.version)
    if view.coming_version is not None:
        version += f", from height {view.coming_version_height} on {view.coming_version}"
    rows = [(entry.name, str(entry.value), str(entry.least), str(entry.most)) for entry in view.parameters]
    body = table(("PARAMETER", "VALUE", "LEAST", "MOST"), rows)
    session.output.show(view, f"{fields([('version', version)])}\n\n{body}", (entry.name for entry in view.parameters))


def _values(texts: tuple[str, ...]) -> dict[str, int]:
    values: dict[str, int] = {}
    for text in texts:
        name, separator, number = text.partition("=")
        if not separator or not number.isascii() or not number.isdigit() or name in values:
            raise CommandFailed(f"{text}: expected NAME=NUMBER, each name once", ExitCode.USAGE, "usage")
        values[name] = int(number)
    return values


@params.command("propose")
@click.argument("values", nargs=-1, metavar="NAME=NUMBER…")
@click.option(
    "--version", "version_at", type=(int, int), metavar="VERSION HEIGHT", help="A version and its first block."
)
@yes_option
@timeout_option(60, LEDGER_WAIT)
@with_node
def propose_values(
    session: Session, values: tuple[str, ...], version_at: tuple[int, int] | None, yes: bool, timeout: float
) -> None:
    """Put new values of parameters to vote, or a protocol version; this node's vote is for it."""
    if bool(values) == (version_at is not None):
        raise CommandFailed("give either NAME=NUMBER or --version VERSION HEIGHT", ExitCode.USAGE, "usage")
    body: SubjectBody
    if version_at is not None:
        body, question = (
            VersionBody(*version_at),
            f"Put to vote version {version_at[0]} from height {version_at[1]} on?",
        )
    else:
        body, question = ParametersBody(_values(values)), f"Put to vote {', '.join(values)}?"
    propose(session, body, question, yes, timeout)


add_vote(params)
