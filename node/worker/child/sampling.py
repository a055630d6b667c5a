"""Choosing the next token: a pure function of (logits, temperature, seed, position, which tokens are allowed).

Law: no state, so any choice can be replayed from the receipt alone. At temperature 0 the highest logit wins, the
lowest token id on a tie. Above it, Gumbel-max: the winner of `logit / temperature + noise`, the noise coming from a
counter-based generator whose key is the seed and whose counter holds the token's absolute position. Where an answer is
held to a grammar, the same race is run among the tokens that the grammar allows.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (Philox4x64-10, numpy's raw stream); Gumbel-max:
Maddison et al., "A* Sampling".
"""

from dataclasses import dataclass
from typing import Protocol

import numpy

Logits = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float32]]
Scores = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float64]]
Mask = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.bool_]]
FRACTION_BITS = 52  # one fewer than a double holds, so that the half added stays exact and the result below 1
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


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely the model itself holds a token to be: the natural logarithm, whatever was asked of the sampler."""

    token: int
    logprob: float


def gumbel_noise(count: int, seed: int, position: int) -> Scores:
    """Noise for each token at one position; the same on every machine up to the rounding of the logarithm."""
    generator = numpy.random.Philox(key=seed, counter=[0, 0, position, 0])
    raw = generator.random_raw(count)
    uniform = ((raw >> numpy.uint64(64 - FRACTION_BITS)).astype(numpy.float64) + 0.5) * 2.0**-FRACTION_BITS
    noise: Scores = -numpy.log(-numpy.log(uniform))
    return noise


def choose(logits: Logits, temperature_milli: int, seed: int, position: int, allowed: Allowed | None = None) -> int:
    """The token at this position. Raises NothingFits."""
    scores: Logits | Scores = logits
    if temperature_milli:
        scaled = logits.astype(numpy.float64) * (1000.0 / temperature_milli)
        scores = scaled + gumbel_noise(len(scaled), seed, position)
    token = int(numpy.argmax(scores))
    if allowed is None or allowed.allows(token):
        return token
    candidates = numpy.flatnonzero(allowed.possible())
    for place in numpy.argsort(-scores[candidates], kind="stable"):
        token = int(candidates[place])
        if allowed.allows(token):
            return token
    raise NothingFits


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
