"""A provider's own word that it failed goes on the ledger: what is reported, what not, what the ledger says of it."""

import pytest
from msgspec.structs import replace

from protocol.engine.witness import reports
from protocol.ledger.state import LedgerState
from protocol.ledger.track_rows import Role, track_id
from protocol.ledger.tracks import REPORT_FEES, report
from protocol.ledger.view import Context, Overlay
from protocol.market.policies import BuyerPolicy
from protocol.market.records import JobStatements
from protocol.market.requests import MarketEffect
from protocol.messages.effects import Effect, Put, SignAndSend, Table
from protocol.messages.kinds import MessageKind
from protocol.messages.market import Failure, FaultKind
from protocol.messages.transactions import FailureReport, Transaction
from protocol.primitives.codec import decode, encode
from protocol.primitives.units import Amount, Height, LedgerTimeMs, MessageId
from tests.engine.test_hostile_input import at, begin, make_engine
from tests.ledger.world import FEE, make_genesis
from tests.market.town import Person, Town, Worker, envelope_of, request

PAID_FOR = 2
"""The worker dies after so many pieces, the processed input counted: both were paid."""


class WatchedTown(Town):
    """Notes what the buyer's steps want, list by list."""

    def __init__(self) -> None:
        self.steps: list[list[MarketEffect]] = []
        super().__init__()

    def do(self, person: Person, effects: list[MarketEffect]) -> None:
        if self.buyers and person is self.buyer:
            self.steps.append(list(effects))
        super().do(person, effects)

    def reports(self, cost: int = 1) -> list[FailureReport]:
        return [each for step in self.steps for each in reports(step, Amount(cost))]


def failed_town(fails_at: int = PAID_FOR) -> WatchedTown:
    town = WatchedTown()
    town.seller.worker = Worker(fails_at=fails_at)
    town.start(request(1))
    town.run()
    town.wait(120_000)
    return town


def paid(town: WatchedTown) -> int:
    return sum(max(row.cumulative for row in lane.values()) for lane in town.watch.vouchers.values())


def test_a_failure_that_cost_more_than_its_report_is_reported_once_and_the_ledger_takes_it() -> None:
    town = failed_town()
    (wanted,) = town.reports(paid(town))
    state = LedgerState.from_genesis(make_genesis())
    overlay = Overlay(state)
    context = Context(Height(1), LedgerTimeMs(5), town.now.wall_ms)
    report(overlay, context, town.buyer.account, wanted)
    for role, account in ((Role.PROVIDER, town.seller.account), (Role.BUYER, town.buyer.account)):
        assert overlay.track(track_id(role, account)).failures == 1


def test_a_failure_that_cost_less_than_its_report_is_not_worth_it() -> None:
    town = failed_town()
    assert town.reports(paid(town) + 1) == []


def test_a_provider_that_vanishes_or_has_no_fault_leaves_nothing_to_report() -> None:
    vanished = WatchedTown()
    vanished.start(request(1))
    for _ in range(30):
        vanished.busy()[0]()
    vanished.unlink(vanished.buyer, vanished.seller)
    vanished.unreachable.add(vanished.seller.node)
    vanished.run()
    vanished.wait(120_000)
    assert vanished.reports() == []
    done = WatchedTown()
    done.start(request(1))
    done.run()
    assert done.reports() == []


@pytest.mark.parametrize("fault", [FaultKind.USER, FaultKind.CAPACITY, FaultKind.NETWORK])
def test_only_a_failure_by_the_providers_own_fault_is_reported(fault: FaultKind) -> None:
    town = failed_town()
    (step,) = (step for step in town.steps if reports(step, Amount(1)))
    (put,) = (effect for effect in step if isinstance(effect, Put) and effect.table is Table.JOB_STATEMENT)
    failure = Failure(MessageId(put.key), fault, 2, "so it says")
    ending = envelope_of(town.seller, MessageKind.FAILURE, failure)[2]
    said = replace(decode(put.value, JobStatements), ending=ending)
    others = [effect for effect in step if effect is not put]
    assert reports([*others, replace(put, value=encode(said))], Amount(1)) == []
    assert reports([*others, put], Amount(1)) != []


@pytest.mark.parametrize("allowed", [True, False])
def test_the_engine_sends_a_report_unless_the_policy_forbids_it(allowed: bool) -> None:
    town = failed_town()
    (step,) = (step for step in town.steps if reports(step, Amount(1)))
    stored = [effect for effect in step if isinstance(effect, Put) and effect.table in (Table.JOB, Table.JOB_STATEMENT)]
    engine = make_engine("alice")
    begin(engine)
    engine.buyer._core.policy = replace(BuyerPolicy(), report_failures=allowed)
    sent = transactions(engine.trade._carry(engine.buyer, [*stored], at(50)))
    assert [type(each.action) for each in sent] == ([FailureReport] if allowed else [])
    assert all(each.fee == FEE * REPORT_FEES for each in sent)
    assert transactions(engine.trade._carry(engine.seller, [*stored], at(50))) == []


def transactions(effects: list[Effect]) -> list[Transaction]:
    signed = [e for e in effects if isinstance(e, SignAndSend) and e.kind is MessageKind.TRANSACTION]
    return [decode(each.payload, Transaction) for each in signed]
