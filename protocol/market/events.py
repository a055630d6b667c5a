"""What people and programs of this node are told about jobs.

Law: events are hints for whoever watches; nothing depends on one being seen. Those of the buyer's side carry the
``request`` that the buyer's program chose; ``job`` is the agreement's id, zeros while there is none.
"""

from protocol.messages.market import Count, FaultKind, FinishReason, Receipt, Text
from protocol.primitives.codec import Message
from protocol.primitives.units import (
    AccountIdField,
    AmountField,
    ChannelIdField,
    HashField,
    LaneField,
    MessageId,
    MessageIdField,
    ModelIdField,
    WorkUnitsField,
)

NO_JOB = MessageId(bytes(32))
"""Stands for the job where there is none yet."""


class JobProgressed(Message, frozen=True):
    """A request entered a state; ``cause`` says why."""

    request: HashField
    job: MessageIdField
    state: Text
    cause: Text


class JobAgreed(Message, frozen=True):
    """A provider took the job on these terms."""

    request: HashField
    job: MessageIdField
    provider: AccountIdField
    model: ModelIdField
    price_ceiling: AmountField
    channel: ChannelIdField
    lane: LaneField
    attempt: Count


class JobPrefilled(Message, frozen=True):
    """The input was processed and metered."""

    request: HashField
    job: MessageIdField
    input_units: WorkUnitsField


class JobText(Message, frozen=True):
    """One verified chunk of output; ``output_units`` counts all so far."""

    request: HashField
    job: MessageIdField
    index: Count
    payload: bytes
    output_units: WorkUnitsField
    finish: FinishReason


class QuoteSealed(Message, frozen=True):
    """A provider has sealed a quote for the request's auction."""

    request: HashField
    provider: AccountIdField


class QuoteRevealed(Message, frozen=True):
    """A provider has revealed what it asks, at the request's limits, and what it expects of itself."""

    request: HashField
    provider: AccountIdField
    price_at_limits: AmountField
    slot_held: bool
    first_output_ms: Count
    output_unit_us: Count


class AuctionClosed(Message, frozen=True):
    """The auction is over: so many providers sealed a quote, so many revealed one that counts."""

    request: HashField
    sealed: Count
    revealed: Count


class ReplicaAgreed(Message, frozen=True):
    """A provider took one of the replicas. ``request`` is the group's here and in the events below."""

    request: HashField
    replica: Count
    job: MessageIdField
    provider: AccountIdField
    price_ceiling: AmountField


class ReplicaText(Message, frozen=True):
    """Output of the first replica, before it is compared; ``attempt`` tells a second provider's from a first one's."""

    request: HashField
    attempt: Count
    payload: bytes
    output_units: WorkUnitsField


class ReplicaFailed(Message, frozen=True):
    """A provider failed at a replica; another one gets it if there is one."""

    request: HashField
    replica: Count
    provider: AccountIdField
    fault: FaultKind
    reason: Text


class ReplicaFinished(Message, frozen=True):
    """A replica is delivered, paid and receipted."""

    request: HashField
    replica: Count
    job: MessageIdField
    provider: AccountIdField
    amount: AmountField
    output_units: WorkUnitsField
    output_commitment: HashField


class ReplicaOutcome(Message, frozen=True):
    """One replica's output beside that of the majority, or beside the first one's where there is no majority."""

    replica: Count
    job: MessageIdField
    provider: AccountIdField
    output_commitment: HashField
    agrees: bool
    differs_at: Count | None
    """Place of the first byte that differs; ``None`` where none does."""


class ReplicasCompared(Message, frozen=True):
    """What the comparison says: ``agreeing`` replicas have the majority's output, 0 without a majority."""

    request: HashField
    agreeing: Count
    outcomes: tuple[ReplicaOutcome, ...]


class AttemptFailed(Message, frozen=True):
    """One provider refused or failed; another one is tried."""

    request: HashField
    job: MessageIdField
    provider: AccountIdField
    fault: FaultKind
    reason: Text


class JobFinished(Message, frozen=True):
    """Delivered, paid and receipted. What follows the receipt counts all attempts of the request together."""

    request: HashField
    job: MessageIdField
    receipt: Receipt
    paid: AmountField
    output_units: WorkUnitsField
    chunks: Count
    """The receipt's chunks, and the output of earlier attempts."""


class JobDelivered(Message, frozen=True):
    """The whole output is here and paid, but no receipt. It is waited for, if it can still come, and told of then."""

    request: HashField
    job: MessageIdField
    provider: AccountIdField
    model: ModelIdField
    input_units: WorkUnitsField
    output_units: WorkUnitsField
    """Over all attempts, as in ``JobFinished``."""
    chunks: Count
    finish: FinishReason
    amount: AmountField
    """What the last attempt cost."""
    paid: AmountField
    fault: FaultKind
    reason: Text
    """Why the receipt is missing, and whose fault that is."""


class JobReceipted(Message, frozen=True):
    """The receipt of a job that was delivered without one has come."""

    request: HashField
    job: MessageIdField


class JobFailed(Message, frozen=True):
    """The request ends without a receipt. What was delivered stays delivered, and paid for."""

    request: HashField
    job: MessageIdField
    fault: FaultKind
    reason: Text
    paid: AmountField
    output_units: WorkUnitsField
    first_fault: FaultKind
    first_reason: Text
    """The first error of the request: later ones are often its consequences."""


class JobCancelled(Message, frozen=True):
    """The buyer's own people wanted no more."""

    request: HashField
    job: MessageIdField
    reason: Text
    paid: AmountField
    output_units: WorkUnitsField


class SaleAccepted(Message, frozen=True):
    """This node took a job."""

    job: MessageIdField
    buyer: AccountIdField
    model: ModelIdField
    price_ceiling: AmountField


class SaleRefused(Message, frozen=True):
    """This node did not take a job."""

    job: MessageIdField
    buyer: AccountIdField
    fault: FaultKind
    reason: Text


class SaleEnded(Message, frozen=True):
    """A job of this node ended; ``earned`` is what was paid for it."""

    job: MessageIdField
    buyer: AccountIdField
    state: Text
    reason: Text
    earned: AmountField
    output_units: WorkUnitsField


class SlotsChanged(Message, frozen=True):
    """The number of jobs that this node can take has changed: the offer should follow."""

    slots_free: Count
    slots_total: Count
