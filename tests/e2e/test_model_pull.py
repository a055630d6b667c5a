"""Models travel between real nodes: pulled from providers, given on, sold by whoever pulled them."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from node.worker.models import ModelId, ModelStore
from node.worker.pieces import PIECE_BYTES
from node.worker.quota import pulls
from tests.e2e.network import WAIT_SECONDS, Network, command_line, environment, wait_until
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


def started_pull(person: Person, *arguments: str) -> "subprocess.Popen[bytes]":
    """A pull by command that goes on beside the test."""
    return subprocess.Popen(
        command_line("model", "pull", *arguments),
        env={**environment(person.home), "MERCAT_CONTROL": str(person.control)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def endpoint(person: Person) -> str:
    """Where a node gives pieces, pinned to its key."""
    status = person.client.status()
    return f"{status.node}@{status.listen}"


def spoil(store: ModelStore, model: ModelId, piece: int) -> str:
    """Change a byte of one piece of the only file; the file's name."""
    (file,) = store.manifest(model).files
    stored = store.file_path(file)
    stored.chmod(0o644)
    with stored.open("r+b") as body:
        body.seek(piece * PIECE_BYTES + 5)
        body.write(b"\x00corrupt\x00")
    return file.path


@pytest.mark.long
def test_models_are_pulled_and_given_on_by_choice_and_a_corrupt_copy_is_named_with_its_node(
    network: Network, place: Path, magika: ModelId
) -> None:
    first, second = Person.settle(place / "first"), Person.settle(place / "second")
    joined(network, first)
    joined(network, second)
    with first.running():
        wait_until(lambda: offers_heard(first, "magika"), "an offer")
        said = first.mercat("model", "pull", "magika", "--peers")
        assert re.search(r"license +Apache-2.0", said.out)
        assert store_of(first).verify(magika).name == "magika"
        assert "it was there, and whole" in first.mercat("model", "pull", magika).out
        weights = place / "weights.onnx"
        weights.write_bytes(os.urandom(3 * PIECE_BYTES))
        own = ("--license", "MIT", "--model-store", str(store_of(first).directory), "-q")
        model = ModelId(first.mercat("model", "add", str(weights), *own).out.strip())
        with second.running():
            refused = second.mercat("model", "pull", model, "--from", endpoint(first), expect=5)
            assert "does not share that model" in refused.err
    with first.config.open("a") as config:
        config.write('\n[models]\nshare = "all"\n')
    with first.running(), second.running():
        second.mercat("model", "pull", model, "--from", endpoint(first))
        assert store_of(second).verify(model).source == "local"
        second.mercat("model", "rm", model, "--model-store", str(store_of(second).directory))
        name = spoil(store_of(first), model, piece=1)
        failed = second.mercat("model", "pull", model, "--from", endpoint(first), expect=5)
        assert f"{first.client.status().node} sent a corrupt piece: piece 1 of {name}" in failed.err
        assert second.events("source_corrupt")
        assert store_of(second).model_ids() == ()


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
        with started_pull(person, smollm, "--limit", "30MB/s") as pulling:
            journals = pulls(store_of(person)) / smollm
            wait_until(lambda: sum(path.read_bytes().count(1) for path in journals.glob("*.journal")) > 20, "pieces")
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert pulling.wait(20) != 0
        assert store_of(person).model_ids() == ()
    with person.running() as process:
        wait_until(lambda: offers_heard(person, "smollm2-135m"), "an offer")
        pulled = json.loads(person.mercat("model", "pull", smollm, "--json").out)
        assert pulled["bytes_kept"] > 15 * PIECE_BYTES
        assert store_of(person).verify(smollm).name == "smollm2-135m"
        person.mercat("model", "rm", smollm, "--model-store", str(store_of(person).directory))
        with started_pull(person, smollm, "--limit", "5MB/s") as slow:
            wait_until(lambda: bool(list((pulls(store_of(person)) / smollm).glob("*.journal"))), "the pull")
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT_SECONDS) == 0  # a pull does not hold up a stop
            assert slow.wait(20) != 0
