"""A buyer has texts turned into numbers by a model that counts their tokens."""

import json
import math
from pathlib import Path

import pytest

from node.worker.models import ModelStore
from tests.e2e.network import Network, wait_until
from tests.e2e.people import Person


@pytest.mark.long
def test_texts_come_back_as_embeddings_and_cost_their_tokens(network: Network, place: Path, store: ModelStore) -> None:
    person = Person.settle(place / "embedder")
    seeds = [network.record(f"authority-{number}").address for number in (1, 2)]
    own = ("--model-store", str(store.directory))
    account = person.join(network.genesis, seeds, "--role", "provider", "--model", "minilm", *own)["account"]
    with person.running():
        network.mercat("wallet", "send", account, "30", "-y")
        wait_until(lambda: person.client.account().balance == 30_000_000, "the money has come")
        person.mercat("provider", "bond", "15", "-y")
        wait_until(lambda: "minilm" in {offer.name for offer in network.client("buyer-1").offers()}, "the offer")
        vectors = []
        for text, tokens in (("A man is eating food.", 8), ("Someone eats a meal.", 7), ("Shares fell sharply.", 6)):
            result = network.json("run", "minilm", text)
            answer = json.loads(result["output"])
            assert answer["tokens"] == [tokens]
            assert (result["facts"]["input_units"], result["facts"]["output_units"]) == (tokens, 1)
            vectors += answer["embeddings"]
        near, far = (sum(map(math.prod, zip(vectors[0], other, strict=True))) for other in vectors[1:])
        assert near > 0.6 > 0.2 > abs(far)
        refused = network.mercat("run", "minilm", "word " * 300, expect=3)
        assert "it has 302 tokens, and this model takes 256" in refused.err
        (offer,) = [offer for offer in network.client("buyer-1").offers() if offer.name == "minilm"]
        assert "batch_max=16" in offer.settings
        assert "tokenizers" in offer.runtime_build
    assert network.is_conserved()
