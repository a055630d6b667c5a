"""Receipts: what was delivered, against the agreement and the chain of chunks.

Law: a receipt says nothing that its agreement and its chunks do not say; commitments to input and output are salted
with the buyer's salt, which only the two parties hold.
"""

from protocol.messages.market import Agreement, FinishReason, Receipt
from protocol.primitives.errors import AmountOutOfRange, RemoteProtocolError
from protocol.primitives.hashing import Domain, commitment
from protocol.primitives.units import AccountId, Hash, MessageId, Salt, TimestampMs
from protocol.settlement.chunks import Progress
from protocol.settlement.pricing import amount_due


class ReceiptInvalid(RemoteProtocolError):
    """A receipt that does not say what was agreed or delivered; ``field`` names the first difference."""

    def __init__(self, field: str) -> None:
        super().__init__(f"receipt differs from what was agreed and delivered: {field}")
        self.field = field


def input_commitment(salt: Salt, payload: bytes) -> Hash:
    """What an agreement says about ``JobInput.payload``."""
    return commitment(Domain.INPUT_COMMITMENT, salt, payload)


def output_commitment(salt: Salt, output: bytes) -> Hash:
    """What a receipt says about the payloads of all chunks, joined in order."""
    return commitment(Domain.OUTPUT_COMMITMENT, salt, output)


def make_receipt(
    job: MessageId, agreement: Agreement, progress: Progress, output: Hash, accepted_at: TimestampMs, now: TimestampMs
) -> Receipt:
    """The receipt of a job whose last chunk is in ``progress``; ``output`` is the output's commitment."""
    assert progress.finish is not FinishReason.NONE
    return Receipt(
        job=job,
        bid=agreement.bid,
        buyer=agreement.buyer,
        provider=agreement.provider,
        model=agreement.model,
        runtime_build=agreement.runtime_build,
        settings=agreement.settings,
        input_commitment=agreement.input_commitment,
        output_commitment=output,
        input_units=progress.input_units,
        output_units=progress.output_units,
        chunks=progress.chunks,
        last_chunk=progress.last_chunk,
        amount=progress.due,
        finish=progress.finish,
        channel=agreement.channel,
        lane=agreement.lane,
        accepted_at=accepted_at,
        finished_at=TimestampMs(max(now, accepted_at)),
    )


def check_receipt_terms(receipt: Receipt, job: MessageId, agreement: Agreement) -> None:
    """What the agreement alone shows, offline and without the chunks. Raises ``ReceiptInvalid``."""
    for field, said, agreed in (
        ("job", receipt.job, job),
        ("bid", receipt.bid, agreement.bid),
        ("buyer", receipt.buyer, agreement.buyer),
        ("provider", receipt.provider, agreement.provider),
        ("model", receipt.model, agreement.model),
        ("runtime_build", receipt.runtime_build, agreement.runtime_build),
        ("settings", receipt.settings, agreement.settings),
        ("input_commitment", receipt.input_commitment, agreement.input_commitment),
        ("channel", receipt.channel, agreement.channel),
    ):
        if said != agreed:
            raise ReceiptInvalid(field)
    if receipt.lane != agreement.lane:
        raise ReceiptInvalid("lane")
    if receipt.input_units > agreement.input_units_max:
        raise ReceiptInvalid("input_units")
    if receipt.output_units > agreement.output_units_max:
        raise ReceiptInvalid("output_units")
    # the input's chunk carries output only where it is the only one
    if not receipt.chunks or receipt.output_units > agreement.chunk_units * max(receipt.chunks - 1, 1):
        raise ReceiptInvalid("chunks")
    try:
        due = amount_due(agreement.prices, receipt.input_units, receipt.output_units)
    except AmountOutOfRange:
        raise ReceiptInvalid("amount") from None
    if receipt.amount != due or receipt.amount > agreement.price_ceiling:
        raise ReceiptInvalid("amount")
    if receipt.finish is FinishReason.NONE:
        raise ReceiptInvalid("finish")
    if receipt.finished_at < receipt.accepted_at:
        raise ReceiptInvalid("finished_at")


def check_receipt(
    receipt: Receipt,
    signer: AccountId,
    job: MessageId,
    agreement: Agreement,
    accepted_at: TimestampMs,
    progress: Progress,
    output: Hash,
) -> None:
    """What the buyer checks: the terms, its own view of every chunk, and the output's commitment.

    Raises ``ReceiptInvalid``.
    """
    if signer != agreement.provider:
        raise ReceiptInvalid("signer")
    check_receipt_terms(receipt, job, agreement)
    if receipt.output_commitment != output:
        raise ReceiptInvalid("output_commitment")
    if receipt.accepted_at != accepted_at:
        raise ReceiptInvalid("accepted_at")
    if (receipt.input_units, receipt.output_units) != (progress.input_units, progress.output_units):
        raise ReceiptInvalid("units")
    if (receipt.chunks, receipt.last_chunk) != (progress.chunks, progress.last_chunk):
        raise ReceiptInvalid("last_chunk")
    if receipt.amount != progress.due:
        raise ReceiptInvalid("amount")
    if receipt.finish is not progress.finish:
        raise ReceiptInvalid("finish")
