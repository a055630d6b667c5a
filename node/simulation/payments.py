"""Every decided transaction once: nonces without a gap, vouchers never paid twice.

Law: judged from the bytes of the decided blocks alone, beside the ledger and without its code for accounts and
channels.
"""

from node.simulation.violation import Violation
from protocol.ledger.channels import open_voucher
from protocol.ledger.signatures import open_transaction
from protocol.messages.blocks import Block
from protocol.messages.transactions import ChannelRedeem
from protocol.primitives.units import ChannelId


class Payments:
    """What the decided blocks have paid so far, in order of their heights."""

    def __init__(self) -> None:
        self._nonces: dict[bytes, int] = {}
        """Sender → its next nonce."""
        self._paid: dict[tuple[ChannelId, int], tuple[int, int]] = {}
        """(channel, lane) → sequence and cumulative amount of the last voucher that was paid."""

    def on_block(self, block: Block) -> None:
        """Take the next decided block."""
        for received in block.transactions:
            envelope, transaction = open_transaction(received)
            expected = self._nonces.get(envelope.sender, 0)
            if transaction.nonce != expected:
                raise Violation(f"nonce {transaction.nonce} was decided where {expected} was next")
            self._nonces[envelope.sender] = expected + 1
            if isinstance(transaction.action, ChannelRedeem):
                self._on_redeem(bytes(envelope.sender), transaction.action)

    def _on_redeem(self, sender: bytes, action: ChannelRedeem) -> None:
        for received in action.vouchers:
            _, voucher = open_voucher(received)
            if bytes(voucher.payee) != sender:
                continue  # The payer's redeem anchors its vouchers and pays nobody.
            lane = (voucher.channel, voucher.lane)
            sequence, cumulative = self._paid.get(lane, (0, 0))
            if voucher.sequence <= sequence:
                raise Violation(f"voucher {voucher.sequence} of a lane was decided after {sequence}")
            if voucher.cumulative < cumulative:
                raise Violation(f"a lane was paid {voucher.cumulative} in all after {cumulative}")
            self._paid[lane] = (voucher.sequence, voucher.cumulative)
