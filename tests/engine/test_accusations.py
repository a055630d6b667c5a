"""Who signs twice loses its seat's voice and its bond, once, by whoever noticed; honest authorities never do."""

from collections.abc import Callable, Iterable

import pytest
from msgspec.structs import replace

from protocol.messages import wire
from protocol.messages.blocks import Block, header_hash
from protocol.messages.consensus import FinalBody, ProposalBody, VoteBody
from protocol.messages.envelope import open_as, open_envelope
from protocol.messages.kinds import MessageKind
from protocol.messages.transactions import EvidenceReport, Transaction
from protocol.primitives.codec import decode, encode
from protocol.primitives.units import BlockHash, NodeId, TimestampMs
from tests.engine.village import Village, Villager, node_of
from tests.ledger.world import account_of, make_genesis

NAMES = ("auth0", "auth1", "auth2", "auth3")
Alters = Callable[[NodeId, wire.WireMessage], Iterable[wire.WireMessage]]


def make_village() -> Village:
    accounts = tuple(f"{name}-account" for name in NAMES)
    return Village(make_genesis(names=accounts, heartbeat_ms=1_000), NAMES)


def _votes_twice(liar: Villager) -> Alters:
    """To one of the others it votes for another block as well."""

    def alters(peer: NodeId, message: wire.WireMessage) -> Iterable[wire.WireMessage]:
        if isinstance(message, wire.Ballot) and peer == node_of("auth1"):
            _, body = open_envelope(message.envelope)
            if isinstance(body, VoteBody):
                lie = replace(body, block_hash=BlockHash(b"l" * 32))
                return (message, wire.Ballot(liar.village.seal(liar.name, MessageKind.VOTE, encode(lie))))
        return (message,)

    return alters


def _finalises_and_skips(liar: Villager) -> Alters:
    def alters(peer: NodeId, message: wire.WireMessage) -> Iterable[wire.WireMessage]:
        if isinstance(message, wire.Ballot):
            _, body = open_envelope(message.envelope)
            if isinstance(body, FinalBody) and body.block_hash is not None:
                lie = replace(body, block_hash=None)
                return (message, wire.Ballot(liar.village.seal(liar.name, MessageKind.FINAL, encode(lie))))
        return (message,)

    return alters


def _proposes_two_blocks(liar: Villager) -> Alters:
    """Each half of the others gets another block, and one of them both."""

    def alters(peer: NodeId, message: wire.WireMessage) -> Iterable[wire.WireMessage]:
        if not isinstance(message, wire.Proposal) or peer == node_of("auth1"):
            return (message,)
        block = decode(message.block, Block)
        header = replace(block.header, timestamp_ms=TimestampMs(block.header.timestamp_ms + 1))
        _, body = open_envelope(message.envelope)
        assert isinstance(body, ProposalBody)
        lie = replace(body, block_hash=header_hash(header))
        envelope = liar.village.seal(liar.name, MessageKind.PROPOSAL, encode(lie))
        other = wire.Proposal(envelope, encode(replace(block, header=header)), message.certificates)
        return (other, message) if peer == node_of("auth2") else (other,)

    return alters


def _reports(village: Village, name: str) -> list[EvidenceReport]:
    found = []
    for decided in village[name].blocks.values():
        for received in decode(decided.block, Block).transactions:
            _, transaction = open_as(received, MessageKind.TRANSACTION)
            assert isinstance(transaction, Transaction)
            if isinstance(transaction.action, EvidenceReport):
                found.append(transaction.action)
    return found


@pytest.mark.parametrize("lies", [_votes_twice, _finalises_and_skips, _proposes_two_blocks])
def test_an_authority_that_signs_twice_is_suspended_once_and_the_others_go_on(
    lies: Callable[[Villager], Alters],
) -> None:
    village = make_village()
    liar = village["auth3"]
    liar.alters = lies(liar)
    village.begin()
    key = liar.key
    assert key is not None
    honest = [village[name].replica for name in NAMES[:3]]
    assert village.run_until(lambda: all(key in each.authorities.suspended for each in honest), 60_000)
    from_height = honest[0].tip + 1
    village.run(20_000)
    for replica in honest:
        assert replica.authorities.suspended == (key,)
        assert replica.state.bond(account_of("auth3-account")).total == 0
        assert replica.state.supply().total == replica.state.supply().issued
    assert len(_reports(village, "auth0")) == 1
    assert min(village.tips(*NAMES[:3])) > from_height + 10
    assert max(position.height for position in liar.guard) < from_height
    assert liar.tip > from_height + 10, "it follows"
    assert not any(village[name].halted for name in NAMES)


def test_honest_authorities_accuse_nobody_while_leaders_are_lost_and_come_back() -> None:
    village = make_village()
    village.begin()
    for name in NAMES:
        for other in NAMES:
            if other != name:
                village.unlink(village[name], village[other])
        village.run(5_000)
        for other in NAMES:
            if other != name:
                village.link(village[name], village[other])
        village.run(3_000)
    assert min(village.tips()) > 10
    assert _reports(village, "auth1") == []
    assert village["auth0"].replica.authorities.suspended == ()
