"""Following who decides: every step by the rule, and nothing believed that a third could have made up."""

import msgspec
import pytest

from protocol.ledger.light_chain import (
    ProofInvalid,
    TooFewInCommon,
    deciding_set,
    follow_all,
    reach,
    trusted_checkpoint,
    verify_decided,
    walk,
)
from protocol.messages.blocks import DecidedHeader, Succession
from protocol.messages.genesis import genesis_hash
from protocol.primitives.codec import decode, encode
from protocol.primitives.errors import MalformedMessage, RemoteProtocolError
from protocol.primitives.units import Hash, Height, TimestampMs
from tests.ledger.dynasty import Dynasty, certify, set_of

FIRST = ("auth0", "auth1", "auth2", "auth3")
REIGNS = [
    (5, set_of(("auth0", "auth1", "auth2", "new4"))),
    (9, set_of(("auth0", "auth1", "new5", "new4"))),
    (13, set_of(("auth0", "new6", "new5", "new4"))),
    (17, set_of(("new7", "new6", "new5", "new4"))),
    (21, set_of(("new7", "new6", "new5", "new4"), ("new7",))),
]


@pytest.fixture(scope="module")
def dynasty() -> Dynasty:
    return Dynasty(REIGNS, 24)


def test_adjacent_headers_lead_through_every_change(dynasty: Dynasty) -> None:
    trusted = dynasty.trusted
    for height in range(1, 25):
        trusted = reach(trusted, dynasty.decided(height))
        assert trusted.authorities.hash() == dynasty.set_at(height).hash()


def test_the_changes_alone_lead_to_the_set_of_the_last_header(dynasty: Dynasty) -> None:
    successions = dynasty.successions()
    assert [succession.header.height for succession in successions] == [4, 8, 12, 16, 20]
    target = dynasty.decided(24)
    authorities = deciding_set(dynasty.trusted, None, successions, target.header)
    verify_decided(genesis_hash(dynasty.genesis), authorities, target.header, target.certificate)
    assert authorities.suspended


def judge(dynasty: Dynasty, successions: tuple[Succession, ...], target: DecidedHeader) -> None:
    """Check a header from the genesis on."""
    authorities = deciding_set(dynasty.trusted, None, successions, target.header)
    verify_decided(genesis_hash(dynasty.genesis), authorities, target.header, target.certificate)


@pytest.mark.parametrize("dropped", range(5))
def test_no_change_can_be_left_out(dynasty: Dynasty, dropped: int) -> None:
    successions = dynasty.successions()
    kept = (*successions[:dropped], *successions[dropped + 1 :])
    target = dynasty.decided(24)
    with pytest.raises(ProofInvalid):
        judge(dynasty, kept, target)


def test_changes_out_of_order_twice_or_above_the_header_are_refused(dynasty: Dynasty) -> None:
    successions = dynasty.successions()
    for wrong in (successions[::-1], (successions[0], *successions)):
        with pytest.raises(ProofInvalid):
            follow_all(dynasty.trusted, wrong)
    with pytest.raises(ProofInvalid, match="no bearing"):
        deciding_set(dynasty.trusted, None, successions, dynasty.headers[20])


def test_a_changed_bit_anywhere_in_a_change_is_refused(dynasty: Dynasty) -> None:
    content = encode(dynasty.successions()[0])
    for place in range(len(content)):
        forged = bytearray(content)
        forged[place] ^= 1
        with pytest.raises(RemoteProtocolError):
            follow_all(dynasty.trusted, (decode(bytes(forged), Succession),))


def test_a_changed_bit_anywhere_in_a_header_that_is_skipped_to_is_refused(dynasty: Dynasty) -> None:
    content = encode(dynasty.decided(6))
    reach(dynasty.trusted, decode(content, DecidedHeader))
    for place in range(len(content)):
        forged = bytearray(content)
        forged[place] ^= 1
        with pytest.raises((RemoteProtocolError, MalformedMessage)):
            reach(dynasty.trusted, decode(bytes(forged), DecidedHeader))


def test_skipping_takes_more_than_a_third_of_the_trusted_keys_among_the_signers(dynasty: Dynasty) -> None:
    assert reach(dynasty.trusted, dynasty.decided(6)).header.height == 6
    assert reach(dynasty.trusted, dynasty.decided(10, ("auth0", "auth1", "new4"))).header.height == 10
    for height, signers in ((10, ("auth0", "new4", "new5")), (14, ()), (18, ()), (24, ())):
        with pytest.raises(TooFewInCommon):
            reach(dynasty.trusted, dynasty.decided(height, signers))


def test_exactly_a_third_in_common_is_not_enough() -> None:
    dynasty = Dynasty([(2, set_of(f"m{each}" for each in range(6))), (5, set_of(("m0", "m1", "x0", "x1", "x2")))], 6)
    trusted = reach(dynasty.trusted, dynasty.decided(1))
    trusted = reach(trusted, dynasty.decided(2))
    with pytest.raises(TooFewInCommon, match="2 of the 6"):
        reach(trusted, dynasty.decided(6, ("m0", "m1", "x0", "x1")))


def test_a_suspended_key_is_none_of_the_third() -> None:
    sets = [
        (2, set_of(("auth0", "auth1", "auth2", "auth3"), ("auth0",))),
        (5, set_of(("auth0", "auth1", "x2", "x3"))),
    ]
    dynasty = Dynasty(sets, 6)
    trusted = reach(reach(dynasty.trusted, dynasty.decided(1)), dynasty.decided(2))
    with pytest.raises(TooFewInCommon, match="1 of the 4"):
        reach(trusted, dynasty.decided(6, ("auth0", "auth1", "x2")))


def test_a_walk_bisects_where_too_little_is_in_common_and_arrives(dynasty: Dynasty) -> None:
    asked: list[int] = []

    def source(height: Height) -> DecidedHeader:
        asked.append(height)
        return dynasty.decided(height)

    steps = walk(dynasty.trusted, Height(24), source)
    assert steps[-1].header == dynasty.headers[24]
    assert steps[-1].authorities.hash() == REIGNS[-1][1].hash()
    heights = [step.header.height for step in steps]
    assert heights == sorted(heights)
    assert len(heights) < 10 < 24
    assert asked[0] == 24


def test_a_walk_ends_at_a_lying_source(dynasty: Dynasty) -> None:
    with pytest.raises(ProofInvalid, match="asked for header 24, got 23"):
        walk(dynasty.trusted, Height(24), lambda height: dynasty.decided(height - 1))
    with pytest.raises(ProofInvalid, match="not lie above"):
        walk(reach(dynasty.trusted, dynasty.decided(3)), Height(3), dynasty.decided)


def test_strangers_who_sign_for_themselves_are_never_believed(dynasty: Dynasty) -> None:
    # Twenty strangers with one authority among them: a quorum of their own, a quarter of the trusted.
    strangers = set_of(("auth0", *(f"stranger{each}" for each in range(9))))
    for height in (1, 2, 3, 24):
        header = msgspec.structs.replace(
            dynasty.headers[height], authorities_hash=strangers.hash(), next_authorities_hash=strangers.hash()
        )
        forged = DecidedHeader(header, certify(dynasty.genesis, strangers, header), strangers.membership())
        with pytest.raises(ProofInvalid):
            reach(dynasty.trusted, forged)
        lies = dict.fromkeys(range(1, 25), forged)
        with pytest.raises(ProofInvalid):
            walk(dynasty.trusted, Height(height), lies.__getitem__)


def test_the_next_header_comes_from_the_promised_set_although_another_has_enough_in_common(dynasty: Dynasty) -> None:
    other = set_of(("auth0", "auth1", "auth2", "usurper"))
    header = msgspec.structs.replace(
        dynasty.headers[1], authorities_hash=other.hash(), next_authorities_hash=other.hash()
    )
    forged = DecidedHeader(header, certify(dynasty.genesis, other, header), other.membership())
    with pytest.raises(ProofInvalid, match="promised"):
        reach(dynasty.trusted, forged)


def test_a_set_with_its_members_in_another_order_is_refused(dynasty: Dynasty) -> None:
    target = dynasty.decided(2)
    members = msgspec.structs.replace(target.authorities, records=target.authorities.records[::-1])
    with pytest.raises(ProofInvalid, match="order"):
        reach(dynasty.trusted, msgspec.structs.replace(target, authorities=members))


def test_old_keys_that_fork_the_past_do_not_get_by_a_recent_checkpoint(dynasty: Dynasty) -> None:
    genesis = genesis_hash(dynasty.genesis)
    checkpoint = trusted_checkpoint(genesis, dynasty.decided(18))
    successions = dynasty.successions()
    assert deciding_set(dynasty.trusted, checkpoint, successions, dynasty.headers[24]).suspended
    # All four first authorities have sold their keys: a history in which nothing ever changed.
    header = msgspec.structs.replace(dynasty.headers[3], height=Height(24), timestamp_ms=TimestampMs(2**41))
    certificate = certify(dynasty.genesis, dynasty.trusted.authorities, header)
    verify_decided(genesis, deciding_set(dynasty.trusted, None, (), header), header, certificate)
    with pytest.raises(ProofInvalid, match="another authority set"):
        verify_decided(genesis, deciding_set(dynasty.trusted, checkpoint, (), header), header, certificate)


def test_a_checkpoint_does_not_say_who_decided_before_it(dynasty: Dynasty) -> None:
    checkpoint = trusted_checkpoint(genesis_hash(dynasty.genesis), dynasty.decided(18))
    header = dynasty.headers[14]
    early = tuple(each for each in dynasty.successions() if each.header.height < header.height)
    expected = deciding_set(dynasty.trusted, None, early, header)
    assert deciding_set(dynasty.trusted, checkpoint, early, header).hash() == expected.hash()


def test_a_checkpoint_has_to_be_decided_and_to_say_who_follows(dynasty: Dynasty) -> None:
    genesis = genesis_hash(dynasty.genesis)
    with pytest.raises(ProofInvalid, match="who follows"):
        trusted_checkpoint(genesis, dynasty.decided(16))
    few = msgspec.structs.replace(dynasty.decided(18), certificate=dynasty.decided(19).certificate)
    with pytest.raises(ProofInvalid):
        trusted_checkpoint(genesis, few)
    with pytest.raises(ProofInvalid):
        trusted_checkpoint(Hash(bytes(32)), dynasty.decided(18))
