"""What ``why`` shows of a job: the contract between runtime, control API and command line, like ``control``.

Law: amounts are base units, times wall-clock milliseconds of this node, ids hex, accounts addresses. What was signed
is there as it was signed, so that a reader need not believe this node.
"""

import msgspec


class _View(msgspec.Struct, frozen=True):
    pass


class LineView(_View, frozen=True):
    """One step; ``tellers`` say who claims it: ``buyer``, ``provider``, ``ledger``."""

    at: int
    until: int
    tellers: tuple[str, ...]
    attempt: int
    what: str
    cause: str
    chunks: int
    paid: int
    height: int | None


class RecordedView(_View, frozen=True):
    """One entry as a side has recorded it, by that side's own clock; ``until`` is 0 but for a run of chunks."""

    teller: str
    at: int
    until: int
    state: str
    cause: str
    chunks: int
    paid: int


class AttemptView(_View, frozen=True):
    """One agreement of the request, and what its other side made of it."""

    attempt: int
    job: str
    provider: str
    state: str
    fault: str | None
    reason: str
    chunks: int
    input_units: int
    output_units: int
    paid: int
    price_ceiling: int
    other: str
    """``told``: its signed record is here; ``missing``: it is not, for the reason in ``other_missing``."""
    other_missing: str
    clock_ahead_ms: int | None
    """What the other side's clock is ahead of this node's; ``None`` while unknown."""
    words: tuple[str, ...]
    """What this node holds of the other side's signed statements, in words."""
    contradictions: tuple[str, ...]
    recorded: tuple[RecordedView, ...]
    """This node's entries, of all attempts up to this one's end, then the other side's."""
    timelines: tuple[str, ...]
    """Signed ``TIMELINE`` envelopes in hex: this node's, then the other side's if it came."""
    statements: tuple[str, ...]
    """All other signed envelopes that are kept of it, in hex."""


class WhyView(_View, frozen=True):
    """Everything that is recorded of one job, from both sides and the ledger."""

    request: str
    """Empty on the provider's side."""
    side: str
    model: str
    state: str
    reason: str
    counterparty: str
    paid: int
    """By all attempts together."""
    attempts: tuple[AttemptView, ...]
    lines: tuple[LineView, ...]
