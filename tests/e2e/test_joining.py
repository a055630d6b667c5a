"""People who join a running network, and people who make a network of their own from keys and a genesis file."""

import json
from pathlib import Path

from node.keystore.keys import KeyPurpose
from node.worker.models import ModelStore
from tests.e2e.network import Network, run_command, wait_until
from tests.e2e.people import Person


def _seeds(network: Network) -> list[str]:
    return [network.record(f"authority-{number}").address for number in (1, 2)]


def test_follower_that_joins_catches_up_and_keeps_what_it_has(network: Network, place: Path) -> None:
    person = Person.settle(place / "follower")
    joined = person.join(network.genesis, _seeds(network), "--role", "follower")
    assert joined["genesis_hash"] == network.client("buyer-1").status().genesis_hash
    network.mercat("wallet", "send", network.record("provider-1").account, "0.5", "-y")
    with person.running():
        height = network.height("buyer-1")
        wait_until(lambda: person.client.ledger().height >= height, "the follower has caught up")
        followed, known = person.client.block(height), network.client("buyer-1").block(height)
        assert (followed.block_hash, followed.transactions) == (known.block_hash, known.transactions)
        assert len(followed.signers) >= 3, "its certificate may have other signers than the buyer's, but a quorum"
        supply = person.client.supply()
        assert supply.total == supply.genesis_total + supply.issued_by_vote - supply.redeemed_by_vote
        network.mercat("wallet", "send", network.record("provider-1").account, "0.5", "-y")
        wait_until(lambda: person.client.ledger().height > height, "the follower follows")
    with person.running():
        assert person.client.ledger().height > height
        assert person.events("started")[-1]["height"] > height


def test_empty_wallet_buys_nothing_until_somebody_sends_money(network: Network, place: Path) -> None:
    person = Person.settle(place / "newcomer", keys=False)
    account = person.join(network.genesis, _seeds(network), "--role", "buyer")["account"]
    with person.running():
        wait_until(lambda: len(person.client.offers()) == 6, "the newcomer sees all offers")
        poor = person.mercat("run", "echo", "please", expect=4)
        assert "this account has 0.00" in poor.err
        person.mercat("wallet", "send", network.record("buyer-1").account, "1", "-y", expect=4)
        network.mercat("wallet", "send", account, "20", "-y")
        wait_until(lambda: person.client.account().balance == 20_000_000, "the money has come")
        assert person.mercat("run", "echo", "please").out.rstrip("\n") == "please"
        (channel,) = person.client.channels()
        assert person.client.account().balance + channel.deposit < 20_000_000
    assert network.is_conserved()


def test_wrong_passphrase_ends_with_4(network: Network, place: Path) -> None:
    person = Person.settle(place / "forgetful")
    person.join(network.genesis, _seeds(network))
    person.passphrase.write_text("wrong horse\n")
    refused = person.mercat("node", "run", "--config", str(person.config), expect=4)
    assert "passphrase" in refused.err
    assert "Traceback" not in refused.err


def test_network_made_by_hand_runs_a_paid_job(place: Path, store: ModelStore, echo: str) -> None:
    names = ("authority", "provider", "buyer")
    people = {name: Person.settle(place / f"by-hand-{name}") for name in names}
    seat, record = people["authority"], place / "by-hand-record.json"
    seat.make_keys(KeyPurpose.AUTHORITY)
    record.write_text(seat.mercat("key", "show", "--dir", str(seat.folder / "keys"), "--name", "seat", "--json").out)
    accounts = {name: people[name].address() for name in names}
    genesis = place / "by-hand.json"
    run_command(
        "genesis", "new", "--network", "by-hand", "--development", "--out", str(genesis),
        "--authority", str(record),
        "--allocate", f"{accounts['buyer']}=100",
        "--allocate", f"{accounts['provider']}=30",
        "--parameter", "delta_ms=500",
        home=place,
    )  # fmt: skip
    # One node needs no seed; `join` is for those who have one.
    seat.config.write_text(
        f'genesis = {json.dumps(str(genesis))}\nstate = "state"\nroles = ["authority"]\n'
        f'[keystore]\ndirectory = "keys"\npassphrase_file = {json.dumps(str(seat.passphrase))}\n'
    )
    with seat.running():
        status = seat.status()
        assert status is not None
        seeds = [status.listen]
        sells = ("--role", "provider", "--model", "echo", "--model-store", str(store.directory))
        people["provider"].join(genesis, seeds, *sells)
        people["buyer"].join(genesis, seeds)
        with people["provider"].running(), people["buyer"].running():
            unbonded = people["provider"].client.provider()
            assert not unbonded.selling
            people["provider"].mercat("provider", "bond", "15", "-y")
            wait_until(lambda: people["provider"].client.provider().selling, "the bonded provider sells", seconds=8)
            wait_until(lambda: len(people["buyer"].client.offers()) == 1, "the buyer sees the offer")
            receipt = place / "by-hand-receipt.json"
            ran = people["buyer"].mercat("run", "echo", "made by hand", "--json").json
            assert ran["output"] == "made by hand"
            people["buyer"].mercat(
                "job", "receipt", ran["facts"]["job"], "--settle", "--timeout", "4", "--out", str(receipt)
            )
            people["buyer"].mercat("verify", str(receipt), "--settled")
            supply = seat.client.supply()
            assert supply.total == supply.genesis_total == 130_000_000
