"""How one provider goes on where another one stopped: what the second agreement says of the first.

Law: a continuation names the last verified chunk of the work behind it, which the chain of chunks fixes, and commits to
the bytes and units of all of it. The new provider is given those bytes as the prefix of its input, so its chunk 0 bills
prompt and prefix; its own chunks, its receipt and its price are of its own work alone.
"""

from protocol.messages.market import Agreement, Bid, Chunk, Continuation
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.units import Hash, MessageId, Salt, WorkUnits
from protocol.settlement.chunks import Progress, chunk_hash
from protocol.settlement.receipts import output_commitment


class ContinuationInvalid(RemoteProtocolError):
    """An agreement that does not go on from what it says it goes on from; the buyer's fault."""


def make_continuation(
    job: MessageId, progress: Progress, output_units: WorkUnits, salt: Salt, output: bytes
) -> Continuation:
    """What follows ``job``, of which ``progress`` is known; units and output are those of all attempts so far."""
    assert progress.delivered, "nothing was delivered"
    return Continuation(
        job=job,
        chunks=progress.chunks,
        last_chunk=progress.last_chunk,
        output_units=output_units,
        output_bytes=len(output),
        output_commitment=output_commitment(salt, output),
    )


def input_units_most(bid: Bid, continues: Continuation | None) -> int:
    """The input that an agreement may bill at most under its bid: a unit is at least one byte of the prefix."""
    return bid.input_units_max + (continues.output_bytes if continues is not None else 0)


def output_units_most(bid: Bid, continues: Continuation | None) -> int:
    """The output that an agreement may bill at most under its bid: what is left of it."""
    return bid.output_units_max - (continues.output_units if continues is not None else 0)


def check_prefix(continues: Continuation, salt: Salt, prefix: bytes) -> None:
    """The input's prefix ends with the output that the agreement goes on from. Raises ``ContinuationInvalid``."""
    if len(prefix) < continues.output_bytes:
        raise ContinuationInvalid(f"prefix has {len(prefix)} bytes, the output before it {continues.output_bytes}")
    output = prefix[len(prefix) - continues.output_bytes :]
    if output_commitment(salt, output) != continues.output_commitment:
        raise ContinuationInvalid("prefix is not the output that the agreement goes on from")


def check_link(agreement: Agreement, earlier: Agreement, job: MessageId, chunk: Chunk, chunk_payload: bytes) -> None:
    """``agreement`` goes on from ``earlier``, whose id is ``job``, right behind ``chunk``.

    ``chunk_payload`` are the payload bytes of the chunk's envelope; signatures are settled before. Raises
    ``ContinuationInvalid``.
    """
    continues = agreement.continues
    if continues is None or continues.job != job or chunk.job != job:
        raise ContinuationInvalid("agreement goes on from another job")
    # [request] the same bid, model and buyer
    if (agreement.bid, agreement.buyer, agreement.model) != (earlier.bid, earlier.buyer, earlier.model):
        raise ContinuationInvalid("the two agreements are of different requests")
    # [chunk] the very chunk behind which it goes on
    if continues.chunks != chunk.index + 1 or continues.last_chunk != Hash(chunk_hash(chunk_payload)):
        raise ContinuationInvalid("agreement goes on behind another chunk")
    # [units] all that was delivered before, counted once
    before = earlier.continues.output_units if earlier.continues is not None else 0
    if continues.output_units != before + chunk.output_units:
        raise ContinuationInvalid(
            f"agreement counts {continues.output_units} units before it, {before + chunk.output_units} were delivered"
        )
