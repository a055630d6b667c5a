"""Authorities of a running cluster change each other, a number and the supply, all from the command line."""

import json
from pathlib import Path
from typing import Any

from node.keystore.keys import KeyPurpose
from tests.e2e.network import Network, wait_until
from tests.e2e.people import Person


def _decide(network: Network, command: tuple[str, ...], voters: int) -> dict[str, Any]:
    """Put to vote by the first authority, approved by the next ones; the motion once it is concluded."""
    opened = network.json(*command, "-y", node="authority-1")
    assert opened["status"] == "open"
    for number in range(2, voters + 1):
        network.mercat("motion", "vote", str(opened["motion"]), "-y", node=f"authority-{number}")

    def concluded() -> bool:
        return network.json("motion", "show", str(opened["motion"]))["concluded_height"] is not None

    wait_until(concluded, "what has passed takes effect")
    motion: dict[str, Any] = network.json("motion", "show", str(opened["motion"]))
    assert (motion["status"], motion["approvals"]) == ("done", voters)
    return motion


def _states(network: Network) -> dict[str, str]:
    return {entry["name"]: entry["state"] for entry in network.json("authority", "list")["authorities"]}


def _let_blocks_pass(network: Network, count: int) -> None:
    for _ in range(count):
        network.mercat("wallet", "send", network.record("provider-1").account, "0.01", "-y")


def test_a_node_is_voted_in_signs_and_is_voted_out_again(network: Network, place: Path) -> None:
    person = Person.settle(place / "fifth")
    person.make_keys(KeyPurpose.AUTHORITY)
    seeds = [network.record(f"authority-{number}").address for number in (1, 2)]
    person.join(network.genesis, seeds, "--role", "authority")
    record = place / "fifth.json"
    shown = person.mercat("key", "show", "--dir", str(person.folder / "keys"), "--name", "fifth", "--json")
    record.write_text(shown.out)
    key = json.loads(shown.out)["authority"]
    with person.running():
        _let_blocks_pass(network, 2)
        _decide(network, ("authority", "propose", "--add", str(record)), voters=3)
        _let_blocks_pass(network, 3)
        assert _states(network)["fifth"] == "active"
        assert network.json("ledger", "status")["quorum"] == 4

        def has_signed() -> bool:
            _let_blocks_pass(network, 1)
            return key in network.json("ledger", "block")["signers"]

        wait_until(has_signed, "the newcomer signs blocks")
        _decide(network, ("authority", "propose", "--remove", "fifth"), voters=4)
        _let_blocks_pass(network, 3)
        assert "fifth" not in _states(network)
        assert network.json("ledger", "status")["quorum"] == 3
        height = network.height("buyer-1")
        wait_until(lambda: person.client.ledger().height >= height, "who was voted out follows")


def test_a_number_changes_by_vote_and_what_can_not_pass_is_refused_in_a_sentence(network: Network) -> None:
    before = {entry["name"]: entry["value"] for entry in network.json("params", "show")["parameters"]}
    _decide(network, ("params", "propose", f"motion_fee_min={before['motion_fee_min'] + 7}"), voters=3)
    after = {entry["name"]: entry["value"] for entry in network.json("params", "show")["parameters"]}
    assert after == before | {"motion_fee_min": before["motion_fee_min"] + 7}
    for node, command, word in (
        (
            "authority-1",
            ("params", "propose", "redeem_fee_share_ppm=200000"),
            "redeem_fee_share_ppm must be 0 to 100000",
        ),
        ("authority-1", ("authority", "propose", "--remove", "nobody"), "0 authorities are named 'nobody'"),
        ("buyer-1", ("params", "propose", "fee_min=1"), "only authorities put this to vote"),
        ("buyer-1", ("motion", "vote", "1"), "no vote on motion 1"),
    ):
        refused = network.mercat(*command, "-y", node=node, expect=None)
        assert refused.code in (2, 4)
        assert word in refused.err


def test_credits_are_issued_and_redeemed_by_vote_and_the_supply_says_so(network: Network) -> None:
    before = network.json("ledger", "supply")
    buyer = network.record("buyer-1").account
    _decide(network, ("issuance", "propose", buyer, "25", "--reason", "deposit 1"), voters=3)
    asked = network.json("issuance", "redeem", "10", "--reason", "withdrawal 1", "-y", node="buyer-1")
    for number in (1, 2, 3):
        network.mercat("issuance", "vote", str(asked["motion"]), "-y", node=f"authority-{number}")
    wait_until(
        lambda: network.json("motion", "show", str(asked["motion"]))["status"] == "done", "the redemption takes effect"
    )
    after = network.json("ledger", "supply")
    assert after["total"] == before["total"] + 15_000_000
    assert after["issued_by_vote"] == before["issued_by_vote"] + 25_000_000
    assert after["redeemed_by_vote"] == before["redeemed_by_vote"] + 10_000_000
    assert after["total"] == after["genesis_total"] + after["issued_by_vote"] - after["redeemed_by_vote"]
