"""The fee pool: who signed blocks is paid by epoch, in proportion, and not one base unit is made or lost."""

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.ledger.charter import SignerCount
from protocol.ledger.epochs import shares
from protocol.messages.transactions import EvidenceReport, Output, Transfer
from protocol.primitives.units import AMOUNT_MAX, AccountId, Amount, AuthorityId
from tests.ledger.assembly import Assembly, X, Y, authority, ballot, change
from tests.ledger.assembly import settings as setting
from tests.ledger.world import account_of


def pay(assembly: Assembly, fee: int) -> None:
    assembly.act("alice", Transfer((Output(account_of("bob"), Amount(1)),)), fee=fee)


def balances(assembly: Assembly) -> list[int]:
    return [assembly.balance(f"auth{index}-account") for index in range(4)]


def test_those_whose_signatures_are_in_certificates_share_the_pool_at_the_end_of_an_epoch() -> None:
    assembly = Assembly(epoch_blocks=5)
    before = balances(assembly)
    signers = [record.name for record in assembly.state.authorities.records[:3]]  # a certificate of the test has three
    for _ in range(5):
        pay(assembly, 200)
    assert balances(assembly) == before
    assert {entry.blocks for entry in assembly.state.charter.epoch.signers} == {4}  # the fifth is certified in the next
    pay(assembly, 200)  # its own fee is for the next epoch
    paid = [now - then for now, then in zip(balances(assembly), before, strict=True)]
    assert paid == [1_000 // 3 if f"auth{index}" in signers else 0 for index in range(4)]
    assert assembly.state.fee_pool == 200 + 1_000 % 3
    assert assembly.state.charter.epoch == type(assembly.state.charter.epoch)(assembly.state.height, ())
    supply = assembly.state.supply()
    assert supply.total == supply.issued


def test_a_key_that_signed_twice_is_paid_nothing_and_the_others_share_its_part() -> None:
    assembly = Assembly(epoch_blocks=5)
    culprit = int(assembly.state.authorities.records[0].name[4:])
    before = balances(assembly)
    said = [assembly.said(culprit, ballot(1, 2, block_hash)) for block_hash in (X, Y)]
    assembly.act("alice", EvidenceReport(said[0], said[1]))
    for _ in range(4):
        pay(assembly, 100)
    pool = assembly.state.fee_pool
    counted = {entry.authority: entry.blocks for entry in assembly.state.charter.epoch.signers}
    assert authority(culprit) in counted
    assembly.tick()
    paid = [now - then for now, then in zip(balances(assembly), before, strict=True)]
    assert paid[culprit] == 0
    assert pool - 3 < sum(paid) <= pool
    assert assembly.state.fee_pool == pool - sum(paid)


def test_who_leaves_in_the_middle_of_an_epoch_is_paid_for_what_it_signed() -> None:
    assembly = Assembly(epoch_blocks=12)
    leaver = int(assembly.state.authorities.records[0].name[4:])
    before = balances(assembly)[leaver]
    number = assembly.open((leaver + 1) % 4, change(remove=(leaver,)))
    for step in (2, 3):
        assembly.vote((leaver + step) % 4, number)
    spent_before = balances(assembly)[leaver]
    assert spent_before == before
    assembly.tick(11)
    assert assembly.state.authorities.n == 3
    assert balances(assembly)[leaver] > before


def test_an_epoch_whose_length_is_voted_shorter_ends_with_the_next_block() -> None:
    assembly = Assembly(epoch_blocks=1_000)
    for _ in range(3):
        pay(assembly, 100)
    assembly.decide(setting(epoch_blocks=2))
    assembly.tick()
    assert assembly.state.charter.epoch.first_height == assembly.state.height
    assert assembly.state.fee_pool < 3


COUNTS = st.lists(st.integers(1, 10**6), min_size=1, max_size=30)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, AMOUNT_MAX), COUNTS)
def test_shares_never_exceed_the_pool_and_leave_less_than_a_unit_for_each(pool: int, counts: list[int]) -> None:
    signers = [
        SignerCount(AuthorityId(bytes((index,)) * 32), AccountId(bytes((index,)) * 32), blocks)
        for index, blocks in enumerate(counts)
    ]
    paid = [amount for _, amount in shares(Amount(pool), signers)]
    assert pool - len(counts) < sum(paid) <= pool
    total = sum(counts)
    assert all(abs(amount * total - pool * blocks) < total for amount, blocks in zip(paid, counts, strict=True))
