"""Authorities that die and return, a whole network that dies at once: nothing is lost and nothing is signed twice."""

import sqlite3

import pytest
from msgspec.structs import replace

from node.runtime.control import AccountView, JobView
from tests.e2e.network import Network, unused_account, wait_until

AUTHORITIES = tuple(f"authority-{number}" for number in range(1, 5))


def _signers(network: Network, height: int) -> tuple[str, ...]:
    return network.client("buyer-1").block(height).signers


def _without_providers(accounts: dict[str, AccountView]) -> dict[str, AccountView]:
    """Providers may have redeemed once more meanwhile; everybody else must have exactly what they had."""
    return {name: view for name, view in accounts.items() if not name.startswith("provider")}


def _without_names(jobs: dict[str, JobView]) -> dict[str, JobView]:
    """A model's name is shown while somebody offers it; what was bought from a node that has left shows its id."""
    return {job: replace(view, model="") for job, view in jobs.items()}


def test_ledger_goes_on_with_three_of_four_and_the_fourth_catches_up_and_signs_again(network: Network) -> None:
    killed = "authority-3"
    own_key = network.client(killed).status().authority
    recipient = unused_account(1)
    network.kill(killed)
    sent = network.json("wallet", "send", recipient, "1", "-y")
    assert network.balance(recipient) == 1_000_000
    assert own_key not in _signers(network, sent["height"])

    network.up()
    wait_until(lambda: network.height(killed) >= sent["height"], "the restarted authority has caught up")
    assert network.balance(recipient, seen_by=killed) == 1_000_000

    def signs_again() -> bool:
        block = network.json("wallet", "send", recipient, "0.000001", "-y")["height"]
        return own_key in _signers(network, block)

    wait_until(signs_again, "the restarted authority signs again")
    assert network.is_conserved(killed)
    for name in AUTHORITIES:
        assert network.events(name, "Equivocation") == []
        assert network.events(name, "PeerMisbehaved") == []


def test_two_of_four_decide_nothing_and_the_ledger_goes_on_when_a_third_returns(network: Network) -> None:
    network.kill("authority-1", "authority-2")
    height = network.height("buyer-1")
    recipient = unused_account(2)
    waiting = network.mercat("wallet", "send", recipient, "2", "-y", "--timeout", "2", expect=124)
    assert "pending" in waiting.err
    assert network.height("buyer-1") == height
    network.up()
    wait_until(lambda: network.balance(recipient) == 2_000_000, "the waiting transaction is decided")
    assert network.is_conserved()
    for name in AUTHORITIES:
        assert network.events(name, "Equivocation") == []


@pytest.mark.long
def test_everything_killed_at_once_comes_back_as_it_was(network: Network) -> None:
    first = network.json("run", "echo", "before", "--settle")["facts"]
    accounts, channels = network.accounts(), network.channels()
    jobs, height = network.jobs("buyer-1"), network.height("buyer-1")
    assert channels
    network.kill(*network.names())

    network.up()
    assert network.height("buyer-1") >= height
    assert _without_providers(network.accounts()) == _without_providers(accounts)
    assert network.channels() == channels
    assert _without_names(network.jobs("buyer-1")) == _without_names(jobs)
    again = network.json("run", "echo", "after", "--settle")["facts"]
    assert again["channel"] in [view.channel for view in channels]
    assert len(network.channels()) == len(channels)
    assert network.mercat("job", "receipt", first["job"]).out
    assert network.is_conserved()
    for name in network.names():
        assert network.is_conserved(name)
        assert network.events(name, "Equivocation") == []


def test_guard_of_a_running_authority_lets_no_second_process_in(network: Network) -> None:
    refused = network.mercat("node", "run", "--config", str(network.record("authority-1").config), expect=1)
    assert "authority-1" in refused.err
    assert network.client("authority-1").status().roles == ("authority",)


def test_guards_remember_every_height_that_they_may_be_asked_about_again(network: Network) -> None:
    height = network.height("buyer-1")
    network.stop()
    for name in AUTHORITIES:
        connection = sqlite3.connect(network.control(name).parent / "guard.sqlite")
        try:
            (watermark,) = connection.execute("SELECT height FROM watermark").fetchone()
            rows = connection.execute(
                "SELECT height, view, class, count(*) FROM signatures GROUP BY 1, 2, 3"
            ).fetchall()
        finally:
            connection.close()
        # Closed heights are forgotten from time to time; below the watermark nothing is signed any more.
        assert all(row[0] > watermark for row in rows)
        assert {count for *_, count in rows} <= {1}
        assert watermark > 0 or rows
        assert watermark <= height
