"""A provider stands still in the middle of an answer: the next one goes on within the agreement's stall timeout."""

import signal
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from node.cli.cluster_layout import default_model_store
from node.runtime.control import JobView, RunRequest
from tests.kill.market import MODEL, Market, Node, make_market
from tests.kill.steps import CHUNK_UNITS, ENDED, SECONDS, TEXT, price_of, start_doomed, wait_paused
from tests.network.waiting import seconds_until

STALL_SECONDS = 2.0
DELIVERED_CHUNKS = 3
"""The input's and two of output, when it stops."""


def _set(node: Node, section: str, name: str, value: str) -> None:
    """A setting in a node's file, added or changed."""
    lines = [line for line in node.record.config.read_text().splitlines() if not line.startswith(f"{name} =")]
    if f"[{section}]" not in lines:
        lines.append(f"[{section}]")
    place = lines.index(f"[{section}]") + 1
    node.record.config.write_text("\n".join([*lines[:place], f"{name} = {value}", *lines[place:]]) + "\n")


@pytest.fixture
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    """Two providers, of which the buyer takes the near one as long as it does what it promised."""
    made = make_market(tmp_path_factory.mktemp("h"), default_model_store(), authorities=1, providers=2)
    _set(made.buyer, "buyer", "stall_ms", f"{STALL_SECONDS * 1000:.0f}")
    _set(made.buyer, "buyer", "region_preferred", '"near"')
    _set(made.role("provider")[0], "provider", "region", '"near"')
    try:
        yield made
    finally:
        made.abandon()


def _jobs(node: Node) -> dict[str, JobView]:
    return {view.job: view for view in node.client.jobs()}


def _held(provider: Node) -> int:
    """What the vouchers that a provider holds are worth."""
    return sum(view.promised for view in provider.client.channels())


@pytest.mark.timeout(120)
def test_a_provider_that_stands_still_is_replaced_within_the_stall_timeout_and_has_what_it_delivered(
    market: Market,
) -> None:
    near, far = market.role("provider")
    doomed = start_doomed(near, f"CHUNK:{DELIVERED_CHUNKS}:sent:STOP")
    market.start()
    buyer = market.buyer.client
    seconds_until(lambda: len(buyer.offers()) == 2, SECONDS, "the buyer sees both offers")
    output, pieces_at, agreed, paid = b"", [], [], 0
    for event in buyer.run(RunRequest(MODEL, "bytes", TEXT, timeout_ms=30_000), 40.0):
        if event.event == "output":
            output += event.payload
            pieces_at.append(time.monotonic())
        if event.event == "agreed":
            agreed.append(str(event.facts["job"]))
        if event.event == "finished":
            paid = int(event.facts["paid"] or 0)
    assert output == TEXT, "no gap and no repeat at the seam"
    wait_paused(near)
    first, second = agreed
    longest = max(later - earlier for earlier, later in pairwise(pieces_at))
    assert STALL_SECONDS - 0.2 <= longest <= STALL_SECONDS + 1.0
    # Awake again, it is told that it was given up, and has what it delivered, to the unit.
    doomed.send_signal(signal.SIGCONT)
    seconds_until(lambda: _jobs(near)[first].state in ENDED, SECONDS, "the one that stood still has ended its job")
    delivered = price_of(len(TEXT), (DELIVERED_CHUNKS - 1) * CHUNK_UNITS)
    seconds_until(lambda: _held(near) == delivered, SECONDS, "it holds the vouchers for what it delivered, and no more")
    bought, sold_on = _jobs(market.buyer), _jobs(far)[second]
    assert _jobs(near)[first].amount == delivered
    assert (bought[first].state, bought[first].amount) == ("failed", delivered)
    assert "stopped delivering" in (bought[first].reason or "")
    assert bought[second].amount == sold_on.amount == _held(far) == paid - delivered
    assert (bought[second].state, sold_on.state) == ("done", "done")
    assert sum(view.promised for view in buyer.channels()) == paid
