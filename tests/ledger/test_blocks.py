"""Blocks: every field of a header is judged, execution changes nothing, and what conserves the supply is enforced."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from protocol.ledger import blocks
from protocol.ledger.blocks import build_block, execute_block, genesis_header, heartbeat_due, supply_difference
from protocol.ledger.charter import MARKS_KEY
from protocol.ledger.errors import BlockInvalid, NonceMismatch, StateInvalid
from protocol.ledger.lattice import lattice_root
from protocol.ledger.merkle import merkle_root, transaction_leaf
from protocol.ledger.rows import Account
from protocol.ledger.state import LedgerState
from protocol.ledger.view import Overlay
from protocol.messages.blocks import Block, Header
from protocol.messages.consensus import CertificateKind
from protocol.messages.transactions import (
    Action,
    BondDeposit,
    BondRelease,
    BondUnlock,
    ChannelClose,
    ChannelFinalise,
    ChannelOpen,
    ChannelRedeem,
    ChannelTopUp,
    Output,
    Transfer,
)
from protocol.primitives.codec import encode
from protocol.primitives.errors import LocalProtocolError
from protocol.primitives.limits import BLOCK_BYTES_MAX
from protocol.primitives.units import Amount, BlockHash, TimestampMs
from tests.ledger.world import FEE, NAMES, Ledger, account_of, make_genesis


def pay(name: str, amount: int) -> Transfer:
    return Transfer((Output(account_of(name), Amount(amount)),))


def changed(header: Header, field: str, value: object) -> Header:
    return msgspec.structs.replace(header, **{field: value})


def test_genesis_is_height_zero_on_top_of_the_genesis_hash() -> None:
    ledger = Ledger()
    header = genesis_header(ledger.genesis)
    assert header == ledger.state.tip
    assert (header.height, header.ledger_time_ms, header.parent) == (0, 0, BlockHash(ledger.hash))
    assert ledger.state.tip_hash != genesis_header(make_genesis(balance=1)).parent


def test_what_is_built_is_valid_and_executing_changes_nothing_until_it_is_applied() -> None:
    ledger = Ledger()
    before, tip = list(ledger.state.rows()), ledger.state.tip
    built = ledger.build([ledger.transaction("alice", pay("bob", 5))], TimestampMs(tip.timestamp_ms + 20))
    execution = execute_block(ledger.state, built.block)
    assert list(ledger.state.rows()) == before
    assert ledger.state.tip == tip
    assert execution.block_bytes == encode(built.block) == built.block_bytes
    assert (execution.block_hash, execution.rows) == (built.block_hash, built.rows)
    ledger.state.apply(execution)
    assert ledger.state.tip == built.header
    assert ledger.state.tip_hash == built.block_hash


def test_an_execution_on_another_tip_is_not_applied() -> None:
    ledger = Ledger()
    built = ledger.build([ledger.transaction("alice", pay("bob", 5))], TimestampMs(0))
    ledger.act("carol", pay("bob", 1))
    before = list(ledger.state.rows())
    with pytest.raises(LocalProtocolError):
        ledger.state.apply(built)
    assert list(ledger.state.rows()) == before


FORGED: list[tuple[str, object, str]] = [
    ("version", 2, "version"),
    ("height", 3, "height"),
    ("parent", b"p" * 32, "parent"),
    ("parent_certificate_hash", b"p" * 32, "parent certificate hash"),
    ("checkpoint_root", b"c" * 32, "checkpoint root"),
    ("authorities_hash", b"a" * 32, "authorities"),
    ("next_authorities_hash", b"a" * 32, "next authorities"),
    ("timestamp_ms", 5, "timestamp"),
    ("ledger_time_ms", 0, "ledger time"),
    ("transactions_root", b"t" * 32, "transactions root"),
    ("state_root", b"s" * 32, "state root"),
]


@pytest.mark.parametrize(("field", "value", "reason"), FORGED, ids=[row[0] for row in FORGED])
def test_a_header_with_one_wrong_field_is_refused_by_name(field: str, value: object, reason: str) -> None:
    ledger = Ledger()
    ledger.act("carol", pay("bob", 1))
    timestamp = TimestampMs(ledger.state.tip.timestamp_ms + 20)
    built = ledger.build([ledger.transaction("alice", pay("bob", 5))], timestamp)
    with pytest.raises(BlockInvalid) as caught:
        execute_block(
            ledger.state,
            replace(built.block, header=changed(built.header, field, value)),
        )
    assert caught.value.reason == reason


def test_a_parent_certificate_that_does_not_decide_the_tip_by_a_quorum_is_refused() -> None:
    ledger = Ledger()
    first = ledger.act("carol", pay("bob", 1))
    ledger.act("carol", pay("bob", 2))
    good = ledger.certificate
    assert good is not None
    for wrong in (
        None,
        ledger.certify(ledger.state.tip, CertificateKind.VOTED),
        ledger.certify(first.header),
        replace(good, signers=good.signers[:-1], signatures=good.signatures[:-1]),
    ):
        built = build_block(ledger.state, [ledger.transaction("alice", pay("bob", 5))], TimestampMs(0), wrong)
        with pytest.raises(BlockInvalid) as caught:
            execute_block(ledger.state, built.block)
        assert caught.value.reason == "parent certificate"


def test_every_field_of_a_header_is_in_the_table_above() -> None:
    assert {row[0] for row in FORGED} == set(Header.__struct_fields__)


def test_a_block_with_a_transaction_that_fails_or_is_no_transaction_is_refused() -> None:
    ledger = Ledger()
    built = ledger.build([ledger.transaction("alice", pay("bob", 5))], TimestampMs(0))
    for transactions, reason in (
        (
            (*built.block.transactions, ledger.transaction("alice", pay("bob", 5), nonce=7).envelope_bytes),
            "transaction",
        ),
        ((ledger.voucher(b"c" * 32, "alice", "bob", 1, 1),), "malformed transaction"),  # type: ignore[arg-type]
        ((b"\xc1",), "malformed transaction"),
    ):
        root = merkle_root([transaction_leaf(each) for each in transactions])
        with pytest.raises(BlockInvalid) as caught:
            execute_block(
                ledger.state,
                Block(changed(built.header, "transactions_root", root), None, transactions),
            )
        assert caught.value.reason == reason


def test_an_empty_block_is_valid_only_when_a_heartbeat_is_due() -> None:
    ledger = Ledger()
    tip = ledger.state.tip.timestamp_ms
    early = ledger.build([], TimestampMs(tip + 14_999))
    assert not heartbeat_due(ledger.state, early.header.timestamp_ms)
    with pytest.raises(BlockInvalid) as caught:
        execute_block(ledger.state, early.block)
    assert caught.value.reason == "empty"
    due = ledger.build([], TimestampMs(tip + 15_000))
    execution = execute_block(ledger.state, due.block)
    assert [key for key, _ in execution.rows] == [MARKS_KEY]  # no money moved, only time
    ledger.state.apply(execution)


@pytest.mark.parametrize(("passed", "counted"), [(0, 0), (1, 1), (30_000, 30_000), (30_001, 30_000), (10**9, 30_000)])
def test_ledger_time_grows_by_at_most_thirty_seconds_a_block(passed: int, counted: int) -> None:
    ledger = Ledger()
    ledger.act("alice", pay("bob", 1), after_ms=passed)
    assert ledger.state.ledger_time_ms == counted


def test_a_builder_whose_clock_runs_behind_uses_the_parents_time() -> None:
    ledger = Ledger()
    built = ledger.build([ledger.transaction("alice", pay("bob", 5))], TimestampMs(1))
    assert built.header.timestamp_ms == ledger.state.tip.timestamp_ms
    execute_block(ledger.state, built.block)


def test_candidates_that_do_not_execute_are_left_out_without_a_trace() -> None:
    ledger = Ledger()
    bad = ledger.transaction("alice", pay("bob", 5), nonce=4)
    broke = ledger.transaction("carol", pay("bob", 10**9))
    good = ledger.transaction("bob", pay("alice", 5))
    built = ledger.build([bad, broke, good], TimestampMs(0))
    assert built.transaction_ids == (good.transaction_id,)
    assert [refused for refused, _ in built.refused] == [bad.transaction_id, broke.transaction_id]
    assert isinstance(built.refused[0][1], NonceMismatch)
    execute_block(ledger.state, built.block)


def test_a_block_never_outgrows_its_size_however_much_waits() -> None:
    ledger = Ledger()
    outputs = tuple(Output(account_of("bob"), Amount(1)) for _ in range(256))
    candidates = [ledger.transaction("alice", Transfer(outputs), nonce=nonce) for nonce in range(120)]
    built = ledger.build(candidates, TimestampMs(0))
    assert BLOCK_BYTES_MAX - 15_000 < len(built.block_bytes) <= BLOCK_BYTES_MAX
    assert built.refused == ()
    execute_block(ledger.state, built.block)


def test_a_block_above_the_size_cap_is_refused_before_anything_else() -> None:
    ledger = Ledger()
    built = ledger.build([], TimestampMs(0))
    with pytest.raises(BlockInvalid) as caught:
        execute_block(ledger.state, Block(built.header, None, (bytes(BLOCK_BYTES_MAX // 2),) * 2))
    assert caught.value.reason == "size"


def test_a_transition_that_makes_money_is_caught_by_the_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger()
    built = ledger.build([ledger.transaction("alice", pay("bob", 5))], TimestampMs(0))

    def generous(overlay: Overlay, *rest: object) -> None:
        account = overlay.account(account_of("alice"))
        overlay.accounts[account_of("alice")] = Account(Amount(account.balance + 1), account.nonce)

    monkeypatch.setattr(blocks, "apply_transaction", generous)
    with pytest.raises(BlockInvalid) as caught:
        execute_block(ledger.state, built.block)
    assert caught.value.reason == "supply"


@pytest.mark.parametrize("place", ["balance", "bond", "channel", "pool"])
def test_the_difference_sees_every_place_where_money_can_be(place: str) -> None:
    ledger = Ledger()
    channel_id = ledger.open_channel("alice", "bob", 100)
    overlay = Overlay(ledger.state)
    alice = account_of("alice")
    if place == "balance":
        overlay.accounts[alice] = Account(Amount(ledger.balance("alice") + 1), overlay.account(alice).nonce)
    elif place == "bond":
        bond = overlay.bond(alice)
        overlay.bonds[alice] = type(bond)(bond.amount, Amount(1), bond.unlock_at)
    elif place == "channel":
        channel = ledger.state.channel(channel_id)
        assert channel is not None
        overlay.channels[channel_id] = msgspec.structs.replace(channel, deposit=101)
    else:
        overlay.fee_pool = Amount(overlay.fee_pool + 1)
    assert supply_difference(ledger.state, overlay) == 1


def test_rows_that_do_not_give_the_root_or_the_supply_are_refused() -> None:
    ledger = Ledger()
    ledger.act("alice", pay("bob", 5))
    rows = dict(ledger.state.rows())
    key = b"a" + account_of("alice")
    richer = rows | {key: encode(Account(Amount(10**9), ledger.state.account(account_of("alice")).nonce))}
    missing = {other: value for other, value in rows.items() if other != key}
    for forged in (richer, missing, rows | {b"z": b"\xc0"}, rows | {key: b"\xc1"}):
        with pytest.raises(StateInvalid):
            LedgerState.from_rows(ledger.genesis, forged.items(), ledger.state.tip)
    bob = account_of("bob")
    swapped = rows | {key: rows[b"a" + bob], b"a" + bob: rows[key]}
    with pytest.raises(StateInvalid, match="state root"):  # the supply is as it was
        LedgerState.from_rows(ledger.genesis, swapped.items(), ledger.state.tip)
    with pytest.raises(StateInvalid, match="no known kind"):
        LedgerState.from_rows(ledger.genesis, {b"z": b"\xc0"}.items(), ledger.state.tip)
    # A root that matches does not help rows that hold more than was issued.
    state = LedgerState(ledger.genesis, richer.items(), ledger.state.tip)
    header = changed(ledger.state.tip, "state_root", lattice_root(state.lattice))
    with pytest.raises(StateInvalid, match="issued"):
        LedgerState.from_rows(ledger.genesis, richer.items(), header)


def _action(ledger: Ledger, name: str, kind: int, other: str, number: int) -> Action:
    channels = [channel_id for channel_id, _ in ledger.state.channels_of(account_of(name))]
    if kind < 3 or not channels:
        simple: tuple[Action, ...] = (
            pay(other, number),
            BondDeposit(Amount(number)),
            BondUnlock(Amount(number)),
            BondRelease(account_of(other)),
            ChannelOpen(account_of(other), Amount(number)),
        )
        return simple[(kind + number) % len(simple)]
    channel_id = channels[number % len(channels)]
    channel = ledger.state.channel(channel_id)
    assert channel is not None
    payer = next(each for each in (*NAMES, "nobody") if account_of(each) == channel.payer)
    payee = next(each for each in (*NAMES, "nobody") if account_of(each) == channel.payee)
    voucher = ledger.voucher(channel_id, payer, payee, number, number * 2, lane=number % 3)
    choices: tuple[Action, ...] = (
        ChannelRedeem(channel_id, (voucher,)),
        ChannelTopUp(channel_id, Amount(number)),
        ChannelClose(channel_id),
        ChannelFinalise(channel_id),
    )
    return choices[kind % len(choices)]


STEP = st.tuples(
    st.sampled_from(NAMES), st.integers(0, 9), st.sampled_from(NAMES), st.integers(0, 3_000), st.integers(0, 12_000)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=30))
def test_any_sequence_of_actions_conserves_the_supply_and_its_rows_rebuild_the_state(
    steps: list[tuple[str, int, str, int, int]],
) -> None:
    ledger = Ledger(make_genesis(balance=10_000))
    stored = dict(ledger.state.rows())
    for name, kind, other, number, after_ms in steps:
        pending = ledger.transaction(name, _action(ledger, name, kind, other, number), fee=FEE + number % 7)
        built = ledger.build([pending], TimestampMs(ledger.state.tip.timestamp_ms + after_ms))
        if not built.transaction_ids:
            continue
        execution = execute_block(ledger.state, built.block)
        ledger.state.apply(execution)
        for key, value in execution.rows:
            if value is None:
                del stored[key]
            else:
                stored[key] = value
        supply = ledger.state.supply()
        assert supply.total == supply.issued == 4 * 12_000
        assert all(account.balance >= 0 for _, account in ledger.state.accounts())
        assert all(0 <= channel.redeemed <= channel.deposit for _, channel in ledger.state.channels())
    assert stored == dict(ledger.state.rows())
    rebuilt = LedgerState.from_rows(ledger.genesis, stored.items(), ledger.state.tip)
    assert rebuilt.lattice == ledger.state.lattice
    for name in NAMES:
        assert rebuilt.channels_of(account_of(name)) == ledger.state.channels_of(account_of(name))
