"""Which signatures a transaction or block carries: what the door checks before the ledger sees it.

Law: every signature that a transaction relies on is in this list, those of vouchers inside a redeem and of statements
inside a report included. That a voucher's signer is the payer of its channel is left to execution,
which alone knows the channel.
"""

from protocol.ledger.channels import open_voucher
from protocol.ledger.errors import NotATransaction
from protocol.ledger.evidence import open_statement
from protocol.ledger.tracks import open_report
from protocol.messages.blocks import Block
from protocol.messages.envelope import Envelope, open_as, signature_check
from protocol.messages.kinds import MessageKind
from protocol.messages.transactions import ChannelRedeem, EvidenceReport, FailureReport, Transaction
from protocol.primitives.errors import MalformedMessage
from protocol.primitives.signing import SignatureCheck
from protocol.primitives.units import Hash


def open_transaction(received: bytes) -> tuple[Envelope, Transaction]:
    """A transaction's envelope and content; ``NotATransaction`` on anything else."""
    try:
        envelope, transaction = open_as(received, MessageKind.TRANSACTION)
    except MalformedMessage as error:
        raise NotATransaction(reason=str(error)) from None
    assert isinstance(transaction, Transaction)
    return envelope, transaction


def nested_checks(genesis_hash: Hash, envelope: Envelope, transaction: Transaction) -> list[SignatureCheck]:
    """The checks of what is signed inside an action: vouchers in a redeem, statements in a report.

    Raises ``NotATransaction``.

    The envelope's own check is not among them: see ``transaction_checks``.
    """
    del envelope  # No action's inner signatures depend on it yet; callers have it at hand.
    match transaction.action:
        case ChannelRedeem() as redeem:
            return [signature_check(genesis_hash, open_voucher(received)[0]) for received in redeem.vouchers]
        case EvidenceReport() as report:
            return [
                signature_check(genesis_hash, open_statement(received)[0]) for received in (report.first, report.second)
            ]
        case FailureReport() as report:
            said = open_report(report)
            return [signature_check(genesis_hash, each) for each in (said.agreed, said.accepted, said.failed)]
        case _:
            return []


def transaction_checks(genesis_hash: Hash, received: bytes) -> list[SignatureCheck]:
    """All checks of one transaction, its envelope's first. Raises ``NotATransaction``."""
    envelope, transaction = open_transaction(received)
    return [signature_check(genesis_hash, envelope), *nested_checks(genesis_hash, envelope, transaction)]


def block_checks(genesis_hash: Hash, block: Block) -> list[SignatureCheck]:
    """All checks of a block's transactions. Raises ``NotATransaction``."""
    return [check for received in block.transactions for check in transaction_checks(genesis_hash, received)]
