"""Receipt files: a valid one verifies offline, and nothing in it can be changed without a named check failing."""

import json
from collections.abc import Iterator

import msgspec
import pytest
from msgspec.structs import replace

from protocol.ledger import receipt_file
from protocol.ledger.light_chain import trusted_checkpoint
from protocol.ledger.light_client import (
    ProofInvalid,
    redeemed_voucher,
    settlement_proof,
    verify_decided,
    verify_receipt,
)
from protocol.ledger.merkle import transaction_leaf
from protocol.ledger.receipt_file import (
    ReceiptFile,
    ReceiptFileInvalid,
    SettlementProof,
    read_receipt_file,
    write_receipt_file,
)
from protocol.messages.consensus import CertificateKind
from protocol.messages.genesis import genesis_hash
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Acceptance, Prices
from protocol.messages.quorum import AuthoritySet, CertificateInvalid
from protocol.messages.transactions import ChannelRedeem
from protocol.primitives.codec import encode
from protocol.primitives.units import AMOUNT_MAX, Amount, MessageId
from tests.ledger.deal import Deal, id_of
from tests.ledger.dynasty import Dynasty, certify, set_of
from tests.ledger.world import account_of, make_genesis, sealed

Json = dict[str, "Json"] | list["Json"] | str | int | bool | None


@pytest.fixture(scope="module")
def deal() -> Deal:
    return Deal()


@pytest.fixture(scope="module")
def settled() -> ReceiptFile:
    deal = Deal()
    return deal.file(deal.settle())


def test_a_settled_receipt_verifies_with_every_check_named(settled: ReceiptFile) -> None:
    report = verify_receipt(read_receipt_file(write_receipt_file(settled)), make_genesis())
    assert report.ok, report.failed
    assert [check.name for check in report.checks] == [
        "genesis_matches",
        "bid_signature",
        "agreement_signature",
        "acceptance_signature",
        "receipt_signature",
        "parties_match",
        "terms_match",
        "amount_matches_prices",
        "model_manifest",
        "input_commitment",
        "output_commitment",
        "voucher_signature",
        "voucher_pays",
        "receipt_in_voucher",
        "redeem_transaction",
        "transaction_in_block",
        "certificate_quorum",
    ]
    assert report.settlement == "settled"
    assert report.height == 2
    assert report.timestamp_ms is not None
    assert report.receipt is not None
    assert "3 of 4 authorities" in report.trusted


def test_an_unsettled_receipt_verifies_up_to_its_voucher_and_says_so(deal: Deal) -> None:
    report = verify_receipt(deal.file(), deal.ledger.genesis)
    assert report.ok
    assert report.checks[-1].name == "receipt_in_voucher"
    assert (report.settlement, report.height, report.timestamp_ms) == ("not settled", None, None)


def test_a_receipt_that_the_buyer_anchored_is_not_called_settled() -> None:
    deal = Deal()
    report = verify_receipt(deal.file(deal.settle("alice")), deal.ledger.genesis)
    assert report.ok, report.failed
    assert report.settlement == "anchored"


def test_a_file_without_private_parts_verifies_without_their_checks(settled: ReceiptFile) -> None:
    public = msgspec.structs.replace(settled, salt=None, input=None, output=None, manifest=None)
    report = verify_receipt(public, make_genesis())
    assert report.ok
    assert not {"input_commitment", "output_commitment", "model_manifest"} & {check.name for check in report.checks}


def test_another_networks_genesis_is_refused_first(settled: ReceiptFile) -> None:
    assert verify_receipt(settled, make_genesis(balance=5)).failed == "genesis_matches"


def changed_texts(text: str) -> Iterator[str]:
    """A text with each of its characters changed in turn; every sixteenth also dropped and in upper case."""
    for place, character in enumerate(text):
        head, tail = text[:place], text[place + 1 :]
        yield head + ("1" if character == "0" else "0") + tail
        if place % 16 == 0:
            yield head + tail
            if character.upper() != character:
                yield head + character.upper() + tail


def changes(value: Json) -> Iterator[Json]:
    """The value with one thing changed: each text at each character, each number by one, each flag, each item."""
    match value:
        case bool():
            yield not value
        case int():
            yield value + 1
            yield value - 1
        case str():
            yield from changed_texts(value)
        case list():
            for place, item in enumerate(value):
                for other in changes(item):
                    yield [*value[:place], other, *value[place + 1 :]]
                yield [*value[:place], *value[place + 1 :]]
                yield [*value, item]
        case dict():
            for key, item in value.items():
                for other in changes(item):
                    yield {**value, key: other}
            yield {**value, "extra": 1}
        case None:
            yield "00"


@pytest.mark.parametrize("is_settled", [False, True])
def test_no_single_change_in_a_file_passes(deal: Deal, settled: ReceiptFile, is_settled: bool) -> None:
    genesis = make_genesis()
    file = settled if is_settled else deal.file()
    original: Json = json.loads(write_receipt_file(file))
    failed: dict[str, int] = {}
    for forged in changes(original):
        try:
            report = verify_receipt(read_receipt_file(json.dumps(forged).encode()), genesis)
        except ReceiptFileInvalid:
            failed["refused"] = failed.get("refused", 0) + 1
            continue
        assert report.failed is not None, "a changed file passed"
        failed[report.failed] = failed.get(report.failed, 0) + 1
    expected = {
        "bid_signature", "agreement_signature", "acceptance_signature", "receipt_signature", "model_manifest",
        "input_commitment", "output_commitment", "voucher_signature", "receipt_in_voucher", "refused",
        "genesis_matches",
    }  # fmt: skip
    if is_settled:
        expected |= {"redeem_transaction", "transaction_in_block", "certificate_quorum"}
    assert expected <= failed.keys()


def failure(deal: Deal, **envelopes: bytes) -> str | None:
    return verify_receipt(deal.file(None, **envelopes), deal.ledger.genesis).failed


def test_statements_signed_by_the_wrong_party_are_caught(deal: Deal) -> None:
    genesis = deal.ledger.hash
    assert failure(deal, receipt=sealed(genesis, "carol", MessageKind.RECEIPT, deal.receipt_body)) == "parties_match"
    assert failure(deal, agreement=sealed(genesis, "bob", MessageKind.AGREEMENT, deal.terms)) == "parties_match"
    assert failure(deal, voucher=deal.make_voucher(9_000, payer="bob")) == "voucher_signature"


def test_well_signed_statements_that_do_not_belong_together_are_caught(deal: Deal) -> None:
    genesis = deal.ledger.hash

    def acceptance(job: MessageId, later_ms: int) -> bytes:
        body = Acceptance(job, type(deal.receipt_body.accepted_at)(deal.receipt_body.accepted_at + later_ms))
        return sealed(genesis, "bob", MessageKind.ACCEPTANCE, body)

    assert failure(deal, acceptance=acceptance(MessageId(bytes(32)), 0)) == "terms_match"
    assert failure(deal, acceptance=acceptance(id_of(deal.agreement), 1)) == "terms_match"
    assert failure(deal, acceptance=acceptance(id_of(deal.agreement), 0)) is None
    for changes in ({"price_ceiling": 1_001}, {"bid": bytes(32)}, {"chunk_units": 17}):
        terms = msgspec.structs.replace(deal.terms, **changes)
        assert failure(deal, agreement=sealed(genesis, "alice", MessageKind.AGREEMENT, terms)) == "terms_match"


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"price_ceiling": 1_001}, "terms_match: higher price"),
        ({"bid": bytes(32)}, "terms_match: another bid"),
        ({"price_ceiling": 35}, "amount_matches_prices: above the agreed ceiling"),
        ({"prices": Prices(Amount(AMOUNT_MAX), Amount(1), Amount(1))}, "amount_matches_prices: out of range"),
        ({"settings": "other"}, "terms_match: settings"),
    ],
)
def test_terms_that_the_parties_signed_but_that_break_a_rule_are_caught(
    deal: Deal, changes: dict[str, object], failed: str
) -> None:
    genesis = deal.ledger.hash
    terms = msgspec.structs.replace(deal.terms, **changes)
    agreement = sealed(genesis, "alice", MessageKind.AGREEMENT, terms)
    job = id_of(agreement)
    acceptance = sealed(genesis, "bob", MessageKind.ACCEPTANCE, Acceptance(job, deal.receipt_body.accepted_at))
    body = msgspec.structs.replace(deal.receipt_body, job=job, bid=terms.bid)
    receipt = sealed(genesis, "bob", MessageKind.RECEIPT, body)
    file = deal.file(None, agreement=agreement, acceptance=acceptance, receipt=receipt)
    last = verify_receipt(file, deal.ledger.genesis).checks[-1]
    name, _, detail = failed.partition(": ")
    assert (last.name, last.ok) == (name, False)
    assert detail in last.detail


@pytest.mark.parametrize("off_by", [-1, 1])
def test_an_amount_that_the_prices_do_not_give_is_caught(off_by: int) -> None:
    deal = Deal(amount_off_by=off_by)
    assert verify_receipt(deal.file(), deal.ledger.genesis).failed == "amount_matches_prices"


def test_a_voucher_that_does_not_pay_this_receipt_is_caught(deal: Deal) -> None:
    enough = 100 + deal.amount
    assert failure(deal, voucher=deal.make_voucher(enough)) is None
    assert failure(deal, voucher=deal.make_voucher(enough - 1)) == "voucher_pays"
    assert failure(deal, voucher=deal.make_voucher(enough, sequence=4)) == "voucher_pays"
    assert failure(deal, voucher=deal.make_voucher(enough, lane=3)) == "voucher_pays"


def test_a_redeem_of_another_voucher_settles_nothing_here() -> None:
    deal = Deal()
    other = deal.make_voucher(100 + deal.amount, sequence=7)
    proof = deal.settle("bob", other)
    assert verify_receipt(deal.file(proof), deal.ledger.genesis).failed == "redeem_transaction"
    assert verify_receipt(deal.file(proof, voucher=other), deal.ledger.genesis).ok
    assert redeemed_voucher(proof.transaction, deal.channel, 2) == other
    assert redeemed_voucher(proof.transaction, deal.channel, 3) is None


def test_a_transaction_that_is_no_redeem_settles_nothing() -> None:
    deal = Deal()
    deal.settle()
    transfer = deal.ledger.transaction("carol", deal._payment("carol").transaction.action, nonce=0)
    proof = settlement_proof(deal.decided, transfer.transaction_id)
    assert verify_receipt(deal.file(proof), deal.ledger.genesis).failed == "redeem_transaction"
    with pytest.raises(KeyError):
        settlement_proof(deal.decided, MessageId(bytes(32)))


@pytest.mark.parametrize(
    ("name", "is_signed", "detail"),
    [("bob", True, ""), ("carol", True, "neither party"), ("bob", False, "signature does not hold")],
)
def test_a_decided_redeem_counts_only_if_a_party_signed_it(name: str, is_signed: bool, detail: str) -> None:
    deal = Deal()
    redeem = deal.ledger.transaction(name, ChannelRedeem(deal.channel, (deal.voucher,)), nonce=0).envelope_bytes
    proof = deal.claim(redeem if is_signed else redeem[:-1] + bytes((redeem[-1] ^ 1,)))
    report = verify_receipt(deal.file(proof), deal.ledger.genesis)
    assert report.failed == ("redeem_transaction" if detail else None)
    assert detail in report.checks[-1].detail


def test_a_certificate_decides_only_its_own_block_by_a_quorum_of_the_named_set() -> None:
    deal = Deal()
    proof = deal.settle()
    header, certificate, genesis = proof.header, proof.certificate, deal.ledger.hash
    authorities = AuthoritySet.from_genesis(deal.ledger.genesis)
    verify_decided(genesis, authorities, header, certificate)
    few = msgspec.structs.replace(certificate, signers=(0, 1), signatures=certificate.signatures[:2])
    with pytest.raises(CertificateInvalid):
        verify_decided(genesis, authorities, header, few)
    voted = deal.ledger.certify(header, CertificateKind.VOTED)
    with pytest.raises(ProofInvalid, match="decides nothing"):
        verify_decided(genesis, authorities, header, voted)
    other = msgspec.structs.replace(header, timestamp_ms=header.timestamp_ms + 1)
    with pytest.raises(ProofInvalid):
        verify_decided(genesis, authorities, other, certificate)
    swapped = msgspec.structs.replace(certificate, signatures=certificate.signatures[::-1])
    with pytest.raises(ProofInvalid):
        verify_decided(genesis, authorities, header, swapped)
    foreign = msgspec.structs.replace(header, authorities_hash=bytes(32))
    with pytest.raises(ProofInvalid, match="another authority set"):
        verify_decided(genesis, authorities, foreign, deal.ledger.certify(foreign))


def test_a_file_too_large_to_be_a_receipt_is_refused_unread(
    monkeypatch: pytest.MonkeyPatch, settled: ReceiptFile
) -> None:
    monkeypatch.setattr(receipt_file, "RECEIPT_FILE_BYTES_MAX", 1_000)
    with pytest.raises(ReceiptFileInvalid, match="at most 1000 bytes"):
        read_receipt_file(write_receipt_file(settled))


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"\xff", b'{"format": "mercat-receipt-2"}', b"[" * 100_000],
    ids=["empty", "no fields", "list", "no text", "another format", "deep"],
)
def test_what_is_no_receipt_file_is_refused_as_such(content: bytes) -> None:
    with pytest.raises(ReceiptFileInvalid):
        read_receipt_file(content)


def test_a_salt_without_what_it_opens_is_refused(settled: ReceiptFile) -> None:
    bare = msgspec.structs.replace(settled, input=None, output=None)
    with pytest.raises(ReceiptFileInvalid):
        read_receipt_file(write_receipt_file(bare))
    assert verify_receipt(bare, make_genesis()).failed == "salt_used"
    unopened = msgspec.structs.replace(settled, salt=None)
    assert verify_receipt(unopened, make_genesis()).failed == "input_commitment"


def test_the_parties_in_the_report_are_those_of_the_receipt(settled: ReceiptFile) -> None:
    receipt = verify_receipt(settled, make_genesis()).receipt
    assert receipt is not None
    assert (receipt.buyer, receipt.provider) == (account_of("alice"), account_of("bob"))
    assert encode(receipt).hex() in settled.receipt


def settled_after_changes() -> ReceiptFile:
    """A receipt that a block settled whose authorities the genesis does not know."""
    deal = Deal()
    redeem = deal.ledger.transaction("bob", ChannelRedeem(deal.channel, (deal.voucher,))).envelope_bytes
    dynasty = Dynasty([(5, set_of(("auth0", "auth1", "auth2", "new4"))), (9, set_of(("new4", "new5")))], 12)
    header = replace(dynasty.headers[12], transactions_root=transaction_leaf(redeem))
    certificate = certify(dynasty.genesis, dynasty.set_at(12), header)
    return deal.file(SettlementProof(redeem, (), header, certificate, dynasty.successions()))


def test_a_receipt_carries_every_change_of_who_decides_and_no_byte_of_them_can_be_changed() -> None:
    file = settled_after_changes()
    report = verify_receipt(read_receipt_file(write_receipt_file(file)), make_genesis())
    assert report.ok, report.checks[-1]
    assert report.checks[-1].detail == "2 of 2 authorities, after 2 changes of who decides"
    assert file.settlement is not None
    for position, succession in enumerate(file.settlement.successions):
        for place in range(0, len(succession), 23):
            digit = "1" if succession[place] == "0" else "0"
            forged = list(file.settlement.successions)
            forged[position] = succession[:place] + digit + succession[place + 1 :]
            changed = replace(file, settlement=replace(file.settlement, successions=tuple(forged)))
            assert verify_receipt(changed, make_genesis()).failed in ("redeem_transaction", "certificate_quorum")
    without = replace(file, settlement=replace(file.settlement, successions=()))
    assert verify_receipt(without, make_genesis()).failed == "certificate_quorum"


def test_a_checkpoint_stands_for_all_changes_before_it() -> None:
    file = settled_after_changes()
    dynasty = Dynasty([(5, set_of(("auth0", "auth1", "auth2", "new4"))), (9, set_of(("new4", "new5")))], 12)
    checkpoint = trusted_checkpoint(genesis_hash(dynasty.genesis), dynasty.decided(10))
    report = verify_receipt(file, make_genesis(), checkpoint)
    assert report.ok
    assert report.trusted.startswith("block 10 of network ")
    assert report.trusted_at_ms == checkpoint.header.timestamp_ms
