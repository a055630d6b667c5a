"""Everything that may stand in a frame between two linked nodes.

Law: a frame is a MessagePack array of these. Signed statements travel inside as the bytes of their envelopes, so they
are verified, hashed and relayed as received.
"""

from typing import Annotated

from msgspec import Meta

from protocol.messages.blocks import DecidedBlock
from protocol.messages.consensus import Certificate, StatementBytes
from protocol.messages.peers import Hello
from protocol.messages.snapshots import SnapshotManifest
from protocol.primitives.codec import Message, decode, encode
from protocol.primitives.limits import (
    ANNOUNCED_IDS_MAX,
    BATCH_MESSAGES_MAX,
    BLOCK_BYTES_MAX,
    BLOCKS_PER_RESPONSE_MAX,
    ENVELOPE_PAYLOAD_BYTES_MAX,
    JOB_INPUT_BYTES_MAX,
    JUSTIFICATION_CERTIFICATES_MAX,
    OPEN_JOBS_MAX,
    OWN_STATEMENTS_MAX,
    PEER_RECORDS_MAX,
    SNAPSHOT_CHUNK_BYTES_MAX,
    SNAPSHOT_CHUNKS_MAX,
    TEXT_BYTES_MAX,
)
from protocol.primitives.units import (
    AuthorityIdField,
    BlockHashField,
    ChannelIdField,
    HashField,
    Height,
    HeightField,
    LaneField,
    MessageIdField,
    SaltField,
    SequenceField,
    ViewField,
)

EnvelopeBytes = Annotated[bytes, Meta(max_length=ENVELOPE_PAYLOAD_BYTES_MAX + 256)]
BlockBytes = Annotated[bytes, Meta(max_length=BLOCK_BYTES_MAX)]


class Goodbye(Message, frozen=True, tag=2):
    """The link is about to be closed, and why."""

    reason: Annotated[str, Meta(max_length=TEXT_BYTES_MAX)]


class PeersRequest(Message, frozen=True, tag=3):
    """Tell me of nodes that you know."""


class Peers(Message, frozen=True, tag=4):
    """Signed ``NodeRecord`` envelopes."""

    records: Annotated[tuple[Annotated[bytes, Meta(max_length=4096)], ...], Meta(max_length=PEER_RECORDS_MAX)]


class Announce(Message, frozen=True, tag=5):
    """Ids of gossip objects that the sender holds."""

    ids: Annotated[tuple[HashField, ...], Meta(max_length=ANNOUNCED_IDS_MAX)]


class Pull(Message, frozen=True, tag=6):
    """Send me the bodies of these ids."""

    ids: Annotated[tuple[HashField, ...], Meta(max_length=ANNOUNCED_IDS_MAX)]


class Push(Message, frozen=True, tag=7):
    """One gossip object: the bytes of an envelope."""

    envelope: EnvelopeBytes


class Graft(Message, frozen=True, tag=8):
    """Put me in your mesh: announce to me eagerly."""


class Prune(Message, frozen=True, tag=9):
    """Take me out of your mesh."""


class Direct(Message, frozen=True, tag=10):
    """A signed statement for this peer alone: agreements, chunks, vouchers, receipts."""

    envelope: EnvelopeBytes


class JobInput(Message, frozen=True, tag=11):
    """The input of a job and the salt of its commitment. Private between buyer and provider; never gossiped."""

    job: MessageIdField
    salt: SaltField
    payload: Annotated[bytes, Meta(max_length=JOB_INPUT_BYTES_MAX)]


class Proposal(Message, frozen=True, tag=20):
    """A signed ``ProposalBody`` with its block and justification: the VC of ``voted_view`` and every SC since."""

    envelope: EnvelopeBytes
    block: BlockBytes
    certificates: Annotated[tuple[Certificate, ...], Meta(max_length=JUSTIFICATION_CERTIFICATES_MAX)]


class Ballot(Message, frozen=True, tag=21):
    """A signed ``VoteBody`` or ``FinalBody``."""

    envelope: Annotated[bytes, Meta(max_length=512)]


class CertificateNotice(Message, frozen=True, tag=22):
    """A certificate, forwarded."""

    certificate: Certificate


class CertificateRequest(Message, frozen=True, tag=23):
    """Send me the skip certificate of this height and view."""

    height: HeightField
    view: ViewField


class BodyRequest(Message, frozen=True, tag=24):
    """Send me the block with this hash, of an open or the last decided height."""

    height: HeightField
    block_hash: BlockHashField


class Body(Message, frozen=True, tag=25):
    """An answer to ``BodyRequest``."""

    height: HeightField
    block: BlockBytes


class BlocksRequest(Message, frozen=True, tag=26):
    """Send me decided blocks from this height on."""

    height: HeightField


class Blocks(Message, frozen=True, tag=27):
    """Consecutive decided blocks; fewer than asked where the frame or the tip ends, none below ``first``."""

    blocks: Annotated[tuple[DecidedBlock, ...], Meta(max_length=BLOCKS_PER_RESPONSE_MAX)]
    tip: HeightField
    first: HeightField = Height(1)
    """The lowest height from which on the sender has every block: older ones are to be had as a snapshot."""


class TipNotice(Message, frozen=True, tag=28):
    """The sender has decided this height. A hint: a node that lags asks for blocks."""

    height: HeightField


class Transactions(Message, frozen=True, tag=29):
    """Transactions pushed straight to authorities so that a height can open."""

    envelopes: Annotated[tuple[EnvelopeBytes, ...], Meta(max_length=BATCH_MESSAGES_MAX)]


class StandingRequest(Message, frozen=True, tag=30):
    """At start: your highest decided tip under this fresh nonce, and my own latest signatures that you hold."""

    nonce: HashField
    authority: AuthorityIdField


class Standing(Message, frozen=True, tag=31):
    """Answer to ``StandingRequest``.

    ``attestation`` is a signed ``Attestation`` envelope (empty from a node that is no authority), ``certificate``
    proves the tip, ``yours`` are envelopes that the asker itself signed at open heights.
    """

    attestation: StatementBytes
    certificate: Certificate | None
    yours: Annotated[tuple[StatementBytes, ...], Meta(max_length=OWN_STATEMENTS_MAX)]


class SnapshotRequest(Message, frozen=True, tag=32):
    """Tell me of your newest snapshot, if it is of a height above this one."""

    above: HeightField


class SnapshotOffer(Message, frozen=True, tag=33):
    """An answer to ``SnapshotRequest``; ``None`` from a node that has no such snapshot."""

    manifest: SnapshotManifest | None


class SnapshotChunkRequest(Message, frozen=True, tag=34):
    """Send me this chunk of your snapshot of this height."""

    height: HeightField
    index: Annotated[int, Meta(ge=0, lt=SNAPSHOT_CHUNKS_MAX)]


class SnapshotChunk(Message, frozen=True, tag=35):
    """An answer to ``SnapshotChunkRequest``; empty from a node that does not have the snapshot any more."""

    height: HeightField
    index: Annotated[int, Meta(ge=0, lt=SNAPSHOT_CHUNKS_MAX)]
    payload: Annotated[bytes, Meta(max_length=SNAPSHOT_CHUNK_BYTES_MAX)]


class JobStanding(Message, frozen=True):
    """One job as one of its parties has it: the chunks that came or went, and the lane's last voucher."""

    job: MessageIdField
    channel: ChannelIdField
    lane: LaneField
    chunks: Annotated[int, Meta(ge=0, le=2**32)]
    sequence: SequenceField


class OpenJobs(Message, frozen=True, tag=36):
    """What the sender's node buys from the receiver's and sells to it, quiet for a while: both sides compare.

    Whoever does not know a job says so at once, so that none is under way on one side alone.
    """

    buying: Annotated[tuple[JobStanding, ...], Meta(max_length=OPEN_JOBS_MAX)]
    selling: Annotated[tuple[JobStanding, ...], Meta(max_length=OPEN_JOBS_MAX)]


WireMessage = (
    Hello
    | Goodbye
    | PeersRequest
    | Peers
    | Announce
    | Pull
    | Push
    | Graft
    | Prune
    | Direct
    | JobInput
    | Proposal
    | Ballot
    | CertificateNotice
    | CertificateRequest
    | BodyRequest
    | Body
    | BlocksRequest
    | Blocks
    | TipNotice
    | Transactions
    | StandingRequest
    | Standing
    | SnapshotRequest
    | SnapshotOffer
    | SnapshotChunkRequest
    | SnapshotChunk
    | OpenJobs
)


class _Frame(Message, frozen=True):
    messages: Annotated[tuple[WireMessage, ...], Meta(min_length=1, max_length=BATCH_MESSAGES_MAX)]


def encode_message(message: WireMessage) -> bytes:
    """One message, to be joined into a frame."""
    return encode(message)


def join_frame(encoded: list[bytes]) -> bytes:
    """A frame from at most ``BATCH_MESSAGES_MAX`` encoded messages."""
    count = len(encoded)
    assert 0 < count <= BATCH_MESSAGES_MAX
    head = bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
    return b"\x91" + head + b"".join(encoded)


def split_frame(received: bytes) -> tuple[WireMessage, ...]:
    """The messages of a frame; ``MalformedMessage`` on anything else."""
    return decode(received, _Frame).messages
