"""Choosing the next token: a pure function of (logits, temperature, seed, position).

Law: no state, so any choice can be replayed from the receipt alone. At temperature 0 the highest logit wins, the
lowest token id on a tie. Above it, Gumbel-max: the winner of `logit / temperature + noise`, the noise coming from a
counter-based generator whose key is the seed and whose counter holds the token's absolute position.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (Philox4x64-10, numpy's raw stream); Gumbel-max:
Maddison et al., "A* Sampling".
"""

import numpy

Logits = numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float32]]
FRACTION_BITS = 52  # one fewer than a double holds, so that the half added stays exact and the result below 1


def gumbel_noise(count: int, seed: int, position: int) -> numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float64]]:
    """Noise for each token at one position; the same on every machine up to the rounding of the logarithm."""
    generator = numpy.random.Philox(key=seed, counter=[0, 0, position, 0])
    raw = generator.random_raw(count)
    uniform = ((raw >> numpy.uint64(64 - FRACTION_BITS)).astype(numpy.float64) + 0.5) * 2.0**-FRACTION_BITS
    noise: numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float64]] = -numpy.log(-numpy.log(uniform))
    return noise


def choose(logits: Logits, temperature_milli: int, seed: int, position: int) -> int:
    """The token at this position."""
    if temperature_milli == 0:
        return int(numpy.argmax(logits))
    scores = logits.astype(numpy.float64) * (1000.0 / temperature_milli)
    return int(numpy.argmax(scores + gumbel_noise(len(scores), seed, position)))
