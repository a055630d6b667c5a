"""Verifying without a ledger: headers, certificates, Merkle paths and receipt files, from a genesis alone.

Law: nothing is believed that is not signed by a key that the genesis names, or by the two parties of the job; every
field of a receipt file is covered by a named check, and the first one that fails names what is wrong.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from protocol.ledger.channels import open_voucher
from protocol.ledger.earlier_work import EarlierWorkInvalid, verify_earlier_work, verify_prefix
from protocol.ledger.errors import NotATransaction
from protocol.ledger.light_chain import (
    ProofInvalid,
    TrustedHeader,
    deciding_set,
    trusted_below,
    trusted_genesis,
    trusted_text,
    verify_decided,
)
from protocol.ledger.merkle import merkle_path, merkle_root, root_of_path, transaction_leaf
from protocol.ledger.receipt_file import ReceiptFile, SettlementProof, accumulator_proof, settlement_of
from protocol.ledger.signatures import open_transaction
from protocol.messages.blocks import Block, DecidedBlock, Succession, header_hash
from protocol.messages.envelope import Envelope, envelope_id, open_as, signature_check
from protocol.messages.genesis import Genesis, genesis_hash
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Acceptance, Agreement, Bid, Receipt, Voucher
from protocol.messages.transactions import ChannelRedeem
from protocol.primitives.codec import Message, decode
from protocol.primitives.errors import AmountOutOfRange, MalformedMessage, RemoteProtocolError
from protocol.primitives.hashing import content_hash
from protocol.primitives.units import AccountId, ChannelId, Hash, Height, MessageId, ModelId, Salt, TimestampMs
from protocol.settlement.accumulator import receipt_leaf, verify_membership
from protocol.settlement.pricing import amount_due
from protocol.settlement.receipts import ReceiptInvalid, check_receipt_terms, input_commitment, output_commitment

M = TypeVar("M", bound=Message)


def settlement_proof(
    decided: DecidedBlock, transaction_id: MessageId, successions: tuple[Succession, ...] = ()
) -> SettlementProof:
    """The proof that a decided block holds a transaction; ``KeyError`` if it doesn't. Trusts the block.

    ``successions`` are the changes of who decides that headers below the block name.
    """
    block = decode(decided.block, Block)
    for index, received in enumerate(block.transactions):
        if envelope_id(open_transaction(received)[0]) == transaction_id:
            path = merkle_path([transaction_leaf(each) for each in block.transactions], index)
            return SettlementProof(received, path, block.header, decided.certificate, successions)
    raise KeyError(transaction_id.hex())


def redeemed_voucher(transaction: bytes, channel: ChannelId, lane: int) -> bytes | None:
    """The envelope of the voucher that a redeem transaction carries for a lane, or ``None``."""
    _, content = open_transaction(transaction)
    if not isinstance(content.action, ChannelRedeem) or content.action.channel != channel:
        return None
    return next((each for each in content.action.vouchers if open_voucher(each)[1].lane == lane), None)


class Check(NamedTuple):
    """One thing that was checked, and what was found."""

    name: str
    ok: bool
    detail: str


class VerifyReport(NamedTuple):
    """Everything that was checked, in order, up to the first failure."""

    checks: tuple[Check, ...]
    trusted: str
    """What had to be believed: the genesis or a checkpoint, and its authorities."""
    trusted_at_ms: TimestampMs
    """When that was made: how old the trust is."""
    settlement: str
    """``settled``: the provider was paid; ``anchored``: a block holds the voucher, unpaid; ``not settled``."""
    height: Height | None
    """The block that settles or anchors the receipt."""
    timestamp_ms: TimestampMs | None
    """When that block was made, by its authorities' clocks: how old the proof is."""
    receipt: Receipt | None

    @property
    def failed(self) -> str | None:
        """Name of the first check that failed, or ``None``."""
        return next((check.name for check in self.checks if not check.ok), None)

    @property
    def ok(self) -> bool:
        """True if every check held."""
        return self.failed is None


class _Failed(Exception):
    """A check does not hold; the text says why."""


def _signed(genesis: Hash, hexadecimal: str, kind: MessageKind, body: type[M]) -> tuple[Envelope, M]:
    try:
        envelope, content = open_as(bytes.fromhex(hexadecimal), kind)
    except MalformedMessage as error:
        raise _Failed(str(error)) from None
    assert isinstance(content, body)
    if not signature_check(genesis, envelope).holds():
        raise _Failed(f"the signature does not hold under key {envelope.sender.hex()}")
    return envelope, content


class _Case:
    """A receipt file under examination. Each method is one check; later ones use what earlier ones have opened.

    A check returns what it found, or ``None`` where the file makes no such claim.
    """

    bid: Bid
    bid_envelope: Envelope
    agreement: Agreement
    agreement_envelope: Envelope
    acceptance: Acceptance
    acceptance_envelope: Envelope
    receipt: Receipt
    receipt_envelope: Envelope
    voucher: Voucher
    proof: SettlementProof

    def __init__(self, file: ReceiptFile, genesis: Genesis, checkpoint: TrustedHeader | None) -> None:
        self.file = file
        self.hash = genesis_hash(genesis)
        self.trusted = trusted_genesis(genesis)
        self.checkpoint = checkpoint
        self.believed = self.trusted
        self.settlement = "not settled"

    def genesis_matches(self) -> str:
        if self.file.genesis != self.hash.hex():
            raise _Failed(f"the file is of network {self.file.genesis}, not {self.hash.hex()}")
        return f"network {self.file.genesis}"

    def bid_signature(self) -> str:
        self.bid_envelope, self.bid = _signed(self.hash, self.file.bid, MessageKind.BID, Bid)
        return f"by buyer {self.bid_envelope.sender.hex()}"

    def agreement_signature(self) -> str:
        self.agreement_envelope, self.agreement = _signed(
            self.hash, self.file.agreement, MessageKind.AGREEMENT, Agreement
        )
        return f"by buyer {self.agreement_envelope.sender.hex()}"

    def acceptance_signature(self) -> str:
        self.acceptance_envelope, self.acceptance = _signed(
            self.hash, self.file.acceptance, MessageKind.ACCEPTANCE, Acceptance
        )
        return f"by provider {self.acceptance_envelope.sender.hex()}"

    def receipt_signature(self) -> str:
        self.receipt_envelope, self.receipt = _signed(self.hash, self.file.receipt, MessageKind.RECEIPT, Receipt)
        return f"by provider {self.receipt_envelope.sender.hex()}"

    def parties_match(self) -> str:
        buyer, provider = self.agreement.buyer, self.agreement.provider
        for name, envelope, party in (
            ("bid", self.bid_envelope, buyer),
            ("agreement", self.agreement_envelope, buyer),
            ("acceptance", self.acceptance_envelope, provider),
            ("receipt", self.receipt_envelope, provider),
        ):
            if AccountId(envelope.sender) != party:
                raise _Failed(f"the {name} is signed by somebody else than the agreement says")
        return "bid and agreement by the buyer, acceptance and receipt by the provider"

    def terms_match(self) -> str:
        agreement, receipt = self.agreement, self.receipt
        job = envelope_id(self.agreement_envelope)
        if envelope_id(self.bid_envelope) != agreement.bid:
            raise _Failed("the agreement is for another bid")
        if agreement.model != self.bid.model or agreement.price_ceiling > self.bid.price_ceiling:
            raise _Failed("the agreement is for another model or a higher price than the bid")
        if self.acceptance.job != job:
            raise _Failed("the acceptance is for another agreement")
        if self.acceptance.accepted_at != receipt.accepted_at:
            raise _Failed("acceptance and receipt differ in when the job was accepted")
        try:
            check_receipt_terms(receipt, job, agreement)
        except ReceiptInvalid as error:
            if error.field != "amount":  # amount_matches_prices says it in its own name
                raise _Failed(str(error)) from None
        return f"job {job.hex()}"

    def amount_matches_prices(self) -> str:
        receipt = self.receipt
        try:
            due = amount_due(self.agreement.prices, receipt.input_units, receipt.output_units)
        except AmountOutOfRange as error:
            raise _Failed(str(error)) from None
        if receipt.amount != due:
            raise _Failed(f"the receipt says {receipt.amount}, the agreed prices give {due}")
        if due > self.agreement.price_ceiling:
            raise _Failed(f"{due} is above the agreed ceiling of {self.agreement.price_ceiling}")
        return f"{due} base units for {receipt.input_units} units in, {receipt.output_units} out"

    def model_manifest(self) -> str | None:
        if self.file.manifest is None:
            return None
        if ModelId(content_hash(bytes.fromhex(self.file.manifest))) != self.receipt.model:
            raise _Failed("the manifest is that of another model")
        return f"model {self.receipt.model.hex()}"

    def _opens(self, name: str, content: str | None, commit: Callable[[Salt, bytes], Hash], to: Hash) -> str | None:
        if content is None:
            return None
        if self.file.salt is None:
            raise _Failed(f"the {name} is in the file without the salt")
        if commit(Salt(bytes.fromhex(self.file.salt)), bytes.fromhex(content)) != to:
            raise _Failed(f"the {name} in the file is not the one that was committed to")
        return f"{len(content) // 2} bytes"

    def input_commitment(self) -> str | None:
        return self._opens("input", self.file.input, input_commitment, self.receipt.input_commitment)

    def output_commitment(self) -> str | None:
        return self._opens("output", self.file.output, output_commitment, self.receipt.output_commitment)

    def earlier_work(self) -> str | None:
        agreement, parts = self.agreement, self.file.earlier
        if agreement.continues is None:
            if parts:
                raise _Failed("the agreement goes on from nothing, the file shows earlier work")
            return None
        try:
            work = verify_earlier_work(self.hash, agreement, parts) if parts else None
            if self.file.input is not None and self.file.salt is not None:
                verify_prefix(agreement, Salt(bytes.fromhex(self.file.salt)), bytes.fromhex(self.file.input))
        except EarlierWorkInvalid as error:
            raise _Failed(str(error)) from None
        behind = f"goes on behind {agreement.continues.output_units} units of job {agreement.continues.job.hex()}"
        if work is None:
            return f"{behind}, which the file does not show"
        providers = f"{len(parts)} earlier provider{'s' if len(parts) > 1 else ''}"
        if work.paid < work.due:
            return f"{behind}; {work.due} base units due to {providers}, {work.paid} shown to be paid"
        return f"{behind}; {work.due} base units paid to {providers}"

    def salt_used(self) -> str | None:
        if self.file.salt is not None and self.file.input is None and self.file.output is None:
            raise _Failed("the salt opens nothing in the file")
        return None

    def voucher_signature(self) -> str:
        envelope, self.voucher = _signed(self.hash, self.file.voucher, MessageKind.VOUCHER, Voucher)
        if AccountId(envelope.sender) != self.receipt.buyer:
            raise _Failed("the voucher is signed by somebody else than the buyer")
        return f"by buyer {envelope.sender.hex()}"

    def voucher_pays(self) -> str:
        voucher, agreement = self.voucher, self.agreement
        if (voucher.channel, voucher.payee, voucher.lane) != (agreement.channel, agreement.provider, agreement.lane):
            raise _Failed("the voucher is for another channel, payee or lane")
        if voucher.sequence <= agreement.sequence_start:
            raise _Failed("the voucher is older than the job")
        owed = agreement.cumulative_start + self.receipt.amount
        if voucher.cumulative < owed:
            raise _Failed(f"the voucher promises {voucher.cumulative} on its lane, {owed} were owed")
        return f"voucher {voucher.sequence} promises {voucher.cumulative} on its lane, {owed} were owed"

    def receipt_in_voucher(self) -> str:
        leaf = receipt_leaf(bytes.fromhex(self.file.receipt))
        proof = accumulator_proof(self.file.accumulator)
        if not verify_membership(self.voucher.receipts_root, self.voucher.receipts_count, leaf, proof):
            raise _Failed("the voucher's receipts root does not hold this receipt")
        return f"receipt {proof.index} of {self.voucher.receipts_count} on its lane"

    def redeem_transaction(self) -> str | None:
        if self.file.settlement is None:
            return None
        try:
            self.proof = settlement_of(self.file.settlement)
            envelope, transaction = open_transaction(self.proof.transaction)
        except (MalformedMessage, NotATransaction) as error:
            raise _Failed(str(error)) from None
        if not signature_check(self.hash, envelope).holds():
            raise _Failed("the transaction's signature does not hold")
        action = transaction.action
        if not isinstance(action, ChannelRedeem) or action.channel != self.voucher.channel:
            raise _Failed("the transaction redeems nothing on this channel")
        if bytes.fromhex(self.file.voucher) not in action.vouchers:
            raise _Failed("the transaction redeems another voucher")
        sender = AccountId(envelope.sender)
        if sender not in (self.receipt.provider, self.receipt.buyer):
            raise _Failed("the transaction is by neither party")
        self.settlement = "settled" if sender == self.receipt.provider else "anchored"
        return f"transaction {envelope_id(envelope).hex()}"

    def transaction_in_block(self) -> str | None:
        if self.file.settlement is None:
            return None
        header = self.proof.header
        if root_of_path(transaction_leaf(self.proof.transaction), self.proof.path) != header.transactions_root:
            raise _Failed("the path does not lead from the transaction to the header")
        return f"block {header.height} {header_hash(header).hex()}"

    def certificate_quorum(self) -> str | None:
        if self.file.settlement is None:
            return None
        try:
            self.believed = trusted_below(self.trusted, self.checkpoint, self.proof.header)
            authorities = deciding_set(self.trusted, self.checkpoint, self.proof.successions, self.proof.header)
            verify_decided(self.hash, authorities, self.proof.header, self.proof.certificate)
        except RemoteProtocolError as error:
            raise _Failed(str(error)) from None
        successions = len(self.proof.successions)
        through = f", after {successions} change{'s' if successions > 1 else ''} of who decides" if successions else ""
        return f"{len(self.proof.certificate.signers)} of {authorities.n} authorities{through}"


_CHECKS: tuple[Callable[[_Case], str | None], ...] = (
    _Case.genesis_matches,
    _Case.bid_signature,
    _Case.agreement_signature,
    _Case.acceptance_signature,
    _Case.receipt_signature,
    _Case.parties_match,
    _Case.terms_match,
    _Case.amount_matches_prices,
    _Case.model_manifest,
    _Case.input_commitment,
    _Case.output_commitment,
    _Case.earlier_work,
    _Case.salt_used,
    _Case.voucher_signature,
    _Case.voucher_pays,
    _Case.receipt_in_voucher,
    _Case.redeem_transaction,
    _Case.transaction_in_block,
    _Case.certificate_quorum,
)


def verify_receipt(file: ReceiptFile, genesis: Genesis, checkpoint: TrustedHeader | None = None) -> VerifyReport:
    """Check everything that a receipt file claims, offline. Stops at the first check that fails. Never raises.

    A block above the checkpoint has to be decided by authorities that follow from it, any other by those that follow
    from the genesis.
    """
    case = _Case(file, genesis, checkpoint)
    checks: list[Check] = []
    for check in _CHECKS:
        try:
            detail = check(case)
        except _Failed as error:
            checks.append(Check(check.__name__, False, str(error)))
            break
        if detail is not None:
            checks.append(Check(check.__name__, True, detail))
    ok = all(check.ok for check in checks)
    settled = ok and file.settlement is not None
    return VerifyReport(
        checks=tuple(checks),
        trusted=trusted_text(case.believed),
        trusted_at_ms=case.believed.header.timestamp_ms,
        settlement=case.settlement if ok else "not settled",
        height=case.proof.header.height if settled else None,
        timestamp_ms=case.proof.header.timestamp_ms if settled else None,
        receipt=case.receipt if ok else None,
    )


__all__ = [
    "Check",
    "ProofInvalid",
    "VerifyReport",
    "merkle_path",
    "merkle_root",
    "redeemed_voucher",
    "settlement_proof",
    "verify_decided",
    "verify_receipt",
]
