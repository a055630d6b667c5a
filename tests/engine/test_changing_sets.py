"""The authorities change while the ledger goes on: who signs, who follows, and what may be believed meanwhile."""

import pytest
from msgspec.structs import replace

from protocol.engine.replica_door import BeyondReach
from protocol.messages import wire
from protocol.messages.blocks import Block
from protocol.messages.consensus import CertificateKind, FinalBody, ProposalBody, VoteBody
from protocol.messages.envelope import seal
from protocol.messages.genesis import AuthorityRecord
from protocol.messages.governance import AuthorityChange, MotionNumber
from protocol.messages.kinds import MessageKind
from protocol.messages.transactions import MotionOpen, MotionVote
from protocol.primitives.codec import decode, encode
from protocol.primitives.units import AuthorityId, BlockHash, Height, PublicKey, Signature, View
from tests.engine.village import Village, node_of
from tests.ledger.world import account_of, make_genesis

FIRST = ("auth0", "auth1", "auth2", "auth3")
X = BlockHash(b"x" * 32)


def record(name: str) -> AuthorityRecord:
    return AuthorityRecord(AuthorityId(account_of(name)), account_of(f"{name}-account"), node_of(name), name)


def make_village(*newcomers: str) -> Village:
    """Four authorities with money to open motions, and nodes that hold a key and no seat yet."""
    accounts = tuple(f"{name}-account" for name in (*FIRST, *newcomers))
    village = Village(make_genesis(names=accounts, heartbeat_ms=1_000), (*FIRST, *newcomers))
    village.begin()
    assert village.run_until(lambda: min(village.tips()) >= 2, 10_000)
    return village


def decide(village: Village, number: int, change: AuthorityChange, *voters: str) -> int:
    """Put a change to vote and let it pass; the height from which it holds, on the first voter's ledger."""
    first, *others = voters
    village[first].want(MotionOpen(village[first].key, change))
    village.run(500)
    for name in others:
        key = village[name].key
        assert key is not None
        village[name].want(MotionVote(MotionNumber(number), key, True))
    seats = village[first].replica.seats
    wanted = {entry.authority for entry in change.add}

    def named() -> bool:
        members = {entry.authority for entry in seats.around()[-1].records}
        return wanted <= members and not members & set(change.remove)

    assert village.run_until(named, 20_000), village[first].events[-3:]
    return int(village[first].replica.tip + 2)


def signed_heights(village: Village, name: str) -> list[int]:
    return sorted({int(position.height) for position in village[name].guard})


def test_a_key_that_gets_a_seat_signs_from_its_first_height_and_one_that_loses_it_follows() -> None:
    village = make_village("auth4", "auth5")
    assert village["auth4"].replica.own is None
    first = decide(village, 1, AuthorityChange((), (record("auth4"),)), *FIRST[:3])
    assert village.run_until(lambda: min(village.tips()) >= first + 8, 60_000)
    assert village["auth1"].replica.authorities.n == 5
    assert signed_heights(village, "auth4")[0] >= first
    assert len(signed_heights(village, "auth4")) >= 6
    key = village["auth0"].key
    assert key is not None
    second = decide(village, 2, AuthorityChange((key,), (record("auth5"),)), "auth1", "auth2", "auth3", "auth4")
    assert village.run_until(lambda: min(village.tips()) >= second + 8, 60_000)
    assert signed_heights(village, "auth0")[-1] < second
    assert len([height for height in signed_heights(village, "auth5") if height >= second]) >= 6
    assert village["auth0"].tip >= second + 8
    assert not any(villager.halted or villager.blamed for villager in village.villagers.values())


def test_a_node_that_slept_through_two_changes_catches_up_across_them_and_signs_again() -> None:
    village = make_village("auth4", "auth5")
    sleeper = village["auth3"]
    for name in village.villagers:
        if name != "auth3":
            village.unlink(sleeper, village[name])
    decide(village, 1, AuthorityChange((), (record("auth4"),)), *FIRST[:3])
    village.run(3_000)
    key = village["auth0"].key
    assert key is not None
    last = decide(village, 2, AuthorityChange((key,), (record("auth5"),)), "auth0", "auth1", "auth2", "auth4")
    assert village.run_until(lambda: village["auth1"].tip >= last + 20, 60_000)
    assert sleeper.tip < last - 3
    for name in village.villagers:
        if name != "auth3":
            village.link(sleeper, village[name])
    assert village.run_until(lambda: sleeper.tip >= last + 24, 30_000)
    assert signed_heights(village, "auth3")[-1] > last + 20
    assert not sleeper.halted
    assert not any(villager.blamed for villager in village.villagers.values())


def test_authorities_keep_links_to_those_who_decide_and_forget_those_who_left() -> None:
    village = make_village("auth4")
    assert village["auth4"].dialed == {}
    key = village["auth0"].key
    assert key is not None
    first = decide(village, 1, AuthorityChange((key,), (record("auth4"),)), *FIRST[:3])
    assert village.run_until(lambda: min(village.tips()) >= first + 2, 20_000)
    assert sorted(village["auth1"].dialed) == sorted(node_of(name) for name in ("auth2", "auth3", "auth4"))
    assert sorted(village["auth4"].dialed) == sorted(node_of(name) for name in ("auth1", "auth2", "auth3"))
    assert village["auth0"].dialed == {}


def test_what_is_of_a_height_whose_authorities_are_unknown_passes_the_door_as_a_hint_alone() -> None:
    village = make_village()
    replica, far = village["auth1"].replica, Height(village["auth1"].tip + 3)
    assert replica.last_decided is not None
    certificate = replace(replica.last_decided.certificate, height=far)
    leader = next(name for name in FIRST if village[name].key == replica.authorities.leader(far, View(1)))
    proposal = ProposalBody(far, View(1), X, View(0))
    statements: tuple[tuple[str, MessageKind, ProposalBody | VoteBody | FinalBody], ...] = (
        (leader, MessageKind.PROPOSAL, proposal),
        ("auth2", MessageKind.VOTE, VoteBody(far, View(1), X)),
        ("stranger", MessageKind.FINAL, FinalBody(far, View(1), None)),
    )
    envelopes = [village.seal(name, kind, encode(body)) for name, kind, body in statements]
    messages = (
        (wire.Proposal(envelopes[0], replica.last_decided.block, ()), far - 1),
        (wire.Ballot(envelopes[1]), far - 1),
        (wire.Ballot(envelopes[2]), far - 1),
        (wire.CertificateNotice(certificate), far),
        (wire.CertificateNotice(replace(certificate, kind=CertificateKind.VOTED)), far - 1),
    )
    for message, hint in messages:
        assert replica.readable(message) == wire.TipNotice(Height(hint))
        with pytest.raises(BeyondReach):
            replica.checks(message)
        near = replica.readable(message)
        assert replica.receive(node_of("auth2"), near, village.now()) is not None
    assert village["auth1"].replica._catch_up.behind(replica.tip)


def test_what_came_too_early_does_not_slip_in_when_the_tip_moves_before_it_is_handled() -> None:
    """Forged words of a height whose set is not known at the door can't be checked there. By the time they are handled
    the height is open, and they would count if they had come through as what they claim to be."""
    village = make_village()
    replica = village["auth1"].replica
    far = Height(replica.tip + 3)
    assert replica.last_decided is not None
    broken = Signature(bytes(64))
    vote = seal(MessageKind.VOTE, encode(VoteBody(far, View(1), X)), PublicKey(account_of("auth2")), broken)
    forged = replace(
        replica.last_decided.certificate,
        kind=CertificateKind.VOTED,
        height=far,
        block_hash=X,
        signatures=tuple(broken for _ in replica.last_decided.certificate.signers),
    )
    early = [replica.readable(message) for message in (wire.Ballot(vote), wire.CertificateNotice(forged))]
    assert [check for message in early for check in replica.checks(message)] == []
    assert village.run_until(lambda: replica.tip == far - 1, 20_000)
    for message in early:
        village["auth1"].carry_out(replica.receive(node_of("auth2"), message, village.now()))
    machine = replica._open_machine()
    assert machine.rules.height == far
    assert machine.held.all() == ()
    assert all((machine.votes.said(View(1), seat) or (None,))[0] != X for seat in range(4))


def test_a_certificate_checked_before_the_tip_moved_is_the_one_that_counts_after_it() -> None:
    """At the door a certificate of tip + 2 is checked against the set of that height, not against today's: a quorum of
    the old set does not slip in while the tip moves."""
    village = make_village("auth4")
    replica = village["auth1"].replica
    key = village["auth0"].key
    assert key is not None
    decide(village, 1, AuthorityChange((key,), (record("auth4"),)), *FIRST[:3])
    height = Height(replica.tip + 2)
    old, new = replica.seats.at(height - 1), replica.seats.at(height)
    assert old is not None
    assert new is not None
    assert key in old
    assert key not in new
    skip = encode(FinalBody(height, View(1), None))
    with pytest.raises(Exception, match="no authority"):
        replica.checks(wire.Ballot(village.seal("auth0", MessageKind.FINAL, skip)))
    (check,) = replica.checks(wire.Ballot(village.seal("auth4", MessageKind.FINAL, skip)))
    assert check.holds()


def test_blocks_are_taken_as_far_as_their_headers_name_a_known_set() -> None:
    village = make_village("auth4")
    key = village["auth0"].key
    assert key is not None
    late = village["auth3"]
    for name in village.villagers:
        if name != "auth3":
            village.unlink(late, village[name])
    first = decide(village, 1, AuthorityChange((key,), (record("auth4"),)), *FIRST[:3])
    assert village.run_until(lambda: village["auth1"].tip >= first + 4, 20_000)
    tip = late.tip
    told = wire.Blocks(tuple(village["auth1"].blocks[Height(n)] for n in range(tip + 1, first + 4)), Height(first + 4))
    readable = late.replica.readable(told)
    assert isinstance(readable, wire.Blocks)
    last = decode(readable.blocks[-1].block, Block).header
    assert last.height == first - 1
    assert last.authorities_hash != last.next_authorities_hash
    with pytest.raises(BeyondReach):
        late.replica.checks(told)
    assert all(check.holds() for check in late.replica.checks(readable))
