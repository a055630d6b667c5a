"""A finished job between alice and bob, with everything that its receipt file needs."""

import msgspec

from protocol.ledger.blocks import PendingTransaction
from protocol.ledger.light_client import settlement_proof
from protocol.ledger.merkle import transaction_leaf
from protocol.ledger.receipt_file import ReceiptFile, SettlementProof, make_receipt_file
from protocol.messages.blocks import DecidedBlock
from protocol.messages.envelope import envelope_id, open_envelope
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Acceptance, Agreement, Bid, FinishReason, Prices, Receipt
from protocol.messages.transactions import ChannelRedeem, Output, Transfer
from protocol.primitives.hashing import content_hash
from protocol.primitives.units import (
    Amount,
    ChannelId,
    DurationMs,
    Hash,
    Height,
    Lane,
    MessageId,
    ModelId,
    NodeId,
    Salt,
    SequenceNumber,
    TimestampMs,
    WorkUnits,
)
from protocol.settlement.accumulator import accumulate, prove, receipt_leaf
from protocol.settlement.pricing import amount_due
from protocol.settlement.receipts import input_commitment, output_commitment
from tests.ledger.world import Ledger, account_of, sealed

MANIFEST = b'{"model": "tiny"}'
SALT = Salt(b"s" * 32)
INPUT = b"what is the answer?"
OUTPUT = b"42"
PRICES = Prices(Amount(10), Amount(2_000), Amount(4_000))


def id_of(envelope_bytes: bytes) -> MessageId:
    """The id of an envelope."""
    return envelope_id(open_envelope(envelope_bytes)[0])


class Deal:
    """One job, its signed statements, and a ledger on which its voucher can be redeemed."""

    def __init__(self, amount_off_by: int = 0) -> None:
        self.ledger = ledger = Ledger()
        self.channel: ChannelId = ledger.open_channel("alice", "bob", 10_000)
        genesis = ledger.hash
        model = ModelId(content_hash(MANIFEST))
        bid = Bid(model, WorkUnits(100), WorkUnits(100), Amount(1_000), TimestampMs(9), "none", 1, Hash(b"u" * 32))
        self.bid = sealed(genesis, "alice", MessageKind.BID, bid)
        self.terms = self._terms(model)
        self.agreement = sealed(genesis, "alice", MessageKind.AGREEMENT, self.terms)
        accepted_at = TimestampMs(1_700_000_000_100)
        acceptance = Acceptance(id_of(self.agreement), accepted_at)
        self.acceptance = sealed(genesis, "bob", MessageKind.ACCEPTANCE, acceptance)
        self.amount = amount_due(PRICES, 7, 3) + amount_off_by
        self.receipt_body = self._receipt(accepted_at)
        self.receipt = sealed(genesis, "bob", MessageKind.RECEIPT, self.receipt_body)
        self.leaves = [receipt_leaf(b"an earlier receipt"), receipt_leaf(self.receipt), receipt_leaf(b"a later one")]
        self.voucher = self.make_voucher(cumulative=100 + self.amount)

    def _terms(self, model: ModelId) -> Agreement:
        return Agreement(
            bid=id_of(self.bid),
            offer=MessageId(b"o" * 32),
            buyer=account_of("alice"),
            provider=account_of("bob"),
            buyer_node=NodeId(account_of("alice-node")),
            provider_node=NodeId(account_of("bob-node")),
            model=model,
            runtime_build="echo 1",
            settings="",
            prices=PRICES,
            chunk_units=16,
            input_units_max=WorkUnits(100),
            output_units_max=WorkUnits(100),
            price_ceiling=Amount(1_000),
            input_commitment=input_commitment(SALT, INPUT),
            input_bytes=len(INPUT),
            channel=self.channel,
            lane=Lane(2),
            cumulative_start=Amount(100),
            sequence_start=SequenceNumber(4),
            created_at=TimestampMs(1_700_000_000_000),
            accept_ms=DurationMs(1_000),
            first_output_ms=DurationMs(1_000),
            stall_ms=DurationMs(1_000),
            total_ms=DurationMs(10_000),
            seed=1,
            temperature_milli=0,
            verification="none",
        )

    def _receipt(self, accepted_at: TimestampMs) -> Receipt:
        return Receipt(
            job=id_of(self.agreement),
            bid=self.terms.bid,
            buyer=self.terms.buyer,
            provider=self.terms.provider,
            model=self.terms.model,
            runtime_build=self.terms.runtime_build,
            settings=self.terms.settings,
            input_commitment=self.terms.input_commitment,
            output_commitment=output_commitment(SALT, OUTPUT),
            input_units=WorkUnits(7),
            output_units=WorkUnits(3),
            chunks=2,
            last_chunk=Hash(b"l" * 32),
            amount=Amount(self.amount),
            finish=FinishReason.STOP,
            channel=self.channel,
            lane=Lane(2),
            accepted_at=accepted_at,
            finished_at=TimestampMs(accepted_at + 50),
        )

    def make_voucher(self, cumulative: int, sequence: int = 6, payer: str = "alice", lane: int = 2) -> bytes:
        """A voucher that commits to the three receipts of the lane."""
        root = accumulate(self.leaves).root()
        return self.ledger.voucher(self.channel, payer, "bob", sequence, cumulative, lane, root, len(self.leaves))

    def claim(self, transaction: bytes) -> SettlementProof:
        """A proof that a quorum decided a block with this transaction alone, whatever it is."""
        leaf = transaction_leaf(transaction)
        header = msgspec.structs.replace(self.ledger.state.tip, height=Height(9), transactions_root=leaf)
        return SettlementProof(transaction, (), header, self.ledger.certify(header))

    def settle(self, by: str = "bob", *vouchers: bytes) -> SettlementProof:
        """Redeem the voucher in a block with other transactions around it."""
        redeem = self.ledger.transaction(by, ChannelRedeem(self.channel, vouchers or (self.voucher,)))
        others = [self._payment(name) for name in ("carol", "dave")]
        execution = self.ledger.include(others[0], redeem, others[1])
        self.decided = DecidedBlock(execution.block_bytes, self.ledger.decided(execution))
        return settlement_proof(self.decided, redeem.transaction_id)

    def _payment(self, name: str) -> PendingTransaction:
        return self.ledger.transaction(name, Transfer((Output(account_of("alice"), Amount(1)),)))

    def file(self, settlement: SettlementProof | None = None, **changes: bytes) -> ReceiptFile:
        """The receipt file; ``changes`` replace envelopes."""
        parts = {
            "bid": self.bid,
            "agreement": self.agreement,
            "acceptance": self.acceptance,
            "receipt": self.receipt,
            "voucher": self.voucher,
            **changes,
        }
        return make_receipt_file(
            self.ledger.hash,
            bid=parts["bid"],
            agreement=parts["agreement"],
            acceptance=parts["acceptance"],
            receipt=parts["receipt"],
            voucher=parts["voucher"],
            proof=prove(self.leaves, 1),
            manifest=MANIFEST,
            salt=SALT,
            input_payload=INPUT,
            output=OUTPUT,
            settlement=settlement,
        )
