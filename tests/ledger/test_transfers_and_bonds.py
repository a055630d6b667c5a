"""What transfers and bonds do, and each way in which they are refused."""

from collections.abc import Callable

import pytest

from protocol.ledger import errors
from protocol.ledger.state import LedgerState, recount
from protocol.messages.transactions import Action, BondDeposit, BondRelease, BondUnlock, Output, Transfer
from protocol.primitives.units import AMOUNT_MAX, Amount
from tests.ledger.world import FEE, Ledger, account_of, make_genesis


def pay(name: str, amount: int) -> Transfer:
    return Transfer((Output(account_of(name), Amount(amount)),))


def test_a_transfer_moves_the_amount_and_the_fee_goes_to_the_pool() -> None:
    ledger = Ledger()
    ledger.act("alice", pay("bob", 100))
    assert ledger.balance("alice") == 1_000_000 - 100 - FEE
    assert ledger.balance("bob") == 1_000_100
    assert ledger.state.fee_pool == FEE
    assert ledger.state.account(account_of("alice")).nonce == 1


def test_several_outputs_to_one_recipient_all_arrive() -> None:
    ledger = Ledger()
    output = Output(account_of("bob"), Amount(7))
    ledger.act("alice", Transfer((output, Output(account_of("carol"), Amount(1)), output)))
    assert ledger.balance("bob") == 1_000_014
    assert ledger.balance("alice") == 1_000_000 - 15 - FEE


def test_an_account_that_nobody_knew_can_be_paid_and_can_pay() -> None:
    ledger = Ledger()
    ledger.act("alice", pay("stranger", 50))
    ledger.act("stranger", pay("alice", 40))
    assert ledger.state.account(account_of("stranger")).balance == 0
    assert ledger.state.account(account_of("stranger")).nonce == 1


def test_a_whole_balance_can_be_spent_to_the_last_unit() -> None:
    ledger = Ledger()
    ledger.act("alice", pay("bob", 1_000_000 - FEE))
    assert ledger.balance("alice") == 0


REFUSED: list[tuple[str, Callable[[], Action], type[errors.TransactionInvalid], dict[str, int]]] = [
    ("zero", lambda: pay("bob", 0), errors.ZeroAmount, {}),
    ("to oneself", lambda: pay("alice", 5), errors.SelfPayment, {}),
    (
        "one unit above the balance",
        lambda: pay("bob", 1_000_000 - FEE + 1),
        errors.InsufficientBalance,
        {"balance": 1_000_000 - FEE, "needed": 1_000_000 - FEE + 1},
    ),
    (
        "outputs that overflow together",
        lambda: Transfer((Output(account_of("bob"), Amount(AMOUNT_MAX)), Output(account_of("carol"), Amount(1)))),
        errors.AmountTooLarge,
        {"amount": AMOUNT_MAX + 1},
    ),
    ("zero bond", lambda: BondDeposit(Amount(0)), errors.ZeroAmount, {}),
    (
        "bond above the balance",
        lambda: BondDeposit(Amount(1_000_000)),
        errors.InsufficientBalance,
        {"needed": 1_000_000},
    ),
    ("unlock of zero", lambda: BondUnlock(Amount(0)), errors.ZeroAmount, {}),
    (
        "unlock above the bond",
        lambda: BondUnlock(Amount(2_001)),
        errors.InsufficientBond,
        {"bonded": 2_000, "needed": 2_001},
    ),
    ("release of nothing", lambda: BondRelease(account_of("bob")), errors.NothingUnlocking, {}),
]


@pytest.mark.parametrize(("action", "error", "facts"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_an_action_that_breaks_a_rule_is_refused_with_its_numbers_and_leaves_no_trace(
    action: Callable[[], Action], error: type[errors.TransactionInvalid], facts: dict[str, int]
) -> None:
    ledger = Ledger()
    before = list(ledger.state.rows())
    with pytest.raises(error) as caught:
        ledger.act("alice", action())
    assert facts.items() <= caught.value.facts.items()
    assert list(ledger.state.rows()) == before


@pytest.mark.parametrize("nonce", [0, 2, 3])
def test_only_the_next_nonce_is_accepted(nonce: int) -> None:
    ledger = Ledger()
    ledger.act("alice", pay("bob", 1))
    with pytest.raises(errors.NonceMismatch) as caught:
        ledger.include(ledger.transaction("alice", pay("bob", 1), nonce=nonce))
    assert caught.value.facts == {"expected": 1, "got": nonce}


def test_a_replayed_transaction_is_refused_even_when_the_account_was_emptied() -> None:
    ledger = Ledger()
    spend = ledger.transaction("alice", pay("bob", 1_000_000 - FEE))
    ledger.include(spend)
    ledger.act("bob", pay("alice", 1_000_000))
    with pytest.raises(errors.NonceMismatch):
        ledger.include(spend)


def test_a_fee_below_the_floor_is_refused() -> None:
    ledger = Ledger()
    with pytest.raises(errors.FeeTooLow) as caught:
        ledger.act("alice", pay("bob", 1), fee=FEE - 1)
    assert caught.value.facts == {"fee": FEE - 1, "fee_min": FEE}


def test_a_fee_above_the_balance_is_refused() -> None:
    ledger = Ledger(make_genesis(balance=FEE - 1))
    with pytest.raises(errors.InsufficientBalance):
        ledger.act("alice", BondUnlock(Amount(1)))


def test_a_transaction_is_valid_at_its_last_height_and_not_after() -> None:
    ledger = Ledger()
    ledger.include(ledger.transaction("alice", pay("bob", 1), valid_until=1))
    late = ledger.transaction("alice", pay("bob", 1), valid_until=1)
    with pytest.raises(errors.TransactionExpired) as caught:
        ledger.include(late)
    assert caught.value.facts == {"valid_until": 1, "height": 2}


def test_a_bond_grows_unlocks_and_pays_out_only_after_its_time() -> None:
    ledger = Ledger()
    ledger.act("alice", BondDeposit(Amount(500)))
    bond = ledger.state.bond(account_of("alice"))
    assert (bond.amount, bond.unlocking, bond.total) == (2_500, 0, 2_500)
    ledger.act("alice", BondUnlock(Amount(2_500)))
    bond = ledger.state.bond(account_of("alice"))
    assert (bond.amount, bond.unlocking) == (0, 2_500)
    assert bond.unlock_at == ledger.state.ledger_time_ms + 9_000
    with pytest.raises(errors.BondLocked) as caught:
        ledger.act("bob", BondRelease(account_of("alice")), after_ms=8_999)
    assert caught.value.facts == {"unlock_at": bond.unlock_at, "now": bond.unlock_at - 1}
    before = ledger.balance("alice")
    ledger.act("bob", BondRelease(account_of("alice")), after_ms=9_000)
    assert ledger.balance("alice") == before + 2_500
    assert ledger.state.bond(account_of("alice")).total == 0
    assert b"b" + account_of("alice") not in dict(ledger.state.rows())


def test_a_second_unlock_joins_the_first_and_restarts_its_time() -> None:
    ledger = Ledger()
    ledger.act("alice", BondUnlock(Amount(100)))
    ledger.act("alice", BondUnlock(Amount(50)), after_ms=8_999)
    bond = ledger.state.bond(account_of("alice"))
    assert (bond.amount, bond.unlocking) == (1_850, 150)
    assert bond.unlock_at == ledger.state.ledger_time_ms + 9_000


def test_a_release_leaves_the_rest_of_the_bond_in_place() -> None:
    ledger = Ledger()
    ledger.act("alice", BondUnlock(Amount(100)))
    ledger.act("alice", BondRelease(account_of("alice")), after_ms=9_000)
    bond = ledger.state.bond(account_of("alice"))
    assert (bond.amount, bond.unlocking, bond.unlock_at) == (1_900, 0, 0)
    with pytest.raises(errors.NothingUnlocking):
        ledger.act("alice", BondRelease(account_of("alice")))


def test_the_supply_is_where_the_actions_put_it() -> None:
    ledger = Ledger()
    ledger.act("alice", BondDeposit(Amount(500)))
    ledger.act("alice", BondUnlock(Amount(300)))
    ledger.open_channel("alice", "bob", 1_000)
    supply = recount(ledger.state)
    assert supply == ledger.state.supply()
    assert supply.bonds == 4 * 2_000 + 500
    assert supply.deposits == 1_000
    assert supply.fee_pool == 3 * FEE
    assert supply.total == supply.issued == 4 * 1_002_000


def test_a_genesis_with_more_credits_than_can_exist_is_refused() -> None:
    with pytest.raises(errors.GenesisInvalid):
        LedgerState.from_genesis(make_genesis(balance=AMOUNT_MAX // 2))


def test_a_genesis_that_allocates_twice_to_one_account_is_refused() -> None:
    with pytest.raises(errors.GenesisInvalid):
        LedgerState.from_genesis(make_genesis(names=("alice", "alice")))
