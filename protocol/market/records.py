"""What the market keeps on disk.

Law: a row alone is enough to go on after a crash at any moment. Amounts in the rows of a lane are all counted since the
channel was opened: ``cumulative`` is what was promised, ``earned`` what was worked for, the difference is the
provider's debt.

Tables: ``BUYER_LANE`` and ``SELLER_LANE`` by ``lane_key``; ``JOB`` by job id (or by request id for a request that never
came to an agreement); ``RECEIPT`` and ``JOB_STATEMENT`` by job id; ``JOB_OF_REQUEST`` by ``attempt_key``; in
``STANDING`` the few rows that only a restart reads, by ``waiting_key`` and ``BACKOFF_KEY``.
"""

from enum import IntEnum
from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from protocol.messages.effects import Put, Table
from protocol.messages.market import Count, FaultKind, HistoryEntry, Text, Timeline
from protocol.primitives.codec import Message, encode
from protocol.primitives.limits import HISTORY_ENTRIES_MAX, LANES_PER_CHANNEL, TEXT_BYTES_MAX
from protocol.primitives.units import (
    AccountIdField,
    Amount,
    AmountField,
    ChannelId,
    ChannelIdField,
    Hash,
    HashField,
    Height,
    HeightField,
    LaneField,
    MessageId,
    MessageIdField,
    ModelIdField,
    NodeIdField,
    SaltField,
    SequenceField,
    TimestampField,
    TimestampMs,
    WorkUnits,
    WorkUnitsField,
)
from protocol.settlement.accumulator import Accumulator, MembershipProof
from protocol.settlement.vouchers import LanePosition

CHUNKS = "chunks"
"""State of a history entry that stands for chunks that came and were paid one after the other."""

LEFT_OUT = "left out"
"""State of the entry that stands for those which a full history had no room for; its ``chunks`` counts them."""

_HISTORY_HEAD = HISTORY_ENTRIES_MAX // 2
"""A full history keeps its beginning and its end."""


class BuyerLane(Message, frozen=True):
    """``Table.BUYER_LANE``: what this node promised on one lane of a channel to ``provider``."""

    channel: ChannelIdField
    lane: LaneField
    provider: AccountIdField
    node: NodeIdField
    """Where vouchers of this lane go."""
    position: LanePosition
    accumulator: Accumulator
    earned: AmountField
    """What the provider has earned on this lane; set when a job ends."""
    job: MessageIdField | None
    """The job that uses the lane now."""
    start: AmountField
    """``cumulative_start`` of that job, or of the last one."""
    ceiling: AmountField
    """Price ceiling of that job."""
    paid: AmountField
    """What that job's last voucher covers, by the job's prices."""
    last_receipt: MessageIdField | None
    """Job of the last receipt that a voucher of this lane committed to."""
    retired: bool
    """The provider holds vouchers of ours whose receipts we have lost: nothing new starts here."""
    input_units: WorkUnitsField = WorkUnits(0)
    output_units: WorkUnitsField = WorkUnits(0)
    """What ``paid`` is for: known after a restart too."""


class SellerLane(Message, frozen=True):
    """``Table.SELLER_LANE``: the best voucher that this node holds on one lane, and what it worked for."""

    channel: ChannelIdField
    lane: LaneField
    buyer: AccountIdField
    node: NodeIdField
    """The buyer's node at the lane's last job."""
    position: LanePosition
    accumulator: Accumulator
    voucher: bytes
    """Envelope of the best voucher; empty before the first."""
    earned: AmountField
    job: MessageIdField | None
    start: AmountField
    sequence_start: SequenceField
    ceiling: AmountField
    paid: AmountField
    pending: HashField | None
    """Leaf of the receipt that the next voucher should commit to."""
    pending_job: MessageIdField | None
    unredeemed_since: TimestampField
    """When the first voucher came that is not redeemed yet; 0 when there is none."""
    input_units: WorkUnitsField = WorkUnits(0)
    output_units: WorkUnitsField = WorkUnits(0)
    """What ``paid`` is for: known after a restart too."""
    written_off: AmountField = Amount(0)
    """What was released on this lane and not paid before the next job began, since the channel was opened."""


class Side(IntEnum):
    """Which side of a job this node is on."""

    BUYER = 1
    SELLER = 2


class JobRecord(Message, frozen=True):
    """``Table.JOB``: one attempt at a job as this node saw it."""

    job: MessageIdField
    request: HashField
    """The buyer's request; zeros on the seller's side."""
    side: Side
    buyer: AccountIdField
    provider: AccountIdField
    model: ModelIdField
    channel: ChannelIdField | None
    lane: LaneField
    price_ceiling: AmountField
    state: Text
    fault: FaultKind | None
    reason: Text
    paid: AmountField
    input_units: WorkUnitsField
    output_units: WorkUnitsField
    chunks: Count
    history: Annotated[tuple[HistoryEntry, ...], Meta(max_length=HISTORY_ENTRIES_MAX)]
    """Of the whole request, up to this attempt's end."""
    model_name: Text = ""
    """What the model was called when the job began; offers that told its name come and go."""
    node: NodeIdField | None = None
    """The other side's node."""
    attempt: Count = 0
    """Which agreement of its request this is, from 1; 0 before any, and on the seller's side."""
    created_at: TimestampField = TimestampMs(0)
    """When the buyer made the agreement, by the buyer's clock."""
    accepted_at: TimestampField = TimestampMs(0)
    """When the provider took the job, by the provider's clock; 0 if it never did."""


class JobStatements(Message, frozen=True):
    """``Table.JOB_STATEMENT``: what was signed of a job without a receipt, as envelopes; empty where there is none."""

    agreement: bytes
    acceptance: bytes
    chunk: bytes
    """The last chunk that was verified."""
    ending: bytes
    """The other side's refusal, failure or cancellation, or its chunk that breaks the agreement."""
    voucher: bytes = b""
    """The buyer's last voucher for it, on the buyer's side; the provider has it in its lane's row."""


class AwaitedReceipt(Message, frozen=True):
    """``Table.JOB_STATEMENT`` by ``awaited_key``: a job that was delivered whole, and what its receipt is judged by."""

    record: JobRecord
    bid: bytes
    agreement: bytes
    acceptance: bytes
    last_chunk: bytes
    """Envelopes."""
    salt: SaltField
    input: bytes
    output: bytes


class RedeemedLane(Message, frozen=True):
    """One voucher in a redemption."""

    lane: LaneField
    sequence: SequenceField
    cumulative: AmountField
    receipts_count: Count


class ChannelLine(Message, frozen=True):
    """``Table.CHANNEL_LOG``: one transaction on a channel; ``amount`` is what it put in, 0 for all but deposits."""

    height: HeightField
    at: TimestampField
    """The block's time."""
    transaction: MessageIdField
    sender: AccountIdField
    action: Text
    """``opened``, ``topped up``, ``redeemed``, ``closed`` or ``finalised``."""
    amount: AmountField
    lanes: Annotated[tuple[RedeemedLane, ...], Meta(max_length=LANES_PER_CHANNEL)]


class ReceiptRecord(Message, frozen=True):
    """``Table.RECEIPT``: all that a receipt file needs but the ledger's part.

    ``final_voucher`` is empty until it is held; ``proof`` shows the receipt under that voucher's receipts root. For a
    later voucher of the lane, collect ``leaf`` of the lane's records in the order of ``proof.index`` and use
    ``settlement.accumulator.prove``.
    """

    job: MessageIdField
    request: HashField
    side: Side
    channel: ChannelIdField
    lane: LaneField
    bid: bytes
    agreement: bytes
    acceptance: bytes
    receipt: bytes
    final_voucher: bytes
    """Envelopes, as received or signed."""
    leaf: HashField
    proof: MembershipProof
    salt: SaltField
    """Keep it to prove what went in and out; erase it and the commitments say nothing."""
    input: bytes
    output: bytes
    last_chunk: bytes = b""
    """Envelope of the last chunk, kept by the provider until the final voucher comes, should it have to go again."""


class ReceiptLeaf(Message, frozen=True):
    """``Table.RECEIPT_LANE``: one receipt of a lane, so that nobody has to read all receipts to find a lane's."""

    job: MessageIdField
    leaf: HashField


def receipt_rows(record: ReceiptRecord) -> tuple[Put, Put]:
    """Keep a new receipt, and where it stands in its lane."""
    key = receipt_lane_key(record.channel, record.lane, record.proof.index)
    return (
        Put(Table.RECEIPT, record.job, encode(record)),
        Put(Table.RECEIPT_LANE, key, encode(ReceiptLeaf(record.job, record.leaf))),
    )


def noted(history: list[HistoryEntry], entry: HistoryEntry) -> None:
    """Add a line. Chunks after chunks share one; a full history gives up the oldest line of its second half."""
    last = history[-1] if history else None
    if last is not None and last.state == entry.state == CHUNKS and last.attempt == entry.attempt:
        history[-1] = replace(entry, at=last.at, until=entry.at)
        return
    history.append(entry)
    if len(history) > HISTORY_ENTRIES_MAX:
        first, second = history.pop(_HISTORY_HEAD), history.pop(_HISTORY_HEAD)
        left_out = 1 + (first.chunks if first.state == LEFT_OUT else 1)
        history.insert(_HISTORY_HEAD, replace(second, state=LEFT_OUT, cause="", chunks=left_out))


def ended_by_restart(
    record: JobRecord, lane: BuyerLane | SellerLane, state: str, fault: FaultKind, reason: str, at: int
) -> JobRecord:
    """The row of a job that was under way when its node's process ended: what its lane knows to be paid, it had."""
    history = list(record.history)
    last = history[-1] if history else None
    chunks = max(record.chunks, last.chunks if last is not None else 0)
    noted(history, HistoryEntry(TimestampMs(at), state, reason, attempt=record.attempt, chunks=chunks, paid=lane.paid))
    return replace(
        record,
        state=state,
        fault=fault,
        reason=reason[:TEXT_BYTES_MAX],
        paid=lane.paid,
        input_units=lane.input_units,
        output_units=lane.output_units,
        chunks=chunks,
        history=tuple(history),
    )


def waiting_ended(record: JobRecord, at: int) -> JobRecord:
    """The row of a request that waited without an agreement when its node's process ended."""
    reason = f"this node restarted while the request was {record.state}"
    history = list(record.history)
    noted(history, HistoryEntry(TimestampMs(at), "failed", reason, attempt=record.attempt))
    return replace(record, state="failed", fault=FaultKind.NETWORK, reason=reason, history=tuple(history))


def timeline_of(record: JobRecord, request: MessageId, told_at: TimestampMs) -> Timeline:
    """What one side says of its job when it is asked."""
    return Timeline(
        request=request,
        job=record.job,
        told_at=told_at,
        known=True,
        state=record.state,
        fault=record.fault,
        reason=record.reason,
        paid=record.paid,
        input_units=record.input_units,
        output_units=record.output_units,
        chunks=record.chunks,
        history=record.history,
    )


def attempt_key(request: Hash, attempt: int) -> bytes:
    """Sorts by request, then by the attempt's number."""
    return request + attempt.to_bytes(4, "big")


WAITING_PREFIX = b"request/"

BACKOFF_KEY = b"backoff"
"""Row of ``Table.STANDING``: which providers failed of late, and whose claims were dropped."""


def waiting_key(request: Hash) -> bytes:
    """Row of ``Table.STANDING``: a request that waits without an agreement, as its ``JobRecord``."""
    return WAITING_PREFIX + request


def awaited_key(job: MessageId) -> bytes:
    """Beside the statements of the same job."""
    return job + b"receipt"


def channel_log_key(channel: ChannelId, height: Height, place: int) -> bytes:
    """Sorts by channel, then by time."""
    return channel + height.to_bytes(8, "big") + place.to_bytes(4, "big")


def receipt_lane_key(channel: ChannelId, lane: int, index: int) -> bytes:
    """Sorts by lane, then by the receipt's place in its accumulator."""
    return lane_key(channel, lane) + index.to_bytes(8, "big")


def lane_key(channel: ChannelId, lane: int) -> bytes:
    """Key of a lane's row."""
    return channel + lane.to_bytes(1, "big")


def buyer_debt(lane: BuyerLane) -> Amount:
    """What the provider owes on this lane, by the buyer's books."""
    return Amount(max(0, lane.position.cumulative - lane.earned))


def seller_debt(lane: SellerLane) -> Amount:
    """What this provider owes on the lane, by its own books."""
    return Amount(max(0, lane.position.cumulative - lane.earned))


NO_REQUEST = Hash(bytes(32))
"""``JobRecord.request`` on the seller's side."""
