"""What people are told of a job that several providers do, and of an auction: who takes part, who differs, where."""

from node.cli.output import credits_text, short
from node.runtime.control import RunEvent

Fact = str | int | bool | None

TOLD = (
    "quote",
    "auction",
    "replica_agreed",
    "replica_failed",
    "replica_finished",
    "replica_compared",
    "compared",
)
"""Events that this module puts into words."""


def told(event: RunEvent) -> str:
    """One line for people; empty for what only ``--json`` shows."""
    facts = event.facts
    who = short(str(facts.get("provider", "")), 16)
    match event.event:
        case "quote":
            return f"{who} quotes at most {_amount(facts.get('price'))}"
        case "auction":
            return f"auction: {facts.get('sealed')} sealed a quote, {facts.get('revealed')} revealed it in time"
        case "replica_agreed":
            return f"replica {facts.get('replica')}: {who} does it for at most {_amount(facts.get('price_ceiling'))}"
        case "replica_failed":
            return f"replica {facts.get('replica')}: {who} fell out ({facts.get('fault')}): {facts.get('reason')}"
        case "replica_finished":
            job = short(str(facts.get("job")), 16).rstrip("…")
            paid = _amount(facts.get("amount"))
            return f"replica {facts.get('replica')}: {who} is paid {paid}; proof: mercat job receipt {job}"
        case "replica_compared":
            return f"replica {facts.get('replica')}: {who} {_difference(facts)}"
        case "compared":
            return f"{facts.get('agreeing')} of {facts.get('replicas')} outputs agree, byte for byte"
        case _:
            return ""


def _difference(facts: dict[str, Fact]) -> str:
    place = facts.get("differs_at")
    if facts.get("agrees"):
        return "agrees"
    return "is compared with, for want of a majority" if place is None else f"DIFFERS from byte {place} on"


def _amount(fact: Fact) -> str:
    return credits_text(fact) if isinstance(fact, int) else "an unknown amount"
