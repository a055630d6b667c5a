"""What a receipt file shows of the providers before the last one, when a job went on mid-stream.

Law: each earlier part is shown by what was signed at the time: the agreement by the buyer, acceptance and last verified
chunk by the provider, the voucher that paid them by the buyer. Each agreement names the last chunk of the one before,
so that no part can be left out in the middle, exchanged, or counted twice.
"""

from typing import NamedTuple, TypeVar

from protocol.ledger.receipt_file import EarlierPart
from protocol.messages.envelope import Envelope, envelope_id, open_as, signature_check
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Acceptance, Agreement, Chunk, JobPayload, Voucher
from protocol.primitives.codec import Message, decode
from protocol.primitives.errors import AmountOutOfRange, MalformedMessage, RemoteProtocolError
from protocol.primitives.units import AccountId, Amount, Hash, Salt
from protocol.settlement.continuation import check_link, check_prefix
from protocol.settlement.pricing import amount_due

M = TypeVar("M", bound=Message)


class EarlierWorkInvalid(RemoteProtocolError):
    """A file that shows something else than what its agreement goes on from."""


class EarlierWork(NamedTuple):
    """What earlier providers delivered, in base units."""

    due: Amount
    paid: Amount
    """What of it a voucher in the file pays."""


def verify_earlier_work(genesis: Hash, agreement: Agreement, parts: tuple[EarlierPart, ...]) -> EarlierWork:
    """Check all parts before ``agreement``, oldest first, and reckon what they cost together.

    Raises ``EarlierWorkInvalid`` and nothing else.
    """
    later, due, paid = agreement, 0, 0
    for part in reversed(parts):
        try:
            later, chunk = _verify_part(genesis, later, part)
        except (RemoteProtocolError, AmountOutOfRange) as error:
            raise EarlierWorkInvalid(str(error)) from None
        due += chunk.due
        paid += chunk.due if part.voucher is not None else 0
    if later.continues is not None:
        raise EarlierWorkInvalid("the beginning of the job is left out")
    return EarlierWork(Amount(due), Amount(paid))


def verify_prefix(agreement: Agreement, salt: Salt, job_input: bytes) -> None:
    """The input's prefix is the output that the agreement goes on from. Raises ``EarlierWorkInvalid``."""
    assert agreement.continues is not None
    try:
        check_prefix(agreement.continues, salt, decode(job_input, JobPayload).prefix)
    except RemoteProtocolError as error:
        raise EarlierWorkInvalid(str(error)) from None


def _verify_part(genesis: Hash, later: Agreement, part: EarlierPart) -> tuple[Agreement, Chunk]:
    envelope, agreement = _signed(genesis, part.agreement, MessageKind.AGREEMENT, Agreement, later.buyer)
    job = envelope_id(envelope)
    if agreement.buyer != later.buyer:
        raise EarlierWorkInvalid("an earlier agreement is another buyer's")
    _, acceptance = _signed(genesis, part.acceptance, MessageKind.ACCEPTANCE, Acceptance, agreement.provider)
    if acceptance.job != job:
        raise EarlierWorkInvalid("an earlier acceptance is for another agreement")
    envelope, chunk = _signed(genesis, part.chunk, MessageKind.CHUNK, Chunk, agreement.provider)
    check_link(later, agreement, job, chunk, envelope.payload)
    due = amount_due(agreement.prices, chunk.input_units, chunk.output_units)
    if chunk.due != due or due > agreement.price_ceiling:
        raise EarlierWorkInvalid(f"an earlier chunk asks for {chunk.due}, {due} was due")
    if part.voucher is not None:
        _, voucher = _signed(genesis, part.voucher, MessageKind.VOUCHER, Voucher, agreement.buyer)
        said = (voucher.channel, voucher.payee, voucher.lane)
        if said != (agreement.channel, agreement.provider, agreement.lane):
            raise EarlierWorkInvalid("an earlier voucher is for another channel, payee or lane")
        if voucher.sequence <= agreement.sequence_start or voucher.cumulative < agreement.cumulative_start + due:
            raise EarlierWorkInvalid("an earlier voucher does not pay what was delivered")
    return agreement, chunk


def _signed(genesis: Hash, hexadecimal: str, kind: MessageKind, body: type[M], by: AccountId) -> tuple[Envelope, M]:
    try:
        envelope, content = open_as(bytes.fromhex(hexadecimal), kind)
    except MalformedMessage as error:
        raise EarlierWorkInvalid(str(error)) from None
    assert isinstance(content, body)
    if AccountId(envelope.sender) != by or not signature_check(genesis, envelope).holds():
        raise EarlierWorkInvalid(f"an earlier {kind.name.lower()} is not signed by its party")
    return envelope, content
