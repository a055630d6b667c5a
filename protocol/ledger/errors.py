"""What can be wrong with a transaction, a block or a stored state, each with the numbers that show it.

Law: an error's class says whose fault it was. ``TransactionInvalid`` is the sender's, ``BlockInvalid`` the proposer's,
``StateInvalid`` this node's own disk or a defect, ``GenesisInvalid`` its operator's.
"""

from typing import ClassVar

from protocol.primitives.errors import LocalProtocolError, RemoteProtocolError, UserError


class TransactionInvalid(UserError):
    """Root of what the ledger refuses; the sender's fault. ``facts`` holds the numbers.

    ``retryable``: another state may accept the same bytes, so a judge that lags must not punish who relays them.
    """

    code: ClassVar[str] = "transaction_invalid"
    """The class's name in snake case, for programs."""
    retryable: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        cls.code = "".join("_" + letter.lower() if letter.isupper() else letter for letter in cls.__name__).strip("_")

    def __init__(self, **facts: int | str) -> None:
        self.facts = facts
        shown = ", ".join(f"{name}={value}" for name, value in facts.items())
        super().__init__(f"{type(self).__name__}({shown})")


class NotATransaction(TransactionInvalid):
    """The bytes are no transaction envelope, or a voucher inside is no voucher."""

    retryable = False


class NonceMismatch(TransactionInvalid):
    """``got`` is not the sender's next nonce, ``expected``."""


class TransactionExpired(TransactionInvalid):
    """``valid_until`` lies below ``height``."""


class FeeTooLow(TransactionInvalid):
    """``fee`` is below ``fee_min``."""


class InsufficientBalance(TransactionInvalid):
    """``needed`` base units where the sender has ``balance``."""


class ZeroAmount(TransactionInvalid):
    """An amount that moves nothing."""

    retryable = False


class SelfPayment(TransactionInvalid):
    """Sender and recipient, or payer and payee, are one account."""

    retryable = False


class AmountTooLarge(TransactionInvalid):
    """``amount`` leaves the range of money."""

    retryable = False


class InsufficientBond(TransactionInvalid):
    """``needed`` base units where ``bonded`` are bonded and not yet unlocking."""


class NothingUnlocking(TransactionInvalid):
    """No part of this bond is on its way out."""


class BondLocked(TransactionInvalid):
    """The bond pays out at ledger time ``unlock_at``; it is ``now``."""


class ChannelUnknown(TransactionInvalid):
    """No open channel has this id: it never existed, or it was closed."""


class NotAParty(TransactionInvalid):
    """The sender is not who may do this on the channel."""


class ChannelClosing(TransactionInvalid):
    """The payer has closed the channel; its window ends at ledger time ``closing_at``."""


class DepositTooLarge(TransactionInvalid):
    """All that was ever put into a channel, ``deposit``, would leave the range of money with ``amount`` more."""


class ChannelNotClosing(TransactionInvalid):
    """Nobody has closed this channel, so there is nothing to finalise."""


class WindowOpen(TransactionInvalid):
    """The payee may redeem until ledger time ``closing_at``; it is ``now``."""


class VoucherRefused(TransactionInvalid):
    """A voucher in a redeem breaks the voucher rules; ``lane`` and ``reason`` say how."""


class VoucherForeign(TransactionInvalid):
    """A voucher that the channel's payer has not signed."""


class LaneRepeated(TransactionInvalid):
    """Two vouchers of one redeem are for one ``lane``."""

    retryable = False


class NotEquivocation(TransactionInvalid):
    """Two statements that do not exclude each other, or not of one key; ``reason`` says why."""

    retryable = False


class AlreadyReported(TransactionInvalid):
    """It was proved before that this key signed twice."""


class EvidenceEarly(TransactionInvalid):
    """The statements are of ``height``, above the block's, ``now``."""


class EvidenceExpired(TransactionInvalid):
    """The statements are of ``height``, too long before the block's, ``now``."""


class NotAnAuthority(TransactionInvalid):
    """The key had no seat at ``height``, is suspended, or is not the sender's to act for."""


class SuspensionHalts(TransactionInvalid):
    """With one more key suspended, ``active`` authorities could not make a quorum of ``quorum``: replace one first."""


class MotionUnknown(TransactionInvalid):
    """No motion has this number, or it is long concluded."""


class MotionConcluded(TransactionInvalid):
    """This motion can't be voted on any more; ``status`` says what became of it."""


class AlreadyVoted(TransactionInvalid):
    """An authority has one vote, and can't take it back."""


class TooManyMotions(TransactionInvalid):
    """``open`` motions of this opener, or of this kind, are open: no more before one of them ends."""


class SubjectInvalid(TransactionInvalid):
    """What is put to vote could never take effect; ``reason`` says why."""


class TransactionRejected(UserError):
    """The mempool does not take a transaction; ``code`` is a stable word, ``detail`` a line for people.

    ``retryable``: the same bytes may be taken later or by a node in another state, so relaying them is no offence.
    """

    def __init__(self, code: str, detail: str, retryable: bool = True) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.retryable = retryable


class BlockInvalid(RemoteProtocolError):
    """A block that breaks a rule; ``reason`` is a stable word, the text carries the numbers."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class StateInvalid(LocalProtocolError):
    """Stored rows that do not give the state root or the supply that they must."""


class GenesisInvalid(UserError):
    """A genesis that cannot start a ledger."""
