"""The ledger as people see it: blocks, accounts and supply turned into views."""

from collections.abc import Callable

from node.runtime.control import (
    AccountView,
    BlockTransactionView,
    BlockView,
    ControlError,
    LedgerView,
    RegistrationView,
    SupplyView,
)
from node.worker.errors import BadDescription
from node.worker.models import parse_manifest
from protocol.ledger.evidence import accusation
from protocol.ledger.state import LedgerState
from protocol.ledger.tracks import open_report
from protocol.messages import governance, transactions
from protocol.messages.blocks import Block, DecidedBlock, header_hash
from protocol.messages.envelope import envelope_id, open_as
from protocol.messages.genesis import Genesis
from protocol.messages.kinds import MessageKind
from protocol.messages.quorum import AuthoritySet
from protocol.messages.transactions import MANIFEST_CARRIED_BYTES_MAX, ModelRegister
from protocol.primitives.addresses import AddressInvalid, AddressKind, format_address, parse_address
from protocol.primitives.codec import decode
from protocol.primitives.hashing import content_hash
from protocol.primitives.units import AccountId, Hash, ModelId, checked_sum, format_credits


def account_text(account: bytes) -> str:
    """``mc1…``"""
    return format_address(AddressKind.ACCOUNT, account)


def account_argument(text: str) -> AccountId:
    """An account that the user typed."""
    try:
        return AccountId(parse_address(AddressKind.ACCOUNT, text))
    except AddressInvalid as error:
        raise ControlError("bad_address", str(error), exit_code=2) from None


def ledger_view(state: LedgerState, authorities: AuthoritySet, pending: int) -> LedgerView:
    """The tip and who decides."""
    return LedgerView(
        height=state.tip.height,
        block_hash=state.tip_hash.hex(),
        timestamp_ms=state.tip.timestamp_ms,
        ledger_time_ms=state.tip.ledger_time_ms,
        state_root=state.tip.state_root.hex(),
        authorities=tuple(format_address(AddressKind.AUTHORITY, record.authority) for record in authorities.records),
        quorum=authorities.quorum,
        pending_transactions=pending,
    )


def account_view(state: LedgerState, account: AccountId) -> AccountView:
    """What an account has: free, bonded, and left in channels that it pays into."""
    held = state.account(account)
    bond = state.bond(account)
    channels = [channel for _, channel in state.channels_of(account) if channel.payer == account]
    return AccountView(
        account=account_text(account),
        balance=held.balance,
        nonce=held.nonce,
        bond=bond.amount,
        bond_unlocking=bond.unlocking,
        in_channels=checked_sum(channel.deposit - channel.redeemed for channel in channels),
    )


def supply_view(state: LedgerState, genesis: Genesis) -> SupplyView:
    """All credits there are, and where; ``total`` equals what came in less what left, or something is very wrong."""
    supply = state.supply_kept()
    return SupplyView(
        balances=supply.balances,
        deposits=supply.deposits,
        bonds=supply.bonds,
        fee_pool=supply.fee_pool,
        total=supply.total,
        genesis_total=checked_sum(
            amount for allocation in genesis.allocations for amount in (allocation.balance, allocation.bond)
        ),
        issued_by_vote=state.charter.minting.issued,
        redeemed_by_vote=state.charter.minting.redeemed,
    )


def block_view(decided: DecidedBlock, set_of: Callable[[Hash], AuthoritySet | None]) -> BlockView:
    """A decided block with its signers and what its transactions do; ``set_of`` knows sets by their hash.

    Signers of a set that is not known any more are told by their seats.
    """
    block = decode(decided.block, Block)
    header = block.header
    authorities = set_of(header.authorities_hash)
    return BlockView(
        height=header.height,
        block_hash=header_hash(header).hex(),
        parent=header.parent.hex(),
        timestamp_ms=header.timestamp_ms,
        ledger_time_ms=header.ledger_time_ms,
        state_root=header.state_root.hex(),
        transactions_root=header.transactions_root.hex(),
        view=decided.certificate.view,
        signers=tuple(
            f"seat {signer}"
            if authorities is None
            else format_address(AddressKind.AUTHORITY, authorities.records[signer].authority)
            for signer in decided.certificate.signers
        ),
        transactions=tuple(_transaction_view(envelope) for envelope in block.transactions),
    )


def _transaction_view(envelope_bytes: bytes) -> BlockTransactionView:
    envelope, payload = open_as(envelope_bytes, MessageKind.TRANSACTION)
    assert isinstance(payload, transactions.Transaction)
    return BlockTransactionView(
        transaction=envelope_id(envelope).hex(),
        sender=account_text(envelope.sender),
        nonce=payload.nonce,
        fee=payload.fee,
        action=type(payload.action).__name__,
        detail=describe(payload.action),
    )


def model_argument(text: str) -> ModelId:
    """A model's id as people write it: 64 hexadecimal digits, or ``mcmodel1…``. Raises ``ControlError``."""
    try:
        if len(text) == 64:
            return ModelId(bytes.fromhex(text))
        return ModelId(parse_address(AddressKind.MODEL, text))
    except (ValueError, AddressInvalid):
        raise ControlError("bad_model", f"not a model's id: {text[:80]!r}", exit_code=2) from None


def registration_view(state: LedgerState, model: ModelId) -> RegistrationView:
    """Who published a model."""
    found = state.registration(model)
    shown = format_address(AddressKind.MODEL, model)
    if found is None:
        return RegistrationView(shown, False, None, None, None)
    return RegistrationView(shown, True, account_text(found.publisher), found.height, found.manifest_size)


def register_action(state: LedgerState, manifest: bytes) -> ModelRegister:
    """The action that registers a manifest. Raises ``ControlError`` if it is none, or is registered already."""
    try:
        parse_manifest(manifest)
    except BadDescription as error:
        raise ControlError("bad_manifest", error.reason, 2) from None
    model = ModelId(content_hash(manifest))
    known = registration_view(state, model)
    if known.registered:
        raise ControlError(
            "already_registered", f"{known.model} was registered by {known.publisher} in block {known.height}"
        )
    carried = manifest if len(manifest) <= MANIFEST_CARRIED_BYTES_MAX else b""
    return ModelRegister(model, len(manifest), carried)


def describe(action: transactions.Action) -> str:
    """One line for people about what a transaction does."""
    match action:
        case transactions.Transfer():
            parts = [
                f"{format_credits(output.amount)} to {account_text(output.recipient)}" for output in action.outputs
            ]
            return ", ".join(parts[:4]) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")
        case transactions.BondDeposit():
            return f"bonds {format_credits(action.amount)}"
        case transactions.BondUnlock():
            return f"unlocks {format_credits(action.amount)} of its bond"
        case transactions.BondRelease():
            return f"releases the bond of {account_text(action.holder)}"
        case transactions.ChannelOpen():
            return f"opens a channel to {account_text(action.payee)} with {format_credits(action.deposit)}"
        case transactions.ChannelTopUp():
            return f"tops channel {action.channel.hex()[:16]} up by {format_credits(action.amount)}"
        case transactions.ChannelRedeem():
            return f"redeems {len(action.vouchers)} voucher(s) on channel {action.channel.hex()[:16]}"
        case transactions.ChannelClose():
            return f"closes channel {action.channel.hex()[:16]}"
        case transactions.ChannelFinalise():
            return f"finalises channel {action.channel.hex()[:16]}"
        case transactions.MotionOpen():
            return f"opens a motion: {describe_subject(action.subject)}"
        case transactions.MotionVote():
            return f"votes {'for' if action.approve else 'against'} motion {action.motion}"
        case transactions.EvidenceReport():
            accused = accusation(action.first, action.second).authority
            return f"proves that {format_address(AddressKind.AUTHORITY, accused)} signed twice"
        case transactions.ModelRegister():
            return f"registers model {format_address(AddressKind.MODEL, action.model)}"
        case transactions.FailureReport():
            reported = open_report(action)
            return f"reports that {account_text(reported.agreement.provider)} failed job {reported.failure.job.hex()}"


def describe_subject(subject: governance.Subject) -> str:
    """One line for people about what passing a motion does."""
    match subject:
        case governance.AuthorityChange():
            removed = [f"remove {format_address(AddressKind.AUTHORITY, key)}" for key in subject.remove]
            added = [
                f"add {record.name} {format_address(AddressKind.AUTHORITY, record.authority)}" for record in subject.add
            ]
            return ", ".join([*removed, *added])
        case governance.ParameterChange():
            return ", ".join(f"{entry.name} = {entry.value}" for entry in subject.values)
        case governance.VersionChange():
            return f"protocol version {subject.version} from height {subject.height}"
        case governance.Issuance():
            return f"issue {format_credits(subject.amount)} to {account_text(subject.recipient)}: {subject.reason}"
        case governance.Redemption():
            return f"redeem {format_credits(subject.amount)} of the opener: {subject.reason}"
