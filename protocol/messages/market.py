"""What buyers and providers sign: offers, bids, agreements, chunks, vouchers, receipts.

Law: everything that could later be disputed is inside a signed struct, all timeouts included. The prompt itself is in
none of them: only a salted commitment to it.
"""

from enum import IntEnum
from typing import Annotated

from msgspec import Meta

from protocol.messages.peers import Addresses
from protocol.primitives.codec import Message
from protocol.primitives.limits import (
    AUCTION_WINDOW_MS_MAX,
    CHUNK_PAYLOAD_BYTES_MAX,
    CHUNK_UNITS_MAX,
    GRAMMAR_BYTES_MAX,
    HISTORY_ENTRIES_MAX,
    JOB_INPUT_BYTES_MAX,
    LOGPROBS_MAX,
    MODELS_PER_OFFER_MAX,
    REPLICAS_MAX,
    SCHEMA_BYTES_MAX,
    SETTINGS_BYTES_MAX,
    TEXT_BYTES_MAX,
)
from protocol.primitives.units import (
    AccountIdField,
    Amount,
    AmountField,
    ChannelIdField,
    DurationField,
    HashField,
    LaneField,
    MessageIdField,
    ModelIdField,
    NodeIdField,
    SequenceField,
    TimestampField,
    TimestampMs,
    WorkUnits,
    WorkUnitsField,
)

Text = Annotated[str, Meta(max_length=TEXT_BYTES_MAX)]
Settings = Annotated[str, Meta(max_length=SETTINGS_BYTES_MAX)]
"""What output bits depend on beside the model: the runtime's settings and the processor's features."""
ChunkUnits = Annotated[int, Meta(ge=1, le=CHUNK_UNITS_MAX)]
WindowMs = Annotated[int, Meta(ge=1, le=AUCTION_WINDOW_MS_MAX)]
Count = Annotated[int, Meta(ge=0, le=2**32)]


class Prices(Message, frozen=True):
    """Base units: for the request itself, and for 1,000 work units of input and of output."""

    request: AmountField
    input_per_thousand: AmountField
    output_per_thousand: AmountField


class ModelOffer(Message, frozen=True):
    """One model that a provider serves. ``settings`` name what output bits depend on."""

    model: ModelIdField
    name: Text
    runtime: Text
    runtime_build: Text
    settings: Settings
    prices: Prices
    input_units_max: WorkUnitsField
    output_units_max: WorkUnitsField
    isolation: Text = ""
    """What holds this model, where that is not the node's sandbox: ``declared`` for a server that the operator runs
    beside the node, which nobody has proved anything about. Empty: the offer's ``isolation``."""


class Offer(Message, frozen=True):
    """A provider's standing ask. Of two offers of one account the higher ``sequence`` holds."""

    node: NodeIdField
    sequence: SequenceField
    expires_at: TimestampField
    addresses: Addresses
    region: Text
    isolation: Text
    """The sandbox level that this node's start-up attacks proved."""
    slots_total: Count
    slots_free: Count
    models: Annotated[tuple[ModelOffer, ...], Meta(max_length=MODELS_PER_OFFER_MAX)]

    def isolation_of(self, served: ModelOffer) -> str:
        """The isolation of one of the models."""
        return served.isolation or self.isolation


class AuctionTerms(Message, frozen=True):
    """What makes a gossiped bid an auction: where sealed quotes go, and for how long they are taken.

    ``seal_ms`` counts for the buyer from when it sends the bid out, for a provider from when it hears of it: a quote is
    revealed that long after the bid came, so never while others may still seal theirs. ``reveal_ms`` is no shorter, so
    that whoever heard of the bid early enough to seal in time reveals in time.
    """

    node: NodeIdField
    addresses: Addresses
    seal_ms: WindowMs
    reveal_ms: WindowMs


class Bid(Message, frozen=True):
    """A buyer's request with a ceiling on all that it may cost, failed attempts included."""

    model: ModelIdField
    input_units_max: WorkUnitsField
    output_units_max: WorkUnitsField
    price_ceiling: AmountField
    expires_at: TimestampField
    verification: Text
    replication: Annotated[int, Meta(ge=1, le=REPLICAS_MAX)]
    """Of so many equal jobs at different providers this is one."""
    unique: HashField
    """Random bytes: two equal bids are still two bids."""
    auction: AuctionTerms | None = None
    """Sealed quotes are asked for; ``None``: the posted prices will do."""


class QuoteSeal(Message, frozen=True):
    """A provider has made up its mind about a bid and shows that it can't change it.

    ``commitment`` is over the provider's account and the ``Quote`` that follows, its random nonce included: nobody else
    can reveal anything for it, and nothing is learned from it.
    """

    bid: MessageIdField
    commitment: HashField


class Quote(Message, frozen=True):
    """What a provider asks for one bid: no more than its standing offer. It binds the provider for ``valid_ms``.

    An agreement that names a quote's id as its ``offer`` is taken at the quote's prices.
    """

    bid: MessageIdField
    prices: Prices
    valid_ms: DurationField
    """From when it is revealed."""
    slot_held: bool
    """A slot waits for the buyer so long."""
    first_output_ms: Count
    output_unit_us: Count
    """What the provider expects of itself: ms to the first output, µs for each unit; 0 for what it has not measured."""
    nonce: HashField


class Continuation(Message, frozen=True):
    """What a job goes on from: the verified work of earlier providers of the same bid, the last of them named.

    The new provider's input holds that output as its prefix, its chunk 0 bills prompt and prefix together.
    """

    job: MessageIdField
    """The agreement under which the last of that work was delivered."""
    chunks: Annotated[int, Meta(ge=2, le=2**32)]
    """That agreement's verified chunks, chunk 0 included."""
    last_chunk: HashField
    """Chunk hash of the last of them: with the chain it fixes every chunk."""
    output_units: WorkUnitsField
    """Output units of all earlier attempts together."""
    output_bytes: Count
    output_commitment: HashField
    """Salted commitment to the output of all earlier attempts together, which ends the input's prefix."""


class Agreement(Message, frozen=True):
    """All terms of one job, signed by the buyer; ``Acceptance`` is the provider's signature under the same bytes.

    The job's id is the id of this statement.
    """

    bid: MessageIdField
    offer: MessageIdField
    buyer: AccountIdField
    provider: AccountIdField
    buyer_node: NodeIdField
    provider_node: NodeIdField
    model: ModelIdField
    runtime_build: Text
    settings: Settings
    prices: Prices
    chunk_units: ChunkUnits
    input_units_max: WorkUnitsField
    output_units_max: WorkUnitsField
    price_ceiling: AmountField
    input_commitment: HashField
    input_bytes: Count
    channel: ChannelIdField
    lane: LaneField
    cumulative_start: AmountField
    """What the lane had been paid when this job starts to count, a provider's debt already taken off."""
    sequence_start: SequenceField
    """The lane's last voucher; the job's first voucher is above it."""
    created_at: TimestampField
    accept_ms: DurationField
    first_output_ms: DurationField
    stall_ms: DurationField
    total_ms: DurationField
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    temperature_milli: Annotated[int, Meta(ge=0, le=10_000)]
    verification: Text
    continues: Continuation | None = None
    """The work of earlier providers behind which this job goes on; ``None`` from the beginning."""


class Acceptance(Message, frozen=True):
    """The provider takes the job on exactly these terms."""

    job: MessageIdField
    accepted_at: TimestampField


class OutputForm(IntEnum):
    """What a text model's pieces hold."""

    TEXT = 1
    TOKENS = 2
    """JSON lines, one for each token: its id, the text it adds, its logarithmic probability, and the likeliest ones."""


class JobPayload(Message, frozen=True):
    """What ``JobInput.payload`` decodes to: the input in the runtime's own format, such as ``chat`` or ``bytes``.

    A runtime that has no use for what a buyer asks for refuses the job as the buyer's fault; it never ignores it.
    """

    format: Text
    body: Annotated[bytes, Meta(max_length=JOB_INPUT_BYTES_MAX)]
    stop: Annotated[tuple[Text, ...], Meta(max_length=8)]
    prefix: Annotated[bytes, Meta(max_length=JOB_INPUT_BYTES_MAX)] = b""
    """Output that is there already, of an earlier provider: the new output goes on behind it and doesn't repeat it."""
    output: OutputForm = OutputForm.TEXT
    schema: Annotated[str, Meta(max_length=SCHEMA_BYTES_MAX)] = ""
    """A JSON schema that a complete answer must satisfy; empty: any text."""
    logprobs: Annotated[int, Meta(ge=0, le=LOGPROBS_MAX)] = 0
    """How many of the likeliest tokens are named beside each chosen one; for ``TOKENS`` alone."""
    grammar: Annotated[str, Meta(max_length=GRAMMAR_BYTES_MAX)] = ""
    """A grammar in GBNF whose ``root`` a complete answer must be; empty: any text. Not beside a schema."""


class FaultKind(IntEnum):
    """Whose fault it was that a job was refused or failed. A user's error is never retried elsewhere."""

    USER = 1
    PROVIDER = 2
    CAPACITY = 3
    NETWORK = 4


class Refusal(Message, frozen=True):
    """The provider does not take the job.

    ``last_voucher`` and ``debt`` are what its books hold for the lane, so that a buyer who lost its own can go on.
    """

    job: MessageIdField
    fault: FaultKind
    reason: Text
    last_voucher: Annotated[bytes, Meta(max_length=512)] | None
    debt: AmountField


class FinishReason(IntEnum):
    """Why output ended; ``NONE`` while it goes on."""

    NONE = 0
    STOP = 1
    LENGTH = 2
    DONE = 3
    FAILED = 4
    """The buyer's own program ended with an error; the steps that it took are paid like any others."""


class Chunk(Message, frozen=True):
    """One piece of delivered work. Chunk 0 is the processing of the input; it has no payload, or all of the output and
    is the last.

    ``previous`` is the chunk hash of the one before (the job id for chunk 0): chunks form a chain.
    """

    job: MessageIdField
    index: Count
    previous: HashField
    input_units: WorkUnitsField
    output_units: WorkUnitsField
    """Output units of all chunks so far."""
    due: AmountField
    """What the job has cost up to and with this chunk, by the agreement's prices."""
    finish: FinishReason
    payload: Annotated[bytes, Meta(max_length=CHUNK_PAYLOAD_BYTES_MAX)]


class Voucher(Message, frozen=True):
    """The buyer owes the payee ``cumulative`` on this lane, all earlier vouchers of the lane included."""

    channel: ChannelIdField
    payee: AccountIdField
    lane: LaneField
    sequence: SequenceField
    cumulative: AmountField
    receipts_root: HashField
    """Root of the Merkle mountain range over the lane's receipts; zeros while there is none."""
    receipts_count: Count


class Receipt(Message, frozen=True):
    """What was delivered, signed by the provider; the buyer's voucher commits to it through its receipts root."""

    job: MessageIdField
    bid: MessageIdField
    buyer: AccountIdField
    provider: AccountIdField
    model: ModelIdField
    runtime_build: Text
    settings: Settings
    input_commitment: HashField
    output_commitment: HashField
    input_units: WorkUnitsField
    output_units: WorkUnitsField
    chunks: Count
    last_chunk: HashField
    """Chunk hash of the last chunk: with the chain it fixes every chunk."""
    amount: AmountField
    finish: FinishReason
    channel: ChannelIdField
    lane: LaneField
    accepted_at: TimestampField
    finished_at: TimestampField


class Cancellation(Message, frozen=True):
    """The buyer wants no more; it owes what was delivered, ``chunks`` of them being paid."""

    job: MessageIdField
    chunks: Count
    reason: Text


class Failure(Message, frozen=True):
    """The provider can't go on after ``chunks`` chunks."""

    job: MessageIdField
    fault: FaultKind
    chunks: Count
    reason: Text


class HistoryEntry(Message, frozen=True):
    """When a job entered a state, and why.

    ``chunks`` and ``paid`` are what had been delivered, and paid by this side's books, by then; ``until`` is 0 but for
    an entry that stands for many chunks, whose last one came then. ``attempt`` counts a request's agreements from 1.
    """

    at: TimestampField
    state: Text
    cause: Text
    until: TimestampField = TimestampMs(0)
    attempt: Count = 0
    chunks: Count = 0
    paid: AmountField = Amount(0)


class TimelineRequest(Message, frozen=True):
    """A party to a job asks the other one what it knows of it; answered at most so often by a ``Timeline``."""

    job: MessageIdField
    unique: HashField
    """Random bytes: an answer names this very question."""


class Timeline(Message, frozen=True):
    """What one party to a job has recorded of it. Prompts and outputs are no part of it."""

    request: MessageIdField
    """The ``TimelineRequest`` that this answers; zeros in what a node tells its own people."""
    job: MessageIdField
    told_at: TimestampField
    """By the teller's clock."""
    known: bool
    """False if the teller keeps nothing of this job; then all that follows is empty."""
    state: Text = ""
    fault: FaultKind | None = None
    reason: Text = ""
    paid: AmountField = Amount(0)
    input_units: WorkUnitsField = WorkUnits(0)
    output_units: WorkUnitsField = WorkUnits(0)
    chunks: Count = 0
    history: Annotated[tuple[HistoryEntry, ...], Meta(max_length=HISTORY_ENTRIES_MAX)] = ()
