"""What a transaction does to the state.

Law: every rule is checked before the first change is written, sums are checked, and what one row loses others gain.
A transaction that breaks a rule raises ``TransactionInvalid`` and is never part of a block: there are no failed
transactions on the ledger, and no fee for them.
"""

from typing import assert_never

from protocol.ledger import channels, evidence, motions, registry, tracks
from protocol.ledger.errors import (
    AmountTooLarge,
    BondAnswerable,
    BondLocked,
    FeeTooLow,
    InsufficientBalance,
    InsufficientBond,
    NonceMismatch,
    NothingUnlocking,
    SelfPayment,
    TransactionExpired,
    ZeroAmount,
)
from protocol.ledger.rows import NO_BOND, Account, Bond
from protocol.ledger.view import Context, Overlay
from protocol.messages.genesis import Parameters
from protocol.messages.transactions import (
    Action,
    BondDeposit,
    BondRelease,
    BondUnlock,
    ChannelClose,
    ChannelFinalise,
    ChannelOpen,
    ChannelRedeem,
    ChannelTopUp,
    EvidenceReport,
    FailureReport,
    ModelRegister,
    MotionOpen,
    MotionVote,
    Transaction,
    Transfer,
)
from protocol.primitives.units import (
    AMOUNT_MAX,
    AccountId,
    Amount,
    LedgerTimeMs,
    Nonce,
    checked_add,
    checked_subtract,
)


def fee_floor(parameters: Parameters, action: Action) -> Amount:
    """The least fee of a transaction with this action, in base units; a redeem pays its own share besides."""
    if isinstance(action, MotionOpen):
        return max(parameters.fee_min, parameters.motion_fee_min)
    if isinstance(action, ModelRegister):
        return registry.register_fee(parameters)
    if isinstance(action, FailureReport):
        return tracks.report_fee(parameters)
    return parameters.fee_min


def apply_transaction(overlay: Overlay, context: Context, sender: AccountId, transaction: Transaction) -> None:
    """Execute one transaction whose signatures have been checked.

    On ``TransactionInvalid`` the overlay may hold a part of the changes: give it an overlay to throw away, unless a
    failure makes everything in it worthless anyway.
    """
    account = overlay.account(sender)
    if transaction.nonce != account.nonce:
        raise NonceMismatch(expected=account.nonce, got=transaction.nonce)
    if transaction.valid_until < context.height:
        raise TransactionExpired(valid_until=transaction.valid_until, height=context.height)
    fee = transaction.fee
    floor = fee_floor(overlay.parameters, transaction.action)
    if fee < floor:
        raise FeeTooLow(fee=fee, fee_min=floor)
    if fee > account.balance:
        raise InsufficientBalance(balance=account.balance, needed=fee)
    overlay.accounts[sender] = Account(checked_subtract(account.balance, fee), Nonce(account.nonce + 1))
    overlay.fee_pool = checked_add(overlay.fee_pool, fee)
    match transaction.action:
        case Transfer() as action:
            _transfer(overlay, sender, action)
        case BondDeposit() as action:
            _bond_deposit(overlay, sender, action)
        case BondUnlock() as action:
            _bond_unlock(overlay, context, sender, action)
        case BondRelease() as action:
            _bond_release(overlay, context, action)
        case ChannelOpen() as action:
            channels.open_channel(overlay, context, sender, transaction.nonce, action)
        case ChannelTopUp() as action:
            channels.top_up(overlay, sender, action)
        case ChannelRedeem() as action:
            channels.redeem(overlay, context, sender, action)
        case ChannelClose() as action:
            channels.close(overlay, context, sender, action)
        case ChannelFinalise() as action:
            channels.finalise(overlay, context, action)
        case MotionOpen() as action:
            motions.open_motion(overlay, context, sender, action)
        case MotionVote() as action:
            motions.vote(overlay, context, sender, action)
        case EvidenceReport() as action:
            evidence.report(overlay, context, sender, action)
            motions.reconsider_open(overlay, context)
        case ModelRegister() as action:
            registry.register(overlay, context, sender, action)
        case FailureReport() as action:
            tracks.report(overlay, context, sender, action)
        case _:
            assert_never(transaction.action)


def _transfer(overlay: Overlay, sender: AccountId, action: Transfer) -> None:
    total = 0
    for output in action.outputs:
        if output.amount == 0:
            raise ZeroAmount(action="transfer")
        if output.recipient == sender:
            raise SelfPayment(account=sender.hex())
        total += output.amount
    if total > AMOUNT_MAX:
        raise AmountTooLarge(amount=total)
    account = overlay.account(sender)
    if total > account.balance:
        raise InsufficientBalance(balance=account.balance, needed=total)
    overlay.accounts[sender] = Account(Amount(account.balance - total), account.nonce)
    for output in action.outputs:
        # One recipient may stand in several outputs: read it anew each time.
        recipient = overlay.account(output.recipient)
        overlay.accounts[output.recipient] = recipient.with_balance(checked_add(recipient.balance, output.amount))


def _bond_deposit(overlay: Overlay, sender: AccountId, action: BondDeposit) -> None:
    if action.amount == 0:
        raise ZeroAmount(action="bond deposit")
    account, bond = overlay.account(sender), overlay.bond(sender)
    if action.amount > account.balance:
        raise InsufficientBalance(balance=account.balance, needed=action.amount)
    overlay.accounts[sender] = account.with_balance(checked_subtract(account.balance, action.amount))
    overlay.bonds[sender] = Bond(checked_add(bond.amount, action.amount), bond.unlocking, bond.unlock_at)


def _bond_unlock(overlay: Overlay, context: Context, sender: AccountId, action: BondUnlock) -> None:
    """A second unlock joins the first and restarts its time: no part gets out earlier than it would alone."""
    if action.amount == 0:
        raise ZeroAmount(action="bond unlock")
    bond = overlay.bond(sender)
    if action.amount > bond.amount:
        raise InsufficientBond(bonded=bond.amount, needed=action.amount)
    overlay.bonds[sender] = Bond(
        checked_subtract(bond.amount, action.amount),
        checked_add(bond.unlocking, action.amount),
        LedgerTimeMs(context.ledger_time_ms + overlay.parameters.unbonding_ms),
    )


def _bond_release(overlay: Overlay, context: Context, action: BondRelease) -> None:
    bond = overlay.bond(action.holder)
    if bond.unlocking == 0:
        raise NothingUnlocking(holder=action.holder.hex())
    if context.ledger_time_ms < bond.unlock_at:
        raise BondLocked(unlock_at=bond.unlock_at, now=context.ledger_time_ms)
    if evidence.is_answerable(overlay, context, action.holder):
        raise BondAnswerable(holder=action.holder.hex())
    holder = overlay.account(action.holder)
    overlay.accounts[action.holder] = holder.with_balance(checked_add(holder.balance, bond.unlocking))
    overlay.bonds[action.holder] = Bond(bond.amount, Amount(0), NO_BOND.unlock_at)
