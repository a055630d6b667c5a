"""A ledger with a mistake that makes money, and a leader that knows of it: what the conservation check is for.

Law: the mistake is in every node, as one in the shipped code would be. Only the check by difference stands between the
leader's block and everybody's money. No user meets the mistake by chance: its transfer would be one that no honest node
can decide.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from msgspec.structs import replace

from node.simulation.adversaries import Adversary
from node.simulation.workload import TRANSFER_MAX
from protocol.ledger import blocks, transition
from protocol.ledger.blocks import PendingTransaction, build_block, decode_block
from protocol.ledger.view import Overlay
from protocol.messages import wire
from protocol.messages.consensus import ProposalBody
from protocol.messages.envelope import open_envelope
from protocol.messages.kinds import MessageKind
from protocol.messages.transactions import Output, Transaction, Transfer
from protocol.primitives.codec import encode
from protocol.primitives.units import AccountId, Amount, Height

MAGIC = Amount(TRANSFER_MAX + 13)
"""A transfer of this amount makes as much again; more than any user pays."""
FEE = Amount(1000)


@contextmanager
def generous_ledger() -> Iterator[None]:
    """Transfers of one amount pay twice."""
    honest = transition._transfer

    def generous(overlay: Overlay, sender: AccountId, action: Transfer) -> None:
        honest(overlay, sender, action)
        for output in action.outputs:
            if output.amount == MAGIC:
                account = overlay.account(output.recipient)
                overlay.accounts[output.recipient] = account.with_balance(Amount(account.balance + MAGIC))

    transition._transfer = generous
    try:
        yield
    finally:
        transition._transfer = honest


@contextmanager
def _unchecked() -> Iterator[None]:
    """The liar's own node does not check what its block makes."""
    difference = blocks.supply_difference
    blocks.supply_difference = lambda *arguments: 0
    try:
        yield
    finally:
        blocks.supply_difference = difference


class Counterfeiter(Adversary):
    """Adds a transfer of the magic amount to each new block that it proposes."""

    name = "counterfeit block"

    def says(self, peer: object, message: wire.WireMessage) -> Iterable[wire.WireMessage]:
        if not isinstance(message, wire.Proposal):
            return (message,)
        body, block, state = open_envelope(message.envelope)[1], decode_block(message.block), self.replica.state
        assert isinstance(body, ProposalBody)
        if body.voted_view or block.header.height != state.height + 1:
            return (message,)
        self.struck()
        own = self.node.keys.account
        transfer = Transfer((Output(AccountId(bytes(31) + b"\x01"), MAGIC),))
        nonce = state.account(AccountId(own.public)).nonce
        magic = encode(Transaction(nonce, FEE, Height(1_000_000), transfer))
        received = (own.seal(self.around.genesis_hash, MessageKind.TRANSACTION, magic), *block.transactions)
        candidates = [PendingTransaction.from_bytes(each) for each in received]
        with _unchecked():
            made = build_block(state, candidates, block.header.timestamp_ms, block.parent_certificate)
        signed = self.signed(MessageKind.PROPOSAL, replace(body, block_hash=made.block_hash))
        return (wire.Proposal(signed, made.block_bytes, message.certificates),)
