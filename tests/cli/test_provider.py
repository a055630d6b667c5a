"""``mercat provider``: what its operator sees, and a node made a provider in one line."""

from itertools import islice
from pathlib import Path

import msgspec
import pytest

from node.cli.failures import CommandFailed
from node.cli.provider import as_provider, provider_text, state_text, ticks
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
    assert "1 of 1 attacks" in text


@pytest.mark.parametrize(
    ("state", "reason", "until_ms", "expected"),
    [
        ("ready", "", 0, "ready"),
        ("restarting", "the worker ended with status 134", 0, "restarting: the worker ended with status 134"),
        ("quarantined", "crashed 4 times", 61_000, "quarantined for 60 s: crashed 4 times"),
    ],
)
def test_a_model_that_is_not_served_says_why_and_until_when(
    state: str, reason: str, until_ms: int, expected: str
) -> None:
    model = msgspec.structs.replace(MODEL, state=state, reason=reason, until_ms=until_ms)
    assert state_text(model, 1_000) == expected


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
