"""A request's events as people and programs see them: one ``RunEvent`` for each that matters to whoever asked."""

from node.runtime.control import RunEvent
from node.runtime.ledger_views import account_text
from protocol.market.events import (
    AttemptFailed,
    AuctionClosed,
    JobAgreed,
    JobCancelled,
    JobDelivered,
    JobFailed,
    JobFinished,
    JobPrefilled,
    JobProgressed,
    JobText,
    QuoteRevealed,
    ReplicaAgreed,
    ReplicaFailed,
    ReplicaFinished,
    ReplicasCompared,
    ReplicaText,
)
from protocol.messages.market import FaultKind, FinishReason
from protocol.primitives.addresses import AddressKind, format_address
from protocol.primitives.codec import Message

_EXIT_CODES = {FaultKind.USER: 3, FaultKind.PROVIDER: 3, FaultKind.CAPACITY: 5, FaultKind.NETWORK: 5}

ENDS = (JobFinished, JobDelivered, JobFailed, JobCancelled)
"""After one of these nothing follows for its request."""


def shown(event: Message) -> tuple[RunEvent, ...]:
    """What the asker is told of one event; nothing for what is not for it."""
    match event:
        case JobProgressed():
            return (RunEvent("progress", {"state": event.state, "cause": event.cause}),)
        case JobAgreed():
            return (_agreed(event),)
        case JobPrefilled():
            return (RunEvent("input", {"input_units": event.input_units}),)
        case JobText():
            return (RunEvent("output", {"output_units": event.output_units}, event.payload),)
        case AttemptFailed():
            return (RunEvent("retry", _failing(event)),)
        case JobFinished():
            return (_finished(event),)
        case JobDelivered():
            return (_delivered(event),)
        case JobFailed():
            return (_failed(event),)
        case JobCancelled():
            return (RunEvent("cancelled", {"job": event.job.hex(), "reason": event.reason, "paid": event.paid}),)
        case QuoteRevealed() | AuctionClosed():
            return (_of_auction(event),)
        case ReplicaAgreed() | ReplicaFailed() | ReplicaFinished() | ReplicasCompared() | ReplicaText():
            return _of_replicas(event)
        case _:
            return ()


def _agreed(event: JobAgreed) -> RunEvent:
    return RunEvent(
        "agreed",
        {
            "job": event.job.hex(),
            "provider": account_text(event.provider),
            "price_ceiling": event.price_ceiling,
            "channel": event.channel.hex(),
        },
    )


def _failing(event: AttemptFailed | ReplicaFailed) -> dict[str, str | int | bool | None]:
    return {
        "provider": account_text(event.provider),
        "fault": FaultKind(event.fault).name.lower(),
        "reason": event.reason,
    }


def _finished(event: JobFinished) -> RunEvent:
    receipt = event.receipt
    return RunEvent(
        "finished",
        {
            "job": event.job.hex(),
            "provider": account_text(receipt.provider),
            "model": format_address(AddressKind.MODEL, receipt.model),
            "input_units": receipt.input_units,
            "output_units": event.output_units,
            "chunks": event.chunks,
            "finish": FinishReason(receipt.finish).name.lower(),
            "amount": receipt.amount,
            "paid": event.paid,
        },
    )


def _delivered(event: JobDelivered) -> RunEvent:
    """A job that has its result is finished for whoever asked for it; ``receipt`` says what is missing."""
    return RunEvent(
        "finished",
        {
            "job": event.job.hex(),
            "provider": account_text(event.provider),
            "model": format_address(AddressKind.MODEL, event.model),
            "input_units": event.input_units,
            "output_units": event.output_units,
            "chunks": event.chunks,
            "finish": FinishReason(event.finish).name.lower(),
            "amount": event.amount,
            "paid": event.paid,
            "receipt": "missing",
            "reason": event.reason,
        },
    )


def _failed(event: JobFailed) -> RunEvent:
    fault = FaultKind(event.fault)
    # Once something was agreed or delivered it is a failed job, whoever failed.
    delivered = event.output_units > 0 or event.paid > 0
    return RunEvent(
        "failed",
        {
            "job": event.job.hex(),
            "fault": fault.name.lower(),
            "reason": event.reason,
            "first_reason": event.first_reason,
            "paid": event.paid,
            "output_units": event.output_units,
            "code": f"{fault.name.lower()}_fault",
            "exit_code": 3 if delivered else _EXIT_CODES[fault],
        },
    )


def _of_auction(event: QuoteRevealed | AuctionClosed) -> RunEvent:
    match event:
        case QuoteRevealed():
            return RunEvent(
                "quote",
                {
                    "provider": account_text(event.provider),
                    "price": event.price_at_limits,
                    "slot_held": event.slot_held,
                    "first_output_ms": event.first_output_ms,
                    "output_unit_us": event.output_unit_us,
                },
            )
        case AuctionClosed():
            return RunEvent("auction", {"sealed": event.sealed, "revealed": event.revealed})


def _of_replicas(
    event: ReplicaAgreed | ReplicaFailed | ReplicaFinished | ReplicasCompared | ReplicaText,
) -> tuple[RunEvent, ...]:
    """People count replicas from 1."""
    match event:
        case ReplicaText():
            return (RunEvent("replica_output", {"attempt": event.attempt}, event.payload),)
        case ReplicaAgreed():
            facts: dict[str, str | int | bool | None] = {
                "replica": event.replica + 1,
                "job": event.job.hex(),
                "provider": account_text(event.provider),
                "price_ceiling": event.price_ceiling,
            }
            return (RunEvent("replica_agreed", facts),)
        case ReplicaFailed():
            return (RunEvent("replica_failed", {"replica": event.replica + 1, **_failing(event)}),)
        case ReplicaFinished():
            facts = {
                "replica": event.replica + 1,
                "job": event.job.hex(),
                "provider": account_text(event.provider),
                "amount": event.amount,
                "output_units": event.output_units,
            }
            return (RunEvent("replica_finished", facts),)
        case ReplicasCompared():
            return _compared(event)


def _compared(event: ReplicasCompared) -> tuple[RunEvent, ...]:
    each = (
        RunEvent(
            "replica_compared",
            {
                "replica": outcome.replica + 1,
                "job": outcome.job.hex(),
                "provider": account_text(outcome.provider),
                "output_commitment": outcome.output_commitment.hex(),
                "agrees": outcome.agrees,
                "differs_at": outcome.differs_at,
            },
        )
        for outcome in event.outcomes
    )
    return (*each, RunEvent("compared", {"agreeing": event.agreeing, "replicas": len(event.outcomes)}))
