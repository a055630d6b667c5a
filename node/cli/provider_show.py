"""``mercat provider show``: what is known of somebody who sells or buys, every figure with its origin."""

import re

import click

from node.cli.options import Session, with_node
from node.cli.output import fields, printable, table
from node.runtime.record_bodies import FactView, RecordView, ScoreView
from protocol.primitives.units import format_credits

_ID_DIGITS = 16
_ID = re.compile(r"[0-9a-f]{24,}")
_LEDGER_ROW = re.compile(r"ledger after block \d+, (no )?row [0-9a-f]+…?")
_LEDGER_UNITS = {"ms": "", "ledger ms": "", "ledger ms ago": " ago"}


def value_text(fact: FactView) -> str:
    """A figure with its unit, for people."""
    if isinstance(fact.value, str):
        return printable(fact.value)
    if fact.unit == "base units":
        return f"{format_credits(fact.value)} credits"
    if fact.unit in _LEDGER_UNITS:
        return duration_text(fact.value) + _LEDGER_UNITS[fact.unit]
    return f"{fact.value} {fact.unit.removesuffix('s') if fact.value == 1 else fact.unit}"


def duration_text(milliseconds: int) -> str:
    """A time in the two largest units that it fills: ``3 d 4 h``."""
    left = milliseconds // 1000
    parts: list[str] = []
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, seconds)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def origin_text(fact: FactView) -> str:
    """Where a figure comes from, in short: block and account stand above; ``--json`` gives rows and ids whole."""
    ledger, offer = _LEDGER_ROW.sub("ledger", fact.origin), "its signed offer"
    shortened = offer if ledger.startswith(offer) else ledger
    return printable(_ID.sub(lambda found: f"{found[0][:_ID_DIGITS]}…", shortened))


def score_text(score: ScoreView) -> list[tuple[str, str]]:
    """A score and how it was reckoned, a line for each step."""
    first = f"{score.total} of 1000{' (newcomer)' if score.newcomer else ''}"
    return [(f"score as {score.role}", first), *(("", step) for step in score.explained.split("; "))]


def record_text(view: RecordView) -> str:
    """An account for people."""
    head = fields(
        [
            ("account", view.account),
            ("node", view.node or "unknown: no live offer"),
            ("ledger", f"after block {view.height}, ledger time {duration_text(view.ledger_time_ms)}"),
            *(line for score in view.scores for line in score_text(score)),
        ]
    )
    rows = [(fact.about, fact.name, value_text(fact), origin_text(fact)) for fact in view.facts]
    return f"{head}\n\n{table(('ABOUT', 'FIGURE', 'VALUE', 'FROM'), rows)}"


@click.command()
@click.argument("who", metavar="ID")
@with_node
def show(session: Session, who: str) -> None:
    """What is known of ID, as provider and as buyer: each figure, where it comes from, and the score made of it.

    ID is an account (mc1…) or a node (mcnode1…) or the beginning of one that this node has heard of.
    """
    view = session.client.record(who)
    session.output.show(view, record_text(view), (view.account,))
