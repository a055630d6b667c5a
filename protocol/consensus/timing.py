"""How long a view waits and which timestamps a voter accepts.

Law: integers only, and every exponent is capped: a rule that overflows after some hundred views would halt the ledger.
"""

from protocol.primitives.units import DurationMs, TimestampMs, View

RESEND_MS = DurationMs(1000)
"""An undecided authority repeats its own messages of the current view this often."""
PULL_RETRY_MS = DurationMs(300)
"""A missing body or certificate is asked for again this often, each time of another authority."""
_EXPONENT_MAX = 32
"""1.5^32 exceeds 400,000: every useful cap lies far below it."""


def delta_ms(view: View, base: DurationMs, cap: DurationMs) -> DurationMs:
    """Δ_v = min(Δ0 · 1.5^(v−1), cap): the message delay that view ``v`` allows for."""
    exponent = min(max(view - 1, 0), _EXPONENT_MAX)
    return DurationMs(min(base * 3**exponent // 2**exponent, cap))


def is_timely(
    timestamp: TimestampMs, received: TimestampMs, view: View, base: DurationMs, cap: DurationMs, precision: DurationMs
) -> bool:
    """Whether a new block's timestamp fits the wall clock of the node that received it.

    ``received − delay − precision ≤ timestamp ≤ received + precision``; the delay is 2Δ_v, as long as a voter waits for
    the proposal. Blocks proposed again in a later view are exempt: a quorum has judged them in time.
    """
    delay = 2 * delta_ms(view, base, cap)
    return received - delay - precision <= timestamp <= received + precision
