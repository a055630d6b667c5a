"""One fixed example of everything that travels, for golden vectors."""

from msgspec.structs import replace
from nacl.signing import SigningKey

from protocol.messages import consensus, governance, market, recovery, transactions, wire
from protocol.messages.blocks import Block, DecidedBlock, Header
from protocol.messages.consensus import Certificate, CertificateKind
from protocol.messages.envelope import seal, signing_bytes
from protocol.messages.genesis import Allocation, AuthorityRecord, Genesis, Membership, Parameters
from protocol.messages.kinds import MessageKind
from protocol.messages.peers import Hello, NodeRecord
from protocol.messages.snapshots import SnapshotManifest
from protocol.primitives.codec import Message, encode
from protocol.primitives.units import (
    AccountId,
    Amount,
    AuthorityId,
    BlockHash,
    ChannelId,
    DurationMs,
    Hash,
    Height,
    Lane,
    LedgerTimeMs,
    MessageId,
    ModelId,
    NodeId,
    Nonce,
    PublicKey,
    Salt,
    SequenceNumber,
    Signature,
    TimestampMs,
    View,
    WorkUnits,
)


def filled(letter: str) -> bytes:
    """32 bytes of one letter."""
    return letter.encode() * 32


KEY = SigningKey(bytes(range(32)))
GENESIS_HASH = Hash(filled("g"))
ACCOUNT, OTHER = AccountId(filled("a")), AccountId(filled("b"))
NODE, OTHER_NODE = NodeId(filled("n")), NodeId(filled("o"))
MODEL, CHANNEL, JOB = ModelId(filled("m")), ChannelId(filled("c")), MessageId(filled("j"))
BLOCK = BlockHash(filled("x"))
AUTHORITY = AuthorityId(filled("k"))
PRICES = market.Prices(Amount(10), Amount(2_000), Amount(70_000))
MOMENT = TimestampMs(1_700_000_000_123)

PAYLOADS: dict[MessageKind, Message] = {
    MessageKind.NODE_RECORD: NodeRecord(3, MOMENT, ("127.0.0.1:7000", "[::1]:7001"), ACCOUNT),
    MessageKind.OFFER: market.Offer(
        NODE,
        SequenceNumber(7),
        MOMENT,
        ("127.0.0.1:7000",),
        "eu",
        "strong",
        4,
        2,
        (market.ModelOffer(MODEL, "tiny", "echo", "1.0", "seeded", PRICES, WorkUnits(4096), WorkUnits(1024)),),
    ),
    MessageKind.BID: market.Bid(
        MODEL,
        WorkUnits(100),
        WorkUnits(200),
        Amount(5_000_000),
        MOMENT,
        "none",
        1,
        Hash(filled("u")),
        market.AuctionTerms(NODE, ("127.0.0.1:7000",), 250, 250),
    ),
    MessageKind.AGREEMENT: market.Agreement(
        MessageId(filled("d")),
        MessageId(filled("e")),
        ACCOUNT,
        OTHER,
        NODE,
        OTHER_NODE,
        MODEL,
        "1.0",
        "seeded",
        PRICES,
        32,
        WorkUnits(100),
        WorkUnits(200),
        Amount(5_000_000),
        Hash(filled("i")),
        77,
        CHANNEL,
        Lane(3),
        Amount(40),
        SequenceNumber(2),
        MOMENT,
        DurationMs(2_000),
        DurationMs(10_000),
        DurationMs(5_000),
        DurationMs(60_000),
        42,
        700,
        "none",
        market.Continuation(JOB, 3, Hash(filled("w")), WorkUnits(60), 240, Hash(filled("q"))),
    ),
    MessageKind.ACCEPTANCE: market.Acceptance(JOB, MOMENT),
    MessageKind.REFUSAL: market.Refusal(JOB, market.FaultKind.CAPACITY, "no slot free", None, Amount(0)),
    MessageKind.CHUNK: market.Chunk(
        JOB, 1, Hash(filled("p")), WorkUnits(5), WorkUnits(32), Amount(999), market.FinishReason.STOP, b"output"
    ),
    MessageKind.VOUCHER: market.Voucher(
        CHANNEL, OTHER, Lane(3), SequenceNumber(3), Amount(1_234_567), Hash(filled("r")), 1
    ),
    MessageKind.RECEIPT: market.Receipt(
        JOB,
        MessageId(filled("d")),
        ACCOUNT,
        OTHER,
        MODEL,
        "1.0",
        "seeded",
        Hash(filled("i")),
        Hash(filled("q")),
        WorkUnits(5),
        WorkUnits(32),
        2,
        Hash(filled("l")),
        Amount(999),
        market.FinishReason.LENGTH,
        CHANNEL,
        Lane(3),
        MOMENT,
        TimestampMs(MOMENT + 500),
    ),
    MessageKind.CANCELLATION: market.Cancellation(JOB, 2, "enough"),
    MessageKind.FAILURE: market.Failure(JOB, market.FaultKind.PROVIDER, 1, "worker died"),
    MessageKind.QUOTE_SEAL: market.QuoteSeal(MessageId(filled("d")), Hash(filled("c"))),
    MessageKind.QUOTE: market.Quote(
        MessageId(filled("d")), PRICES, DurationMs(2_000), True, 300, 21_000, Hash(filled("n"))
    ),
    MessageKind.TIMELINE_REQUEST: market.TimelineRequest(JOB, Hash(filled("u"))),
    MessageKind.TIMELINE: market.Timeline(
        MessageId(filled("d")),
        JOB,
        MOMENT,
        True,
        "failed",
        market.FaultKind.PROVIDER,
        "worker died",
        Amount(999),
        WorkUnits(5),
        WorkUnits(32),
        2,
        (market.HistoryEntry(MOMENT, "chunks", "chunk 1 paid", TimestampMs(MOMENT + 500), 1, 2, Amount(999)),),
    ),
    MessageKind.TRANSACTION: transactions.Transaction(
        Nonce(5), Amount(100), Height(1_000), transactions.Transfer((transactions.Output(OTHER, Amount(300)),))
    ),
    MessageKind.PROPOSAL: consensus.ProposalBody(Height(9), View(2), BLOCK, View(1)),
    MessageKind.VOTE: consensus.VoteBody(Height(9), View(2), BLOCK),
    MessageKind.FINAL: consensus.FinalBody(Height(9), View(2), None),
    MessageKind.ATTESTATION: consensus.Attestation(Hash(filled("z")), PublicKey(filled("k")), Height(8), BLOCK),
    MessageKind.DISPATCH: consensus.Dispatch(
        Height(9), TimestampMs(1_800_000_000_000), b"proposal", b"block", (), (b"vote", b"final")
    ),
    MessageKind.INQUIRY: consensus.Inquiry(Hash(filled("z")), TimestampMs(1_800_000_000_000)),
    MessageKind.TESTIMONY: consensus.Testimony(PublicKey(filled("k")), b"attestation", None, (b"vote",)),
    MessageKind.RECOVERY: recovery.Recovery(
        Height(8), BLOCK, Membership((AuthorityRecord(AUTHORITY, ACCOUNT, NODE, "first"),)), 1
    ),
}

RECORD = AuthorityRecord(AUTHORITY, ACCOUNT, NODE, "first")
SUBJECTS: tuple[governance.Subject, ...] = (
    governance.AuthorityChange((AuthorityId(filled("l")),), (RECORD,)),
    governance.ParameterChange((governance.ParameterValue("fee_min", 200),)),
    governance.VersionChange(2, Height(5_000)),
    governance.Issuance(OTHER, Amount(7), "deposit 12"),
    governance.Redemption(Amount(8), "withdrawal 3"),
)
ACTIONS: tuple[transactions.Action, ...] = (
    transactions.Transfer((transactions.Output(OTHER, Amount(300)), transactions.Output(ACCOUNT, Amount(1)))),
    transactions.BondDeposit(Amount(1)),
    transactions.BondUnlock(Amount(2)),
    transactions.BondRelease(ACCOUNT),
    transactions.ChannelOpen(OTHER, Amount(2**63 - 1)),
    transactions.ChannelTopUp(CHANNEL, Amount(4)),
    transactions.ChannelRedeem(CHANNEL, (b"voucher",)),
    transactions.ChannelClose(CHANNEL),
    transactions.ChannelFinalise(CHANNEL),
    transactions.MotionOpen(None, SUBJECTS[-1]),
    transactions.MotionVote(governance.MotionNumber(3), AUTHORITY, True),
    transactions.EvidenceReport(b"first", b"second"),
    transactions.ModelRegister(MODEL, 8, b"manifest"),
    transactions.FailureReport(b"agreement", b"acceptance", b"failure"),
)


def sealed(kind: MessageKind) -> bytes:
    """The example of a kind in an envelope truly signed by ``KEY``."""
    payload = encode(PAYLOADS[kind])
    signature = KEY.sign(signing_bytes(GENESIS_HASH, kind, payload)).signature
    return seal(kind, payload, PublicKey(bytes(KEY.verify_key)), signature)


HEADER = Header(
    1,
    Height(9),
    BlockHash(filled("w")),
    MOMENT,
    LedgerTimeMs(12_345),
    Hash(filled("p")),
    Hash(filled("t")),
    Hash(filled("s")),
    Hash(filled("c")),
    Hash(filled("h")),
    Hash(filled("h")),
)
CERTIFICATE = Certificate(
    CertificateKind.DECIDED,
    Height(9),
    View(2),
    BLOCK,
    (0, 2, 3),
    tuple(Signature(bytes((number,)) * 64) for number in range(3)),
)
PARENT_CERTIFICATE = replace(CERTIFICATE, height=Height(8))
BODY = encode(Block(HEADER, PARENT_CERTIFICATE, (sealed(MessageKind.TRANSACTION),)))
DECIDED = DecidedBlock(BODY, CERTIFICATE)

GENESIS = Genesis(
    "golden",
    True,
    MOMENT,
    Parameters(
        DurationMs(15_000),
        DurationMs(200),
        DurationMs(5_000),
        DurationMs(500),
        DurationMs(5_000),
        DurationMs(60_000),
        Amount(1_000),
        Amount(1),
        Amount(10),
        1_000,
    ),
    (RECORD,),
    (Allocation(ACCOUNT, Amount(10**12), Amount(10**9)),),
)

JOB_PAYLOAD = market.JobPayload(
    "chat", b"turns", ("\n\n",), b"Once upon", market.OutputForm.TOKENS, '{"type":"string"}', 5
)

WIRE: tuple[wire.WireMessage, ...] = (
    Hello(1, GENESIS_HASH, sealed(MessageKind.NODE_RECORD), Height(8)),
    wire.Goodbye("no room for more links"),
    wire.PeersRequest(),
    wire.Peers((sealed(MessageKind.NODE_RECORD),)),
    wire.Announce((Hash(filled("1")), Hash(filled("2")))),
    wire.Pull((Hash(filled("1")),)),
    wire.Push(sealed(MessageKind.OFFER)),
    wire.Graft(),
    wire.Prune(),
    wire.Direct(sealed(MessageKind.VOUCHER)),
    wire.JobInput(JOB, Salt(filled("y")), b"input"),
    wire.Proposal(sealed(MessageKind.PROPOSAL), BODY, (CERTIFICATE,)),
    wire.Ballot(sealed(MessageKind.VOTE)),
    wire.CertificateNotice(CERTIFICATE),
    wire.CertificateRequest(Height(9), View(1)),
    wire.BodyRequest(Height(9), BLOCK),
    wire.Body(Height(9), BODY),
    wire.BlocksRequest(Height(4)),
    wire.Blocks((DECIDED,), Height(9)),
    wire.TipNotice(Height(9)),
    wire.Transactions((sealed(MessageKind.TRANSACTION),)),
    wire.StandingRequest(Hash(filled("z")), AuthorityId(filled("k"))),
    wire.Standing(sealed(MessageKind.ATTESTATION), CERTIFICATE, (sealed(MessageKind.VOTE),)),
    wire.SnapshotRequest(Height(4)),
    wire.SnapshotOffer(SnapshotManifest(HEADER, CERTIFICATE, (), (Hash(filled("1")), Hash(filled("2"))))),
    wire.SnapshotChunkRequest(Height(9), 1),
    wire.SnapshotChunk(Height(9), 1, b"rows"),
    wire.OpenJobs(
        (wire.JobStanding(JOB, CHANNEL, Lane(3), 2, SequenceNumber(4)),),
        (wire.JobStanding(JOB, CHANNEL, Lane(5), 7, SequenceNumber(9)),),
    ),
)
