"""Dishonest authorities and followers, each a class with one idea.

Law: an adversary has its own keys and whatever it was sent, nobody else's keys; it may say anything to anybody. The
honest replica goes on running behind it, so that it knows what is going on.
"""

import random
from collections.abc import Iterable, Iterator
from typing import ClassVar

from msgspec.structs import replace

from node.simulation.member import Manners, Parcel, SimulatedNode, Surroundings
from protocol.engine.replica import Replica
from protocol.ledger.blocks import PendingTransaction, build_block, decode_block
from protocol.ledger.execution import Execution
from protocol.messages import wire
from protocol.messages.blocks import DecidedBlock, header_hash
from protocol.messages.consensus import Certificate, CertificateKind, FinalBody, ProposalBody, VoteBody
from protocol.messages.envelope import open_envelope
from protocol.messages.kinds import MessageKind
from protocol.primitives.codec import Message, encode
from protocol.primitives.units import AuthorityId, BlockHash, Hash, Height, NodeId, Signature, TimestampMs, View


class Adversary(Manners):
    """What all of them have at hand."""

    name: ClassVar[str]

    def __init__(self, node: SimulatedNode, around: Surroundings, dice: random.Random, peers: list[NodeId]) -> None:
        self.node = node
        self.around = around
        self.dice = dice
        self.peers = [peer for peer in peers if peer != node.id]

    def struck(self) -> None:
        """Count one deed."""
        self.around.struck(self.name)

    @property
    def replica(self) -> Replica:
        """The honest replica behind the adversary."""
        return self.node.replica

    def signed(self, kind: MessageKind, body: Message) -> bytes:
        """Sign anything, without asking the guard. For authorities only."""
        assert self.node.keys.authority is not None
        return self.node.keys.authority.seal(self.around.genesis_hash, kind, encode(body))

    def rival(self, block_bytes: bytes) -> Execution | None:
        """Another valid block of the same height: the same transactions one millisecond later."""
        block, state = decode_block(block_bytes), self.replica.state
        if block.header.height != state.height + 1:
            return None
        candidates = [PendingTransaction.from_bytes(received) for received in block.transactions]
        return build_block(state, candidates, TimestampMs(block.header.timestamp_ms + 1), block.parent_certificate)

    def far_half(self, peer: NodeId) -> bool:
        """True for every other peer."""
        return peer in self.peers[1::2]


class Mute(Adversary):
    """Never says a word."""

    name = "mute authority"

    def says(self, peer: NodeId, message: wire.WireMessage) -> Iterable[wire.WireMessage]:
        self.struck()
        return ()


class EquivocatingLeader(Adversary):
    """Shows some authorities another block than the rest, each time to others, and votes for both."""

    name = "equivocating leader"

    def says(self, peer: NodeId, message: wire.WireMessage) -> Iterable[wire.WireMessage]:
        if not isinstance(message, wire.Proposal) or self.dice.random() < 0.5:
            return (message,)
        body = open_envelope(message.envelope)[1]
        rival = self.rival(message.block)
        if rival is None or not isinstance(body, ProposalBody) or body.voted_view:
            return (message,)
        self.struck()
        other = replace(body, block_hash=rival.block_hash)
        vote = VoteBody(body.height, body.view, rival.block_hash)
        return (
            wire.Proposal(self.signed(MessageKind.PROPOSAL, other), rival.block_bytes, message.certificates),
            wire.Ballot(self.signed(MessageKind.VOTE, vote)),
        )


class TwoFacedVoter(Adversary):
    """Votes for everything that it hears of, and tells one half that it finalises it and the other that it skips."""

    name = "two-faced voter"

    def hears(self, peer: NodeId, message: wire.WireMessage) -> Iterable[Parcel]:
        if not isinstance(message, wire.Ballot):
            return
        body = open_envelope(message.envelope)[1]
        if not isinstance(body, VoteBody | FinalBody) or body.block_hash is None:
            return
        self.struck()
        vote = wire.Ballot(self.signed(MessageKind.VOTE, VoteBody(body.height, body.view, body.block_hash)))
        final = wire.Ballot(self.signed(MessageKind.FINAL, FinalBody(body.height, body.view, body.block_hash)))
        skip = wire.Ballot(self.signed(MessageKind.FINAL, FinalBody(body.height, body.view, None)))
        for other in self.peers:
            yield other, vote
            yield other, skip if self.far_half(other) else final


class Usurper(TwoFacedVoter):
    """Leads every view of its own with a new block, as if nothing had been voted for, and helps to decide it."""

    name = "usurping leader"

    def __init__(self, node: SimulatedNode, around: Surroundings, dice: random.Random, peers: list[NodeId]) -> None:
        super().__init__(node, around, dice, peers)
        self._led: dict[tuple[Height, View], None] = {}
        self._seen: bytes | None = None

    def hears(self, peer: NodeId, message: wire.WireMessage) -> Iterable[Parcel]:
        if isinstance(message, wire.Proposal):
            self._seen = message.block
        yield from super().hears(peer, message)
        replica = self.replica
        height, view = Height(replica.tip + 1), replica.view
        leads = view > 1 and replica.authorities.leader(height, view) == self.node.authority
        if not leads or (height, view) in self._led or self._seen is None:
            return
        rival = self.rival(self._seen)
        if rival is None:
            return
        self._led[(height, view)] = None
        body = ProposalBody(height, view, rival.block_hash, View(0))
        proposal = wire.Proposal(self.signed(MessageKind.PROPOSAL, body), rival.block_bytes, ())
        for other in self.peers:
            yield other, proposal


class BrokenBlockLeader(Adversary):
    """Proposes blocks that break one rule of the ledger each."""

    name = "broken block"

    def says(self, peer: NodeId, message: wire.WireMessage) -> Iterable[wire.WireMessage]:
        if not isinstance(message, wire.Proposal):
            return (message,)
        body = open_envelope(message.envelope)[1]
        assert isinstance(body, ProposalBody)
        if body.voted_view:
            return (message,)
        self.struck()
        block = decode_block(message.block)
        header = block.header
        broken = self.dice.choice(
            (
                replace(header, state_root=Hash(self.dice.randbytes(32))),
                replace(header, ledger_time_ms=header.ledger_time_ms + 1),
                replace(header, parent=BlockHash(self.dice.randbytes(32))),
                replace(header, timestamp_ms=TimestampMs(header.timestamp_ms + 3_600_000)),
                replace(header, version=header.version + 1),
            )
        )
        other = replace(body, block_hash=header_hash(broken))
        block_bytes = encode(replace(block, header=broken))
        return (wire.Proposal(self.signed(MessageKind.PROPOSAL, other), block_bytes, message.certificates),)


class Forger(Adversary):
    """Sends certificates that nobody signed: with made-up signatures, or with its own many times over."""

    name = "forged certificate"

    def idles(self) -> Iterator[Parcel]:
        replica = self.replica
        height, view, n = Height(replica.tip + 1), View(max(replica.view, 1)), replica.authorities.n
        kind = self.dice.choice(tuple(CertificateKind))
        block_hash = None if kind is CertificateKind.SKIPPED else BlockHash(self.dice.randbytes(32))
        own = open_envelope(self.signed(MessageKind.FINAL, FinalBody(height, view, block_hash)))[0].signature
        signatures = tuple(
            own if self.dice.random() < 0.5 else Signature(self.dice.randbytes(64))
            for _ in range(replica.authorities.quorum)
        )
        signers = tuple(sorted(self.dice.sample(range(n), replica.authorities.quorum)))
        forged = Certificate(kind, height, view, block_hash, signers, signatures)
        for peer in self.peers:
            self.struck()
            yield peer, wire.CertificateNotice(forged)


class StaleReplayer(Adversary):
    """Keeps what it hears and says it again much later: old certificates, ballots, proposals, blocks."""

    name = "stale message"

    def __init__(self, node: SimulatedNode, around: Surroundings, dice: random.Random, peers: list[NodeId]) -> None:
        super().__init__(node, around, dice, peers)
        self._kept: list[wire.WireMessage] = []

    def hears(self, peer: NodeId, message: wire.WireMessage) -> Iterable[Parcel]:
        if len(self._kept) < 200:
            self._kept.append(message)
        else:
            self._kept[self.dice.randrange(200)] = message
        return ()

    def idles(self) -> Iterator[Parcel]:
        for message in self.dice.sample(self._kept, min(4, len(self._kept))):
            self.struck()
            yield self.dice.choice(self.peers), message


class Withholder(Adversary):
    """Shows its blocks to just as many as can vote for them with its own help, and hands no body to anybody."""

    name = "withheld body"

    def says(self, peer: NodeId, message: wire.WireMessage) -> Iterable[wire.WireMessage]:
        chosen = self.peers[: self.replica.authorities.quorum - 1]
        hidden = isinstance(message, wire.Proposal) and peer not in chosen
        if hidden or isinstance(message, wire.Body | wire.Blocks):
            self.struck()
            return ()
        return (message,)


class LyingSource(Adversary):
    """Boasts of a high tip and answers requests for blocks with tampered ones, other ones or none."""

    name = "lying sync peer"

    def says(self, peer: NodeId, message: wire.WireMessage) -> Iterable[wire.WireMessage]:
        match message:
            case wire.TipNotice():
                self.struck()
                return (wire.TipNotice(Height(message.height + self.dice.choice((1, 7, 10**9)))),)
            case wire.Blocks():
                self.struck()
                return self._instead(message)
            case _:
                return (message,)

    def _instead(self, message: wire.Blocks) -> Iterable[wire.WireMessage]:
        first = message.blocks[0]
        certificate = first.certificate
        match self.dice.randrange(4):
            case 0:
                return ()
            case 1:
                return (wire.Blocks(tuple(reversed(message.blocks)), Height(message.tip + 10**6)),)
            case 2:
                block = decode_block(first.block)
                other = replace(block.header, state_root=Hash(self.dice.randbytes(32)))
                named = replace(certificate, block_hash=header_hash(other))
                return (wire.Blocks((DecidedBlock(encode(replace(block, header=other)), named),), message.tip),)
            case _:
                height = Height(certificate.height + 1)
                return (wire.Blocks((DecidedBlock(first.block, replace(certificate, height=height)),), message.tip),)

    def idles(self) -> Iterator[Parcel]:
        yield self.dice.choice(self.peers), wire.TipNotice(Height(self.replica.tip + self.dice.randint(1, 9)))


class Flooder(Adversary):
    """Says well-formed things of no use, as many as it can."""

    name = "flood"

    def idles(self) -> Iterator[Parcel]:
        height = Height(self.replica.tip + 1)
        for _ in range(10):
            peer = self.dice.choice(self.peers)
            self.struck()
            view, block_hash = View(self.dice.randint(1, 40)), BlockHash(self.dice.randbytes(32))
            yield (
                peer,
                self.dice.choice(
                    (
                        wire.BlocksRequest(Height(self.dice.randint(1, height))),
                        wire.BodyRequest(height, block_hash),
                        wire.CertificateRequest(height, view),
                        wire.TipNotice(Height(self.dice.randint(1, 10**12))),
                        *self._ballots(height, view, block_hash),
                    )
                ),
            )

    def _ballots(self, height: Height, view: View, block_hash: BlockHash) -> tuple[wire.WireMessage, ...]:
        if self.node.authority is None:
            return ()
        return (
            wire.Ballot(self.signed(MessageKind.VOTE, VoteBody(height, view, block_hash))),
            wire.StandingRequest(Hash(bytes(block_hash)), AuthorityId(self.node.authority)),
        )


AUTHORITIES: tuple[type[Adversary], ...] = (
    Mute,
    EquivocatingLeader,
    TwoFacedVoter,
    Usurper,
    BrokenBlockLeader,
    Forger,
    StaleReplayer,
    Withholder,
    LyingSource,
    Flooder,
)
"""What a dishonest authority may be."""

FOLLOWERS: tuple[type[Adversary], ...] = (StaleReplayer, LyingSource, Flooder)
"""What a dishonest follower may be: it has no key that counts."""
