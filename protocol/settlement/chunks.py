"""The chain of delivered chunks and what each may say.

Law: chunk *k* names the hash of chunk *k−1* (chunk 0: the job's id), so the last hash fixes every chunk. Chunk 0 is the
processing of the input; it carries no output, or all of it and is the last. A chunk of output carries at most the
agreement's ``chunk_units``, and one unit at least unless it is the last, or full: a unit that is longer than a chunk is
paid with its last bytes. What is due is recomputed from the agreement's prices, never believed.
"""

from protocol.messages.market import Agreement, Chunk, Count, FinishReason
from protocol.primitives.codec import Message
from protocol.primitives.errors import AmountOutOfRange, RemoteProtocolError
from protocol.primitives.hashing import Domain, digest
from protocol.primitives.limits import CHUNK_PAYLOAD_BYTES_MAX
from protocol.primitives.units import (
    Amount,
    AmountField,
    Hash,
    HashField,
    MessageId,
    WorkUnits,
    WorkUnitsField,
)
from protocol.settlement.pricing import amount_due


class ChunkInvalid(RemoteProtocolError):
    """A chunk that breaks the agreement; the provider's fault."""


class Progress(Message, frozen=True):
    """What a job has delivered so far: the state that the next chunk is judged against."""

    chunks: Count
    """Chunks so far; the next one has this index."""
    last_chunk: HashField
    input_units: WorkUnitsField
    output_units: WorkUnitsField
    due: AmountField
    finish: FinishReason

    @property
    def delivered(self) -> bool:
        """True once any chunk of output came, be it chunk 0."""
        return self.chunks > 1 or self.finish is not FinishReason.NONE


def progress_start(job: MessageId) -> Progress:
    """Before chunk 0."""
    return Progress(0, Hash(job), WorkUnits(0), WorkUnits(0), Amount(0), FinishReason.NONE)


def chunk_hash(payload: bytes) -> Hash:
    """The hash of a chunk: of the payload bytes of its envelope."""
    return digest(Domain.CHUNK, payload)


def check_chunk(job: MessageId, agreement: Agreement, progress: Progress, chunk: Chunk, payload: bytes) -> Progress:
    """The progress after ``chunk``, whose envelope's payload is ``payload``. Raises ``ChunkInvalid``."""
    # [chain] the next chunk of this job, linked to the one before, and the job had not ended
    if chunk.job != job:
        raise ChunkInvalid("chunk belongs to another job")
    if progress.finish is not FinishReason.NONE:
        raise ChunkInvalid("chunk after the last one")
    if chunk.index != progress.chunks:
        raise ChunkInvalid(f"expected chunk {progress.chunks}, got {chunk.index}")
    if chunk.previous != progress.last_chunk:
        raise ChunkInvalid(f"chunk {chunk.index} is not linked to the one before")
    # [units] chunk 0 meters the input, and output only where that is whole; later ones the output alone
    if chunk.index == 0:
        _check_first(agreement, chunk)
    else:
        _check_later(agreement, progress, chunk)
    # [price] exactly what the agreement's prices make of the units
    try:
        due = amount_due(agreement.prices, chunk.input_units, chunk.output_units)
    except AmountOutOfRange as error:
        raise ChunkInvalid(f"chunk {chunk.index} costs more than can be owed: {error.amount}") from None
    if chunk.due != due:
        raise ChunkInvalid(f"chunk {chunk.index} asks for {chunk.due}, {due} is due")
    if due > agreement.price_ceiling:
        raise ChunkInvalid(f"chunk {chunk.index} costs {due}, above the ceiling of {agreement.price_ceiling}")
    return Progress(chunk.index + 1, chunk_hash(payload), chunk.input_units, chunk.output_units, due, chunk.finish)


def _check_first(agreement: Agreement, chunk: Chunk) -> None:
    if chunk.input_units > agreement.input_units_max:
        raise ChunkInvalid(f"input metered at {chunk.input_units} units, {agreement.input_units_max} were agreed")
    if chunk.finish is not FinishReason.NONE:
        _check_output(agreement, WorkUnits(0), chunk)
    elif chunk.output_units or chunk.payload:
        raise ChunkInvalid("chunk 0 carries output and is not the last")


def _check_later(agreement: Agreement, progress: Progress, chunk: Chunk) -> None:
    if chunk.input_units != progress.input_units:
        raise ChunkInvalid("input units changed after chunk 0")
    _check_output(agreement, progress.output_units, chunk)


def _check_output(agreement: Agreement, before: WorkUnits, chunk: Chunk) -> None:
    units = chunk.output_units - before
    if not 0 <= units <= agreement.chunk_units:
        raise ChunkInvalid(f"chunk {chunk.index} holds {units} units, at most {agreement.chunk_units} were agreed")
    if chunk.output_units > agreement.output_units_max:
        raise ChunkInvalid(f"output of {chunk.output_units} units, at most {agreement.output_units_max} were agreed")
    if units == 0 and chunk.finish is FinishReason.NONE and len(chunk.payload) < CHUNK_PAYLOAD_BYTES_MAX:
        raise ChunkInvalid(f"chunk {chunk.index} is without a unit, not full and not the last")
