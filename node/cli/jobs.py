"""``mercat job``: jobs that this node bought or sold, their timelines and receipts."""

import datetime
import sys
from pathlib import Path

import click

from node.cli.client import NodeClient
from node.cli.failures import CommandFailed, ExitCode
from node.cli.options import Session, timeout_option, with_node
from node.cli.output import credits_text, fields, short, table
from node.runtime.control import JobView
from protocol.primitives.units import format_credits

PREFIX_LENGTH_MIN = 4
PREFIX_LENGTH_NODE = 6

LISTED = 100


def time_text(timestamp_ms: int) -> str:
    """A wall-clock time in this machine's zone."""
    moment = datetime.datetime.fromtimestamp(timestamp_ms / 1000, tz=datetime.UTC).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def resolve_id(wanted: str, known: list[str], what: str) -> str:
    """The one known id that starts with ``wanted``; an unknown one is passed on for the node to judge."""
    if wanted in known or len(wanted) < PREFIX_LENGTH_MIN:
        return wanted
    matches = [identifier for identifier in known if identifier.startswith(wanted.rstrip("…"))]
    if len(matches) > 1:
        raise CommandFailed(f"{len(matches)} {what}s start with {wanted!r}", ExitCode.USAGE, "ambiguous")
    return matches[0] if matches else wanted


def job_id(client: NodeClient, wanted: str) -> str:
    """The job that is meant: the node itself knows prefixes of six digits, shorter ones name one of the latest jobs."""
    if len(wanted.rstrip("…")) >= PREFIX_LENGTH_NODE:
        return wanted.rstrip("…")
    return resolve_id(wanted, [view.job for view in client.jobs()], "job")


@click.group()
def job() -> None:
    """Jobs of this node and their receipts. A unique prefix of a job's id is enough."""


@job.command("list")
@click.option("--limit", type=click.IntRange(min=1, max=100_000), default=LISTED, show_default=True, help="How many.")
@with_node
def list_jobs(session: Session, limit: int) -> None:
    """The latest jobs, newest first, whichever side this node was on."""
    views = sorted(session.client.jobs(limit), key=lambda view: view.created_at, reverse=True)
    rows = [
        (
            short(view.job, 16),
            view.side,
            view.state,
            view.model if len(view.model) < 24 else short(view.model),
            f"{view.input_units}+{view.output_units}",
            format_credits(view.amount),
            str(view.settled_height or "-"),
            time_text(view.created_at),
        )
        for view in views
    ]
    headers = ("JOB", "SIDE", "STATE", "MODEL", "UNITS", "CREDITS", "SETTLED", "CREATED")
    session.output.show(views, table(headers, rows), (view.job for view in views))


def job_text(view: JobView) -> str:
    """One job with its timeline."""
    pairs = [
        ("job", view.job),
        ("side", view.side),
        ("state", view.state if view.reason is None else f"{view.state}: {view.reason}"),
        ("model", view.model),
        *([("model by", view.publisher)] if view.publisher is not None else []),
        ("with", view.counterparty),
        ("units", f"{view.input_units} in, {view.output_units} out"),
        ("amount", credits_text(view.amount)),
        ("settled", f"in block {view.settled_height}" if view.settled_height is not None else "not yet"),
        ("created", time_text(view.created_at)),
    ]
    steps = [(time_text(moment), what, detail) for moment, what, detail in view.timeline]
    return fields(pairs) + ("\n\n" + table(("WHEN", "WHAT", "DETAIL"), steps) if steps else "")


@job.command()
@click.argument("job")
@with_node
def show(session: Session, job: str) -> None:
    """One job with its timeline."""
    view = session.client.job(job_id(session.client, job))
    session.output.show(view, job_text(view), (view.job,))


@job.command()
@click.argument("job")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write it here; default: standard output.")
@click.option("--settle", is_flag=True, help="First wait until the ledger has it.")
@timeout_option(60, "Seconds to wait with --settle.")
@with_node
def receipt(session: Session, job: str, out: Path | None, settle: bool, timeout: float) -> None:
    """The receipt file of a job; with --settle its proof by the ledger is in it."""
    identity = job_id(session.client, job)
    if settle:
        session.output.note(f"settled in block {session.client.settle(identity, round(timeout * 1000)).height}")
    content = session.client.receipt(identity)
    if out is None:
        sys.stdout.buffer.write(content.rstrip(b"\n") + b"\n")
        sys.stdout.buffer.flush()
    else:
        out.write_bytes(content)
        session.output.note(f"receipt file {out}  (check it: mercat verify {out})")


@job.command()
@click.argument("job")
@with_node
def cancel(session: Session, job: str) -> None:
    """Cancel a job and its further charges."""
    view = session.client.cancel(job_id(session.client, job))
    session.output.show(view, job_text(view), (view.job,))
