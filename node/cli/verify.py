"""``mercat verify``: check a receipt file offline, from the genesis alone.

Law: it talks to no node. Every check is printed, then what had to be trusted and how old the proof is.
"""

import time
from pathlib import Path

import click
import msgspec

from node.cli.failures import CommandFailed
from node.cli.jobs import time_text
from node.cli.options import GENESIS_VARIABLE, with_output
from node.cli.output import Output, credits_text, fields, table
from protocol.primitives.addresses import AddressKind, format_address


class CheckView(msgspec.Struct, frozen=True):
    """One check."""

    name: str
    holds: bool
    detail: str


class VerifyView(msgspec.Struct, frozen=True):
    """What ``--json`` prints. ``settlement`` is ``settled``, ``anchored`` or ``not settled``."""

    holds: bool
    failed: str | None
    checks: tuple[CheckView, ...]
    trusted: str
    settlement: str
    height: int | None
    timestamp_ms: int | None
    buyer: str | None
    provider: str | None
    model: str | None
    input_units: int | None
    output_units: int | None
    amount: int | None


def verify_file(receipt: Path, genesis: Path) -> VerifyView:
    """Run every check. Raises ``UserError`` if one of the files is none of ours."""
    from node.config.genesis_file import load_genesis
    from protocol.ledger.light_client import verify_receipt
    from protocol.ledger.receipt_file import RECEIPT_FILE_BYTES_MAX, read_receipt_file

    with receipt.open("rb") as file:
        parsed = read_receipt_file(file.read(RECEIPT_FILE_BYTES_MAX + 1))
    report = verify_receipt(parsed, load_genesis(genesis))
    facts = report.receipt
    return VerifyView(
        holds=report.ok,
        failed=report.failed,
        checks=tuple(CheckView(check.name, check.ok, check.detail) for check in report.checks),
        trusted=report.trusted,
        settlement=report.settlement,
        height=report.height,
        timestamp_ms=report.timestamp_ms,
        buyer=format_address(AddressKind.ACCOUNT, facts.buyer) if facts else None,
        provider=format_address(AddressKind.ACCOUNT, facts.provider) if facts else None,
        model=format_address(AddressKind.MODEL, facts.model) if facts else None,
        input_units=facts.input_units if facts else None,
        output_units=facts.output_units if facts else None,
        amount=facts.amount if facts else None,
    )


def verify_text(view: VerifyView) -> str:
    """The report for people."""
    rows = [("ok" if check.holds else "FAILED", check.name.replace("_", " "), check.detail) for check in view.checks]
    pairs = [("trusted", view.trusted), ("settlement", _settlement_text(view))]
    if view.holds and view.amount is not None:
        pairs += [
            ("provider", view.provider or ""),
            ("buyer", view.buyer or ""),
            ("model", view.model or ""),
            ("work", f"{view.input_units} units in, {view.output_units} out"),
            ("paid", credits_text(view.amount)),
        ]
    return table(("", "CHECK", "FOUND"), rows) + "\n\n" + fields(pairs)


def _settlement_text(view: VerifyView) -> str:
    if view.height is None or view.timestamp_ms is None:
        return view.settlement
    age_s = max(0, time.time_ns() // 1_000_000 - view.timestamp_ms) // 1000
    return f"{view.settlement} in block {view.height} of {time_text(view.timestamp_ms)}, {age_s} s ago"


@click.command()
@click.argument("receipt_file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--genesis",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    envvar=GENESIS_VARIABLE,
    required=True,
    show_envvar=True,
    help="The network to trust.",
)
@click.option("--settled", is_flag=True, help="Also fail unless the ledger has the receipt.")
@with_output
def verify(output: Output, receipt_file: Path, genesis: Path, settled: bool) -> None:
    """Check RECEIPT_FILE: who did what for whom, at which price, and that the ledger's authorities decided it.

    Exit code 0 when every check holds, 1 with the failing check's name.
    """
    view = verify_file(receipt_file, genesis)
    output.show(view, verify_text(view), [view.failed] if view.failed else [])
    if view.failed is not None:
        raise CommandFailed(f"{view.failed} does not hold", code=view.failed)
    if settled and view.height is None:
        raise CommandFailed("no block holds this receipt yet: settlement_present does not hold", code="not_settled")
