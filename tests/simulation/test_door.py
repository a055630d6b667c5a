"""What the replica's door refuses, what it has verified, and what it may leave out."""

import pytest
from msgspec.structs import replace

from node.simulation.profiles import PROFILES
from node.simulation.world import Options, World
from protocol.consensus.height_state import SeenProposal
from protocol.engine.bodies import BodyMismatch
from protocol.engine.catch_up import ANSWERS_BURST
from protocol.engine.replica import Replica
from protocol.engine.replica_door import MisplacedMessage
from protocol.ledger.blocks import build_block
from protocol.messages import wire
from protocol.messages.blocks import Block, DecidedBlock
from protocol.messages.consensus import CertificateKind, FinalBody, ProposalBody, VoteBody
from protocol.messages.effects import Send
from protocol.messages.envelope import open_envelope
from protocol.messages.kinds import MessageKind
from protocol.messages.quorum import CertificateInvalid
from protocol.primitives.codec import Message, decode, encode
from protocol.primitives.errors import RemoteProtocolError
from protocol.primitives.units import BlockHash, Height, NodeId, TimestampMs, View

IDLE = Options(profile=PROFILES["none"], whole_engine=False, followers=0, heartbeat_ms=10_000_000)
X = BlockHash(b"x" * 32)


@pytest.fixture
def world() -> World:
    """Four authorities with one decided block and nothing to do."""
    world = World(1, IDLE)
    world.begin()
    world.timeline.run_until(3_000)
    client = world.clients[0]
    world.nodes[0].submit(client.next_transfer([each.account for each in world.clients]))
    world.timeline.run_until(5_000)
    return world


def _replica(world: World) -> Replica:
    replica = world.nodes[0].replica
    assert replica.tip == 1
    return replica


def _signed(world: World, signer: int, kind: MessageKind, body: Message) -> bytes:
    key = world.nodes[signer].keys.authority
    assert key is not None
    return key.seal(world.genesis_hash, kind, encode(body))


def _leader(world: World, height: int, view: int) -> int:
    leader = world.authorities.leader(Height(height), View(view))
    return next(
        index
        for index, node in enumerate(world.nodes)
        if node.keys.authority and bytes(node.keys.authority.public) == leader
    )


def _decided(world: World) -> DecidedBlock:
    return world.nodes[0].disk.blocks[Height(1)]


def _proposal(world: World, signer: int) -> wire.Proposal:
    """A signed proposal for height 2 of the block of height 1."""
    decided = _decided(world)
    block_hash = decided.certificate.block_hash
    assert block_hash is not None
    body = ProposalBody(Height(2), View(1), block_hash, View(0))
    return wire.Proposal(_signed(world, signer, MessageKind.PROPOSAL, body), decided.block, ())


def test_a_proposal_of_another_than_the_leader_is_refused(world: World) -> None:
    other = (_leader(world, 2, 1) + 1) % 4
    with pytest.raises(MisplacedMessage, match="leader"):
        _replica(world).checks(_proposal(world, other))


def test_a_proposal_beside_a_block_of_another_height_is_refused(world: World) -> None:
    with pytest.raises(MisplacedMessage, match="another block"):
        _replica(world).checks(_proposal(world, _leader(world, 2, 1)))


def test_a_block_with_other_transactions_than_its_header_blames_the_peer_and_not_the_block(world: World) -> None:
    decided = _decided(world)
    block = decode(decided.block, Block)
    assert len(block.transactions) == 1
    tampered = encode(Block(block.header, block.parent_certificate, block.transactions * 2))
    for message in (
        wire.Body(Height(2), tampered),
        wire.Blocks((DecidedBlock(tampered, replace(decided.certificate, height=Height(2))),), Height(2)),
    ):
        with pytest.raises(BodyMismatch):
            _replica(world).checks(message)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"kind": CertificateKind.VOTED}, MisplacedMessage),
        ({"height": Height(3)}, MisplacedMessage),
        ({"block_hash": X}, MisplacedMessage),
    ],
    ids=["a VC", "another height", "another block"],
)
def test_a_decided_block_needs_its_own_certificate(
    world: World, changes: dict[str, object], error: type[RemoteProtocolError]
) -> None:
    replica = _replica(world)
    decided = _decided(world)
    broken = DecidedBlock(decided.block, replace(decided.certificate, **changes))
    with pytest.raises(error):
        replica.door.checks(wire.Blocks((broken,), Height(1)), Height(0), None)


def test_a_ballot_of_a_stranger_is_refused(world: World) -> None:
    stranger = world.clients[0].key.seal(world.genesis_hash, MessageKind.VOTE, encode(VoteBody(Height(2), View(1), X)))
    with pytest.raises(MisplacedMessage, match="no authority"):
        _replica(world).checks(wire.Ballot(stranger))


@pytest.mark.parametrize(("height", "checks"), [(0, 0), (1, 1), (2, 1), (3, 1)])
def test_a_ballot_below_the_tip_needs_no_check_and_one_above_it_always_does(
    world: World, height: int, checks: int
) -> None:
    ballot = wire.Ballot(_signed(world, 1, MessageKind.VOTE, VoteBody(Height(height), View(1), X)))
    assert len(_replica(world).checks(ballot)) == checks


@pytest.mark.parametrize(("height", "checks"), [(1, 0), (2, 3), (3, 3)])
def test_certificates_above_the_tip_are_checked_signature_by_signature(world: World, height: int, checks: int) -> None:
    certificate = replace(_decided(world).certificate, height=Height(height))
    assert len(_replica(world).checks(wire.CertificateNotice(certificate))) == checks


def test_a_certificate_that_is_held_already_is_not_checked_again(world: World) -> None:
    replica = _replica(world)
    skips = [_signed(world, signer, MessageKind.FINAL, FinalBody(Height(2), View(1), None)) for signer in range(1, 4)]
    now = world.nodes[0].now()
    for signer, skip in enumerate(skips, start=1):
        assert len(replica.checks(wire.Ballot(skip))) == 1
        replica.receive(world.nodes[signer].id, wire.Ballot(skip), now)
    assert replica.view == 2
    held = replica._open_machine().held.skipped[View(1)]
    assert replica.checks(wire.CertificateNotice(held)) == []
    assert replica.checks(wire.Ballot(skips[0])) == []


def test_a_certificate_short_of_a_quorum_is_refused(world: World) -> None:
    certificate = _decided(world).certificate
    short = replace(
        certificate, height=Height(2), signers=certificate.signers[:2], signatures=certificate.signatures[:2]
    )
    with pytest.raises(CertificateInvalid):
        _replica(world).checks(wire.CertificateNotice(short))


def test_broken_bytes_give_a_remote_protocol_error_and_nothing_else(world: World) -> None:
    replica = _replica(world)
    for message in (
        wire.Ballot(b""),
        wire.Proposal(b"\x90", b"", ()),
        wire.Body(Height(2), b"\xc0"),
        wire.Transactions((b"\x01",)),
        wire.Standing(b"", None, ()),
    ):
        with pytest.raises(RemoteProtocolError):
            replica.checks(message)


def test_only_authorities_speak_of_the_open_height_and_blocks_come_from_whom_was_asked(world: World) -> None:
    replica, stranger = _replica(world), NodeId(b"s" * 32)
    now = world.nodes[0].now()
    replica.link_up(stranger, now)
    decided = _decided(world)
    blocks = wire.Blocks((decided,), Height(1))
    messages = (
        _proposal(world, _leader(world, 2, 1)),
        wire.CertificateNotice(decided.certificate),
        wire.CertificateRequest(Height(2), View(1)),
        wire.BodyRequest(Height(2), X),
        wire.Body(Height(2), decided.block),
        blocks,
    )
    for message in messages:
        assert not replica.expects(stranger, message)
        assert replica.receive(stranger, message, now) == []
        assert replica.expects(world.nodes[1].id, message)
    replica.receive(stranger, wire.TipNotice(Height(9)), now)
    assert replica.expects(stranger, blocks)
    assert replica.expects(stranger, wire.BlocksRequest(Height(1)))


def test_certificates_are_pulled_from_us_so_often_and_not_more(world: World) -> None:
    replica, peer, now = _replica(world), world.nodes[1].id, world.nodes[0].now()
    skip = FinalBody(Height(2), View(1), None)
    for signer in range(3):
        replica.receive(peer, wire.Ballot(_signed(world, signer, MessageKind.FINAL, skip)), now)
    answers = 0
    for _ in range(1_000):
        effects = replica.receive(peer, wire.CertificateRequest(Height(2), View(1)), now)
        answers += sum(isinstance(effect, Send) for effect in effects)
    assert answers == ANSWERS_BURST


def test_a_later_unjustified_proposal_of_the_same_block_does_not_take_its_body_away(world: World) -> None:
    replica, now = _replica(world), world.nodes[0].now()
    execution = build_block(replica.state, (), TimestampMs(replica.state.tip.timestamp_ms + 1), None)
    for view in (1, 3):
        leader = _leader(world, 2, view)
        body = ProposalBody(Height(2), View(view), execution.block_hash, View(view - 1 and 2))
        envelope = _signed(world, leader, MessageKind.PROPOSAL, body)
        if view == 1:
            seen = SeenProposal(body, open_envelope(envelope)[0].signature, now.wall_ms)
            replica._open_machine().proposals[View(1)] = seen
            replica._bodies.hold(execution.block_hash, execution.block, execution.block_bytes)
        else:
            replica.receive(world.nodes[leader].id, wire.Proposal(envelope, execution.block_bytes, ()), now)
    assert execution.block_hash in replica._bodies
