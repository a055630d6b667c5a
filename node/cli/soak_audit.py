"""The audit behind ``mercat cluster soak``: every job explained, every output whole, every credit accounted for.

Law: it believes no node alone. What the buyer's programs were told, what both sides' books say and what the ledger
holds are laid side by side; whatever does not fit is a finding, and one finding fails the run.
"""

import time
from pathlib import Path

import msgspec

from node.cli.client import NodeClient
from node.cli.cluster_layout import PROVIDER_BALANCE, PROVIDER_BOND, ClusterRecord, NodeRecord
from node.cli.failures import CommandFailed
from node.cli.verify import Trust, verify_file
from protocol.primitives.errors import UserError

SETTLE_SECONDS = 90.0
"""Providers redeem within seconds, payers' closes wait for a challenge of five: far more than either needs."""

FINAL_STATES = ("done", "delivered", "failed", "cancelled")


class JobOutcome(msgspec.Struct, frozen=True):
    """What became of one job, as the program that asked for it was told. ``job`` is empty before any agreement.

    ``outcome`` is ``finished``, ``failed``, ``cancelled``, ``refused`` (nothing was agreed) or ``lost`` (the buyer's
    node went away meanwhile).
    """

    number: int
    outcome: str
    job: str
    reason: str
    paid: int
    retries: int
    whole: bool
    """The output was exactly what it should be; for an unfinished job: its beginning."""
    seconds: float


class Finding(msgspec.Struct, frozen=True):
    """Something that does not fit."""

    what: str
    detail: str


class Audit(msgspec.Struct, frozen=True):
    """The verdict; amounts in base units."""

    findings: tuple[Finding, ...]
    receipts_verified: int
    jobs_explained: int
    paid_to_providers: int
    fees: int
    total: int
    by_genesis: int


def audit(record: ClusterRecord, outcomes: tuple[JobOutcome, ...]) -> Audit:
    """Look everything over. All nodes are up and well again; channels are closed on the way."""
    buyer = NodeClient(Path(record.buyer.control))
    findings = [*_outputs(outcomes), *(explained := _explained(buyer, outcomes))]
    verified, broken = _receipts(record, buyer, outcomes)
    findings += [*broken, *_books(record), *_close_channels(record)]
    supply = buyer.supply()
    if supply.total != supply.genesis_total:
        findings.append(Finding("credits", f"{supply.total} exist, {supply.genesis_total} by genesis"))
    earned = {node.name: _earned(buyer, node) for node in record.nodes if node.role == "provider"}
    return Audit(
        findings=tuple(findings),
        receipts_verified=verified,
        jobs_explained=len(outcomes) - len(explained),
        paid_to_providers=sum(earned.values()),
        fees=supply.fee_pool,
        total=supply.total,
        by_genesis=supply.genesis_total,
    )


def _outputs(outcomes: tuple[JobOutcome, ...]) -> list[Finding]:
    return [
        Finding("output", f"job {outcome.number} ({outcome.job[:16]}, {outcome.outcome}) has a gap or a repeat")
        for outcome in outcomes
        if not outcome.whole
    ]


def _explained(buyer: NodeClient, outcomes: tuple[JobOutcome, ...]) -> list[Finding]:
    """Every job ended with a result or a reason; one that was lost with its node is in that node's books."""
    found = []
    for outcome in outcomes:
        if outcome.outcome in ("delivered", "failed", "cancelled", "refused") and not outcome.reason:
            found.append(Finding("job", f"job {outcome.number} {outcome.outcome} without a reason"))
        if outcome.outcome != "lost" or not outcome.job:
            continue
        try:
            view = buyer.job(outcome.job)
        except CommandFailed as error:
            found.append(Finding("job", f"job {outcome.number} ({outcome.job[:16]}) is in no books: {error}"))
            continue
        if view.state not in FINAL_STATES or (view.state != "done" and not view.reason):
            found.append(Finding("job", f"job {outcome.number} ({outcome.job[:16]}) is still {view.state}"))
    return found


def _receipts(record: ClusterRecord, buyer: NodeClient, outcomes: tuple[JobOutcome, ...]) -> tuple[int, list[Finding]]:
    trust = Trust(Path(record.genesis), None)
    verified, findings = 0, []
    for outcome in outcomes:
        if outcome.outcome != "finished":
            continue
        try:
            view = verify_file(buyer.receipt(outcome.job), trust)
        except (CommandFailed, UserError) as error:
            findings.append(Finding("receipt", f"job {outcome.number} ({outcome.job[:16]}): {error}"))
            continue
        if view.holds:
            verified += 1
        else:
            findings.append(Finding("receipt", f"job {outcome.number} ({outcome.job[:16]}): {view.failed} fails"))
    return verified, findings


def _books(record: ClusterRecord) -> list[Finding]:
    """Buyer and providers agree on what was promised on every channel, once the last vouchers have arrived."""
    until = time.monotonic() + SETTLE_SECONDS
    while True:
        bought = {view.channel: view for view in NodeClient(Path(record.buyer.control)).channels()}
        sold = {
            view.channel: view
            for node in record.nodes
            if node.role == "provider"
            for view in NodeClient(Path(node.control)).channels()
        }
        apart = [
            Finding("books", f"channel {channel[:16]}: the buyer promised {bought[channel].promised}, {detail}")
            for channel in bought
            if (detail := _apart(bought[channel].promised, sold[channel].promised if channel in sold else None))
        ]
        if not apart or time.monotonic() > until:
            return apart
        time.sleep(0.5)


def _apart(promised: int, held: int | None) -> str:
    if held is None:
        return "the provider knows no such channel" if promised else ""
    return f"the provider holds {held}" if held != promised else ""


def _close_channels(record: ClusterRecord) -> list[Finding]:
    """Close every channel by its payer and see that nothing stays in any."""
    buyer = NodeClient(Path(record.buyer.control))
    for view in buyer.channels():
        if view.state == "open":
            buyer.close_channel(view.channel, 30_000)
    until = time.monotonic() + SETTLE_SECONDS
    while left := buyer.account(record.buyer.account).in_channels:
        if time.monotonic() > until:
            return [Finding("deposits", f"{left} base units stay in channels {SETTLE_SECONDS:.0f} s after their close")]
        time.sleep(0.5)
    return []


def _earned(client: NodeClient, node: NodeRecord) -> int:
    view = client.account(node.account)
    return view.balance + view.bond + view.bond_unlocking - PROVIDER_BALANCE - PROVIDER_BOND
