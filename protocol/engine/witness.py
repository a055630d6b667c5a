"""Putting a provider's own word that it failed on the ledger, where others see it.

Law: only what the ledger takes for proof: agreement, acceptance, and a failure by the provider's own fault, each signed
by whom it binds; and only when the attempt was paid at least what the report costs. A report serves others: nobody pays
more for it than the failure has cost. A buyer's policy may forbid it altogether.
"""

from collections.abc import Sequence

from protocol.market.records import JobRecord, JobStatements
from protocol.market.requests import MarketEffect
from protocol.messages.effects import Put, Table
from protocol.messages.envelope import open_envelope
from protocol.messages.market import Failure, FaultKind
from protocol.messages.transactions import STATEMENT_BYTES_MAX, FailureReport
from protocol.primitives.codec import decode
from protocol.primitives.units import Amount


def reports(effects: Sequence[MarketEffect], cost: Amount) -> list[FailureReport]:
    """What a buyer's step gives reason to report, if a report costs ``cost`` base units."""
    kept = [effect for effect in effects if isinstance(effect, Put)]
    statements = [put for put in kept if put.table is Table.JOB_STATEMENT]
    if not statements:
        return []
    records = {put.key: put.value for put in kept if put.table is Table.JOB}
    return [
        report
        for put in statements
        if put.key in records and decode(records[put.key], JobRecord).paid >= cost
        for report in _proven(decode(put.value, JobStatements))
    ]


def _proven(said: JobStatements) -> list[FailureReport]:
    if not (said.agreement and said.acceptance and said.ending):
        return []
    _, ending = open_envelope(said.ending)
    if not isinstance(ending, Failure) or ending.fault is not FaultKind.PROVIDER:
        return []
    statements = (said.agreement, said.acceptance, said.ending)
    if max(map(len, statements)) > STATEMENT_BYTES_MAX:
        return []
    return [FailureReport(*statements)]
