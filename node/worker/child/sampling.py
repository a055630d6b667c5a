"""Choosing the next token: a pure function of (logits, temperature, seed, position, which tokens are allowed).

Law: no state, so any choice can be replayed from the receipt alone. At temperature 0 the highest logit wins, the
lowest token id on a tie. Above it, Gumbel-max: the winner of `logit / temperature + noise`, the noise coming from a
counter-based generator whose key is the seed and whose counter holds the token's absolute position. Where an answer is
held to a grammar, the same race is run among the tokens that the grammar allows.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (Philox4x64-10, numpy's raw stream); Gumbel-max:
Maddison et al., "A* Sampling".
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy

Logits = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float32]]
Scores = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float64]]
Raw = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.uint64]]
Tokens = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.intp]]
Mask = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.bool_]]
FRACTION_BITS = 52  # one fewer than a double holds, so that the half added stays exact and the result below 1
NOISE_LEAST = -4.0  # what the smallest random numbers give; e to the power of more would overflow
ROUNDING = 1e-6  # room for the rounding of two logarithms, which is far less
FRONT = 3.0  # how far behind the best a token is in front all the same
FEW = 32
LOGPROB_LEAST = -9999.0  # JSON has no infinity
LOGPROB_DECIMALS = 4  # what is told of a token; further digits would differ with the order of a sum


class NothingFits(Exception):
    """No token of the vocabulary is allowed."""


class Allowed(Protocol):
    """Which tokens may come next."""

    def allows(self, token: int) -> bool:
        """Whether this token may come next."""

    def possible(self) -> Mask:
        """For each token whether it could be allowed, judged quickly: nothing that is allowed is missing."""

    def exact(self) -> Mask:
        """For each token whether it is allowed, judged thoroughly."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely the model itself holds a token to be: the natural logarithm, whatever was asked of the sampler."""

    token: int
    logprob: float


def random_numbers(count: int, seed: int, position: int) -> Raw:
    """A random number of 64 bits for each token at one position."""
    raw: Raw = numpy.random.Philox(key=seed, counter=[0, 0, position, 0]).random_raw(count)
    return raw


def gumbel_noise(raw: Raw) -> Scores:
    """Noise made of random numbers; the same on every machine up to the rounding of the logarithm."""
    uniform = ((raw >> numpy.uint64(64 - FRACTION_BITS)).astype(numpy.float64) + 0.5) * 2.0**-FRACTION_BITS
    noise: Scores = -numpy.log(-numpy.log(uniform))
    return noise


def raw_of_noise(noise: float) -> int:
    """A random number below which all give less noise than this."""
    uniform = math.exp(-math.exp(-max(noise - ROUNDING, NOISE_LEAST)))
    return max(0, math.floor(uniform * 2.0**FRACTION_BITS) - 2) << (64 - FRACTION_BITS)


class _Race:
    """Every token's score at one position: logit by temperature, and noise. Noise is made for those that need it."""

    def __init__(self, logits: Logits, temperature_milli: int, seed: int, position: int) -> None:
        self._scaled: Scores = logits.astype(numpy.float64) * (1000.0 / temperature_milli)
        self._raw = random_numbers(len(logits), seed, position)

    def scores(self, tokens: Tokens) -> Scores:
        """Scores of these tokens."""
        return self._scaled[tokens] + gumbel_noise(self._raw[tokens])

    def winner(self) -> int:
        """The token with the highest score of all.

        Whoever is far behind without noise needs a random number above a bound to catch up with the best of those
        in front; few have one, and only for those the logarithms are taken.
        """
        front = self._scaled.max() - FRONT
        ahead = self._scaled >= front
        best = float(self.scores(numpy.flatnonzero(ahead)).max())
        ahead |= self._raw >= numpy.uint64(raw_of_noise(best - float(front)))
        tokens = numpy.flatnonzero(ahead)
        return int(tokens[numpy.argmax(self.scores(tokens))])


def choose(logits: Logits, temperature_milli: int, seed: int, position: int, allowed: Allowed | None = None) -> int:
    """The token at this position. Raises NothingFits."""
    if not temperature_milli or not numpy.isfinite(logits.max()):
        race, token = None, int(numpy.argmax(logits))
    else:
        race = _Race(logits, temperature_milli, seed, position)
        token = race.winner()
    if allowed is None or allowed.allows(token):
        return token
    candidates = numpy.flatnonzero(allowed.possible())
    for place in _best_first(_scores(race, logits, candidates)):
        token = int(candidates[place])
        if allowed.allows(token):
            return token
    candidates = numpy.flatnonzero(allowed.exact())
    if not len(candidates):
        raise NothingFits
    return int(candidates[numpy.argsort(-_scores(race, logits, candidates), kind="stable")[0]])


def _scores(race: _Race | None, logits: Logits, tokens: Tokens) -> Scores:
    return race.scores(tokens) if race is not None else logits[tokens].astype(numpy.float64)


def _best_first(scores: Scores) -> Iterator[int]:
    """The few best places from the highest score down, the lowest place first on a tie."""
    left, count = scores.copy(), 0
    while count < min(FEW, len(left)) and left[place := int(numpy.argmax(left))] > -numpy.inf:
        yield place
        left[place] = -numpy.inf
        count += 1


def likelihoods(logits: Logits, chosen: int, count: int) -> tuple[Likelihood, list[Likelihood]]:
    """The chosen token's likelihood, and those of the likeliest tokens, the lowest id first on a tie."""
    scores = logits.astype(numpy.float64)
    highest = scores.max()
    shares = scores - highest - numpy.log(numpy.exp(scores - highest).sum())
    top: list[Likelihood] = []
    if count:
        count = min(count, len(scores))
        bound = numpy.partition(scores, len(scores) - count)[len(scores) - count]
        tokens = numpy.flatnonzero(scores >= bound)
        order = numpy.argsort(-scores[tokens], kind="stable")[:count]
        top = [_likelihood(int(tokens[place]), shares) for place in order]
    return _likelihood(chosen, shares), top


def _likelihood(token: int, shares: Scores) -> Likelihood:
    share = float(shares[token])
    if not share > LOGPROB_LEAST:  # nor is what isn't a number
        return Likelihood(token, LOGPROB_LEAST)
    return Likelihood(token, round(share, LOGPROB_DECIMALS) + 0.0)  # no negative zero
