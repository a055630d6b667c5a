"""What a transaction does to track records.

Law: a record changes by what both parties have signed and a block has taken in: a payee's redeem of its payer's
vouchers, and a report that carries agreement, acceptance and the provider's own word that it failed. What one side
alone claims changes nothing. So a provider that falls silent leaves no proof, and nothing can be proven against a
buyer: an agreement with its acceptance says that work was to be done, not that it was delivered, and who did not sign a
voucher may not have received the chunk. Both bound their loss by the chunk instead.

A report is filed by the job's buyer, once: it remembers its latest ones, and below the oldest of them nothing is
reported any more. It costs several least fees, because it carries four signatures. What it counts is bounded by what
the buyer has paid this provider (``settlement.blame``): deadlines that nobody keeps are no cheap way to mark one down.
"""

from bisect import bisect_left
from typing import NamedTuple

from msgspec.structs import replace

from protocol.ledger.errors import (
    FailureNotProviders,
    FailureReported,
    NotAParty,
    NotATransaction,
    ReportExpired,
    ReportMismatch,
)
from protocol.ledger.track_rows import (
    DEALINGS_MAX,
    REPORTED_MAX,
    Dealing,
    ReportedJob,
    Role,
    Track,
    track_id,
)
from protocol.ledger.view import Context, Overlay
from protocol.messages.envelope import Envelope, envelope_id, open_as
from protocol.messages.genesis import Parameters
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Acceptance, Agreement, Failure, FaultKind
from protocol.messages.transactions import FailureReport
from protocol.primitives.errors import AmountOutOfRange, MalformedMessage
from protocol.primitives.units import AMOUNT_MAX, AccountId, Amount, LedgerTimeMs
from protocol.settlement.blame import FAILED_VOLUME_MIN, backed, blamed, faded_backing
from protocol.settlement.fading import faded
from protocol.settlement.pricing import amount_due

REPORT_FEES = 4
"""Least fees that a report costs: four signatures to check and some two kilobytes in a block."""
REPORT_WINDOW_MS = 7 * 24 * 3_600_000
"""How long after the agreement a failure can be reported, by the clocks in agreement and header: nobody hoards them."""


def report_fee(parameters: Parameters) -> Amount:
    """The least fee of reporting a failure, in base units."""
    return Amount(min(parameters.fee_min * REPORT_FEES, AMOUNT_MAX))


def settle(overlay: Overlay, context: Context, payer: AccountId, payee: AccountId, paid: Amount, receipts: int) -> None:
    """Note on both sides that ``paid`` base units changed hands for so many more receipts."""
    now = context.ledger_time_ms
    buyer, provider = track_id(Role.BUYER, payer), track_id(Role.PROVIDER, payee)
    bought, sold = overlay.track(buyer), overlay.track(provider)
    late, backing = backed(paid, dealing_with(bought, payee, now).backing)
    bought = settled(bought, payee, paid, receipts, now, backing)
    sold = settled(sold, payer, paid, receipts, now)
    overlay.tracks[buyer] = _failed(bought, late, now) if late else bought
    overlay.tracks[provider] = _failed(sold, late, now) if late else sold


def settled(
    track: Track, counterparty: AccountId, paid: Amount, receipts: int, now: LedgerTimeMs, backing: int = 0
) -> Track:
    """The record after a settlement; ``backing``: what a buyer's reports of the counterparty may count from now on."""
    recent = faded(track.recent_volume, now - track.last_at) + paid
    before = dealing_with(track, counterparty, now)
    dealing = replace(before, volume=Amount(min(before.volume + paid, AMOUNT_MAX)), backing=backing)
    return replace(
        track,
        jobs=min(track.jobs + receipts, AMOUNT_MAX),
        volume=min(track.volume + paid, AMOUNT_MAX),
        recent_volume=Amount(min(recent, AMOUNT_MAX)),
        first_at=track.first_at if _says_something(track) else now,
        last_at=now,
        dealings=_with_dealing(track.dealings, dealing) if paid else track.dealings,
    )


def _says_something(track: Track) -> bool:
    return track.jobs + track.volume + track.failures > 0


def dealing_with(track: Track, counterparty: AccountId, now: LedgerTimeMs) -> Dealing:
    """What was settled with one counterparty, faded by now; all zeros where the row knows nothing of it."""
    place = bisect_left(track.dealings, counterparty, key=_counterparty)
    if place == len(track.dealings) or track.dealings[place].counterparty != counterparty:
        return Dealing(counterparty, Amount(0), now)
    known = track.dealings[place]
    elapsed_ms = now - known.settled_at
    return Dealing(counterparty, faded(known.volume, elapsed_ms), now, faded_backing(known.backing, elapsed_ms))


def _with_dealing(dealings: tuple[Dealing, ...], changed: Dealing) -> tuple[Dealing, ...]:
    """With one more, or changed; of too many the one of least volume by now goes, a new one never."""
    now = changed.settled_at
    place = bisect_left(dealings, changed.counterparty, key=_counterparty)
    if place < len(dealings) and dealings[place].counterparty == changed.counterparty:
        return (*dealings[:place], changed, *dealings[place + 1 :])
    grown = (*dealings[:place], changed, *dealings[place:])
    if len(grown) <= DEALINGS_MAX:
        return grown
    least = min(dealings, key=lambda one: (faded(one.volume, now - one.settled_at), one.counterparty))
    return tuple(one for one in grown if one is not least)


def _counterparty(dealing: Dealing) -> AccountId:
    return dealing.counterparty


class Statements(NamedTuple):
    """What a report carries, each with its envelope."""

    agreed: Envelope
    agreement: Agreement
    accepted: Envelope
    acceptance: Acceptance
    failed: Envelope
    failure: Failure


def open_report(action: FailureReport) -> Statements:
    """The statements in a report; ``NotATransaction`` on anything else. Checks no signature."""
    try:
        agreed, agreement = open_as(action.agreement, MessageKind.AGREEMENT)
        accepted, acceptance = open_as(action.acceptance, MessageKind.ACCEPTANCE)
        failed, failure = open_as(action.failure, MessageKind.FAILURE)
    except MalformedMessage as error:
        raise NotATransaction(reason=str(error)) from None
    assert isinstance(agreement, Agreement)
    assert isinstance(acceptance, Acceptance)
    assert isinstance(failure, Failure)
    return Statements(agreed, agreement, accepted, acceptance, failed, failure)


def _judged(context: Context, sender: AccountId, action: FailureReport) -> tuple[Agreement, ReportedJob]:
    """The job that a report is about. Raises ``TransactionInvalid``."""
    agreed, agreement, accepted, acceptance, failed, failure = open_report(action)
    job = envelope_id(agreed)
    # [report] the buyer's own job: it has signed the agreement and signs the report
    if sender != agreement.buyer or AccountId(agreed.sender) != agreement.buyer:
        raise NotAParty(action="failure report", sender=sender.hex())
    # [report] accepted and given up by the provider that the agreement names
    for name, envelope, about in (("acceptance", accepted, acceptance.job), ("failure", failed, failure.job)):
        if AccountId(envelope.sender) != agreement.provider:
            raise ReportMismatch(reason=f"the {name} was signed by another key than the agreement's provider")
        if about != job:
            raise ReportMismatch(reason=f"the {name} is about another job")
    # [report] by the provider's own fault, in its own words
    if failure.fault is not FaultKind.PROVIDER:
        raise FailureNotProviders(fault=failure.fault.name)
    # [report] in time
    if context.timestamp_ms - agreement.created_at > REPORT_WINDOW_MS:
        raise ReportExpired(created_at=agreement.created_at, timestamp_ms=context.timestamp_ms)
    return agreement, ReportedJob(agreement.created_at, job)


def report(overlay: Overlay, context: Context, sender: AccountId, action: FailureReport) -> None:
    """Note a failure on both sides. Raises ``TransactionInvalid``."""
    agreement, reported = _judged(context, sender, action)
    buyer, provider = track_id(Role.BUYER, agreement.buyer), track_id(Role.PROVIDER, agreement.provider)
    # [report] once for each job
    bought, sold, now = _with_report(overlay.track(buyer), reported), overlay.track(provider), context.ledger_time_ms
    dealing = dealing_with(bought, agreement.provider, now)
    recent, failed = faded(sold.recent_volume, now - sold.last_at), faded(sold.failed_volume, now - sold.failed_at)
    counted, backing = blamed(failed_volume(agreement), dealing.backing, recent, failed)
    bought = replace(bought, dealings=_with_dealing(bought.dealings, replace(dealing, backing=backing)))
    overlay.tracks[buyer] = _failed(_reported(bought, now), counted, now)
    overlay.tracks[provider] = _failed(_reported(sold, now), counted, now)


def _with_report(track: Track, reported: ReportedJob) -> Track:
    if reported in track.reported or reported.created_at <= track.reported_before:
        raise FailureReported(job=reported.job.hex())
    kept = sorted([*track.reported, reported], key=lambda one: (one.created_at, one.job))
    before = track.reported_before
    while len(kept) > REPORTED_MAX:
        before = kept.pop(0).created_at
    return replace(track, reported=tuple(one for one in kept if one.created_at > before), reported_before=before)


def failed_volume(agreement: Agreement) -> Amount:
    """What a job weighs when it fails: the most that it could have cost, in base units."""
    try:
        most = amount_due(agreement.prices, agreement.input_units_max, agreement.output_units_max)
    except AmountOutOfRange:
        most = agreement.price_ceiling
    return max(min(most, agreement.price_ceiling), FAILED_VOLUME_MIN)


def _reported(track: Track, now: LedgerTimeMs) -> Track:
    """One more failure, whatever it weighs."""
    first_at = track.first_at if _says_something(track) else now
    return replace(track, first_at=first_at, failures=min(track.failures + 1, AMOUNT_MAX))


def _failed(track: Track, counted: Amount, now: LedgerTimeMs) -> Track:
    """Failures weigh so much more."""
    failed = faded(track.failed_volume, now - track.failed_at) + counted
    return replace(
        track,
        recent_volume=faded(track.recent_volume, now - track.last_at),
        last_at=now,
        failed_volume=Amount(min(failed, AMOUNT_MAX)),
        failed_at=now,
    )
