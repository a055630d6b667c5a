"""What is known of an account that deals in the market, as people and their programs read it.

Law: every figure says where it comes from. This module imports nothing heavy, because the command line reads it at
every start.
"""

import msgspec


class FactView(msgspec.Struct, frozen=True):
    """One figure and its origin."""

    about: str
    """``provider`` or ``buyer``: its dealings in that role; ``stake``; ``offer``; ``here``: what this node knows."""
    name: str
    value: int | str
    unit: str
    """``base units``, ``ms``, ``ledger ms`` (ledger time), ``jobs``, ``accounts``, ``slots``, ``text`` …"""
    origin: str


class ScoreView(msgspec.Struct, frozen=True):
    """The score of one role and how it was reckoned, all in thousandths."""

    role: str
    total: int
    neutral: int
    earned: int
    experience: int
    maturity: int
    reliability: int
    newcomer: bool
    explained: str


class RecordView(msgspec.Struct, frozen=True):
    """Everything about one account."""

    account: str
    node: str | None
    """The node of its live offer."""
    height: int
    """Of the block after which the ledger's figures are."""
    ledger_time_ms: int
    scores: tuple[ScoreView, ...]
    facts: tuple[FactView, ...]
