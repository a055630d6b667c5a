"""A report that the ledger can't take yet is not forgotten: a replacement makes room for it."""

from protocol.consensus.outputs import Equivocation
from protocol.engine.accusations import RETRY_MS, TURN_MS, Accusations
from protocol.primitives.units import MonotonicMs
from tests.ledger.assembly import Assembly, authority, change
from tests.ledger.test_evidence import second_of_four


def test_the_second_of_two_who_sign_twice_is_reported_once_the_first_is_replaced() -> None:
    assembly = Assembly()
    report = second_of_four(assembly)
    accusations = Accusations()
    evidence = Equivocation(authority(2), report.first, report.second)
    accusations.notice(evidence, authority(0), assembly.state.authorities, MonotonicMs(0))
    at = 4 * TURN_MS
    assert list(accusations.due(assembly.state, MonotonicMs(at))) == []
    assembly.decide(change(remove=(3,), add=(8,)))
    assembly.tick(3)
    assert list(accusations.due(assembly.state, MonotonicMs(at + RETRY_MS - 1))) == []
    ((_, made),) = accusations.due(assembly.state, MonotonicMs(at + RETRY_MS))
    assert made == report
