"""``mercat provider``: what its operator sees, and a node made a provider in one line."""

import time
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from node.cli.failures import CommandFailed
from node.cli.provider import as_provider, provider_text, ticks
from node.config.settings import KeystoreConfig, NodeConfig, ProviderConfig, ProviderModel, Role
from node.runtime.control import ProviderModelView, ProviderView

MODEL = ProviderModelView(
    name="smollm2-135m", model="ab" * 32, runtime="gguf", state="ready", load_ms=450, waiting=2, jobs=7, units_out=900,
    units_per_second=41.5, memory_bytes=300 << 20, cpu_ms=12_300, crashes=1,
)  # fmt: skip
VIEW = ProviderView(
    selling=True, not_selling_because=None, isolation="fallback", checks=(("fork", True, "EPERM"),), bond=20_000_000,
    bond_min=10_000_000, slots_total=4, slots_free=1, models=(MODEL,), jobs_done=6, earned=1_500_000,
    unredeemed=500_000,
)  # fmt: skip
CONFIG = NodeConfig(genesis=Path("/g"), state=Path("/s"), keystore=KeystoreConfig(Path("/k")), roles=(Role.BUYER,))


def test_an_operator_sees_slots_queue_speed_memory_isolation_and_earnings() -> None:
    text = provider_text(VIEW)
    for seen in ("fallback", "1 of 4", "1.50 credits", "smollm2-135m", "41.5", "300 MiB", "12.3 s", "450 ms"):
        assert seen in text
    assert "1 of 1 checks" in text


def test_a_model_that_is_not_served_says_why_and_until_when() -> None:
    later = round(time.time() * 1000) + 60_000
    quarantined = msgspec.structs.replace(MODEL, state="quarantined", reason="crashed 4 times", until_ms=later)
    failed = ProviderModelView("big", "", "", "failed: it needs 900 MiB", 0)
    text = provider_text(msgspec.structs.replace(VIEW, models=(quarantined, failed)))
    assert "quarantined for " in text
    assert "smollm2-135m: crashed 4 times" in text.splitlines()
    assert "big: it needs 900 MiB" in text.splitlines()


def test_watching_keeps_its_pace_whatever_an_answer_takes() -> None:
    clock, waits = [0.0], []

    def wait(seconds: float) -> None:
        waits.append(round(seconds, 3))
        clock[0] += seconds

    for count in islice(ticks(1.0, lambda: clock[0], wait), 5):
        clock[0] += 1.6 if count == 2 else 0.3
    assert waits == [0.7, 0.7, 0.0, 0.1]


def test_a_buyers_node_becomes_a_provider_of_what_is_named() -> None:
    adjusted = as_provider(CONFIG, ("echo",))
    assert adjusted.roles == (Role.BUYER, Role.PROVIDER)
    (model,) = adjusted.provider.models
    assert model.description.endswith("echo.toml")
    assert model.input_per_thousand == ProviderModel(description="").input_per_thousand


def test_a_model_of_the_configuration_keeps_its_prices() -> None:
    described = as_provider(CONFIG, ("echo",)).provider.models[0].description
    own = ProviderModel(description=described, request=77)
    config = msgspec.structs.replace(CONFIG, provider=ProviderConfig(models=(own,)), roles=(Role.PROVIDER,))
    assert as_provider(config, ("echo",)).provider.models == (own,)
    assert as_provider(config, ()) == config


def test_a_provider_of_nothing_is_wrong_usage() -> None:
    with pytest.raises(CommandFailed, match="--model"):
        as_provider(CONFIG, ())
