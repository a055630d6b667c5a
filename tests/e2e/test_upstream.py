"""Somebody sells what a server of theirs serves, in one line; a buyer gets text and a proof of what it was."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.worker.models import ModelId, ModelStore
from tests.e2e.network import WAIT_SECONDS, Network, command_line, environment, run_command, wait_until
from tests.e2e.people import Person
from tests.worker.llama_server import MODEL, llama_server


@contextmanager
def providing(person: Person, *options: str) -> "Iterator[subprocess.Popen[bytes]]":
    """``mercat provider run`` until the context ends."""
    with person.log.open("ab") as log:
        process = subprocess.Popen(
            command_line("provider", "run", "--config", str(person.config), *options),
            env=environment(person.home), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=person.home,
        )  # fmt: skip
    try:
        wait_until(lambda: process.poll() is not None or person.status() is not None, "the node serves")
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_SECONDS) == 0, person.log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.long
def test_a_server_is_sold_in_one_line_and_its_receipt_says_what_it_was(
    network: Network, place: Path, store: ModelStore, smollm: ModelId
) -> None:
    person = Person.settle(place / "upstream")
    seeds = [network.record(f"authority-{number}").address for number in (1, 2)]
    account = person.join(network.genesis, seeds)["account"]
    (file,) = store.manifest(smollm).files
    with llama_server(store.file_path(file)) as server:
        options = ("--upstream", server, "--model", MODEL, "--server", "llama-server", "--slots", "2")
        with providing(person, *options):
            network.mercat("wallet", "send", account, "30", "-y")
            wait_until(lambda: person.client.account().balance == 30_000_000, "the money has come")
            person.mercat("provider", "bond", "15", "-y")
            offers = network.client("buyer-1").offers
            wait_until(lambda: MODEL in {offer.name for offer in offers()}, "the offer")
            (offer,) = [offer for offer in offers() if offer.name == MODEL]
            assert (offer.isolation, offer.runtime, offer.runtime_build) == (
                "declared", "upstream", "upstream llama-server",
            )  # fmt: skip
            assert offer.settings == "isolation=declared"
            refused = network.mercat("run", MODEL, "hi", "--isolation", "strong", expect=5)
            assert "isolation declared is below strong" in refused.err
            proof = place / "upstream-receipt.json"
            asked = ("Count to five.", "--max-tokens", "40", "--receipt", str(proof), "--settle")
            ended = network.mercat("run", MODEL, *asked)
            assert ended.out.strip()
            report = run_command(
                "verify", str(proof), "--genesis", str(network.genesis), "--json", home=network.home,
                variables={"MERCAT_CONTROL": str(place / "nobody.sock")},
            ).json  # fmt: skip
            assert report["holds"]
            assert (report["runtime_build"], report["settings"]) == ("upstream llama-server", "isolation=declared")
            job = network.json("job", "list")[0]
            assert (job["state"], job["counterparty"]) == ("done", account)
            assert 0 < job["output_units"] <= 40
            (view,) = person.client.provider().models
            assert (view.state, view.jobs, view.runtime) == ("ready", 1, "upstream")
            too_long = network.mercat("run", MODEL, "-", stdin=b"word " * 3_000, expect=3)
            assert "400" in too_long.err
    with providing(person, "--upstream", server, "--model", MODEL):
        reason = "can't be reached"
        wait_until(
            lambda: reason in (person.client.provider().not_selling_because or ""), "it says why it does not sell"
        )
    assert network.is_conserved()
