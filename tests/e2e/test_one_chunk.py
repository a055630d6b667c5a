"""A short job of a buyer that has paid before: one chunk, and a receipt that both sides can show."""

from pathlib import Path

from node.runtime.control import RunRequest
from tests.e2e.network import Network, price_of

WORDS = b"short"


def test_a_short_job_of_a_known_buyer_is_one_chunk_and_both_sides_receipts_verify(
    network: Network, tmp_path: Path
) -> None:
    client = network.client("buyer-1")
    for _ in range(64):  # each provider's lowest lane has earned its trust by then
        events = list(client.run(RunRequest("echo", "bytes", WORDS), 30.0))
        facts = events[-1].facts
        assert events[-1].event == "finished"
        assert facts["paid"] == price_of(len(WORDS), len(WORDS))
        assert b"".join(event.payload for event in events) == WORDS
        if facts["chunks"] == 1:
            break
    assert facts["chunks"] == 1
    job = str(facts["job"])
    [provider] = [name for name in network.names() if name.startswith("provider") and job in network.jobs(name)]
    for node in ("buyer-1", provider):
        path = tmp_path / f"{node}.json"
        network.mercat("job", "receipt", job, "--out", str(path), "--settle", node=node)
        shown = network.mercat("verify", str(path), "--genesis", str(network.genesis))
        assert "ok  acceptance signature" in shown.out
    assert "chunk 0, the last one, delivered" in network.mercat("why", job).out
