"""What a transaction does to track records.

Law: a record changes by what both parties have signed and a block has taken in: a payee's redeem of its payer's
vouchers, and a report that carries agreement, acceptance and the provider's own word that it failed. What one side
alone claims changes nothing. So a provider that falls silent leaves no proof, and nothing can be proven against a
buyer: an agreement with its acceptance says that work was to be done, not that it was delivered, and who did not sign a
voucher may not have received the chunk. Both bound their loss by the chunk instead.

A report is filed by the job's buyer, once: it remembers its latest ones, and below the oldest of them nothing is
reported any more. It costs several least fees, because it carries four signatures.
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
from protocol.settlement.fading import faded
from protocol.settlement.pricing import amount_due

REPORT_FEES = 4
"""Least fees that a report costs: four signatures to check and some two kilobytes in a block."""
REPORT_WINDOW_MS = 7 * 24 * 3_600_000
"""How long after the agreement a failure can be reported, by the clocks in agreement and header: nobody hoards them."""
FAILED_VOLUME_MIN = Amount(1_000)
"""What a failed job weighs at least, so that failures of free work are seen."""


def report_fee(parameters: Parameters) -> Amount:
    """The least fee of reporting a failure, in base units."""
    return Amount(min(parameters.fee_min * REPORT_FEES, AMOUNT_MAX))


def settle(overlay: Overlay, context: Context, payer: AccountId, payee: AccountId, paid: Amount, receipts: int) -> None:
    """Note on both sides that ``paid`` base units changed hands for so many more receipts."""
    now = context.ledger_time_ms
    for role, account, counterparty in ((Role.BUYER, payer, payee), (Role.PROVIDER, payee, payer)):
        identity = track_id(role, account)
        overlay.tracks[identity] = settled(overlay.track(identity), counterparty, paid, receipts, now)


def settled(track: Track, counterparty: AccountId, paid: Amount, receipts: int, now: LedgerTimeMs) -> Track:
    """The record after a settlement."""
    recent = faded(track.recent_volume, now - track.last_at) + paid
    return replace(
        track,
        jobs=min(track.jobs + receipts, AMOUNT_MAX),
        volume=min(track.volume + paid, AMOUNT_MAX),
        recent_volume=Amount(min(recent, AMOUNT_MAX)),
        first_at=track.first_at if _says_something(track) else now,
        last_at=now,
        dealings=_dealings(track.dealings, counterparty, paid, now) if paid else track.dealings,
    )


def _says_something(track: Track) -> bool:
    return track.jobs + track.volume + track.failures > 0


def _dealings(
    dealings: tuple[Dealing, ...], counterparty: AccountId, paid: Amount, now: LedgerTimeMs
) -> tuple[Dealing, ...]:
    """With ``paid`` more for one counterparty; of too many the one of least volume by now goes, a new one never."""
    place = bisect_left(dealings, counterparty, key=_counterparty)
    if place < len(dealings) and dealings[place].counterparty == counterparty:
        before = dealings[place]
        volume = faded(before.volume, now - before.settled_at) + paid
        changed = Dealing(counterparty, Amount(min(volume, AMOUNT_MAX)), now)
        return (*dealings[:place], changed, *dealings[place + 1 :])
    grown = (*dealings[:place], Dealing(counterparty, paid, now), *dealings[place:])
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
    track = _with_report(overlay.track(buyer), reported)
    lost, now = failed_volume(agreement), context.ledger_time_ms
    overlay.tracks[buyer] = _failed(track, lost, now)
    overlay.tracks[provider] = _failed(overlay.track(provider), lost, now)


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


def _failed(track: Track, lost: Amount, now: LedgerTimeMs) -> Track:
    failed = faded(track.failed_volume, now - track.failed_at) + lost
    return replace(
        track,
        recent_volume=faded(track.recent_volume, now - track.last_at),
        first_at=track.first_at if _says_something(track) else now,
        last_at=now,
        failures=min(track.failures + 1, AMOUNT_MAX),
        failed_volume=Amount(min(failed, AMOUNT_MAX)),
        failed_at=now,
    )
