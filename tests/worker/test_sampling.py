"""Choosing tokens: the shortcuts give what the plain formula gives."""

import json

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.worker.child.sampling import (
    FEW,
    FRACTION_BITS,
    LOGPROB_LEAST,
    Logits,
    Mask,
    NothingFits,
    choose,
    gumbel_noise,
    likelihoods,
    random_numbers,
    raw_of_noise,
)

TOKENS = 3000


def plainly(logits: Logits, temperature_milli: int, seed: int, position: int) -> int:
    """The formula as it stands in the module's law."""
    noise = gumbel_noise(random_numbers(len(logits), seed, position))
    return int(numpy.argmax(logits.astype(numpy.float64) * (1000.0 / temperature_milli) + noise))


def logits_of(seed: int, spread: float) -> Logits:
    return (numpy.random.default_rng(seed).normal(size=TOKENS) * spread).astype(numpy.float32)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 1 << 32), st.sampled_from([0.0, 0.01, 1.0, 4.0, 100.0]), st.integers(1, 5000),
    st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 17),
)  # fmt: skip
def test_the_race_has_the_winner_of_the_formula(
    spread_seed: int, spread: float, temperature: int, seed: int, position: int
) -> None:
    logits = logits_of(spread_seed, spread)
    logits[:5] = -numpy.inf
    assert choose(logits, temperature, seed, position) == plainly(logits, temperature, seed, position)


@given(st.integers(0, (1 << 64) - 1), st.floats(-5, 40))
def test_no_number_below_the_bound_gives_so_much_noise(number: int, noise: float) -> None:
    made = gumbel_noise(numpy.array([number], dtype=numpy.uint64))[0]
    if made >= noise:
        assert number >= raw_of_noise(noise)
    assert raw_of_noise(noise) < 1 << 64


def test_the_largest_and_the_smallest_number_give_finite_noise() -> None:
    ends = gumbel_noise(numpy.array([0, (1 << 64) - 1], dtype=numpy.uint64))
    assert numpy.isfinite(ends).all()
    assert ends[0] > -4.0
    assert ends[1] > (FRACTION_BITS - 1) * numpy.log(2)


class Only:
    """Lets some tokens through, and says of all that they might."""

    def __init__(self, tokens: set[int]) -> None:
        self._tokens = tokens
        self.asked = 0

    def allows(self, token: int) -> bool:
        self.asked += 1
        return token in self._tokens

    def possible(self) -> Mask:
        return numpy.ones(TOKENS, dtype=numpy.bool_)

    def exact(self) -> Mask:
        self.asked += 1
        return numpy.array([token in self._tokens for token in range(TOKENS)])


@pytest.mark.parametrize("temperature", [0, 800])
@pytest.mark.parametrize("count", [1, 50])
def test_the_best_allowed_token_is_found_however_far_behind_it_is(temperature: int, count: int) -> None:
    logits = logits_of(3, 4.0)
    logits[:100] = -numpy.inf
    order = numpy.argsort(-logits, kind="stable")
    for place in (0, 5, 31, 32, 33, 500, TOKENS - 1):
        tokens = {int(token) for token in order[place : place + count]}
        masked = numpy.where([token in tokens for token in range(TOKENS)], logits, -numpy.inf).astype(numpy.float32)
        found = choose(logits, temperature, 9, 4, Only(tokens))
        if numpy.isfinite(masked).any():
            assert found == (plainly(masked, temperature, 9, 4) if temperature else int(numpy.argmax(masked)))
        else:
            assert found in tokens
    nothing = Only(set())
    with pytest.raises(NothingFits):
        choose(logits, temperature, 9, 4, nothing)
    assert nothing.asked == FEW + 2, "the best of all, the best few of what is possible, and then all at once"


def test_likelihoods_are_those_of_the_model_and_in_order() -> None:
    logits = logits_of(1, 4.0)
    logits[7] = logits[900]
    chosen, top = likelihoods(logits, 42, 20)
    powers = numpy.exp(logits.astype(numpy.float64))
    shares = numpy.log(powers / powers.sum())
    assert chosen.logprob == pytest.approx(shares[42], abs=1e-4)
    assert [one.token for one in top] == [int(token) for token in numpy.argsort(-logits, kind="stable")[:20]]
    assert all(one.logprob == pytest.approx(shares[one.token], abs=1e-4) for one in top)
    assert likelihoods(logits, 42, 0)[1] == []


@pytest.mark.parametrize("value", [numpy.nan, numpy.inf, -numpy.inf])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_no_number_is_told_as_one(value: float) -> None:
    logits = logits_of(1, 4.0)
    logits[0] = value
    chosen, top = likelihoods(logits, 0, 3)
    assert chosen.logprob in (0.0, LOGPROB_LEAST)
    json.dumps([one.logprob for one in top], allow_nan=False)
    assert 0 <= choose(logits, 700, 1, 1) < TOKENS
    assert len(likelihoods(logits[:2], 1, 20)[1]) <= 2
