"""Models travel between real nodes: pulled from providers, given on, sold by whoever pulled them."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from node.worker.models import ModelId, ModelStore
from node.worker.pieces import PIECE_BYTES
from node.worker.quota import pulls
from tests.e2e.network import Network, command_line, environment, wait_until
from tests.e2e.people import Person

PYTHON_FILE = Path(__file__)


def joined(network: Network, person: Person, *options: str) -> str:
    """Join the network; the account."""
    seeds = [network.record(f"authority-{number}").address for number in (1, 2)]
    return person.join(network.genesis, seeds, *options)["account"]


def store_of(person: Person) -> ModelStore:
    return ModelStore(person.folder / "state" / "models")


def offers_heard(person: Person, name: str) -> bool:
    return name in {offer.name for offer in person.client.offers()}


def test_a_pulled_model_is_given_on_and_a_node_with_a_corrupt_copy_is_named_and_dropped(
    network: Network, place: Path, magika: ModelId
) -> None:
    first, second = Person.settle(place / "first"), Person.settle(place / "second")
    joined(network, first)
    joined(network, second)
    with first.running(), second.running():
        wait_until(lambda: offers_heard(first, "magika"), "an offer")
        said = first.mercat("model", "pull", "magika", "--peers")
        assert "license    Apache-2.0" in said.out
        assert store_of(first).verify(magika).name == "magika"
        again = first.mercat("model", "pull", magika)
        assert "it was there, and whole" in again.out
        giver = f"{first.client.status().node}@{first.client.status().listen}"
        file = max(store_of(first).manifest(magika).files, key=lambda file: file.size)
        stored = store_of(first).file_path(file)
        stored.chmod(0o644)
        with stored.open("r+b") as body:
            body.seek(PIECE_BYTES + 1)
            body.write(b"\x00corrupt\x00")
        pulled = json.loads(second.mercat("model", "pull", magika, "--from", giver, "--json").out)
        liar = next(source for source in pulled["sources"] if source["source"] == first.client.status().node)
        assert liar["corrupt"]
        assert liar["dropped"]
        assert f"piece 1 of {file.path}" in liar["state"]
        assert store_of(second).verify(magika).name == "magika"
        assert second.events("source_corrupt")
        refused = first.mercat("model", "pull", "ab" * 32, "--from", giver, "--wait", "0.1", expect=5)
        assert "no source is left for the manifest" in refused.err
    first.mercat("model", "rm", magika, "--model-store", str(store_of(first).directory))


def test_a_provider_pulls_the_model_that_it_is_to_sell_and_serves_a_job_with_it(
    network: Network, place: Path, magika: ModelId
) -> None:
    seller = Person.settle(place / "reseller")
    account = joined(network, seller, "--role", "provider", "--model", magika)
    with seller.running():
        wait_until(lambda: any(model.state == "ready" for model in seller.client.provider().models), "it is loaded")
        assert seller.events("pulled")[0]["model"] == magika
        network.mercat("wallet", "send", account, "30", "-y")
        wait_until(lambda: seller.client.account().balance == 30_000_000, "the money has come")
        seller.mercat("provider", "bond", "15", "-y")
        wait_until(lambda: seller.client.provider().selling, "the bonded provider sells", seconds=20)
        wait_until(lambda: account in {offer.provider for offer in network.client("buyer-1").offers()}, "the offer")
        ran = network.mercat("run", "magika", "--file", str(PYTHON_FILE), "--provider", account)
        assert "python" in ran.out
    assert network.is_conserved()


@pytest.mark.long
def test_a_node_killed_in_the_middle_of_a_pull_goes_on_with_what_it_had(
    network: Network, place: Path, smollm: ModelId
) -> None:
    person = Person.settle(place / "killed")
    joined(network, person)
    with person.running() as process:
        wait_until(lambda: offers_heard(person, "smollm2-135m"), "an offer")
        pulling = subprocess.Popen(
            command_line("model", "pull", smollm, "--limit", "30MB/s"),
            env={**environment(person.home), "MERCAT_CONTROL": str(person.control)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        with pulling:
            journals = pulls(store_of(person)) / smollm
            wait_until(lambda: sum(path.read_bytes().count(1) for path in journals.glob("*.journal")) > 20, "pieces")
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert pulling.wait(20) != 0
        assert store_of(person).model_ids() == ()
    with person.running():
        wait_until(lambda: offers_heard(person, "smollm2-135m"), "an offer")
        pulled = json.loads(person.mercat("model", "pull", smollm, "--json").out)
        assert pulled["bytes_kept"] > 15 * PIECE_BYTES
        assert store_of(person).verify(smollm).name == "smollm2-135m"
    person.mercat("model", "rm", smollm, "--model-store", str(store_of(person).directory))
