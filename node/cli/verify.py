"""``mercat verify``: check a receipt or a proof of an account, channel or model offline, from the genesis alone.

Law: it talks to no node. Every check is printed, then what had to be trusted and how old both that and the proof are:
authorities have nothing at stake after they were removed, so old trust can be abused by their keys.
"""

import time
from pathlib import Path

import click
import msgspec

from node.cli.failures import CommandFailed
from node.cli.jobs import time_text
from node.cli.options import GENESIS_VARIABLE, with_output
from node.cli.output import Output, credits_text, fields, printable, table
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
    trusted_age_s: int
    settlement: str
    height: int | None
    timestamp_ms: int | None
    buyer: str | None
    provider: str | None
    model: str | None
    runtime_build: str | None
    settings: str | None
    """What the provider says that it ran, and by which settings its output can be repeated."""
    input_units: int | None
    output_units: int | None
    amount: int | None


class ProofView(msgspec.Struct, frozen=True):
    """What ``--json`` prints for a proof; amounts in base units, ``None`` for what it does not show."""

    holds: bool
    failed: str | None
    checks: tuple[CheckView, ...]
    trusted: str
    trusted_age_s: int
    subject: str
    id: str
    header_height: int | None
    timestamp_ms: int | None
    after_block: int | None
    balance: int | None
    nonce: int | None
    bond: int | None
    bond_unlocking: int | None
    channel_open: bool | None
    payer: str | None
    payee: str | None
    deposit: int | None
    redeemed: int | None
    registered: bool | None
    publisher: str | None
    registered_height: int | None
    provider_jobs: int | None
    provider_volume: int | None
    provider_failures: int | None
    buyer_jobs: int | None
    buyer_volume: int | None
    buyer_failures: int | None


_ADDRESSES = {"account": AddressKind.ACCOUNT, "record": AddressKind.ACCOUNT, "model": AddressKind.MODEL}


class _Format(msgspec.Struct):
    format: str = ""


class Trust:
    """What the user said is to be believed."""

    def __init__(self, genesis: Path, checkpoint: Path | None) -> None:
        """Reads both files. Raises ``UserError`` if one is none of ours, or if nobody decided the checkpoint."""
        from node.config.genesis_file import load_genesis
        from protocol.ledger.proof_file import PROOF_FILE_BYTES_MAX, read_checkpoint_file

        self.genesis = load_genesis(genesis)
        self.checkpoint = None
        if checkpoint is not None:
            with checkpoint.open("rb") as file:
                self.checkpoint = read_checkpoint_file(file.read(PROOF_FILE_BYTES_MAX), self.genesis)


def is_proof(content: bytes) -> bool:
    """True for a proof of an account, record, channel or model, false for anything else, receipts included."""
    try:
        return msgspec.json.decode(content, type=_Format).format.startswith("mercat-proof")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def verify_proof_file(content: bytes, trust: Trust) -> ProofView:
    """Run every check of a proof file. Raises ``UserError`` if it is none."""
    from protocol.ledger.proof_file import read_proof_file, verify_proof

    file = read_proof_file(content)
    proven = verify_proof(file, trust.genesis, trust.checkpoint)
    account, bond, channel, registration = proven.account, proven.bond, proven.channel, proven.registration
    identity = bytes.fromhex(file.id)
    return ProofView(
        holds=proven.failed is None,
        failed=proven.failed,
        checks=tuple(CheckView(check.name, check.ok, check.detail) for check in proven.checks),
        trusted=proven.trusted,
        trusted_age_s=_age_s(proven.trusted_at_ms),
        subject=file.subject,
        id=file.id if file.subject == "channel" else format_address(_ADDRESSES[file.subject], identity),
        header_height=proven.header.height if proven.header else None,
        timestamp_ms=proven.timestamp_ms,
        after_block=proven.checkpoint,
        balance=account.balance if account else None,
        nonce=account.nonce if account else None,
        bond=bond.amount if bond else None,
        bond_unlocking=bond.unlocking if bond else None,
        channel_open=channel is not None if file.subject == "channel" and proven.failed is None else None,
        payer=format_address(AddressKind.ACCOUNT, channel.payer) if channel else None,
        payee=format_address(AddressKind.ACCOUNT, channel.payee) if channel else None,
        deposit=channel.deposit if channel else None,
        redeemed=channel.redeemed if channel else None,
        registered=registration is not None if file.subject == "model" and proven.failed is None else None,
        publisher=format_address(AddressKind.ACCOUNT, registration.publisher) if registration else None,
        registered_height=registration.height if registration else None,
        provider_jobs=proven.as_provider.jobs if proven.as_provider else None,
        provider_volume=proven.as_provider.volume if proven.as_provider else None,
        provider_failures=proven.as_provider.failures if proven.as_provider else None,
        buyer_jobs=proven.as_buyer.jobs if proven.as_buyer else None,
        buyer_volume=proven.as_buyer.volume if proven.as_buyer else None,
        buyer_failures=proven.as_buyer.failures if proven.as_buyer else None,
    )


def proof_text(view: ProofView) -> str:
    """The report for people."""
    rows = [("ok" if check.holds else "FAILED", check.name.replace("_", " "), check.detail) for check in view.checks]
    pairs = [("trusted", f"{view.trusted}, {age_text(view.trusted_age_s)} old"), (view.subject, view.id)]
    if view.timestamp_ms is not None:
        age = age_text(_age_s(view.timestamp_ms))
        pairs.append(
            (
                "as of",
                f"block {view.after_block}; block {view.header_height} of {time_text(view.timestamp_ms)}"
                f", {age} ago, says so",
            )
        )
    if view.balance is not None and view.bond is not None and view.bond_unlocking is not None:
        pairs += [
            ("balance", credits_text(view.balance)),
            ("nonce", str(view.nonce)),
            ("bond", credits_text(view.bond)),
        ]
        pairs += [("unlocking", credits_text(view.bond_unlocking))] if view.bond_unlocking else []
    for role, jobs, volume, failures in (
        ("provider", view.provider_jobs, view.provider_volume, view.provider_failures),
        ("buyer", view.buyer_jobs, view.buyer_volume, view.buyer_failures),
    ):
        if jobs is not None and volume is not None:
            pairs.append((f"as {role}", f"{jobs} jobs for {credits_text(volume)}, {failures} failures"))
    if view.channel_open is False:
        pairs.append(("state", "there is no such channel"))
    if view.deposit is not None and view.redeemed is not None:
        pairs += [("payer", view.payer or ""), ("payee", view.payee or ""), ("deposit", credits_text(view.deposit))]
        pairs.append(("redeemed", credits_text(view.redeemed)))
    if view.registered is False:
        pairs.append(("publisher", "nobody has registered this model"))
    if view.publisher is not None:
        pairs.append(("publisher", f"{view.publisher} since block {view.registered_height}"))
    return table(("", "CHECK", "FOUND"), rows) + "\n\n" + fields(pairs)


def age_text(seconds: int) -> str:
    """An age for people: seconds, minutes, hours or days."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _age_s(timestamp_ms: int) -> int:
    return max(0, time.time_ns() // 1_000_000 - timestamp_ms) // 1000


def verify_file(content: bytes, trust: Trust) -> VerifyView:
    """Run every check of a receipt file. Raises ``UserError`` if it is none."""
    from protocol.ledger.light_client import verify_receipt
    from protocol.ledger.receipt_file import read_receipt_file

    report = verify_receipt(read_receipt_file(content), trust.genesis, trust.checkpoint)
    facts = report.receipt
    return VerifyView(
        holds=report.ok,
        failed=report.failed,
        checks=tuple(CheckView(check.name, check.ok, check.detail) for check in report.checks),
        trusted=report.trusted,
        trusted_age_s=_age_s(report.trusted_at_ms),
        settlement=report.settlement,
        height=report.height,
        timestamp_ms=report.timestamp_ms,
        buyer=format_address(AddressKind.ACCOUNT, facts.buyer) if facts else None,
        provider=format_address(AddressKind.ACCOUNT, facts.provider) if facts else None,
        model=format_address(AddressKind.MODEL, facts.model) if facts else None,
        runtime_build=facts.runtime_build if facts else None,
        settings=facts.settings if facts else None,
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
            ("runtime", printable(view.runtime_build or "")),
            ("work", f"{view.input_units} units in, {view.output_units} out"),
            ("paid", credits_text(view.amount)),
        ]
    return table(("", "CHECK", "FOUND"), rows) + "\n\n" + fields(pairs)


def _settlement_text(view: VerifyView) -> str:
    if view.height is None or view.timestamp_ms is None:
        return view.settlement
    age = age_text(_age_s(view.timestamp_ms))
    return f"{view.settlement} in block {view.height} of {time_text(view.timestamp_ms)}, {age} ago"


OLD_TRUST_S = 30 * 86_400
"""Two states of the authorities so far apart may have none of their keys in common."""


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--genesis",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    envvar=GENESIS_VARIABLE,
    required=True,
    show_envvar=True,
    help="The network to trust.",
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A recent block to trust as well, from `mercat ledger checkpoint` of a node that you trust.",
)
@click.option("--settled", is_flag=True, help="Also fail unless the ledger has the receipt.")
@with_output
def verify(output: Output, file: Path, genesis: Path, checkpoint: Path | None, settled: bool) -> None:
    """Check FILE: a receipt (who did what for whom, at which price) or a proof of an account or channel.

    Also that the ledger's authorities decided it. Exit code 0 when every check holds, 1 with the failing check's name.
    """
    from protocol.ledger.proof_file import PROOF_FILE_BYTES_MAX

    trust = Trust(genesis, checkpoint)
    with file.open("rb") as stream:
        content = stream.read(PROOF_FILE_BYTES_MAX + 1)
    view: VerifyView | ProofView
    if is_proof(content):
        view = verify_proof_file(content, trust)
        output.show(view, proof_text(view), [view.failed] if view.failed else [])
    else:
        view = verify_file(content, trust)
        output.show(view, verify_text(view), [view.failed] if view.failed else [])
    believed_authorities = isinstance(view, ProofView) or view.height is not None
    if believed_authorities and view.trusted_age_s > OLD_TRUST_S:
        output.note(
            f"mercat: what you trust is {age_text(view.trusted_age_s)} old. Keys of authorities that were removed "
            "since could sign another history: get a recent checkpoint from somebody you trust (--checkpoint)"
        )
    if view.failed is not None:
        raise CommandFailed(f"{view.failed} does not hold", code=view.failed)
    if settled and isinstance(view, VerifyView) and view.height is None:
        raise CommandFailed("no block holds this receipt yet: settlement_present does not hold", code="not_settled")
