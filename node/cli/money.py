"""``mercat wallet`` and ``mercat channel``: the node's own money."""

import click

from node.cli.jobs import resolve_id
from node.cli.options import CREDITS, Session, confirm, timeout_option, with_node, yes_option
from node.cli.output import credits_text, fields, short, table
from node.runtime.control import AccountView, TransactionView
from protocol.primitives.units import Amount, format_credits

LEDGER_WAIT = "Seconds to wait for the block."


def account_text(view: AccountView) -> str:
    """An account for people."""
    return fields(
        [
            ("account", view.account),
            ("balance", credits_text(view.balance)),
            ("in channels", credits_text(view.in_channels)),
            ("bond", credits_text(view.bond)),
            ("unlocking", credits_text(view.bond_unlocking)),
            ("nonce", str(view.nonce)),
        ]
    )


def show_transaction(session: Session, view: TransactionView) -> None:
    """A decided transaction."""
    session.output.show(view, f"transaction {view.transaction} is in block {view.height}", (view.transaction,))


@click.group()
def wallet() -> None:
    """Balance, and sending credits."""


@wallet.command()
@click.argument("account", required=False)
@with_node
def balance(session: Session, account: str | None) -> None:
    """What ACCOUNT, or this node's own account, holds."""
    view = session.client.account(account)
    session.output.show(view, account_text(view), (view.account,))


@wallet.command()
@click.argument("recipient")
@click.argument("amount", type=CREDITS)
@yes_option
@timeout_option(60, LEDGER_WAIT)
@with_node
def send(session: Session, recipient: str, amount: Amount, yes: bool, timeout: float) -> None:
    """Send AMOUNT credits to the account RECIPIENT (mc1…)."""
    from protocol.primitives.addresses import AddressKind, parse_address

    parse_address(AddressKind.ACCOUNT, recipient)
    confirm(f"Send {credits_text(amount)} to {recipient}?", yes)
    show_transaction(session, session.client.send(recipient, amount, round(timeout * 1000)))


@click.group()
def channel() -> None:
    """Payment channels."""


@channel.command("list")
@with_node
def list_channels(session: Session) -> None:
    """All channels, either side, amounts in credits."""
    views = session.client.channels()
    rows = [
        (
            short(view.channel, 16),
            view.side,
            short(view.payee if view.side == "payer" else view.payer),
            format_credits(view.deposit),
            format_credits(view.promised),
            format_credits(view.redeemed),
            str(view.lanes),
            view.state,
        )
        for view in views
    ]
    headers = ("CHANNEL", "SIDE", "WITH", "DEPOSIT", "PROMISED", "REDEEMED", "LANES", "STATE")
    session.output.show(views, table(headers, rows), (view.channel for view in views))


@channel.command()
@click.argument("channel")
@yes_option
@timeout_option(60, LEDGER_WAIT)
@with_node
def close(session: Session, channel: str, yes: bool, timeout: float) -> None:
    """Close CHANNEL: at once as its payee, after the challenge window as its payer. A unique prefix is enough."""
    identifier = resolve_id(channel, [view.channel for view in session.client.channels()], "channel")
    confirm(f"Close channel {identifier}?", yes)
    show_transaction(session, session.client.close_channel(identifier, round(timeout * 1000)))
