"""Somebody brings a model of their own to a running network: adds it, publishes it, sells it by its id."""

import shutil
from pathlib import Path

from node.worker.models import ModelId, ModelStore
from tests.e2e.network import Network, wait_until
from tests.e2e.people import Person

PYTHON_FILE = Path(__file__)


def files_of(store: ModelStore, model: ModelId, folder: Path) -> Path:
    """The files of a stored model, as somebody has them who made it."""
    folder.mkdir()
    for file in store.manifest(model).files:
        shutil.copyfile(store.file_path(file), folder / file.path)
    return folder


def test_a_model_from_a_folder_is_published_sold_by_its_id_and_traced_to_its_publisher(
    network: Network, place: Path, store: ModelStore, magika: ModelId
) -> None:
    person = Person.settle(place / "maker")
    own = ("--model-store", str(place / "own-models"))
    folder = files_of(store, magika, place / "classifier")
    settings = ("--setting", "pipeline=byte-classifier", "--setting", "configuration_file=config.json")
    model = person.mercat(
        "model", "add", str(folder), "--license", "Apache-2.0", "--parent", magika, *settings, *own, "-q"
    ).out.strip()
    seeds = [network.record(f"authority-{number}").address for number in (1, 2)]
    account = person.join(network.genesis, seeds, "--role", "provider", "--model", model, *own)["account"]
    with person.running():
        network.mercat("wallet", "send", account, "30", "-y")
        wait_until(lambda: person.client.account().balance == 30_000_000, "the money has come")
        person.mercat("model", "publish", "classifier", "-y", *own)
        again = person.mercat("model", "publish", "classifier", "-y", *own, expect=1)
        assert f"was registered by {account}" in again.err
        person.mercat("provider", "bond", "15", "-y")
        wait_until(lambda: person.client.provider().selling, "the bonded provider sells", seconds=20)
        assert "in use" in person.mercat("model", "rm", "classifier", *own, expect=1).err
        wait_until(lambda: "classifier" in {offer.name for offer in network.client("buyer-1").offers()}, "the offer")
        assert "python" in network.mercat("run", "classifier", "--file", str(PYTHON_FILE)).out
        job = network.json("job", "list")[0]["job"]
        assert account in network.mercat("job", "show", job).out.split("model by")[1].splitlines()[0]
        shown = network.json("model", "show", model, "--model-store", str(place / "empty"))
        assert shown["manifest"] is None
        assert shown["registration"]["publisher"] == account
        block = network.json("ledger", "block", str(shown["registration"]["height"]))
        assert "registers model mcmodel1" in str(block["transactions"])
    person.mercat("model", "rm", "classifier", *own)
    assert network.is_conserved()
