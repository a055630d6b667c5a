"""What every block does before its transactions: count signers, pay the fee pool out, note the time, change versions.

Law: an authority is paid for the blocks whose decision carries its signature, as the next block's builder certified it.
The pool is shared in proportion at an epoch's end; what does not divide stays in it. A key that signed twice is paid
nothing, and its blocks dilute nobody.
"""

from collections.abc import Sequence

from protocol.ledger.charter import Epoch, Mark, Marks, SignerCount, Versions
from protocol.ledger.view import Context, Overlay
from protocol.messages.genesis import AuthorityRecord
from protocol.primitives.units import (
    AccountId,
    Amount,
    AuthorityId,
    Height,
    LedgerTimeMs,
    checked_add,
    checked_subtract,
)

MARKS_IN_WINDOW = 32
"""A height's age is known to about a thirty-second of the evidence window."""


def count_signers(overlay: Overlay, signers: Sequence[AuthorityRecord]) -> None:
    """Credit one block to each of these members."""
    if not signers:
        return
    epoch = overlay.charter.epoch
    counts = {entry.authority: entry for entry in epoch.signers}
    for record in signers:
        before = counts.get(record.authority)
        blocks = 1 if before is None else before.blocks + 1
        counts[record.authority] = SignerCount(record.authority, record.account, blocks)
    overlay.with_charter(epoch=Epoch(epoch.first_height, tuple(counts[key] for key in sorted(counts))))


def shares(pool: Amount, signers: Sequence[SignerCount]) -> list[tuple[AccountId, Amount]]:
    """What each signer is paid of a pool, in base units: in proportion to its blocks, rounded down."""
    blocks_total = sum(entry.blocks for entry in signers)
    return [(entry.account, Amount(pool * entry.blocks // blocks_total)) for entry in signers]


def close_epoch_if_over(overlay: Overlay, context: Context) -> None:
    """Once ``epoch_blocks`` blocks have been counted, share the fee pool and start to count anew."""
    epoch = overlay.charter.epoch
    if context.height - epoch.first_height < overlay.parameters.epoch_blocks:
        return
    paid = [entry for entry in epoch.signers if overlay.evidence(AuthorityId(entry.authority)) is None]
    for account_id, amount in shares(overlay.fee_pool, paid) if paid else ():
        account = overlay.account(account_id)
        overlay.accounts[account_id] = account.with_balance(checked_add(account.balance, amount))
        overlay.fee_pool = checked_subtract(overlay.fee_pool, amount)
    overlay.with_charter(epoch=Epoch(context.height, ()))


def mark_time(overlay: Overlay, context: Context) -> None:
    """Note this height's ledger time if the last note is old enough; forget notes from before the evidence window."""
    marks = overlay.charter.marks.marks
    window_ms = overlay.parameters.evidence_ms
    if context.ledger_time_ms < marks[-1].at + max(1, window_ms // MARKS_IN_WINDOW):
        return
    kept = [*marks, Mark(context.height, context.ledger_time_ms)]
    # The newest of the marks that lie before the window stays: it tells which heights are older than the window.
    while len(kept) > 2 and kept[1].at < context.ledger_time_ms - window_ms:
        del kept[0]
    overlay.with_charter(marks=Marks(tuple(kept)))


def latest_time_of(overlay: Overlay, height: Height) -> LedgerTimeMs | None:
    """A ledger time at or above that of a height: the next mark's; ``None`` if no mark is that recent."""
    return next((mark.at for mark in overlay.charter.marks.marks if mark.height >= height), None)


def enter_version(overlay: Overlay, context: Context) -> None:
    """The voted version is the present one from its height on."""
    versions = overlay.charter.versions
    if versions.coming is not None and context.height >= versions.coming.height:
        overlay.with_charter(versions=Versions(versions.coming.version, None))
