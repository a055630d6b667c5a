"""What an account can ask of the ledger.

Law: every action names all it needs; nothing is implied by who relays it. The envelope around it carries sender and
signature; its genesis hash keeps a transaction from being replayed on another network.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from protocol.messages.governance import MotionNumberField, Subject
from protocol.primitives.codec import Message
from protocol.primitives.limits import LANES_PER_CHANNEL, TRANSFER_OUTPUTS_MAX
from protocol.primitives.units import (
    AccountIdField,
    AmountField,
    AuthorityIdField,
    ChannelIdField,
    HeightField,
    ModelIdField,
    NonceField,
)

MANIFEST_CARRIED_BYTES_MAX = 4 * 1024
"""A model's manifest of a dozen files. It stays in a block for ever, so that anybody can read what a model is; a larger
one is registered by its hash and size alone."""
MANIFEST_BYTES_MAX = 64 * 1024
"""The largest manifest that a node's model store takes."""
STATEMENT_BYTES_MAX = 8 * 1024
"""An agreement with the longest texts and settings that its fields allow."""
EVIDENCE_BYTES_MAX = 512
"""One statement of an authority: a key, a signature, a hash and three numbers are below 200 bytes."""


class _Action(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False, tag_field="action"):
    pass


class Output(Message, frozen=True):
    """One recipient of a transfer; ``amount`` in base units, above zero."""

    recipient: AccountIdField
    amount: AmountField


class Transfer(_Action, frozen=True, tag=1):
    """Pay one or more accounts under one signature: signatures are what a transfer costs."""

    outputs: Annotated[tuple[Output, ...], Meta(min_length=1, max_length=TRANSFER_OUTPUTS_MAX)]


class BondDeposit(_Action, frozen=True, tag=2):
    """Move ``amount`` from the sender's balance into its bond: what a provider or authority can lose."""

    amount: AmountField


class BondUnlock(_Action, frozen=True, tag=3):
    """Start to withdraw ``amount`` of the bond; it stays forfeitable until the unbonding time has passed."""

    amount: AmountField


class BondRelease(_Action, frozen=True, tag=4):
    """Pay out an unlocking bond whose time has passed. Anyone may ask, so that no state lacks a way out.

    An authority's is paid out after it has left, once it can't be accused any more.
    """

    holder: AccountIdField


class ChannelOpen(_Action, frozen=True, tag=10):
    """Set ``deposit`` aside for one payee. Channel id = hash of payer, payee and this transaction's nonce."""

    payee: AccountIdField
    deposit: AmountField


class ChannelTopUp(_Action, frozen=True, tag=11):
    """Add ``amount`` of the payer's balance to a channel's deposit."""

    channel: ChannelIdField
    amount: AmountField


class ChannelRedeem(_Action, frozen=True, tag=12):
    """Pay out vouchers, one for each lane: the payee gets ``cumulative − redeemed`` of each; the sender pays the fee.

    Anchors the receipts root of each voucher. Only the payee's redeem moves money and the lanes' rows; the payer's
    anchors its vouchers in the block and changes no channel, so that it can't push aside what the payee holds.
    """

    channel: ChannelIdField
    vouchers: Annotated[
        tuple[Annotated[bytes, Meta(max_length=512)], ...], Meta(min_length=1, max_length=LANES_PER_CHANNEL)
    ]


class ChannelClose(_Action, frozen=True, tag=13):
    """The payee's close is immediate; the payer's opens the challenge window, then anyone finalises."""

    channel: ChannelIdField


class ChannelFinalise(_Action, frozen=True, tag=14):
    """Pay what is left of a closing channel back to the payer once the challenge window has passed. Anyone may."""

    channel: ChannelIdField


class MotionOpen(_Action, frozen=True, tag=20):
    """Put something to vote. The opening authority's motion is its vote; only a redemption needs no authority."""

    authority: AuthorityIdField | None
    """On whose behalf the sender opens it: an authority whose account is the sender's."""
    subject: Subject


class MotionVote(_Action, frozen=True, tag=21):
    """An authority's one vote on a motion, sent by its account."""

    motion: MotionNumberField
    authority: AuthorityIdField
    approve: bool


class EvidenceReport(_Action, frozen=True, tag=22):
    """Two envelopes that one authority key signed where the protocol allows one. Anyone may report it."""

    first: Annotated[bytes, Meta(max_length=EVIDENCE_BYTES_MAX)]
    second: Annotated[bytes, Meta(max_length=EVIDENCE_BYTES_MAX)]


class ModelRegister(_Action, frozen=True, tag=30):
    """Enter a model's manifest as published by the sender; who comes first stays its publisher.

    The sender's signature over this transaction is the publisher's signature over the manifest.
    """

    model: ModelIdField
    """BLAKE3 hash of the manifest's bytes."""
    manifest_size: Annotated[int, Meta(ge=1, le=MANIFEST_BYTES_MAX)]
    """Bytes of the manifest."""
    manifest: Annotated[bytes, Meta(max_length=MANIFEST_CARRIED_BYTES_MAX)]
    """The manifest itself; empty where it is larger than a transaction may carry."""


class FailureReport(_Action, frozen=True, tag=31):
    """A job that its provider gave up by its own fault, reported by its buyer: three envelopes that prove it."""

    agreement: Annotated[bytes, Meta(max_length=STATEMENT_BYTES_MAX)]
    """Signed by the buyer."""
    acceptance: Annotated[bytes, Meta(max_length=STATEMENT_BYTES_MAX)]
    failure: Annotated[bytes, Meta(max_length=STATEMENT_BYTES_MAX)]
    """Both signed by the provider."""


Action = (
    Transfer
    | BondDeposit
    | BondUnlock
    | BondRelease
    | ChannelOpen
    | ChannelTopUp
    | ChannelRedeem
    | ChannelClose
    | ChannelFinalise
    | MotionOpen
    | MotionVote
    | EvidenceReport
    | ModelRegister
    | FailureReport
)


class Transaction(Message, frozen=True):
    """The payload of a ``TRANSACTION`` envelope; the envelope's sender pays ``fee`` and owns ``nonce``."""

    nonce: NonceField
    """Strictly the sender's next one, from 0."""
    fee: AmountField
    """Base units, into the fee pool."""
    valid_until: HeightField
    """Last height at which it may be included."""
    action: Action
