"""What a program is told of a job that was delivered whole and has no receipt: its result, while it runs and later."""

from types import SimpleNamespace
from typing import cast

from node.runtime.node import Node
from node.runtime.requests import RequestDesk
from node.runtime.run_events import ENDS, shown
from node.runtime.timelines import TimelineDesk
from protocol.market.events import JobDelivered
from protocol.messages.effects import Table
from tests.market.test_awaited_receipts import comes_back, died_before_the_receipt
from tests.market.test_balances import WHOLE
from tests.market.town import Town, Worker, request


def desk_of(town: Town) -> RequestDesk:
    """The buyer's desk over what its disk holds."""
    disk = town.buyer.disk

    def values_between(table: Table, first: bytes, last: bytes, count: int) -> list[bytes]:
        return [value for (held, key), value in sorted(disk.items()) if held is table and first <= key <= last][:count]

    store = SimpleNamespace(get=lambda table, key: disk.get((table, key)), values_between=values_between)
    node = SimpleNamespace(store=store, engine=SimpleNamespace(buyer=town.buyer.buyer))
    return RequestDesk(cast(Node, node), cast(TimelineDesk, SimpleNamespace(attempts=lambda record: (record,))))


def test_the_stream_says_finished_and_what_is_missing() -> None:
    town = died_before_the_receipt()
    [event] = [event for event in town.buyer.events if isinstance(event, JobDelivered)]
    [said] = shown(event)
    assert isinstance(event, ENDS)
    assert (said.event, said.facts["receipt"], said.facts["paid"]) == ("finished", "missing", WHOLE)
    assert str(said.facts["reason"]).startswith("delivered and paid, the receipt is missing")


def test_a_program_that_was_killed_meanwhile_finds_the_result_before_and_behind_the_receipt() -> None:
    town = died_before_the_receipt()
    before = desk_of(town).view(request().request.hex())
    assert (before.state, before.paid, before.finish, before.output) == ("delivered", WHOLE, "stop", Worker().output())
    assert before.reason
    comes_back(town)
    behind = desk_of(town).view(request().request.hex())
    assert (behind.state, behind.paid, behind.finish, behind.output) == ("done", WHOLE, "stop", Worker().output())
    assert behind.reason == ""
