"""A continued job's receipt file shows its earlier providers' parts, and nothing in them can be changed."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from protocol.ledger.light_client import verify_receipt
from protocol.ledger.receipt_file import (
    EarlierPart,
    ReceiptFile,
    ReceiptFileInvalid,
    read_receipt_file,
    write_receipt_file,
)
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Acceptance, Agreement, Chunk, Continuation, FinishReason, JobPayload, Voucher
from protocol.primitives.codec import encode
from protocol.primitives.units import (
    Amount,
    ChannelId,
    Hash,
    Lane,
    MessageId,
    ModelId,
    SequenceNumber,
    TimestampMs,
    WorkUnits,
)
from protocol.settlement.accumulator import EMPTY_ROOT
from protocol.settlement.chunks import Progress, chunk_hash
from protocol.settlement.continuation import make_continuation
from protocol.settlement.pricing import amount_due
from protocol.settlement.receipts import input_commitment
from tests.ledger.deal import PRICES, SALT, Deal, id_of
from tests.ledger.test_receipt_files import changed_texts
from tests.ledger.world import account_of, make_genesis, sealed

PIECES = {"carol": b"It is ", "dave": b"most certainly "}
CHANNEL = ChannelId(b"c" * 32)


class ContinuedDeal(Deal):
    """Carol and Dave delivered the beginning, Bob the rest."""

    def _terms(self, model: ModelId) -> Agreement:
        self.parts: list[EarlierPart] = []
        terms, continues, output = super()._terms(model), None, b""
        for name, piece in PIECES.items():
            agreement = replace(
                terms,
                provider=account_of(name),
                channel=CHANNEL,
                cumulative_start=Amount(7),
                sequence_start=SequenceNumber(0),
                continues=continues,
            )
            output += piece
            continues = self._part(name, agreement, piece, output)
        self.input = encode(JobPayload("text", b"what is the answer?", (), output))
        committed = input_commitment(SALT, self.input)
        return replace(terms, continues=continues, input_commitment=committed, input_bytes=len(self.input))

    def _part(self, name: str, agreement: Agreement, piece: bytes, output: bytes) -> Continuation:
        genesis = self.ledger.hash
        signed = sealed(genesis, "alice", MessageKind.AGREEMENT, agreement)
        job = id_of(signed)
        due = amount_due(PRICES, 5, 4)
        chunk = Chunk(job, 1, Hash(b"h" * 32), WorkUnits(5), WorkUnits(4), due, FinishReason.NONE, piece)
        voucher = Voucher(
            CHANNEL, agreement.provider, agreement.lane, SequenceNumber(2), Amount(7 + due), EMPTY_ROOT, 0
        )
        acceptance = Acceptance(job, TimestampMs(1_700_000_000_050))
        self.parts.append(
            EarlierPart(
                signed.hex(),
                sealed(genesis, name, MessageKind.ACCEPTANCE, acceptance).hex(),
                sealed(genesis, name, MessageKind.CHUNK, chunk).hex(),
                sealed(genesis, "alice", MessageKind.VOUCHER, voucher).hex(),
            )
        )
        progress = Progress(2, chunk_hash(encode(chunk)), WorkUnits(5), WorkUnits(4), Amount(due), FinishReason.NONE)
        units = WorkUnits(4 + (agreement.continues.output_units if agreement.continues is not None else 0))
        return make_continuation(job, progress, units, SALT, output)

    def whole_file(self) -> ReceiptFile:
        return replace(self.file(), input=self.input.hex(), earlier=tuple(self.parts))


@pytest.fixture(scope="module")
def deal() -> ContinuedDeal:
    return ContinuedDeal()


def failed(file: ReceiptFile) -> str | None:
    return verify_receipt(read_receipt_file(write_receipt_file(file)), make_genesis()).failed


def test_a_continued_receipt_shows_what_each_earlier_provider_was_paid(deal: ContinuedDeal) -> None:
    report = verify_receipt(read_receipt_file(write_receipt_file(deal.whole_file())), make_genesis())
    assert report.ok, report.checks[-1]
    [said] = [check.detail for check in report.checks if check.name == "earlier_work"]
    paid = 2 * amount_due(PRICES, 5, 4)
    assert said.startswith("goes on behind 8 units of job ")
    assert said.endswith(f"; {paid} base units paid to 2 earlier providers")


def test_a_part_without_its_voucher_is_not_called_paid(deal: ContinuedDeal) -> None:
    file = deal.whole_file()
    parts = (file.earlier[0], replace(file.earlier[1], voucher=None))
    report = verify_receipt(read_receipt_file(write_receipt_file(replace(file, earlier=parts))), make_genesis())
    assert report.ok
    [said] = [check.detail for check in report.checks if check.name == "earlier_work"]
    due = amount_due(PRICES, 5, 4)
    assert said.endswith(f"; {2 * due} base units due to 2 earlier providers, {due} shown to be paid")


def test_a_provider_that_knows_only_its_own_part_shows_it_alone(deal: ContinuedDeal) -> None:
    report = verify_receipt(replace(deal.whole_file(), earlier=()), make_genesis())
    assert report.ok
    [said] = [check.detail for check in report.checks if check.name == "earlier_work"]
    assert said.endswith("which the file does not show")


def test_no_character_of_an_earlier_part_can_be_changed(deal: ContinuedDeal) -> None:
    file = deal.whole_file()
    for place, part in enumerate(file.earlier):
        for field in part.__struct_fields__:
            for text in list(changed_texts(getattr(part, field)))[:: 7 + place]:
                parts = list(file.earlier)
                parts[place] = replace(part, **{field: text})
                try:
                    assert failed(replace(file, earlier=tuple(parts))) == "earlier_work"
                except ReceiptFileInvalid:
                    assert len(text) % 2 or not set(text) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts[1:],
        lambda parts: parts[:1],
        lambda parts: (parts[1], parts[0]),
        lambda parts: (*parts, parts[1]),
        lambda parts: (parts[0], *parts),
        lambda parts: (parts[0], replace(parts[1], chunk=parts[0].chunk)),
        lambda parts: (parts[0], replace(parts[1], acceptance=parts[0].acceptance)),
        lambda parts: (parts[0], replace(parts[1], voucher=parts[0].voucher)),
    ],
)
def test_parts_can_not_be_left_out_doubled_or_exchanged(
    deal: ContinuedDeal, change: Callable[[tuple[EarlierPart, ...]], tuple[EarlierPart, ...]]
) -> None:
    file = deal.whole_file()
    assert failed(replace(file, earlier=change(file.earlier))) == "earlier_work"


def test_an_input_without_the_output_it_goes_on_from_is_found_out() -> None:
    class Lying(ContinuedDeal):
        def _terms(self, model: ModelId) -> Agreement:
            terms = super()._terms(model)
            self.input = encode(JobPayload("text", b"what is the answer?", (), b"something else entirely"))
            committed = input_commitment(SALT, self.input)
            return replace(terms, input_commitment=committed, input_bytes=len(self.input))

    assert failed(Lying().whole_file()) == "earlier_work"


def test_a_plain_receipt_with_earlier_parts_is_found_out(deal: ContinuedDeal) -> None:
    assert failed(replace(Deal().file(), earlier=tuple(deal.parts))) == "earlier_work"


@pytest.mark.parametrize(
    "change",
    [
        lambda chunk: replace(chunk, due=Amount(chunk.due + 1)),
        lambda chunk: replace(chunk, output_units=WorkUnits(5), due=amount_due(PRICES, 5, 5)),
        lambda chunk: replace(chunk, index=2),
        lambda chunk: replace(chunk, job=MessageId(bytes(32))),
    ],
)
def test_a_well_signed_chunk_that_is_not_the_one_gone_on_from_is_found_out(
    deal: ContinuedDeal, change: Callable[[Chunk], Chunk]
) -> None:
    file, due = deal.whole_file(), amount_due(PRICES, 5, 4)
    job = id_of(bytes.fromhex(file.earlier[1].agreement))
    chunk = Chunk(job, 1, Hash(b"h" * 32), WorkUnits(5), WorkUnits(4), Amount(due), FinishReason.NONE, PIECES["dave"])
    lied = sealed(deal.ledger.hash, "dave", MessageKind.CHUNK, change(chunk))
    parts = (file.earlier[0], replace(file.earlier[1], chunk=lied.hex()))
    assert failed(replace(file, earlier=parts)) == "earlier_work"


@pytest.mark.parametrize(("sequence", "cumulative", "lane"), [(0, 1_000, 2), (2, 6, 2), (2, 1_000, 3)])
def test_a_voucher_that_did_not_pay_the_part_is_found_out(
    deal: ContinuedDeal, sequence: int, cumulative: int, lane: int
) -> None:
    file = deal.whole_file()
    voucher = Voucher(
        CHANNEL, account_of("dave"), Lane(lane), SequenceNumber(sequence), Amount(cumulative), EMPTY_ROOT, 0
    )
    lied = sealed(deal.ledger.hash, "alice", MessageKind.VOUCHER, voucher)
    parts = (file.earlier[0], replace(file.earlier[1], voucher=lied.hex()))
    assert failed(replace(file, earlier=parts)) == "earlier_work"
