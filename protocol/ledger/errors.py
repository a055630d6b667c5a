"""What can be wrong with a transaction, a block or a stored state, each with the numbers that show it.

Law: an error's class says whose fault it was. ``TransactionInvalid`` is the sender's, ``BlockInvalid`` the proposer's,
``StateInvalid`` this node's own disk or a defect, ``GenesisInvalid`` its operator's.
"""

from typing import ClassVar

from protocol.primitives.errors import LocalProtocolError, RemoteProtocolError, UserError
from protocol.primitives.units import format_credits

_MONEY = ("fee", "fee_min", "balance", "needed", "bonded", "deposit", "amount")
"""Facts that are amounts in base units."""


class TransactionInvalid(UserError):
    """Root of what the ledger refuses; the sender's fault. ``facts`` holds the numbers.

    ``retryable``: another state may accept the same bytes, so a judge that lags must not punish who relays them.
    """

    code: ClassVar[str] = "transaction_invalid"
    """The class's name in snake case, for programs."""
    retryable: ClassVar[bool] = True
    sentence: ClassVar[str] = ""
    """What is wrong, for people, with the facts' names in braces; empty: the facts speak for themselves."""

    def __init_subclass__(cls) -> None:
        cls.code = "".join("_" + letter.lower() if letter.isupper() else letter for letter in cls.__name__).strip("_")

    def __init__(self, **facts: int | str) -> None:
        self.facts = facts
        shown = ", ".join(f"{name}={value}" for name, value in facts.items())
        super().__init__(f"{type(self).__name__}({shown})")

    @property
    def explanation(self) -> str:
        """One line for people: amounts in credits."""
        if not self.sentence:
            return str(self)
        shown = {
            name: f"{format_credits(fact)} credits" if name in _MONEY and isinstance(fact, int) else fact
            for name, fact in self.facts.items()
        }
        try:
            return self.sentence.format(**shown)
        except KeyError:  # raised without a fact that the sentence names: the facts are better than nothing
            return str(self)


class NotATransaction(TransactionInvalid):
    """The bytes are no transaction envelope, or a voucher inside is no voucher."""

    retryable = False


class NonceMismatch(TransactionInvalid):
    """``got`` is not the sender's next nonce, ``expected``."""

    sentence = "the account's next transaction has number {expected}, this one has {got}"


class TransactionExpired(TransactionInvalid):
    """``valid_until`` lies below ``height``."""

    sentence = "it was valid until block {valid_until}; the next block is {height}"


class FeeTooLow(TransactionInvalid):
    """``fee`` is below ``fee_min``."""

    sentence = "the fee is {fee}; the ledger asks for at least {fee_min}"


class InsufficientBalance(TransactionInvalid):
    """``needed`` base units where the sender has ``balance``."""

    sentence = "the account has {balance} to spend, with what waits already taken off; {needed} are needed"


class ZeroAmount(TransactionInvalid):
    """An amount that moves nothing."""

    sentence = "a {action} needs an amount above zero"
    retryable = False


class SelfPayment(TransactionInvalid):
    """Sender and recipient, or payer and payee, are one account."""

    sentence = "sender and recipient are the same account"
    retryable = False


class AmountTooLarge(TransactionInvalid):
    """``amount`` leaves the range of money."""

    retryable = False


class InsufficientBond(TransactionInvalid):
    """``needed`` base units where ``bonded`` are bonded and not yet unlocking."""

    sentence = "{bonded} are bonded and not yet unlocking; {needed} are needed"


class NothingUnlocking(TransactionInvalid):
    """No part of this bond is on its way out."""

    sentence = "no part of this bond is on its way out"


class BondLocked(TransactionInvalid):
    """The bond pays out at ledger time ``unlock_at``; it is ``now``."""

    sentence = "the bond pays out at ledger time {unlock_at} ms; it is {now} ms"


class BondAnswerable(TransactionInvalid):
    """The holder decides blocks, or did so lately that it can still be accused of signing twice."""

    sentence = "the bond answers for a seat that is held, or was so lately that it can still be accused"


class ChannelUnknown(TransactionInvalid):
    """No open channel has this id: it never existed, or it was closed."""

    sentence = "no open channel has this id: it never existed, or it was closed"


class NotAParty(TransactionInvalid):
    """The sender is not who may do this on the channel."""

    sentence = "this account is not who may do that on this channel"


class ChannelClosing(TransactionInvalid):
    """The payer has closed the channel; its window ends at ledger time ``closing_at``."""

    sentence = "the payer has closed the channel; its window ends at ledger time {closing_at} ms"


class DepositTooLarge(TransactionInvalid):
    """All that was ever put into a channel, ``deposit``, would leave the range of money with ``amount`` more."""


class ChannelNotClosing(TransactionInvalid):
    """Nobody has closed this channel, so there is nothing to finalise."""

    sentence = "nobody has closed this channel"


class WindowOpen(TransactionInvalid):
    """The payee may redeem until ledger time ``closing_at``; it is ``now``."""

    sentence = "the payee may redeem until ledger time {closing_at} ms; it is {now} ms"


class VoucherRefused(TransactionInvalid):
    """A voucher in a redeem breaks the voucher rules; ``lane`` and ``reason`` say how."""


class VoucherForeign(TransactionInvalid):
    """A voucher that the channel's payer has not signed."""


class LaneRepeated(TransactionInvalid):
    """Two vouchers of one redeem are for one ``lane``."""

    retryable = False


class NotEquivocation(TransactionInvalid):
    """Two statements that do not exclude each other, or not of one key; ``reason`` says why."""

    sentence = "these statements prove nothing: {reason}"
    retryable = False


class AlreadyReported(TransactionInvalid):
    """It was proved before that this key signed twice."""

    sentence = "it was proved before that this key signed twice"


class EvidenceEarly(TransactionInvalid):
    """The statements are of ``height``, above the block's, ``now``."""

    sentence = "the statements are of height {height}; the next block is {now}"


class EvidenceExpired(TransactionInvalid):
    """The statements are of ``height``, too long before the block's, ``now``."""

    sentence = "the statements are of height {height}, too long ago to count"


class NotAnAuthority(TransactionInvalid):
    """The key had no seat, is suspended, or is not the sender's to act for; ``reason`` says which."""

    sentence = "{reason}"


class SuspensionHalts(TransactionInvalid):
    """With one more key suspended, ``active`` authorities could not make a quorum of ``quorum``: replace one first."""

    sentence = "with one more key suspended {active} authorities could not make a quorum of {quorum}: replace one first"


class MotionUnknown(TransactionInvalid):
    """No motion has this number, or it is long concluded."""

    sentence = "there is no motion {motion}, or it was concluded long ago"


class MotionConcluded(TransactionInvalid):
    """This motion can't be voted on any more; ``status`` says what became of it."""

    sentence = "motion {motion} can't be voted on any more: {status}"


class AlreadyVoted(TransactionInvalid):
    """An authority has one vote, and can't take it back."""

    sentence = "this authority has voted on motion {motion}; a vote can't be taken back"


class TooManyMotions(TransactionInvalid):
    """``open`` motions of this opener, or of this kind, are open: no more before one of them ends."""

    sentence = "{open} such motions are open: wait for one of them to end"


class SubjectInvalid(TransactionInvalid):
    """What is put to vote could never take effect; ``reason`` says why."""

    sentence = "{reason}"


class ManifestMismatch(TransactionInvalid):
    """What comes with a registration is not the manifest that it names; ``reason`` says why."""

    sentence = "{reason}"
    retryable = False


class ModelRegistered(TransactionInvalid):
    """This model has a publisher since block ``height``."""

    sentence = "this model was registered in block {height} by account key {publisher}"


class ReportMismatch(TransactionInvalid):
    """The statements in a report of a failure don't belong together; ``reason`` says why."""

    sentence = "{reason}"
    retryable = False


class FailureNotProviders(TransactionInvalid):
    """The provider gave the job up, but not by its own fault."""

    sentence = "the failure is put down to {fault}, not to the provider"
    retryable = False


class FailureReported(TransactionInvalid):
    """This job's failure has been reported, or later ones have and which of the earlier ones is forgotten."""

    sentence = "the failure of job {job} has been reported, or later ones have"


class ReportExpired(TransactionInvalid):
    """The job was agreed too long ago to be reported."""

    sentence = "the job was agreed at {created_at} ms, too long before {timestamp_ms} ms to be reported"


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
