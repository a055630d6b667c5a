"""``mercat why``: what happened to a job, who said so, who caused it and what it cost, in lines for people.

Law: no line is left out for people but chunks that came one after the other, which share one; ``--json`` has every
signed statement. What strangers wrote never steers the terminal.
"""

import shutil
import sys
import textwrap
from collections.abc import Iterator

import click

from node.cli.jobs import job_id, time_text
from node.cli.options import Session, with_node
from node.cli.output import credits_text, printable, short, styled
from node.runtime.timeline_views import AttemptView, LineView, WhyView
from protocol.primitives.units import format_credits

WIDTH_MIN = 72
_TELLERS = {("buyer",): "buyer", ("provider",): "provider", ("buyer", "provider"): "both", ("ledger",): "ledger"}
_BEFORE_WHAT = 35
"""Columns before what happened, and two for what goes on there in the next line."""

_BOLD, _DIM, _RED, _PLAIN = "\033[1m", "\033[2m", "\033[31m", "\033[0m"


@click.command()
@click.argument("job")
@with_node
def why(session: Session, job: str) -> None:
    """What happened to JOB: the timeline of both sides and the ledger, with who caused what and what it cost.

    The other side is asked now and signs its answer; where the two sides differ, both are shown.
    """
    view = session.client.why(job_id(session.client, job))
    width = max(WIDTH_MIN, shutil.get_terminal_size((120, 24)).columns)
    text = "\n".join(why_lines(view, width, styled(sys.stdout.isatty())))
    session.output.show(view, text, (attempt.job or view.request for attempt in view.attempts))


def why_lines(view: WhyView, width: int, color: bool) -> Iterator[str]:
    """The text for people; the timeline is no wider than ``width``."""
    job = next((attempt.job for attempt in reversed(view.attempts) if attempt.job), view.request)
    began = next((line.at for line in view.lines if view.side in line.tellers), 0)  # by this node's word alone
    head = f"job {short(job, 16)}  {view.model}  {view.state}  paid {credits_text(view.paid)}  {time_text(began)}"
    yield _style(printable(head), _BOLD, color)
    if view.reason:
        yield printable(f"because: {view.reason}")
    if len(view.attempts) > 1 or view.state != "done":
        yield from (_attempt_text(attempt) for attempt in view.attempts)
    yield ""
    yield from _table(view, width, began, color)
    yield ""
    for attempt in view.attempts:
        for contradiction in attempt.contradictions:
            yield _style(printable(f"contradiction: {_of(attempt, view)}{contradiction}"), _RED, color)
    yield from _tellers(view)


def _attempt_text(attempt: AttemptView) -> str:
    if not attempt.provider:
        return printable(f"no agreement: {attempt.reason or attempt.state}")
    blame = f" ({attempt.fault}'s fault)" if attempt.fault else ""
    because = f": {attempt.reason}" if attempt.reason else ""
    work = f"{attempt.chunks} chunks, {format_credits(attempt.paid)} credits"
    return printable(
        f"attempt {attempt.attempt}  {short(attempt.provider, 16)}  {attempt.state}{blame}{because}  [{work}]"
    )


def _table(view: WhyView, width: int, began: int, color: bool) -> Iterator[str]:
    yield _style(_row("SECONDS", "SAID BY", "PAID", "WHAT"), _BOLD, color)
    paid, several = 0, len(view.attempts) > 1
    for line in view.lines:
        shown = format_credits(line.paid) if line.paid != paid and line.height is None else ""
        paid = line.paid if line.height is None else paid
        said_by, style = _TELLERS.get(line.tellers, "?"), color and line.tellers == ("ledger",)
        first, *others = textwrap.wrap(_what(line, several), max(20, width - _BEFORE_WHAT)) or [""]
        yield _style(_row(_time(line, began), said_by, shown, first), _DIM, style)
        yield from (_style(_row("", "", "", f"  {other}"), _DIM, style) for other in others)


def _row(time: str, said_by: str, paid: str, what: str) -> str:
    return f"{time:<11}  {said_by:<8}  {paid:>8}  {what}"


def _what(line: LineView, several: bool) -> str:
    attempt = f"[{line.attempt}] " if several and line.attempt else ""
    block = f"block {line.height}: " if line.height is not None else ""
    return printable(f"{attempt}{block}{line.what}" + (f": {line.cause}" if line.cause else ""))


def _time(line: LineView, began: int) -> str:
    """Seconds since the job was asked for; a run of chunks has two. What was long before only says so."""
    if line.at < began - 10_000:
        return "earlier"
    first = f"{(line.at - began) / 1000:+.3f}"
    if line.until == line.at or len(first) > 6:
        return first
    return f"{first}–{(line.until - began) / 1000:.1f}"


def _of(attempt: AttemptView, view: WhyView) -> str:
    return f"attempt {attempt.attempt}: " if len(view.attempts) > 1 else ""


def _tellers(view: WhyView) -> Iterator[str]:
    """Who has told all this, and what is missing."""
    other = "provider" if view.side == "buyer" else "buyer"
    yield f"told by: this node ({view.side}, signed), the ledger"
    for attempt in view.attempts:
        if not attempt.provider:
            continue
        account = short(attempt.provider if other == "provider" else view.counterparty, 16)
        if attempt.other == "told":
            yield printable(f"         {other} {account}, its signature holds{_clock(attempt)}")
            continue
        yield printable(f"missing: {_of(attempt, view)}{other} {account}: {attempt.other_missing}")
        if attempt.words:
            yield printable(f"         it has signed: {'; '.join(attempt.words)}")


def _clock(attempt: AttemptView) -> str:
    ahead = attempt.clock_ahead_ms
    if not ahead:
        return ""
    return f"; its clock is {abs(ahead)} ms {'ahead' if ahead > 0 else 'behind'}, times are corrected"


def _style(text: str, style: str, color: bool) -> str:
    return f"{style}{text}{_PLAIN}" if color else text
