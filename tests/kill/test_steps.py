"""A job is cut off at every step of it, by the death of either node or of the program that asked for it."""

import signal
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from node.cli.cluster_layout import default_model_store
from node.runtime.control import JobView
from tests.e2e.network import command_line, environment
from tests.kill.doomed_node import MOMENTS
from tests.kill.market import MODEL, Market, Node, make_market
from tests.kill.steps import (
    CHUNKS,
    ENDED,
    SECONDS,
    SHORT,
    TEXT,
    Told,
    ask,
    bury,
    check_books,
    check_promises,
    get_deposits_back,
    price_of,
    start_doomed,
    wait_paused,
)
from tests.network.waiting import seconds_until

LAST = CHUNKS + 1
BUYERS_STEPS = ("TRANSACTION:1", "AGREEMENT:1", "VOUCHER:1", "VOUCHER:2", "VOUCHER:3", f"VOUCHER:{LAST}")
"""The deposit, the offer, the pay of the input, of chunks of output, and of the last one with the receipt."""
PROVIDERS_STEPS = ("ACCEPTANCE:1", "CHUNK:1", "CHUNK:2", "CHUNK:3", f"CHUNK:{LAST}", "RECEIPT:1")
QUICK = {("buyer", "VOUCHER:2:written")}
DEATHS = [
    pytest.param(who, f"{step}:{moment}", marks=() if (who, f"{step}:{moment}") in QUICK else pytest.mark.long)
    for who, steps in (("buyer", BUYERS_STEPS), ("provider", PROVIDERS_STEPS))
    for step, moment in product(steps, MOMENTS)
]


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    """One authority, one provider, one buyer, killed again and again."""
    made = make_market(tmp_path_factory.mktemp("s"), default_model_store(), authorities=1)
    try:
        made.start()
        yield made
    finally:
        made.abandon()


@pytest.fixture(autouse=True)
def whole(market: Market) -> None:
    """All nodes run, whatever the test before has left."""
    for node in market.nodes:
        if node.started is None:
            continue
        node.started.process.send_signal(signal.SIGCONT)
        if node.started.process.poll() is not None:
            bury(node)
    market.start()


def _node(market: Market, who: str) -> Node:
    (node,) = market.role(who)
    return node


def _close_channels(market: Market) -> None:
    """By the payee, at once: the next job has to open one."""
    provider = _node(market, "provider").client
    for view in provider.channels():
        provider.close_channel(view.channel, 20_000)
    seconds_until(lambda: not market.buyer.client.channels(), SECONDS, "the buyer sees that its channels are closed")


def _program(market: Market, home: Path, *options: str) -> "subprocess.Popen[bytes]":
    """A user's ``mercat run``."""
    (home / "input").write_bytes(TEXT)
    return subprocess.Popen(
        command_line("run", MODEL, "--file", str(home / "input"), *options),
        env={**environment(home), "MERCAT_CONTROL": market.buyer.record.control},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=home,
    )


def _cut_off(market: Market, who: str, point: str, text: bytes = TEXT) -> tuple[Told, set[str]]:
    """A job during which a node dies at a point; the node is up again behind it. And the jobs from before."""
    node = _node(market, who)
    known = {view.job for view in market.buyer.client.jobs()}
    node.end(signal.SIGKILL)
    start_doomed(node, f"{point}:KILL")
    market.start()
    told = ask(market, text=text)
    bury(node)
    market.start()
    return told, known


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("who", "point"), DEATHS)
def test_death_at_a_step_costs_nobody_more_than_a_chunk_and_is_explained(market: Market, who: str, point: str) -> None:
    if point.startswith("TRANSACTION"):
        _close_channels(market)
    elif not market.buyer.client.channels():
        assert ask(market).end == "finished"
    told, known = _cut_off(market, who, point)
    assert TEXT.startswith(told.output)
    assert told.end != ""
    check_books(market, known)
    after = ask(market)
    assert (after.end, after.output) == ("finished", TEXT), "life goes on"
    check_books(market, known)
    check_promises(market)


SHORT_DEATHS = [
    pytest.param(who, f"{step}:{moment}", marks=() if (step, moment) == ("RECEIPT:1", "sent") else pytest.mark.long)
    for who, steps in (("buyer", ("AGREEMENT:1", "VOUCHER:1")), ("provider", ("ACCEPTANCE:1", "CHUNK:1", "RECEIPT:1")))
    for step, moment in product(steps, MOMENTS)
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("who", "point"), SHORT_DEATHS)
def test_death_at_a_step_of_a_job_in_one_chunk_costs_nobody_more_than_that(
    market: Market, who: str, point: str
) -> None:
    price = price_of(len(SHORT), len(SHORT))
    while (before := ask(market, text=SHORT)).chunks != 1:
        assert before.end == "finished"
        assert ask(market).end == "finished"  # pays for seven short ones
    told, known = _cut_off(market, who, point, SHORT)
    assert told.output in (b"", SHORT)
    assert told.end != ""
    for ours, theirs in check_books(market, known, price).values():
        assert theirs is None or theirs.amount in (0, price)
        assert ours is None or ours.amount in (0, price)
        assert ours is None or told.end != "finished" or ours.amount == price
    after = ask(market, text=SHORT)
    assert (after.end, after.output, after.paid) == ("finished", SHORT, price), "life goes on"
    check_books(market, known, price)
    check_promises(market)


ENDINGS = (signal.SIGINT, signal.SIGHUP, signal.SIGKILL)
"""Ctrl-C, a closed terminal, and the hardest."""
PAUSES = ("ACCEPTANCE:1", "CHUNK:1", "CHUNK:2", "CHUNK:4", f"CHUNK:{LAST}")
HANGUPS = [
    pytest.param(number, step, marks=() if (number, step) == (signal.SIGHUP, "CHUNK:2") else pytest.mark.long)
    for number, step in product(ENDINGS, PAUSES)
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("number", "step"), HANGUPS)
def test_program_that_ends_at_a_step_ends_its_job_and_pays_for_what_came(
    market: Market, number: signal.Signals, step: str, tmp_path: Path
) -> None:
    provider = _node(market, "provider")
    if not market.buyer.client.channels():
        assert ask(market).end == "finished"
    known = {view.job for view in market.buyer.client.jobs()}
    provider.end(signal.SIGKILL)
    doomed = start_doomed(provider, f"{step}:written:STOP")
    market.start()
    with _program(market, tmp_path) as process:
        wait_paused(provider)
        process.send_signal(number)
        out, _ = process.communicate(timeout=SECONDS)
    assert TEXT.startswith(out.removesuffix(b"\n"))
    assert process.returncode == {signal.SIGINT: 130}.get(number, -number)
    doomed.send_signal(signal.SIGCONT)
    pairs = check_books(market, known)
    [(ours, theirs)] = pairs.values()
    assert ours is not None
    assert ours.state == "cancelled"
    assert theirs is None or theirs.state == "cancelled"
    assert ask(market).end == "finished"
    check_books(market, known)
    check_promises(market)


EARLY = [
    pytest.param(number, state, marks=() if (number, state) == (signal.SIGKILL, "choosing") else pytest.mark.long)
    for number, state in product(ENDINGS, ("choosing", "opening channel"))
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("number", "state"), EARLY)
def test_program_that_ends_before_anything_is_agreed_leaves_nothing_behind(
    market: Market, number: signal.Signals, state: str, tmp_path: Path
) -> None:
    buyer, authority = market.buyer.client, _node(market, "authority")
    assert authority.started is not None
    wanted: tuple[str, ...] = ("--region", "nowhere", "--wait", "60")
    if state == "opening channel":
        wanted = ()
        _close_channels(market)
        authority.started.process.send_signal(signal.SIGSTOP)  # nothing is decided meanwhile
    known = {view.job for view in buyer.jobs()}

    def new() -> JobView | None:
        return next((view for view in buyer.jobs() if view.job not in known), None)

    with _program(market, tmp_path, *wanted) as process:
        seconds_until(lambda: (view := new()) is not None and view.state == state, SECONDS, f"a job is {state}")
        process.send_signal(number)
        process.communicate(timeout=SECONDS)
    seconds_until(lambda: (view := new()) is None or view.state in ENDED, SECONDS, "the job is over")
    authority.started.process.send_signal(signal.SIGCONT)
    ended = new()
    assert ended is not None
    assert (ended.state, ended.amount) == ("cancelled", 0)
    assert ended.reason
    assert ask(market).end == "finished"
    _close_channels(market)
    assert buyer.account(market.buyer.account).in_channels == 0


@pytest.mark.timeout(120)
def test_request_that_waits_for_an_offer_when_its_node_is_killed_has_ended_with_a_reason(
    market: Market, tmp_path: Path
) -> None:
    known = {view.job for view in market.buyer.client.jobs()}

    def new() -> JobView | None:
        return next((view for view in market.buyer.client.jobs() if view.job not in known), None)

    with _program(market, tmp_path, "--region", "nowhere", "--wait", "60") as process:
        seconds_until(lambda: (view := new()) is not None and view.state == "choosing", SECONDS, "a job waits")
        market.buyer.end(signal.SIGKILL)
        process.communicate(timeout=SECONDS)
    assert process.returncode != 0
    market.start()
    ended = new()
    assert ended is not None
    assert (ended.state, ended.amount) == ("failed", 0)
    assert ended.reason == "this node restarted while the request was choosing"


@pytest.mark.long
@pytest.mark.timeout(120)
def test_after_all_of_it_every_deposit_comes_back_and_no_credit_is_missing(market: Market) -> None:
    market.start()
    if not market.buyer.client.channels():
        assert ask(market).end == "finished"
    get_deposits_back(market)
