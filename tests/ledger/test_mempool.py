"""The mempool: what it takes, what it refuses and why, what it gives to a block, and what a block does to it."""

from string import Formatter

import pytest

from protocol.ledger import mempool as mempool_module
from protocol.ledger.blocks import PendingTransaction
from protocol.ledger.errors import TransactionInvalid
from protocol.ledger.mempool import Mempool, TransactionRejected
from protocol.messages.envelope import open_as
from protocol.messages.kinds import MessageKind
from protocol.messages.transactions import (
    Action,
    BondUnlock,
    ChannelClose,
    ChannelFinalise,
    ChannelOpen,
    ChannelRedeem,
    ChannelTopUp,
    Output,
    Transaction,
    Transfer,
)
from protocol.primitives.limits import (
    BLOCK_BYTES_MAX,
    BLOCK_TRANSACTIONS_MAX,
    PENDING_PER_SENDER_MAX,
    TRANSACTION_BYTES_MAX,
)
from protocol.primitives.units import Amount, MessageId, TimestampMs
from protocol.settlement.vouchers import channel_id
from tests.ledger.world import FEE, Ledger, account_of, make_genesis


def pay(name: str, amount: int, outputs: int = 1) -> Transfer:
    return Transfer(tuple(Output(account_of(name), Amount(amount)) for _ in range(outputs)))


class Pool:
    """A mempool over a ledger."""

    def __init__(self, ledger: Ledger | None = None) -> None:
        self.ledger = ledger if ledger is not None else Ledger()
        self.mempool = Mempool(self.ledger.genesis)

    def submit(self, pending: PendingTransaction) -> MessageId:
        envelope, transaction = open_as(pending.envelope_bytes, MessageKind.TRANSACTION)
        assert isinstance(transaction, Transaction)
        return self.mempool.add(pending.envelope_bytes, envelope, transaction, self.ledger.state)

    def send(self, name: str, action: Action, nonce: int, fee: int = FEE, valid_until: int = 1_000_000) -> MessageId:
        return self.submit(self.ledger.transaction(name, action, nonce, fee, valid_until))

    def refused(self, name: str, action: Action, nonce: int, fee: int = FEE, valid_until: int = 1_000_000) -> str:
        before = self.mempool.pending()
        with pytest.raises(TransactionRejected) as caught:
            self.send(name, action, nonce, fee, valid_until)
        assert self.mempool.pending() == before
        return caught.value.code

    def selected(self, bytes_max: int = BLOCK_BYTES_MAX, count_max: int = BLOCK_TRANSACTIONS_MAX) -> list[MessageId]:
        chosen = self.mempool.select(self.ledger.state, bytes_max, count_max)
        return [pending.transaction_id for pending in chosen]

    def decide(self, after_ms: int = 20) -> list[tuple[MessageId, str]]:
        """Make a block of everything selected; returns what the mempool dropped."""
        chosen = self.mempool.select(self.ledger.state, BLOCK_BYTES_MAX, BLOCK_TRANSACTIONS_MAX)
        timestamp = TimestampMs(self.ledger.state.tip.timestamp_ms + after_ms)
        execution = self.ledger.build(chosen, timestamp)
        self.ledger.state.apply(execution)
        return self.applied(execution.transaction_ids)

    def applied(self, ids: tuple[MessageId, ...] = ()) -> list[tuple[MessageId, str]]:
        dropped = self.mempool.block_applied(self.ledger.state, ids)
        return [(transaction_id, error.code) for transaction_id, error in dropped]


@pytest.fixture
def pool() -> Pool:
    return Pool()


def test_what_is_taken_is_work_is_selected_and_is_gone_once_decided(pool: Pool) -> None:
    assert not pool.mempool.has_work(pool.ledger.state)
    first = pool.send("alice", pay("bob", 5), 0)
    second = pool.send("alice", pay("bob", 6), 1)
    assert pool.mempool.has_work(pool.ledger.state)
    assert pool.mempool.next_nonce(account_of("alice"), pool.ledger.state) == 2
    assert [pending.transaction_id for pending in pool.mempool.pending_for(account_of("alice"))] == [first, second]
    assert pool.selected() == [first, second]
    assert pool.decide() == []
    assert len(pool.mempool) == 0
    assert not pool.mempool.has_work(pool.ledger.state)
    assert pool.mempool.next_nonce(account_of("alice"), pool.ledger.state) == 2
    assert pool.ledger.balance("bob") == 1_000_011


def test_each_refusal_has_its_word(pool: Pool) -> None:
    pool.ledger.act("alice", pay("bob", 1))
    assert pool.refused("alice", pay("bob", 1), 0) == "nonce_used"
    assert pool.refused("alice", pay("bob", 1), 2) == "nonce_gap"
    assert pool.refused("alice", pay("bob", 1), 1, fee=FEE - 1) == "fee_too_low"
    assert pool.refused("alice", pay("bob", 1), 1, valid_until=1) == "transaction_expired"
    assert pool.refused("alice", pay("bob", 10**7), 1) == "insufficient_balance"
    assert pool.refused("alice", pay("alice", 1), 1) == "self_payment"
    assert pool.refused("alice", pay("bob", 0), 1) == "zero_amount"
    assert pool.refused("stranger", pay("bob", 1), 0) == "insufficient_balance"
    pool.send("alice", pay("bob", 1), 1)
    assert pool.refused("alice", pay("bob", 1), 1) == "duplicate"


def test_a_refusal_that_time_may_cure_is_retryable_and_a_senseless_transaction_is_not(pool: Pool) -> None:
    for action, nonce, retryable in ((pay("bob", 1), 5, True), (pay("bob", 10**7), 0, True), (pay("bob", 0), 0, False)):
        with pytest.raises(TransactionRejected) as caught:
            pool.send("alice", action, nonce)
        assert caught.value.retryable is retryable


def test_too_large_a_transaction_is_refused(pool: Pool) -> None:
    pending = pool.ledger.transaction("alice", pay("bob", 1), 0)
    envelope, transaction = open_as(pending.envelope_bytes, MessageKind.TRANSACTION)
    assert isinstance(transaction, Transaction)
    with pytest.raises(TransactionRejected) as caught:
        pool.mempool.add(bytes(TRANSACTION_BYTES_MAX + 1), envelope, transaction, pool.ledger.state)
    assert caught.value.code == "too_large"


def test_the_balance_must_cover_the_sum_of_what_is_pending(pool: Pool) -> None:
    pool.send("alice", pay("bob", 600_000), 0)
    assert pool.refused("alice", pay("bob", 400_000), 1) == "insufficient_balance"
    pool.send("alice", pay("bob", 400_000 - 2 * FEE), 1)


def test_a_senders_later_transaction_builds_on_its_earlier_one(pool: Pool) -> None:
    opened = channel_id(account_of("alice"), account_of("bob"), pool.ledger.state.account(account_of("alice")).nonce)
    assert pool.refused("alice", ChannelTopUp(opened, Amount(5)), 0) == "channel_unknown"
    pool.send("alice", ChannelOpen(account_of("bob"), Amount(100)), 0)
    pool.send("alice", ChannelTopUp(opened, Amount(5)), 1)
    assert pool.decide() == []
    channel = pool.ledger.state.channel(opened)
    assert channel is not None
    assert channel.deposit == 105


def test_a_sender_has_a_cap_on_number(pool: Pool) -> None:
    for nonce in range(PENDING_PER_SENDER_MAX):
        pool.send("alice", pay("bob", 1), nonce)
    assert pool.refused("alice", pay("bob", 1), PENDING_PER_SENDER_MAX) == "sender_cap"
    pool.send("bob", pay("alice", 1), 0)


def test_a_sender_has_a_cap_on_bytes(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mempool_module, "PENDING_BYTES_PER_SENDER_MAX", 11_000)
    pool.send("alice", pay("bob", 1, outputs=256), 0)
    assert pool.refused("alice", pay("bob", 1, outputs=256), 1) == "sender_cap"


def test_a_replacement_pays_a_tenth_more_and_takes_the_others_place(pool: Pool) -> None:
    pool.send("alice", pay("bob", 5), 0, fee=100)
    later = pool.send("alice", pay("bob", 7), 1)
    assert pool.refused("alice", pay("carol", 5), 0, fee=109) == "replacement_fee"
    replacement = pool.send("alice", pay("carol", 5), 0, fee=110)
    assert pool.selected() == [replacement, later]
    assert len(pool.mempool) == 2


def test_a_replacement_of_a_free_transaction_must_still_pay_more() -> None:
    pool = Pool(Ledger(make_genesis(fee_min=0)))
    pool.send("alice", pay("bob", 5), 0, fee=0)
    assert pool.refused("alice", pay("carol", 5), 0, fee=0) == "replacement_fee"


def test_a_replacement_that_would_break_a_later_transaction_is_refused(pool: Pool) -> None:
    pool.send("alice", pay("bob", 5), 0)
    pool.send("alice", pay("bob", 900_000), 1)
    assert pool.refused("alice", pay("carol", 500_000), 0, fee=20) == "replacement_breaks_later"
    assert pool.refused("alice", pay("carol", 10**7), 0, fee=20) == "insufficient_balance"


def test_blocks_take_the_highest_fees_and_keep_each_senders_order(pool: Pool) -> None:
    cheap = pool.send("alice", pay("bob", 1), 0, fee=10)
    dear_but_second = pool.send("alice", pay("bob", 1), 1, fee=500)
    middle = pool.send("bob", pay("alice", 1), 0, fee=50)
    same_as_middle = pool.send("carol", pay("alice", 1), 0, fee=50)
    assert pool.selected() == [middle, same_as_middle, cheap, dear_but_second]
    assert pool.selected(count_max=1) == [middle]


def test_selection_stays_within_bytes_and_count(pool: Pool) -> None:
    for name in ("alice", "bob"):
        for nonce in range(10):
            pool.send(name, pay("carol", 1, outputs=100), nonce)
    chosen = pool.mempool.select(pool.ledger.state, 20_000, 100)
    assert 0 < sum(len(pending.envelope_bytes) for pending in chosen) <= 20_000
    assert len(pool.selected(count_max=3)) == 3


def test_a_fifth_of_a_block_is_kept_for_redeems_and_closes_however_little_they_pay(pool: Pool) -> None:
    channel = pool.ledger.open_channel("alice", "bob", 1_000)
    for nonce in range(10):
        pool.send("carol", pay("dave", 1), nonce, fee=10_000)
    voucher = pool.ledger.voucher(channel, "alice", "bob", 1, 500)
    redeem = pool.send("bob", ChannelRedeem(channel, (voucher,)), 0)
    assert redeem not in pool.selected(count_max=5)  # a redeem can wait for as long as nobody closes the channel
    pool.ledger.act("alice", ChannelClose(channel))
    pool.applied()
    assert redeem in pool.selected(count_max=5)
    pool.decide()
    assert pool.ledger.state.channel(channel) is not None
    assert pool.ledger.balance("bob") > 1_000_000


def test_what_has_expired_is_dropped_with_all_that_follows_it(pool: Pool) -> None:
    kept = pool.send("alice", pay("bob", 1), 0)
    first = pool.send("alice", pay("bob", 1), 1, valid_until=1)
    second = pool.send("alice", pay("bob", 1), 2)
    pool.ledger.act("carol", pay("bob", 1))
    assert pool.applied() == [(first, "transaction_expired"), (second, "transaction_expired")]
    assert pool.selected() == [kept]


def test_what_a_block_made_impossible_is_dropped_and_has_work_stays_true_to_it(pool: Pool) -> None:
    channel = pool.ledger.open_channel("alice", "bob", 1_000)
    pool.ledger.act("alice", ChannelClose(channel))
    pool.ledger.pass_time(5_000)
    nonce = pool.ledger.state.account(account_of("carol")).nonce
    by_carol = pool.send("carol", ChannelFinalise(channel), nonce)
    by_dave = pool.send("dave", ChannelFinalise(channel), 0)
    assert pool.selected() == [by_carol, by_dave]
    assert pool.decide() == [(by_dave, "channel_unknown")]
    assert not pool.mempool.has_work(pool.ledger.state)


def test_a_nonce_used_elsewhere_drops_the_pending_transaction_that_had_it(pool: Pool) -> None:
    pool.send("alice", pay("bob", 5), 0)
    second = pool.send("alice", pay("bob", 6), 1)
    pool.ledger.act("alice", pay("dave", 999_980))
    assert pool.applied() == [(second, "insufficient_balance")]
    assert len(pool.mempool) == 0


def test_money_that_arrived_in_a_block_can_be_spent_at_once(pool: Pool) -> None:
    pool.send("alice", pay("bob", 600_000), 0)
    assert pool.refused("alice", pay("bob", 600_000), 1) == "insufficient_balance"
    pool.ledger.act("carol", pay("alice", 500_000))
    pool.applied()
    pool.send("alice", pay("bob", 600_000), 1)


def test_a_state_that_moved_without_word_to_the_mempool_is_noticed(pool: Pool) -> None:
    pool.send("alice", pay("bob", 5), 0)
    pool.ledger.act("carol", pay("alice", 5))
    assert pool.refused("alice", pay("bob", 5), 1) == "state_moved"


def test_a_full_mempool_takes_only_what_pays_more_than_the_cheapest_which_then_goes(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mempool_module, "PENDING_TOTAL_MAX", 3)
    keeps = pool.send("alice", pay("bob", 1), 0, fee=50)
    pool.send("bob", pay("alice", 1), 0, fee=20)
    pool.send("bob", pay("alice", 1), 1, fee=90)
    assert pool.refused("carol", pay("bob", 1), 0, fee=20) == "mempool_full"
    comes = pool.send("carol", pay("bob", 1), 0, fee=21)
    assert pool.selected() == [keeps, comes]
    also = pool.send("dave", BondUnlock(Amount(1)), 0, fee=10)
    assert len(pool.mempool) == 3
    assert also in pool.mempool


def test_nobody_evicts_its_own_transactions_from_a_full_mempool(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mempool_module, "PENDING_TOTAL_MAX", 1)
    pool.send("alice", pay("bob", 1), 0, fee=10)
    assert pool.refused("alice", pay("bob", 1), 1, fee=99) == "mempool_full"


def test_the_same_calls_give_the_same_order() -> None:
    def run() -> list[MessageId]:
        pool = Pool()
        for nonce in range(5):
            for name in ("alice", "bob", "carol"):
                pool.send(name, pay("dave", 1 + nonce), nonce, fee=10 + (nonce * 7) % 3)
        return pool.selected()

    assert run() == run()


def test_a_refusal_tells_people_what_is_wrong_in_credits(pool: Pool) -> None:
    with pytest.raises(TransactionRejected) as caught:
        pool.send("alice", pay("bob", 10**7), 0)
    assert caught.value.detail == (
        "the account has 0.99999 credits to spend, with what waits already taken off; 10.00 credits are needed"
    )


def test_every_sentence_about_a_refusal_can_be_spoken() -> None:
    """The facts that a sentence names are those that its docstring or its sender gives."""
    for kind in TransactionInvalid.__subclasses__():
        facts = dict.fromkeys((name for _, name, _, _ in Formatter().parse(kind.sentence) if name), 7)
        shown = kind(**facts).explanation
        assert shown, kind
        assert "{" not in shown
        assert kind(**facts).code in str(TransactionRejected(kind.code, shown))
