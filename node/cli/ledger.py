"""``mercat ledger``: what the authorities have decided."""

import click

from node.cli.jobs import time_text
from node.cli.ledger_archive import COMMANDS
from node.cli.ledger_recover import recover
from node.cli.money import account_text
from node.cli.options import Session, with_node
from node.cli.output import credits_text, fields, short, table
from node.runtime.control import LedgerView
from protocol.primitives.units import format_credits


@click.group()
def ledger() -> None:
    """The ledger: tip, blocks, accounts, supply, proofs, archives."""


for command in (*COMMANDS, recover):
    ledger.add_command(command)


@ledger.command()
@with_node
def status(session: Session) -> None:
    """The tip and who decides."""
    view = session.client.ledger()
    text = fields(
        [
            ("height", str(view.height)),
            ("block", view.block_hash),
            ("time", time_text(view.timestamp_ms)),
            ("ledger time", f"{view.ledger_time_ms} ms"),
            ("state root", view.state_root),
            ("quorum", f"{view.quorum} of {len(view.authorities)} authorities"),
            ("pending", f"{view.pending_transactions} transactions"),
            ("blocks", _blocks_text(view)),
            ("snapshots", ", ".join(str(height) for height in view.snapshots) or "none yet"),
            *(("authority", authority) for authority in view.authorities),
        ]
    )
    session.output.show(view, text, (view.block_hash,))


def _blocks_text(view: LedgerView) -> str:
    kept = f"at least {view.blocks_kept} are kept" if view.blocks_kept else "all are kept"
    return f"from {view.blocks_from} on; {kept}"


@ledger.command()
@click.argument("height", type=click.IntRange(min=0, max=2**48), required=False)
@with_node
def block(session: Session, height: int | None) -> None:
    """The block at HEIGHT, or the tip."""
    view = session.client.block(session.client.ledger().height if height is None else height)
    head = fields(
        [
            ("height", str(view.height)),
            ("block", view.block_hash),
            ("parent", view.parent),
            ("time", time_text(view.timestamp_ms)),
            ("ledger time", f"{view.ledger_time_ms} ms"),
            ("state root", view.state_root),
            ("transactions", view.transactions_root),
            ("decided in", f"view {view.view}"),
            *(("signed by", signer) for signer in view.signers),
        ]
    )
    rows = [
        (short(entry.transaction, 16), entry.action, short(entry.sender), format_credits(entry.fee), entry.detail)
        for entry in view.transactions
    ]
    body = "\n\n" + table(("TRANSACTION", "ACTION", "SENDER", "FEE", "DETAIL"), rows) if rows else ""
    session.output.show(view, head + body, (view.block_hash,))


@ledger.command()
@click.argument("account")
@with_node
def account(session: Session, account: str) -> None:
    """What ACCOUNT (mc1…) holds."""
    view = session.client.account(account)
    session.output.show(view, account_text(view), (view.account,))


@ledger.command()
@with_node
def supply(session: Session) -> None:
    """Where all the money is; the parts sum up to what genesis and votes gave out, less what was redeemed."""
    view = session.client.supply()
    text = fields(
        [
            ("balances", credits_text(view.balances)),
            ("channel deposits", credits_text(view.deposits)),
            ("bonds", credits_text(view.bonds)),
            ("fee pool", credits_text(view.fee_pool)),
            ("total", credits_text(view.total)),
            ("by genesis", credits_text(view.genesis_total)),
            ("by vote", credits_text(view.issued_by_vote)),
            ("redeemed", credits_text(view.redeemed_by_vote)),
        ]
    )
    session.output.show(view, text, (str(view.total),))
