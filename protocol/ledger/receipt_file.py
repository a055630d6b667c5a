"""The receipt file: everything that shows, to anyone and offline, what was delivered, promised and paid.

Law: signed statements are kept as the bytes that were signed, in lower-case hex; no field only repeats what a signed
one says, so there is nothing in the file that a check does not cover. Unknown fields are refused.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from protocol.ledger.merkle import PATH_STEPS_MAX, MerklePath, MerkleStep
from protocol.messages.blocks import Header, Succession
from protocol.messages.consensus import Certificate
from protocol.primitives.codec import Message, decode, encode
from protocol.primitives.errors import UserError
from protocol.primitives.limits import (
    EARLIER_PARTS_MAX,
    RECEIPT_PROOF_HASHES_MAX,
    SUCCESSIONS_MAX,
    TRANSACTION_BYTES_MAX,
)
from protocol.primitives.units import Hash, Salt
from protocol.settlement.accumulator import MembershipProof

FORMAT = "mercat-receipt-1"

RECEIPT_FILE_BYTES_MAX = 64 * 1024 * 1024
"""Input and output of a large job in hex, with room to spare; a larger file is refused unread."""

Hex = Annotated[str, Meta(pattern="^([0-9a-f]{2})*\\Z")]
Hex32 = Annotated[str, Meta(pattern="^[0-9a-f]{64}\\Z")]


class ReceiptFileInvalid(UserError):
    """A file that is no receipt file."""


class SettlementProof(Message, frozen=True):
    """A transaction, its place in a block, and the certificate that decided the block."""

    transaction: Annotated[bytes, Meta(max_length=TRANSACTION_BYTES_MAX)]
    path: MerklePath
    header: Header
    certificate: Certificate
    successions: Annotated[tuple[Succession, ...], Meta(max_length=SUCCESSIONS_MAX)] = ()
    """Every change of who decides between the genesis and the block."""


class StepPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One sibling on the way from the transaction to the header's transactions root."""

    sibling: Hex32
    on_left: bool


class SettlementPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``SettlementProof`` in JSON; header and certificate as their canonical bytes."""

    transaction: Hex
    path: Annotated[tuple[StepPart, ...], Meta(max_length=PATH_STEPS_MAX)]
    header: Hex
    certificate: Hex
    successions: Annotated[tuple[Hex, ...], Meta(max_length=SUCCESSIONS_MAX)] = ()
    """``Succession``s since the genesis, oldest first, as their canonical bytes."""


class AccumulatorPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``MembershipProof`` in JSON."""

    index: Annotated[int, Meta(ge=0, le=2**32)]
    path: Annotated[tuple[Hex32, ...], Meta(max_length=RECEIPT_PROOF_HASHES_MAX)]
    peaks: Annotated[tuple[Hex32, ...], Meta(max_length=RECEIPT_PROOF_HASHES_MAX)]


class EarlierPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an earlier provider of the job delivered before another one went on."""

    agreement: Hex
    acceptance: Hex
    chunk: Hex
    """Its last verified chunk: units and price of all of its work."""
    voucher: Hex | None = None
    """The buyer's voucher that paid it."""


class ReceiptFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A receipt with all that proves it. Fields that are ``None`` are not claimed."""

    format: Literal["mercat-receipt-1"]
    genesis: Hex32
    """Hash of the network's genesis."""
    bid: Hex
    agreement: Hex
    acceptance: Hex
    receipt: Hex
    """Envelopes, each signed by buyer or provider."""
    voucher: Hex
    """The buyer's voucher that commits to the receipt: the redeemed one if there is a settlement."""
    accumulator: AccumulatorPart
    """The receipt's place under the voucher's receipts root."""
    manifest: Hex | None = None
    """The model's manifest; its hash is the model's id."""
    salt: Hex32 | None = None
    """Opens the commitments to ``input`` and ``output``."""
    input: Hex | None = None
    output: Hex | None = None
    settlement: SettlementPart | None = None
    earlier: Annotated[tuple[EarlierPart, ...], Meta(max_length=EARLIER_PARTS_MAX)] = ()
    """Providers before the one that finished the job, oldest first."""


def _optional_hex(content: bytes | None) -> str | None:
    return None if content is None else content.hex()


def make_receipt_file(
    genesis: Hash,
    *,
    bid: bytes,
    agreement: bytes,
    acceptance: bytes,
    receipt: bytes,
    voucher: bytes,
    proof: MembershipProof,
    manifest: bytes | None = None,
    salt: Salt | None = None,
    input_payload: bytes | None = None,
    output: bytes | None = None,
    settlement: SettlementProof | None = None,
    earlier: tuple[EarlierPart, ...] = (),
) -> ReceiptFile:
    """A file from envelopes and proofs. Input, output and their salt are private: leave them out to publish it.

    With a settlement, ``voucher`` and ``proof`` must be those of the redeemed voucher: see ``redeemed_voucher``.
    """
    return ReceiptFile(
        format="mercat-receipt-1",
        genesis=genesis.hex(),
        bid=bid.hex(),
        agreement=agreement.hex(),
        acceptance=acceptance.hex(),
        receipt=receipt.hex(),
        voucher=voucher.hex(),
        accumulator=AccumulatorPart(
            proof.index,
            tuple(sibling.hex() for sibling in proof.path),
            tuple(peak.hex() for peak in proof.peaks),
        ),
        manifest=_optional_hex(manifest),
        salt=_optional_hex(salt),
        input=_optional_hex(input_payload),
        output=_optional_hex(output),
        settlement=None if settlement is None else _settlement_part(settlement),
        earlier=earlier,
    )


def _settlement_part(proof: SettlementProof) -> SettlementPart:
    return SettlementPart(
        proof.transaction.hex(),
        tuple(StepPart(step.sibling.hex(), step.on_left) for step in proof.path),
        encode(proof.header).hex(),
        encode(proof.certificate).hex(),
        tuple(encode(succession).hex() for succession in proof.successions),
    )


def write_receipt_file(file: ReceiptFile) -> bytes:
    """The file's JSON, indented for people."""
    return msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"


def read_receipt_file(content: bytes) -> ReceiptFile:
    """Inverse of ``write_receipt_file``; raises ``ReceiptFileInvalid`` on anything else. Checks no claim."""
    if len(content) > RECEIPT_FILE_BYTES_MAX:
        raise ReceiptFileInvalid(f"a receipt file has at most {RECEIPT_FILE_BYTES_MAX} bytes, not {len(content)}")
    try:
        file = msgspec.json.decode(content, type=ReceiptFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReceiptFileInvalid(f"not a receipt file: {error}") from None
    if (file.salt is None) is not (file.input is None and file.output is None):
        raise ReceiptFileInvalid("a salt stands in the file exactly if the input or the output does")
    return file


def accumulator_proof(part: AccumulatorPart) -> MembershipProof:
    """The proof in its binary form."""
    return MembershipProof(
        part.index,
        tuple(Hash(bytes.fromhex(sibling)) for sibling in part.path),
        tuple(Hash(bytes.fromhex(peak)) for peak in part.peaks),
    )


def settlement_of(part: SettlementPart) -> SettlementProof:
    """The proof in its binary form; raises ``MalformedMessage``."""
    return SettlementProof(
        bytes.fromhex(part.transaction),
        tuple(MerkleStep(Hash(bytes.fromhex(step.sibling)), step.on_left) for step in part.path),
        decode(bytes.fromhex(part.header), Header),
        decode(bytes.fromhex(part.certificate), Certificate),
        tuple(decode(bytes.fromhex(succession), Succession) for succession in part.successions),
    )
