"""Receipt files from what the store holds: the parties' signed statements and, once there, the ledger's proof.

Law: the file holds what was signed, as it was signed. A receipt counts as settled by the first anchored voucher of its
lane that commits to it.
"""

from node.runtime.control import ControlError
from node.store.archive import succession_rows
from node.store.database import Store
from node.worker.models import ModelStore
from protocol.engine.anchors import AnchorRow, anchor_key
from protocol.ledger.light_client import settlement_proof
from protocol.ledger.receipt_file import EarlierPart, make_receipt_file, write_receipt_file
from protocol.market.records import JobStatements, ReceiptLeaf, ReceiptRecord, receipt_lane_key
from protocol.messages.effects import Table
from protocol.messages.envelope import open_as
from protocol.messages.genesis import Genesis, genesis_hash
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Agreement, Receipt, Voucher
from protocol.primitives.codec import decode
from protocol.primitives.limits import EARLIER_PARTS_MAX
from protocol.primitives.units import MessageId
from protocol.settlement.accumulator import prove


class ReceiptDesk:
    """Finds receipts, their anchors, and writes them out."""

    def __init__(self, store: Store, genesis: Genesis, models: ModelStore | None = None) -> None:
        self._store = store
        self._genesis_hash = genesis_hash(genesis)
        self._models = models

    def record(self, job: MessageId) -> ReceiptRecord:
        """The stored receipt of a job; ``ControlError`` when it never came to one."""
        found = self._store.get(Table.RECEIPT, job)
        if found is None:
            raise ControlError("receipt_not_found", f"job {job.hex()[:16]} has no receipt")
        return decode(found, ReceiptRecord)

    def anchor(self, record: ReceiptRecord) -> AnchorRow | None:
        """Where the ledger first committed to this receipt."""
        first = anchor_key(record.channel, record.lane, record.proof.index + 1)
        last = anchor_key(record.channel, record.lane, 2**63)
        found = self._store.values_between(Table.ANCHOR, first, last, 1)
        return decode(found[0], AnchorRow) if found else None

    def settled_height(self, job: MessageId) -> int | None:
        """Height of the block that anchors a job's receipt."""
        found = self._store.get(Table.RECEIPT, job)
        anchor = self.anchor(decode(found, ReceiptRecord)) if found is not None else None
        return anchor.height if anchor is not None else None

    def best_voucher(self, record: ReceiptRecord) -> bytes:
        """The latest voucher of the receipt's lane that we know to be final."""
        return self.record(self._lane(record)[-1].job).final_voucher

    def file(self, job: MessageId) -> bytes:
        """The receipt file's JSON."""
        record = self.record(job)
        anchor = self.anchor(record)
        voucher, proof, settlement = record.final_voucher, record.proof, None
        if anchor is not None:
            decided = self._store.decided_block(anchor.height)
            assert decided is not None, "an anchor names a stored block"
            successions = succession_rows(self._store, anchor.height)
            settlement = settlement_proof(decided, anchor.transaction, successions)
            voucher = anchor.voucher
            count = _voucher(voucher).receipts_count
            leaves = [each.leaf for each in self._lane(record)]
            proof = prove(leaves[:count], record.proof.index)
        if not voucher:
            raise ControlError("not_receipted", "the buyer's voucher that commits to this receipt has not come yet")
        return write_receipt_file(
            make_receipt_file(
                self._genesis_hash,
                bid=record.bid,
                agreement=record.agreement,
                acceptance=record.acceptance,
                receipt=record.receipt,
                voucher=voucher,
                proof=proof,
                salt=record.salt,
                input_payload=record.input,
                output=record.output,
                settlement=settlement,
                earlier=self._earlier(record.agreement),
            )
        )

    def _earlier(self, agreement: bytes) -> tuple[EarlierPart, ...]:
        """What is kept of the providers behind whom an agreement goes on, oldest first."""
        parts: list[EarlierPart] = []
        continues = _agreement(agreement).continues
        while continues is not None and len(parts) < EARLIER_PARTS_MAX:
            found = self._store.get(Table.JOB_STATEMENT, continues.job)
            if found is None:  # the buyer alone knows whom it asked before
                return ()
            said = decode(found, JobStatements)
            voucher = said.voucher.hex() if said.voucher else None
            parts.append(EarlierPart(said.agreement.hex(), said.acceptance.hex(), said.chunk.hex(), voucher))
            continues = _agreement(said.agreement).continues
        return tuple(reversed(parts))

    def _lane(self, record: ReceiptRecord) -> list[ReceiptLeaf]:
        """The lane's receipts in their order; at least this one."""
        first = receipt_lane_key(record.channel, record.lane, 0)
        last = receipt_lane_key(record.channel, record.lane, 2**63)
        found = self._store.values_between(Table.RECEIPT_LANE, first, last, -1)
        return [decode(value, ReceiptLeaf) for value in found]


def receipt_of(record: ReceiptRecord) -> Receipt:
    """The provider's statement inside a record."""
    _, receipt = open_as(record.receipt, MessageKind.RECEIPT)
    assert isinstance(receipt, Receipt)
    return receipt


def _agreement(envelope_bytes: bytes) -> Agreement:
    _, agreement = open_as(envelope_bytes, MessageKind.AGREEMENT)
    assert isinstance(agreement, Agreement)
    return agreement


def _voucher(envelope_bytes: bytes) -> Voucher:
    _, voucher = open_as(envelope_bytes, MessageKind.VOUCHER)
    assert isinstance(voucher, Voucher)
    return voucher
