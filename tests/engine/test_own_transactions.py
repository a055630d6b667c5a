"""A wish keeps its nonce for life, so that nothing is ever paid twice."""

from msgspec.structs import replace

from protocol.engine.events import TransactionDecided, TransactionFailed
from protocol.engine.own_transactions import FEE_RAISES_MAX, RAISE_AFTER_BLOCKS, VALID_FOR_BLOCKS, VOID, OwnTransactions
from protocol.ledger.blocks import PendingTransaction
from protocol.ledger.mempool import TransactionRejected
from protocol.messages.effects import Delete, Effect, Notify, Put, SignAndSend
from protocol.messages.governance import Redemption
from protocol.messages.kinds import MessageKind
from protocol.messages.transactions import Action, MotionOpen, Output, Transaction, Transfer
from protocol.primitives.codec import Message, decode
from protocol.primitives.units import AccountId, Amount, Hash
from tests.ledger.world import Ledger, account_of, make_genesis, sealed


class Wallet:
    """Alice's ``OwnTransactions`` over a real ledger; signs what it is asked to sign."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.own = OwnTransactions(account_of("alice"))
        self.rows: dict[bytes, bytes] = {}
        self.signed: list[PendingTransaction] = []
        self.events: list[Message] = []

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Put():
                    self.rows[effect.key] = effect.value
                case Delete():
                    self.rows.pop(effect.key, None)
                case Notify():
                    self.events.append(effect.event)
                case SignAndSend():
                    assert self.rows, "a wish is durable before it is signed"
                    envelope = sealed(self.ledger.hash, "alice", effect.kind, decode(effect.payload, Transaction))
                    self.own.signed(envelope)
                    self.signed.append(PendingTransaction.from_bytes(envelope))

    def want(self, number: int, action: Action) -> None:
        self.carry_out(self.own.want(Hash(bytes([number]) * 32), action, self.ledger.state))

    def admit(self, pending: PendingTransaction) -> None:
        self.carry_out(self.own.admitted(pending.transaction, self.ledger.state))

    def refuse(self, pending: PendingTransaction, code: str = "insufficient_balance") -> None:
        error = TransactionRejected(code, "for the test")
        self.carry_out(self.own.rejected(pending.transaction, error, self.ledger.state))

    def decide(self, *included: PendingTransaction) -> None:
        execution = self.ledger.include(*included)
        decided = dict.fromkeys(execution.transaction_ids)
        self.carry_out(self.own.block_decided(execution.header, execution.block_hash, decided, self.ledger.state))

    def restart(self) -> None:
        self.own = OwnTransactions(account_of("alice"))
        self.signed = []
        self.carry_out(self.own.restore(list(self.rows.values()), self.ledger.state))


def pay(amount: int, name: str = "bob") -> Transfer:
    return Transfer((Output(AccountId(account_of(name)), Amount(amount)),))


def test_a_wish_is_signed_admitted_decided_and_told() -> None:
    wallet = Wallet()
    wallet.want(1, pay(100))
    wallet.admit(wallet.signed[0])
    wallet.decide(wallet.signed[0])
    assert [type(event) for event in wallet.events] == [TransactionDecided]
    assert wallet.rows == {}


def test_wishes_get_rising_nonces_one_at_a_time() -> None:
    wallet = Wallet()
    wallet.want(1, pay(100))
    wallet.want(2, pay(200))
    assert len(wallet.signed) == 1, "the second waits until the mempool has taken the first"
    wallet.admit(wallet.signed[0])
    assert [pending.transaction.nonce for pending in wallet.signed] == [0, 1]


def test_a_refused_first_attempt_frees_its_nonce() -> None:
    wallet = Wallet()
    wallet.want(1, pay(10**12))
    wallet.refuse(wallet.signed[0])
    wallet.want(2, pay(5))
    assert [type(event) for event in wallet.events] == [TransactionFailed]
    assert wallet.signed[1].transaction.nonce == 0


def test_a_restart_signs_the_same_bytes_again() -> None:
    wallet = Wallet()
    wallet.want(1, pay(100))
    first = wallet.signed[0]
    wallet.restart()
    assert [pending.envelope_bytes for pending in wallet.signed] == [first.envelope_bytes]


def test_a_restart_after_the_decision_forgets_the_row_and_signs_nothing() -> None:
    wallet = Wallet()
    wallet.want(1, pay(100))
    wallet.ledger.include(wallet.signed[0])
    wallet.restart()
    assert wallet.signed == []
    assert wallet.rows == {}


def test_an_expired_wish_is_signed_again_at_its_own_nonce_so_only_one_can_apply() -> None:
    wallet = Wallet()
    wallet.want(1, pay(100))
    first = wallet.signed[0]
    wallet.admit(first)
    late = replace(wallet.ledger.state.tip, height=first.transaction.valid_until + 1)
    wallet.carry_out(wallet.own.block_decided(late, wallet.ledger.state.tip_hash, {}, wallet.ledger.state))
    second = wallet.signed[1]
    assert second.transaction.nonce == first.transaction.nonce
    assert second.transaction.action == first.transaction.action
    assert second.transaction.fee > first.transaction.fee * 1.1
    assert second.transaction.valid_until == wallet.ledger.state.height + VALID_FOR_BLOCKS


def test_a_wish_that_became_impossible_is_filled_by_a_void_transaction_and_told_only_when_that_is_decided() -> None:
    wallet = Wallet()
    wallet.want(1, pay(100))
    first = wallet.signed[0]
    wallet.admit(first)
    wallet.refuse(first, "channel_unknown")
    void = wallet.signed[1]
    assert (void.transaction.action, void.transaction.nonce) == (VOID, first.transaction.nonce)
    assert wallet.events == [], "the first may still be decided by nodes that hold it"
    wallet.decide(void)
    assert [type(event) for event in wallet.events] == [TransactionFailed]


def test_a_wish_that_is_decided_although_a_void_transaction_was_signed_is_told_as_decided() -> None:
    wallet = Wallet()
    wallet.want(1, pay(100))
    first = wallet.signed[0]
    wallet.admit(first)
    wallet.refuse(first, "channel_unknown")
    wallet.decide(first)
    assert [type(event) for event in wallet.events] == [TransactionDecided]


def test_a_gap_in_the_mempool_keeps_the_wish() -> None:
    wallet = Wallet()
    wallet.want(1, pay(100))
    wallet.refuse(wallet.signed[0], "nonce_gap")
    assert wallet.events == []
    assert [transaction_id for transaction_id, _ in wallet.own.unfinished()] == [wallet.signed[0].transaction_id]


def test_only_transactions_are_signed_here() -> None:
    wallet = Wallet()
    effects = wallet.own.want(Hash(bytes(32)), pay(1), wallet.ledger.state)
    kinds = [effect.kind for effect in effects if isinstance(effect, SignAndSend)]
    assert kinds == [MessageKind.TRANSACTION]
    assert isinstance(effects[0], Put), "the row stands before the signature"


def test_blocks_that_come_several_at_once_are_told_one_by_one_with_the_state_after_the_last() -> None:
    wallet = Wallet()
    wallet.want(1, pay(100))
    wallet.admit(wallet.signed[0])
    first = wallet.ledger.act("bob", pay(1, "carol"))
    second = wallet.ledger.include(wallet.signed[0])
    for execution in (first, second):
        decided = dict.fromkeys(execution.transaction_ids)
        wallet.carry_out(wallet.own.block_decided(execution.header, execution.block_hash, decided, wallet.ledger.state))
    [told] = wallet.events
    assert isinstance(told, TransactionDecided)
    assert told.height == second.header.height
    assert wallet.rows == {}


def test_a_nonce_that_another_transaction_used_fails_the_wish_once_the_last_block_is_told() -> None:
    wallet = Wallet()
    wallet.want(1, pay(100))
    wallet.admit(wallet.signed[0])
    wallet.decide(wallet.ledger.transaction("alice", pay(5)))
    assert [type(event) for event in wallet.events] == [TransactionFailed]


def test_a_first_attempt_that_pays_too_little_is_signed_again_for_a_tenth_more() -> None:
    wallet = Wallet()
    wallet.want(1, pay(100))
    wallet.refuse(wallet.signed[0], "mempool_full")
    assert wallet.events == []
    fees = [pending.transaction.fee for pending in wallet.signed]
    assert fees[1] * 10 >= fees[0] * 11
    assert wallet.signed[1].transaction.nonce == wallet.signed[0].transaction.nonce
    assert wallet.signed[1].transaction.action == pay(100)


def test_a_fee_is_raised_so_many_times_and_no_more() -> None:
    wallet = Wallet()
    wallet.want(1, pay(100))
    for turn in range(FEE_RAISES_MAX + 1):
        wallet.refuse(wallet.signed[turn], "mempool_full")
    assert len(wallet.signed) == FEE_RAISES_MAX + 1
    assert [type(event) for event in wallet.events] == [TransactionFailed]


def test_a_transaction_that_blocks_pass_by_offers_more_and_either_version_fulfils_the_wish() -> None:
    for included in (0, 1):
        wallet = Wallet()
        wallet.want(1, pay(100))
        wallet.admit(wallet.signed[0])
        for _ in range(RAISE_AFTER_BLOCKS):
            assert len(wallet.signed) == 1
            wallet.decide(wallet.ledger.transaction("carol", pay(1)))
        assert len(wallet.signed) == 2
        wallet.admit(wallet.signed[1])
        versions = list(wallet.signed)
        wallet.restart()  # the disk remembers that there are two
        wallet.decide(versions[included])
        assert [type(event) for event in wallet.events] == [TransactionDecided]
        assert wallet.rows == {}


def test_a_raise_that_the_mempool_refuses_leaves_what_was_pending_as_it_was() -> None:
    wallet = Wallet()
    wallet.want(1, pay(100))
    first = wallet.signed[0]
    wallet.admit(first)
    for _ in range(RAISE_AFTER_BLOCKS):
        wallet.decide(wallet.ledger.transaction("carol", pay(1)))
    wallet.refuse(wallet.signed[1], "replacement_breaks_later")
    assert wallet.own.unfinished() == [(first.transaction_id, first.envelope_bytes)]
    assert len(wallet.signed) == 2
    wallet.decide(first)
    assert [type(event) for event in wallet.events] == [TransactionDecided]


def test_what_waits_for_room_in_a_full_mempool_is_never_voided() -> None:
    wallet = Wallet()
    wallet.want(1, pay(100))
    wallet.admit(wallet.signed[0])
    for turn in range(FEE_RAISES_MAX + 4):
        wallet.refuse(wallet.signed[min(turn, FEE_RAISES_MAX)], "mempool_full")
    assert {pending.transaction.action for pending in wallet.signed} == {pay(100)}
    assert wallet.events == []


def test_the_fee_is_what_the_ledger_asks_for_that_action() -> None:
    wallet = Wallet()
    wallet.ledger = Ledger(make_genesis(motion_fee_min=77))
    wallet.want(1, MotionOpen(None, Redemption(Amount(5), "")))
    assert wallet.signed[0].transaction.fee == 77
