"""``mercat authority``: who decides the ledger, and changing that by vote."""

from pathlib import Path

import click

from node.cli.failures import CommandFailed, ExitCode
from node.cli.motion import LEDGER_WAIT, add_vote, propose
from node.cli.options import Session, timeout_option, with_node, yes_option
from node.cli.output import credits_text, fields, short, table
from node.runtime.control import AuthorityView
from node.runtime.motion_bodies import AuthoritiesBody, AuthorityBody

RECORD = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group()
def authority() -> None:
    """Who decides the ledger, and changing that by vote."""


def _state(view: AuthorityView) -> str:
    if view.state == "joining":
        return f"joins at {view.since_height}"
    return f"leaves after {view.until_height}" if view.state == "leaving" else view.state


@authority.command("list")
@with_node
def list_authorities(session: Session) -> None:
    """Who decides, who comes and goes, and what each has signed since the fee pool was last paid out."""
    view = session.client.authorities()
    rows = [
        (entry.name, _state(entry), str(entry.blocks_signed), credits_text(entry.bond), short(entry.authority, 24))
        for entry in view.authorities
    ]
    head = fields([("height", str(view.height)), ("quorum", f"{view.quorum}; {view.faulty_max} may be faulty")])
    body = table(("NAME", "STATE", "SIGNED", "BOND", "KEY"), rows)
    session.output.show(view, f"{head}\n\n{body}", (entry.authority for entry in view.authorities))


def _member(session: Session, text: str) -> str:
    """An authority's address from its name, its address or a prefix of it."""
    members = session.client.authorities().authorities
    found = [entry.authority for entry in members if text == entry.name or entry.authority.startswith(text)]
    if len(found) != 1:
        raise CommandFailed(
            f"{len(found)} authorities are named {text!r} or have such a key", ExitCode.USAGE, "authority_not_found"
        )
    return found[0]


def _newcomer(path: Path) -> AuthorityBody:
    from node.keystore.records import read_record

    record = read_record(path)
    if record.authority is None:
        raise CommandFailed(
            f"{path} has no authority key; its owner makes one with: mercat key new --role authority", ExitCode.USAGE
        )
    return AuthorityBody(record.name, record.authority, record.account, record.node)


@authority.command("propose")
@click.option("--add", type=RECORD, multiple=True, metavar="RECORD", help="Public record of a newcomer (repeatable).")
@click.option("--remove", multiple=True, metavar="KEY", help="Name or key of a member (repeatable).")
@click.option("--replace", nargs=2, multiple=True, metavar="KEY RECORD", help="A member and who takes its seat.")
@yes_option
@timeout_option(60, LEDGER_WAIT)
@with_node
def propose_change(
    session: Session,
    add: tuple[Path, ...],
    remove: tuple[str, ...],
    replace: tuple[tuple[str, str], ...],
    yes: bool,
    timeout: float,
) -> None:
    """Put a change of the authorities to vote; this node's vote is for it.

    A newcomer's operator makes keys with `mercat join --role authority` and sends the record that it prints.
    """
    leaving = [*remove, *(key for key, _ in replace)]
    coming = [*add, *(Path(record) for _, record in replace)]
    if not leaving and not coming:
        raise CommandFailed("name somebody with --add, --remove or --replace", ExitCode.USAGE, "usage")
    body = AuthoritiesBody(tuple(_member(session, text) for text in leaving), tuple(_newcomer(path) for path in coming))
    words = [*(f"remove {text}" for text in leaving), *(f"add {entry.name}" for entry in body.add)]
    propose(session, body, f"Put to vote to {', '.join(words)}?", yes, timeout)


add_vote(authority)
