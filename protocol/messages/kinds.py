"""The one table: kind → type of payload and whose key signs it.

Law: a number, once used on a wire, is never used for something else.
"""

from enum import IntEnum

from protocol.messages import consensus, market, peers, recovery, transactions
from protocol.primitives.codec import Message


class MessageKind(IntEnum):
    """Kinds of signed statement."""

    NODE_RECORD = 1
    OFFER = 2
    BID = 3
    AGREEMENT = 4
    ACCEPTANCE = 5
    REFUSAL = 6
    CHUNK = 7
    VOUCHER = 8
    RECEIPT = 9
    CANCELLATION = 10
    FAILURE = 11
    QUOTE_SEAL = 12
    QUOTE = 13
    TIMELINE_REQUEST = 14
    TIMELINE = 15
    TRANSACTION = 20
    PROPOSAL = 30
    VOTE = 31
    FINAL = 32
    ATTESTATION = 33
    DISPATCH = 34
    INQUIRY = 35
    TESTIMONY = 36
    RECOVERY = 37


class KeyRole(IntEnum):
    """Which of a node's keys signs a kind."""

    NODE = 1
    ACCOUNT = 2
    AUTHORITY = 3


_TABLE: dict[MessageKind, tuple[type[Message], KeyRole]] = {
    MessageKind.NODE_RECORD: (peers.NodeRecord, KeyRole.NODE),
    MessageKind.OFFER: (market.Offer, KeyRole.ACCOUNT),
    MessageKind.BID: (market.Bid, KeyRole.ACCOUNT),
    MessageKind.AGREEMENT: (market.Agreement, KeyRole.ACCOUNT),
    MessageKind.ACCEPTANCE: (market.Acceptance, KeyRole.ACCOUNT),
    MessageKind.REFUSAL: (market.Refusal, KeyRole.ACCOUNT),
    MessageKind.CHUNK: (market.Chunk, KeyRole.ACCOUNT),
    MessageKind.VOUCHER: (market.Voucher, KeyRole.ACCOUNT),
    MessageKind.RECEIPT: (market.Receipt, KeyRole.ACCOUNT),
    MessageKind.CANCELLATION: (market.Cancellation, KeyRole.ACCOUNT),
    MessageKind.FAILURE: (market.Failure, KeyRole.ACCOUNT),
    MessageKind.QUOTE_SEAL: (market.QuoteSeal, KeyRole.ACCOUNT),
    MessageKind.QUOTE: (market.Quote, KeyRole.ACCOUNT),
    MessageKind.TIMELINE_REQUEST: (market.TimelineRequest, KeyRole.ACCOUNT),
    MessageKind.TIMELINE: (market.Timeline, KeyRole.ACCOUNT),
    MessageKind.TRANSACTION: (transactions.Transaction, KeyRole.ACCOUNT),
    MessageKind.PROPOSAL: (consensus.ProposalBody, KeyRole.AUTHORITY),
    MessageKind.VOTE: (consensus.VoteBody, KeyRole.AUTHORITY),
    MessageKind.FINAL: (consensus.FinalBody, KeyRole.AUTHORITY),
    MessageKind.ATTESTATION: (consensus.Attestation, KeyRole.AUTHORITY),
    MessageKind.DISPATCH: (consensus.Dispatch, KeyRole.AUTHORITY),
    MessageKind.INQUIRY: (consensus.Inquiry, KeyRole.AUTHORITY),
    MessageKind.TESTIMONY: (consensus.Testimony, KeyRole.AUTHORITY),
    MessageKind.RECOVERY: (recovery.Recovery, KeyRole.AUTHORITY),
}


def payload_type(kind: MessageKind) -> type[Message]:
    """The struct that a kind's payload decodes to."""
    return _TABLE[kind][0]


def key_role(kind: MessageKind) -> KeyRole:
    """The role of the key that signs a kind."""
    return _TABLE[kind][1]
