"""What people read of auctions and replicas."""

import pytest

from node.cli.replica_report import TOLD, told
from node.runtime.control import RunEvent

WHO = "mc1x6lczt4l5mj9twz6rjk6hwxr26a67f2ax2ajz7xnu7psmvnzf4ws8y95l4"


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (RunEvent("quote", {"provider": WHO, "price": 740}), "mc1x6lczt4l5mj9t… quotes at most 0.00074 credits"),
        (
            RunEvent("auction", {"sealed": 3, "revealed": 2}),
            "auction: 3 sealed a quote, 2 revealed it in time",
        ),
        (
            RunEvent("replica_agreed", {"replica": 1, "provider": WHO, "price_ceiling": 2_000_000}),
            "replica 1: mc1x6lczt4l5mj9t… does it for at most 2.00 credits",
        ),
        (
            RunEvent("replica_failed", {"replica": 2, "provider": WHO, "fault": "provider", "reason": "it died"}),
            "replica 2: mc1x6lczt4l5mj9t… fell out (provider): it died",
        ),
        (
            RunEvent("replica_finished", {"replica": 2, "provider": WHO, "amount": 5, "job": "ab" * 32}),
            "replica 2: mc1x6lczt4l5mj9t… is paid 0.000005 credits; proof: mercat job receipt abababababababab",
        ),
        (
            RunEvent("replica_compared", {"replica": 1, "provider": WHO, "agrees": True, "differs_at": None}),
            "replica 1: mc1x6lczt4l5mj9t… agrees",
        ),
        (
            RunEvent("replica_compared", {"replica": 3, "provider": WHO, "agrees": False, "differs_at": 17}),
            "replica 3: mc1x6lczt4l5mj9t… DIFFERS from byte 17 on",
        ),
        (
            RunEvent("replica_compared", {"replica": 1, "provider": WHO, "agrees": False, "differs_at": None}),
            "replica 1: mc1x6lczt4l5mj9t… is compared with, for want of a majority",
        ),
        (RunEvent("compared", {"agreeing": 2, "replicas": 3}), "2 of 3 outputs agree, byte for byte"),
    ],
)
def test_each_event_is_one_line(event: RunEvent, line: str) -> None:
    assert event.event in TOLD
    assert told(event) == line


def test_what_is_not_for_people_is_left_out() -> None:
    assert told(RunEvent("progress", {})) == ""
