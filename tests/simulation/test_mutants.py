"""The mutation gate: whatever guard is taken away, the checkers notice within a stated number of seeds."""

import random
from contextlib import nullcontext

import pytest

from node.simulation.counterfeit import MAGIC
from node.simulation.keys import SimulatedKey
from node.simulation.mutants import MUTANTS, Escaped, Mutant, catch
from node.simulation.profiles import PROFILES
from node.simulation.workload import Client
from node.simulation.world import Options
from node.store.sign_guard import SignGuard
from protocol.ledger.signatures import open_transaction
from protocol.messages.transactions import Transfer
from protocol.primitives.units import AccountId, Hash


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_checkers_notice_that_a_guard_is_gone(mutant: Mutant) -> None:
    assert mutant.notices in catch(mutant).reason


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_checkers_notice_from_wherever_the_seeds_start(mutant: Mutant) -> None:
    for first in range(1_000, 11_000, 1_000):
        catch(mutant, first)


def test_a_guard_that_nobody_misses_fails_the_gate() -> None:
    idle = Mutant("nothing at all", nullcontext, Options(profile=PROFILES["none"]), 2, "")
    with pytest.raises(Escaped, match="not caught by seeds 0 to 1"):
        catch(idle)


def test_no_user_ever_pays_the_amount_that_makes_money() -> None:
    client = Client(SimulatedKey("payer"), Hash(bytes(32)), random.Random(0))
    payee = AccountId(bytes(32))
    paid = set()
    for _ in range(5_000):
        action = open_transaction(client.next_transfer([client.account, payee]))[1].action
        assert isinstance(action, Transfer)
        paid.add(action.outputs[0].amount)
    assert MAGIC not in paid
    assert len(paid) > 900  # so many of the amounts that users pay came up


def test_a_mutant_leaves_the_shipped_code_as_it_was() -> None:
    before = SignGuard.reserve
    guard = next(mutant for mutant in MUTANTS if mutant.name == "the sign guard")
    catch(guard)
    assert SignGuard.reserve is before
