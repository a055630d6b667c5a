"""A leader can't make up who signed its block's parent: signers are paid by that certificate."""

from collections.abc import Callable, Iterable

import pytest
from msgspec.structs import replace

from protocol.ledger.blocks import build_block
from protocol.messages import wire
from protocol.messages.blocks import Block, certificate_hash, header_hash
from protocol.messages.consensus import Certificate, FinalBody, ProposalBody
from protocol.messages.envelope import open_envelope, signature_check
from protocol.messages.kinds import MessageKind
from protocol.primitives.codec import decode, encode
from protocol.primitives.units import NodeId, Signature, TimestampMs
from tests.engine.village import Village, Villager
from tests.ledger.world import make_genesis

NAMES = ("auth0", "auth1", "auth2", "auth3")


def _wrong_signature(certificate: Certificate) -> Certificate:
    return replace(certificate, signatures=(Signature(bytes(64)), *certificate.signatures[1:]))


def _other_signers(certificate: Certificate) -> Certificate:
    """Pays one that did not sign: a signature under another name."""
    absent = next(number for number in range(4) if number not in certificate.signers)
    pairs = dict(zip(certificate.signers, certificate.signatures, strict=True))
    pairs[absent] = pairs.pop(max(pairs))
    signers = tuple(sorted(pairs))
    return replace(certificate, signers=signers, signatures=tuple(pairs[signer] for signer in signers))


def _lead_with(liar: Villager, falsify: Callable[[Certificate], Certificate]) -> Callable[..., Iterable[object]]:
    """What the liar proposes carries a false certificate of its parent, in a block whose hashes are right otherwise."""

    def alters(peer: NodeId, message: wire.WireMessage) -> Iterable[wire.WireMessage]:
        if not isinstance(message, wire.Proposal):
            return (message,)
        block = decode(message.block, Block)
        if block.parent_certificate is None:
            return (message,)
        certificate = falsify(block.parent_certificate)
        header = replace(block.header, parent_certificate_hash=certificate_hash(certificate))
        _, body = open_envelope(message.envelope)
        assert isinstance(body, ProposalBody)
        lie = ProposalBody(body.height, body.view, header_hash(header), body.voted_view)
        envelope = liar.village.seal(liar.name, MessageKind.PROPOSAL, encode(lie))
        return (wire.Proposal(envelope, encode(Block(header, certificate, block.transactions)), message.certificates),)

    return alters


@pytest.mark.parametrize("falsify", [_wrong_signature, _other_signers])
def test_a_leader_that_makes_up_its_parents_certificate_gets_no_vote(
    falsify: Callable[[Certificate], Certificate],
) -> None:
    village = Village(make_genesis(heartbeat_ms=1_000), NAMES)
    liar = village["auth0"]
    liar.alters = _lead_with(liar, falsify)  # type: ignore[assignment]
    village.begin()
    assert village.run_until(lambda: min(village.tips(*NAMES[1:])) >= 9, 60_000)
    lies = [reason for name in NAMES[1:] for reason in village[name].blamed]
    assert any("Proposal with a signature that does not hold" in reason for reason in lies)
    for decided in village["auth1"].blocks.values():
        certificate = decode(decided.block, Block).parent_certificate
        assert certificate is None or bytes(64) not in certificate.signatures
    assert not any(village[name].halted for name in NAMES)


def test_a_parents_certificate_is_checked_by_the_very_checks_of_its_finals_and_costs_nothing_after_them() -> None:
    village = Village(make_genesis(heartbeat_ms=1_000), NAMES)
    village.begin()
    assert village.run_until(lambda: min(village.tips()) >= 3, 20_000)
    replica = village["auth1"].replica
    assert replica.last_decided is not None
    certificate = replica.last_decided.certificate
    timestamp = TimestampMs(replica.state.tip.timestamp_ms + 1_000)
    block = build_block(replica.state, (), timestamp, certificate).block
    final = encode(FinalBody(certificate.height, certificate.view, certificate.block_hash))
    finals = [village.seal(name, MessageKind.FINAL, final) for name in NAMES]
    known = {signature_check(village.genesis_hash, open_envelope(each)[0]).cache_key() for each in finals}
    checks = replica.door._parent(block)
    assert len(checks) == replica.authorities.quorum
    assert all(check.cache_key() in known for check in checks)


def _tampered(block_bytes: bytes) -> bytes:
    """The same header and transactions without the certificate of the parent."""
    block = decode(block_bytes, Block)
    return encode(Block(block.header, None, block.transactions))


def test_a_decided_block_without_the_certificate_of_its_parent_is_refused_and_stops_nobody() -> None:
    """The block's hash names the certificate too: a lying peer must not make a certified block look bad."""
    village = Village(make_genesis(heartbeat_ms=1_000), NAMES, ("liar", "newcomer"))
    liar, newcomer = village["liar"], village["newcomer"]

    def alters(peer: NodeId, message: wire.WireMessage) -> Iterable[wire.WireMessage]:
        if not isinstance(message, wire.Blocks):
            return (message,)
        blocks = tuple(replace(decided, block=_tampered(decided.block)) for decided in message.blocks)
        return (wire.Blocks(blocks, message.tip),)

    liar.alters = alters
    village.begin([(one, other) for one in (*NAMES, "liar") for other in (*NAMES, "liar") if one < other])
    assert village.run_until(lambda: liar.tip >= 4, 20_000)
    village.link(liar, newcomer)
    village.run(5_000)
    assert not newcomer.halted
    village.link(village["auth0"], newcomer)
    assert village.run_until(lambda: newcomer.tip >= 6, 20_000)


def test_a_leader_that_shows_one_voter_its_block_without_the_certificate_stops_nobody() -> None:
    village = Village(make_genesis(heartbeat_ms=1_000), NAMES)
    liar, victim = village["auth0"], village["auth1"]

    def alters(peer: NodeId, message: wire.WireMessage) -> Iterable[wire.WireMessage]:
        if not isinstance(message, wire.Proposal) or peer != victim.node:
            return (message,)
        return (wire.Proposal(message.envelope, _tampered(message.block), message.certificates),)

    liar.alters = alters
    village.begin()
    assert village.run_until(lambda: min(village.tips()) >= 9, 60_000)
    assert not any(village[name].halted for name in NAMES)
