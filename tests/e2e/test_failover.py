"""A provider is killed mid-stream: another one goes on, and whoever reads sees neither a gap nor a repeat."""

import json
import random
import string
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.cli.cluster_layout import Shape, create_cluster
from node.runtime.control import RunEvent, RunRequest
from node.worker.models import ModelId, ModelStore
from tests.e2e.network import OUTPUT_UNIT, Network, price_of, wait_until
from tests.worker.conftest import DESCRIPTIONS

BODY_BYTES = 100_000
CREDITS_50 = 50_000_000


def _body(seed: int) -> bytes:
    return "".join(random.Random(seed).choices(string.ascii_letters, k=BODY_BYTES)).encode()


@pytest.fixture(scope="module")
def echoing(place: Path, store: ModelStore, echo: ModelId) -> Iterator[Network]:
    """One authority and two providers that echo more than a cluster's providers take: a stream long enough to cut."""
    home = place / "home-of-echoes"
    home.mkdir()
    network = Network(place / "e", home, store.directory, ("--authorities", "1", "--model", "echo"))
    create_cluster(network.folder, Shape(1, 2), (str(DESCRIPTIONS / "echo.toml"),), store.directory)
    for name in ("provider-1", "provider-2"):
        config = network.record(name).config
        text = config.read_text()
        assert text.count("[provider]\n") == 1
        limits = f"[provider]\ninput_units_max = {10 * BODY_BYTES}\noutput_units_max = {10 * BODY_BYTES}\n"
        config.write_text(text.replace("[provider]\n", limits))
    network.up()
    yield network
    network.stop()


class Echoed:
    """An echo job whose provider is killed after some output."""

    def __init__(self, network: Network, seed: int) -> None:
        self.body, self.output = _body(seed), b""
        self.agreed: list[RunEvent] = []
        self.end: RunEvent | None = None
        self.killed_at = self.resumed_at = 0.0
        self.before = 0
        """Bytes that the reader had of the killed provider at most."""
        asked = RunRequest("echo", "bytes", self.body, price_max=CREDITS_50)
        for event in network.client("buyer-1").run(asked, 30.0):
            self._follow(network, event)

    def _follow(self, network: Network, event: RunEvent) -> None:
        match event.event:
            case "agreed":
                self.agreed.append(event)
            case "output":
                if len(self.agreed) > 1 and not self.resumed_at:
                    self.resumed_at, self.before = time.monotonic(), len(self.output)
                self.output += event.payload
                if not self.killed_at and len(self.output) > BODY_BYTES // 20:
                    self.killed_at = time.monotonic()
                    network.kill(network.name_of(str(self.agreed[0].facts["provider"])))
            case "finished" | "failed" | "cancelled":
                self.end = event

    def check(self, network: Network) -> None:
        """The text is whole, each provider was paid for its own chunks, and nothing more."""
        assert self.end is not None
        assert self.end.event == "finished", self.end
        assert self.output == self.body
        assert len(self.agreed) == 2
        first, second = (str(event.facts["job"]) for event in self.agreed)
        jobs = network.jobs("buyer-1")
        assert jobs[first].output_units == self.before
        assert jobs[second].output_units == BODY_BYTES - self.before
        assert jobs[first].amount == price_of(BODY_BYTES, self.before)
        assert jobs[second].amount == price_of(BODY_BYTES + self.before, BODY_BYTES - self.before)
        assert self.end.facts["paid"] == jobs[first].amount + jobs[second].amount
        assert self.end.facts["output_units"] == BODY_BYTES

    @property
    def seam_ms(self) -> float:
        """From the kill to the next provider's first chunk."""
        return 1000 * (self.resumed_at - self.killed_at)


def test_provider_killed_mid_stream_leaves_no_gap_and_no_repeat(echoing: Network, tmp_path: Path) -> None:
    echoing.mercat("run", "echo", "a link and a channel to each provider")
    echoed = Echoed(echoing, 1)
    echoed.check(echoing)
    killed = echoing.name_of(str(echoed.agreed[0].facts["provider"]))
    print(f"\nfrom the kill to the next chunk: {echoed.seam_ms:.0f} ms")
    echoing.up()
    first = str(echoed.agreed[0].facts["job"])
    sold, bought = echoing.jobs(killed)[first], echoing.jobs("buyer-1")[first]
    assert sold.state == "failed"
    assert sold.amount <= bought.amount <= sold.amount + OUTPUT_UNIT * 256
    wait_until(lambda: echoing.slots_free(killed) == (2, 2), "the returned provider holds no slot")
    assert echoing.is_conserved()
    _check_receipt(echoing, echoed, tmp_path / "receipt.json")


def _check_receipt(network: Network, echoed: Echoed, path: Path) -> None:
    """The receipt shows offline what both providers delivered and were paid, and a part can't be exchanged."""
    first, second = (str(event.facts["job"]) for event in echoed.agreed)
    content = network.mercat("job", "receipt", second, "--settle").json
    path.write_text(json.dumps(content))
    report = network.mercat("verify", str(path), "--genesis", str(network.genesis), "--settled", "--json").json
    assert report["holds"], report
    earlier = network.jobs("buyer-1")[first]
    [said] = [check["detail"] for check in report["checks"] if check["name"] == "earlier_work"]
    assert said.startswith(f"goes on behind {echoed.before} units of job {first}")
    assert said.endswith(f"{earlier.amount} base units paid to 1 earlier provider")
    path.write_text(json.dumps({**content, "earlier": [{**content["earlier"][0], "chunk": content["receipt"]}]}))
    refused = network.mercat("verify", str(path), "--genesis", str(network.genesis), "--json", expect=1).json
    assert refused["failed"] == "earlier_work"


@pytest.mark.long
def test_ten_kills_resume_within_a_second_each(echoing: Network) -> None:
    seams: list[float] = []
    for seed in range(10):
        if not echoing.is_whole():
            echoing.up()
        echoing.mercat("run", "echo", "warm")
        echoed = Echoed(echoing, seed)
        echoed.check(echoing)
        seams.append(echoed.seam_ms)
    print("\nfrom the kill to the next chunk, ms:", " ".join(f"{seam:.0f}" for seam in sorted(seams)))
    assert sorted(seams)[len(seams) // 2] < 1_000
