"""More than a third of the authorities are gone for good: operators agree on a recovery, and the ledger goes on."""

import pytest
from msgspec.structs import replace

from protocol.engine.replica_door import MisplacedMessage
from protocol.ledger.blocks import build_block
from protocol.ledger.light_chain import ProofInvalid, reach, recovered, trusted_genesis
from protocol.ledger.recovery import RecoveryRefused, check_followed, open_recovery
from protocol.messages import wire
from protocol.messages.blocks import Block, DecidedHeader
from protocol.messages.consensus import Certificate, CertificateKind, FinalBody
from protocol.messages.effects import GuardClass, GuardPosition
from protocol.messages.envelope import open_envelope
from protocol.messages.genesis import AuthorityRecord, Membership
from protocol.messages.kinds import MessageKind
from protocol.messages.recovery import Recovery
from protocol.primitives.codec import decode, encode
from protocol.primitives.units import AuthorityId, BlockHash, Height, Signature, TimestampMs, View
from tests.engine.village import Village, Villager, node_of
from tests.ledger.world import account_of, make_genesis

FIRST = ("auth0", "auth1", "auth2", "auth3")
NEW = ("auth4", "auth5")
LEFT = ("auth0", "auth1")


def record(name: str) -> AuthorityRecord:
    return AuthorityRecord(AuthorityId(account_of(name)), account_of(f"{name}-account"), node_of(name), name)


def halted_village() -> Village:
    """Two of four are gone in the middle of a height; the two that are left have voted for one block in it."""
    accounts = tuple(f"{name}-account" for name in (*FIRST, *NEW))
    village = Village(make_genesis(names=accounts, heartbeat_ms=1_000), (*FIRST, *NEW))
    village.begin()
    replica = village["auth0"].replica

    def one_who_stays_leads_next() -> bool:
        leader = replica.authorities.leader(Height(replica.tip + 1), View(1))
        return min(village.tips()) == max(village.tips()) >= 3 and leader == village["auth0"].key

    assert village.run_until(one_who_stays_leads_next, 20_000)
    for name in ("auth2", "auth3"):
        village[name].stop()
    village.run(20_000)
    tip = max(village.tips(*LEFT))
    assert village.tips(*LEFT, *NEW) == [tip] * 4
    voted = GuardPosition(Height(tip + 1), View(1), GuardClass.VOTE)
    assert village["auth0"].guard[voted] == village["auth1"].guard[voted], "a quorum of a set of two"
    return village


def agree(village: Village, *names: str, attempt: int = 1) -> Recovery:
    state = village["auth0"].replica.state
    records = sorted((record(name) for name in names), key=lambda each: each.authority)
    return Recovery(state.height, state.tip_hash, Membership(tuple(records)), attempt)


def follow(village: Village, recovery: Recovery, *names: str, signer: str = "auth0") -> None:
    envelope = village.seal(signer, MessageKind.RECOVERY, encode(recovery))
    told = open_recovery(village.genesis_hash, [envelope])
    for name in names:
        village[name].restart(told)
    for one in names:
        for other in names:
            if one < other:
                village.link(village[one], village[other])


@pytest.mark.parametrize("members", [(*LEFT, *NEW), LEFT, ("auth0",)], ids=["replaced", "two left", "one left"])
def test_after_a_recovery_the_named_set_decides_on(members: tuple[str, ...]) -> None:
    village = halted_village()
    recovery = agree(village, *members)
    before = {name: dict(village[name].guard) for name in LEFT}
    follow(village, recovery, *LEFT, *NEW)
    assert village.run_until(lambda: min(village.tips(*LEFT, *NEW)) >= recovery.height + 6, 60_000)
    for name in (*LEFT, *NEW):
        state = village[name].replica.state
        assert [each.name for each in state.authorities.records] == [each.name for each in recovery.membership.records]
        assert state.supply().total == state.supply().issued
        assert state.charter.seats.at(AuthorityId(account_of("auth2")), Height(recovery.height + 1)) is None
        assert state.charter.seats.at(AuthorityId(account_of("auth2")), recovery.height) is not None
    for name in LEFT:
        kept = village[name].guard
        assert all(kept[position] == payload for position, payload in before[name].items())
    first = village["auth0"].blocks[Height(recovery.height + 1)].certificate
    assert first.view > recovery.view_base
    assert not any(village[name].halted for name in (*LEFT, *NEW))


def test_a_node_restarts_with_the_document_after_the_ledger_has_gone_on() -> None:
    village = halted_village()
    recovery = agree(village, *LEFT, *NEW)
    follow(village, recovery, *LEFT, *NEW)
    assert village.run_until(lambda: min(village.tips(*LEFT, *NEW)) >= recovery.height + 3, 60_000)
    tip = max(village.tips(*LEFT))
    check_followed(recovery, decode(village["auth1"].blocks[Height(recovery.height + 1)].block, Block).header)
    follow(village, recovery, "auth1")
    for other in ("auth0", *NEW):
        village.link(village["auth1"], village[other])
    assert village.run_until(lambda: village["auth1"].tip >= tip + 4, 60_000)


def test_a_node_without_the_document_says_so_and_stays_where_it_is() -> None:
    village = halted_village()
    recovery = agree(village, *LEFT, *NEW)
    follow(village, recovery, *LEFT, "auth4")
    village.link(village["auth5"], village["auth0"])
    village.link(village["auth5"], village["auth1"])
    village["auth5"].blamed.clear()
    assert village.run_until(lambda: min(village.tips(*LEFT, "auth4")) >= recovery.height + 4, 60_000)
    assert village["auth5"].tip == recovery.height
    assert any("recovered out of band" in reason for reason in village["auth5"].blamed)
    decided = village["auth0"].blocks[Height(recovery.height + 1)]
    with pytest.raises(MisplacedMessage, match="out of band"):
        village["auth5"].replica.checks(wire.Blocks((decided,), Height(recovery.height + 1)))
    follow(village, recovery, "auth5")
    village.link(village["auth5"], village["auth0"])
    assert village.run_until(lambda: village["auth5"].tip >= recovery.height + 4, 60_000)


def test_a_second_attempt_replaces_a_set_that_never_decided() -> None:
    village = halted_village()
    first = agree(village, *LEFT, "auth2", "auth3", "auth4")
    follow(village, first, *LEFT, *NEW)
    village.run(20_000)
    assert max(village.tips(*LEFT)) == first.height
    second = agree(village, *LEFT, *NEW, attempt=2)
    follow(village, second, *LEFT, *NEW)
    assert village.run_until(lambda: min(village.tips(*LEFT, *NEW)) >= first.height + 4, 60_000)


def test_documents_that_prove_nothing_or_come_too_late_are_refused() -> None:
    village = halted_village()
    recovery, state = agree(village, *LEFT, *NEW), village["auth0"].replica.state
    envelope = village.seal("auth0", MessageKind.RECOVERY, encode(recovery))
    stranger = village.seal("auth4", MessageKind.RECOVERY, encode(recovery))
    other = village.seal("auth1", MessageKind.RECOVERY, encode(replace(recovery, attempt=2)))
    broken = envelope[:-1] + bytes((envelope[-1] ^ 1,))
    assert open_recovery(village.genesis_hash, [envelope, stranger])[1] == tuple(
        AuthorityId(account_of(name)) for name in ("auth0", "auth4")
    )
    backwards = Membership(recovery.membership.records[::-1])
    unordered = village.seal("auth0", MessageKind.RECOVERY, encode(replace(recovery, membership=backwards)))
    for envelopes in ([], [b"nonsense"], [broken], [envelope, other], [unordered]):
        with pytest.raises(RecoveryRefused):
            open_recovery(village.genesis_hash, envelopes)
    with pytest.raises(RecoveryRefused, match="does not hold"):
        open_recovery(type(village.genesis_hash)(bytes(32)), [envelope])
    with pytest.raises(RecoveryRefused, match="nobody who decides"):
        state.follow_recovery(*open_recovery(village.genesis_hash, [stranger]))
    with pytest.raises(RecoveryRefused, match="another block"):
        state.follow_recovery(replace(recovery, block_hash=BlockHash(bytes(32))), (AuthorityId(account_of("auth0")),))
    header = decode(village["auth0"].blocks[recovery.height].block, Block).header
    with pytest.raises(RecoveryRefused, match="without the recovery"):
        check_followed(replace(recovery, height=Height(recovery.height - 1)), header)


def test_a_light_client_steps_over_a_recovery_only_with_its_document() -> None:
    village = halted_village()
    recovery = agree(village, "auth0", *NEW, "auth6", "auth7")
    follow(village, recovery, "auth0", *NEW)
    genesis = village.genesis
    trusted = trusted_genesis(genesis)
    last = decode(village["auth0"].blocks[recovery.height].block, Block).header
    trusted = trusted._replace(header=last)
    assert trusted.following is not None
    ledger = village["auth0"].replica.state
    execution = build_block(
        ledger, (), TimestampMs(last.timestamp_ms + 60_000), village["auth0"].blocks[recovery.height].certificate
    )
    header, members = execution.header, ledger.authorities
    view = members.first_view
    final = encode(FinalBody(header.height, view, execution.block_hash))
    names = {AuthorityId(account_of(name)): name for name in ("auth0", *NEW, "auth6", "auth7")}
    signers = tuple(range(members.quorum))
    envelopes = [
        open_envelope(village.seal(names[members.records[signer].authority], MessageKind.FINAL, final))[0]
        for signer in signers
    ]
    certificate = Certificate(
        CertificateKind.DECIDED,
        header.height,
        view,
        execution.block_hash,
        signers,
        tuple(envelope.signature for envelope in envelopes),
    )
    target = DecidedHeader(header, certificate, recovery.membership)
    with pytest.raises(ProofInvalid):
        reach(trusted, target)
    with pytest.raises(ProofInvalid, match="nobody"):
        recovered(trusted, recovery, (AuthorityId(account_of("auth6")),))
    with pytest.raises(ProofInvalid, match="another block"):
        recovered(trusted_genesis(genesis), recovery, (AuthorityId(account_of("auth0")),))
    stepped = reach(recovered(trusted, recovery, (AuthorityId(account_of("auth0")),)), target)
    assert stepped.authorities.hash() == members.hash()


def test_a_new_node_with_the_document_catches_up_over_the_recovery_and_blames_nobody() -> None:
    """Decided blocks come many at a time: those before the named block and those after it in one answer."""
    village = halted_village()
    recovery = agree(village, *LEFT, *NEW)
    follow(village, recovery, *LEFT, *NEW)
    assert village.run_until(lambda: min(village.tips(*LEFT, *NEW)) >= recovery.height + 3, 60_000)
    late = village.villagers["late"] = Villager(village, "late", authority=False)
    envelope = village.seal("auth0", MessageKind.RECOVERY, encode(recovery))
    late.replica.state.follow_recovery(*open_recovery(village.genesis_hash, [envelope]))
    late.start()
    village.link(village["auth0"], late)
    assert village.run_until(lambda: late.tip >= recovery.height + 6, 60_000)
    assert not late.blamed


def test_certificates_of_void_views_change_nothing_however_they_got_past_the_door() -> None:
    """The door may have checked one by the set that was replaced, just before the named block was decided here."""
    village = halted_village()
    recovery = agree(village, *LEFT, *NEW)
    signers = tuple(range(3))
    old = Certificate(
        CertificateKind.SKIPPED, Height(recovery.height + 1), View(1), None, signers, (Signature(bytes(64)),) * 3
    )
    follow(village, recovery, *LEFT, *NEW)
    replica = village["auth0"].replica
    replica.receive(node_of("auth1"), wire.CertificateNotice(old), village.now())
    machine = replica._machine
    assert machine is not None
    assert machine.held.all() == ()
    assert machine.current in (View(0), machine.first_view)
