"""The quick turn of every target: good inputs, near misses of them, and noise."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutation import mutated, restructured
from tests.fuzz.targets import TARGETS, attempt

EXAMPLES = {"engine": 60, "block": 60, "control_request": 60, "config_file": 60}
"""Where one input costs a millisecond."""


@pytest.mark.parametrize("name", TARGETS)
def test_good_inputs_are_read_without_a_finding(name: str) -> None:
    for content in TARGETS[name].seeds():
        attempt(TARGETS[name], content)


@pytest.mark.filterwarnings("ignore:Parsed a serial number:Warning")
@pytest.mark.parametrize("name", TARGETS)
def test_near_misses_give_a_message_or_the_error_of_whose_fault_it_was(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()

    @settings(
        max_examples=EXAMPLES.get(name, 200),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(dice_seed=st.integers(0, 2**63), noise=st.binary(max_size=512))
    def near_miss(dice_seed: int, noise: bytes) -> None:
        dice = random.Random(dice_seed)
        attempt(target, mutated(dice.choice(seeds), seeds, dice) if seeds else dice.randbytes(600) + noise)
        if seeds:
            attempt(target, restructured(dice.choice(seeds), dice) or noise)
        attempt(target, noise)

    near_miss()
