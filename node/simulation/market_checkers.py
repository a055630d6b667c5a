"""What must hold of money that changes hands off the ledger, seen from above.

Law: a voucher is signed once for each sequence; it never promises more than the provider has delivered; a provider
releases no second unpaid chunk, and what it was paid for the last one is on its disk before it releases the next.
"""

from collections.abc import Iterable

from node.simulation.checkers import Violation
from node.simulation.disk import SimulatedDisk
from protocol.ledger.blocks import decode_block
from protocol.ledger.channels import open_voucher
from protocol.ledger.signatures import open_transaction
from protocol.market.events import JobCancelled, JobFailed, JobFinished
from protocol.market.records import SellerLane, lane_key
from protocol.messages.blocks import DecidedBlock
from protocol.messages.effects import Table
from protocol.messages.envelope import message_id
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Agreement, Chunk, Voucher
from protocol.messages.transactions import ChannelRedeem
from protocol.primitives.codec import Message, decode
from protocol.primitives.units import ChannelId, MessageId

LaneName = tuple[ChannelId, int]


class MarketCheckers:
    """One set of checkers for all buyers and providers."""

    def __init__(self) -> None:
        self.finished = self.failed = self.cancelled = 0
        self._agreements: dict[MessageId, Agreement] = {}
        self._dues: dict[MessageId, dict[int, int]] = {}
        """Job → chunk index → what the job has cost with that chunk."""
        self._vouchers: dict[tuple[LaneName, int], bytes] = {}

    def on_sign(self, account: bytes, kind: MessageKind, payload: bytes) -> None:
        """An account is about to sign a statement of the market."""
        match kind:
            case MessageKind.AGREEMENT:
                self._agreements[message_id(kind, account, payload)] = decode(payload, Agreement)
            case MessageKind.VOUCHER:
                self._on_voucher(decode(payload, Voucher), payload)
            case _:
                pass

    def on_send(self, chunk: Chunk, disk: SimulatedDisk) -> None:
        """A chunk leaves its provider; it may have been signed while the voucher before it went to disk."""
        self._on_chunk(chunk, disk)

    def on_event(self, name: str, event: Message) -> None:
        """Somebody was told how a job ended."""
        match event:
            case JobFinished():
                self.finished += 1
            case JobFailed():
                self.failed += 1
            case JobCancelled():
                self.cancelled += 1
            case _:
                pass

    def _on_chunk(self, chunk: Chunk, disk: SimulatedDisk) -> None:
        dues = self._dues.setdefault(chunk.job, {})
        if dues.setdefault(chunk.index, chunk.due) != chunk.due:
            raise Violation(f"chunk {chunk.index} was signed twice with two prices")
        if chunk.index == 0:
            return
        agreement = self._agreements[chunk.job]
        row = disk.tables[Table.SELLER_LANE].get(lane_key(agreement.channel, agreement.lane))
        paid = decode(row, SellerLane).position.cumulative - agreement.cumulative_start if row is not None else 0
        if paid < dues[chunk.index - 1]:
            raise Violation(f"chunk {chunk.index} was released while {dues[chunk.index - 1] - paid} were owed")

    def _on_voucher(self, voucher: Voucher, payload: bytes) -> None:
        lane = (voucher.channel, voucher.lane)
        if self._vouchers.setdefault((lane, voucher.sequence), payload) != payload:
            raise Violation(f"two vouchers with sequence {voucher.sequence} on one lane")
        delivered = sum(
            max(self._dues.get(job, {0: 0}).values())
            for job, agreement in self._agreements.items()
            if (agreement.channel, agreement.lane) == lane
        )
        if voucher.cumulative > delivered:
            raise Violation(f"a voucher promises {voucher.cumulative} for {delivered} delivered")

    def check_redeemed(self, blocks: Iterable[DecidedBlock], disks: Iterable[SimulatedDisk]) -> None:
        """After all channels are closed: every provider was paid, once, exactly what its best vouchers say."""
        paid: dict[LaneName, int] = {}
        for decided in blocks:
            for received in decode_block(decided.block).transactions:
                envelope, transaction = open_transaction(received)
                if not isinstance(transaction.action, ChannelRedeem):
                    continue
                for voucher_bytes in transaction.action.vouchers:
                    _, voucher = open_voucher(voucher_bytes)
                    if bytes(voucher.payee) == bytes(envelope.sender):
                        paid[(voucher.channel, voucher.lane)] = voucher.cumulative
        for disk in disks:
            for value in disk.tables[Table.SELLER_LANE].values():
                row = decode(value, SellerLane)
                got = paid.get((row.channel, row.lane), 0)
                if got != row.position.cumulative:
                    raise Violation(f"a provider holds a voucher over {row.position.cumulative} and was paid {got}")
