"""``mercat batch``: thousands of prompts over many providers, resumable, results in the order of the input.

Law: whatever ends it, the same command goes on where it ended; a line that is done is never paid again, and all of it
together never costs more than ``--max-total``.
"""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import click
import msgspec

from node.cli.batch_input import Defaults, InputFile, existing_file
from node.cli.batch_journal import Journal, Result
from node.cli.batch_run import Batch, Options
from node.cli.failures import CommandFailed, ExitCode
from node.cli.options import CREDITS, Session, timeout_option, with_node
from node.cli.output import Progress, credits_text, note, printable
from protocol.primitives.units import Amount, format_credits

SHOWN_MAX = 20
"""Bad lines and failures listed; the results name all."""

_BAR_MAX = 30


class Summary(msgspec.Struct, frozen=True):
    """What ``--json`` prints. Amounts in base units; ``seconds`` are of this run."""

    lines: int
    done: int
    failed: int
    waiting: int
    bad: tuple[tuple[int, str], ...]
    spent: int
    seconds: float
    out: str | None
    """The results; ``None`` while lines wait."""
    stopped_because: str


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--model", default="", help="For lines that name none.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Results. Default: FILE with .out before its end."
)
@click.option("--lines", is_flag=True, help="FILE is plain text: each line is a prompt.")
@click.option("--max-total", type=CREDITS, help="Ceiling on all lines together, in credits.")
@click.option("--max-price", type=CREDITS, help="Ceiling on each line, in credits.")
@click.option("--concurrency", type=click.IntRange(1, 256), default=16, show_default=True, help="Jobs at once at most.")
@click.option("--system", default="", help="System message for lines that have none.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Output units at most.")
@click.option("--seed", type=click.IntRange(min=0, max=2**63 - 1), default=0, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0, max=10), default=0.0, show_default=True)
@click.option("--stop", multiple=True, help="Stop before this text (repeatable).")
@timeout_option(120, "Seconds for each line.")
@click.option("--provider", default="", metavar="ADDRESS", help="Only this provider's account.")
@click.option("--region", default="", help="Only providers of this region.")
@click.option("--isolation", default="", help="At least this level of isolation, such as strong.")
@click.option(
    "--skip-bad", is_flag=True, help="Leave out lines that can't be read, instead of stopping before any is run."
)
@click.option("--retry-failed", is_flag=True, help="Run the lines again that have failed.")
@with_node
def batch(
    session: Session,
    file: Path,
    model: str,
    out: Path | None,
    lines: bool,
    max_total: Amount | None,
    max_price: Amount | None,
    concurrency: int,
    system: str,
    max_tokens: int,
    seed: int,
    temperature: float,
    stop: tuple[str, ...],
    timeout: float,
    provider: str,
    region: str,
    isolation: str,
    skip_bad: bool,
    retry_failed: bool,
) -> None:
    """Run every line of FILE as a job of its own.

    A line is {"id": …, "prompt": …} or one of an OpenAI batch file. Results go to --out in the order of FILE, one JSON
    line each. Ctrl-C or a kill loses nothing: the same command goes on, and pays no line twice.
    """
    defaults = Defaults(model, system, max_tokens, seed, round(temperature * 1000), stop, lines)
    source = InputFile(existing_file(file), defaults, session.client.models())
    _tell_bad(source, skip_bad)
    if not len(source):
        raise CommandFailed(f"{file} has no line that could be run", ExitCode.USAGE, "usage")
    target = out or file.with_name(f"{file.stem}.out{file.suffix}")
    options = Options(concurrency, int(max_price or 0), int(max_total or 0), timeout, provider, region, isolation)
    partial = target.with_name(target.name + ".partial")
    going_on = retry_failed or partial.exists()  # a kill may have come while published results were taken over
    published = _published(source, target, going_on) if target.exists() else ()
    with Journal.opened(partial, source.digest, defaults, len(source)) as journal:
        for place, result in enumerate(published):
            if journal.untouched(place):
                journal.adopt(result, place)
        if retry_failed:
            session.output.note(f"{journal.retry_failed()} failed lines are run again")
        _run(session, source, journal, options, target)


def _run(session: Session, source: InputFile, journal: Journal, options: Options, target: Path) -> None:
    running = Batch(session.client, source, journal, options)
    began, done_before = time.monotonic(), journal.done + journal.failed
    progress = Progress(enabled=not session.output.quiet and not session.output.as_json)

    def tell() -> None:
        width = shutil.get_terminal_size((80, 24)).columns
        ended = journal.done + journal.failed - done_before
        progress.update(progress_text(journal, running.running, ended, time.monotonic() - began, options, width))

    interrupted = False
    try:
        with _interruptible():
            running.run(tell)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        progress.clear()
    seconds = time.monotonic() - began
    failures = tuple(islice(journal.failures(), SHOWN_MAX))
    complete = not journal.waiting
    if complete:
        journal.publish(target)
        journal.remove()
    summary = Summary(
        len(journal),
        journal.done,
        journal.failed,
        journal.waiting,
        tuple(source.bad),
        journal.spent,
        round(seconds, 3),
        str(target) if complete else None,
        running.stopped_because,
    )
    session.output.show(summary, "")
    if not session.output.as_json:
        _tell_end(session, summary, failures, journal.path)
    _end(session, summary, interrupted, running)


def progress_text(journal: Journal, running: int, ended: int, seconds: float, options: Options, width: int) -> str:
    """The line on the terminal, no wider than it."""
    count, settled = len(journal), journal.done + journal.failed
    rate = ended / seconds if seconds > 0 else 0.0
    spent = format_credits(journal.spent) + (f" of {format_credits(options.total_max)}" if options.total_max else "")
    parts = [f"{settled}/{count}", f"{running} running"]
    parts += [f"{journal.failed} failed"] if journal.failed else []
    parts += [f"{rate:.1f}/s", f"{spent} credits"]
    parts += [f"{_duration((count - settled) / rate)} left"] if rate > 0 and settled < count else []
    text = "  ".join(parts)
    room = min(_BAR_MAX, width - len(text) - 5)
    if room >= 5:
        filled = room * settled // count
        text = f"[{'#' * filled}{'.' * (room - filled)}] {text}"
    return text[: width - 1]


def _duration(seconds: float) -> str:
    whole = int(seconds) + 1
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _tell_bad(source: InputFile, skip_bad: bool) -> None:
    """Lines that can't be read are named before anything is spent. Raises ``CommandFailed`` unless they may be left."""
    if not source.bad:
        return
    listed = [f"line {number}: {reason}" for number, reason in source.bad[:SHOWN_MAX]]
    if len(source.bad) > SHOWN_MAX:
        listed.append(f"and {len(source.bad) - SHOWN_MAX} more")
    text = printable("\n".join(listed), keep="\n")
    if not skip_bad:
        count = len(source.bad)
        problem = f"{count} line{'s' * (count > 1)} of {source.path} can't be run; nothing was started"
        raise CommandFailed(f"{problem} (--skip-bad leaves them out)\n{text}", ExitCode.USAGE, "bad_lines")
    note(text)


def _published(source: InputFile, target: Path, going_on: bool) -> tuple[Result, ...]:
    """Results of a batch that has ended, to go on from. Raises ``CommandFailed`` if that is not wanted or can't be."""
    if not going_on:
        raise CommandFailed(
            f"{target} is there: this batch has ended. --retry-failed runs its failed lines again; for a new batch "
            "remove it or name another --out",
            ExitCode.USAGE,
            "ended",
        )
    results = []
    with target.open("rb") as file:
        for raw in file:
            try:
                results.append(msgspec.json.decode(raw, type=Result))
            except msgspec.DecodeError:
                raise CommandFailed(f"{target} does not hold a batch's results", ExitCode.USAGE, "usage") from None
    same = len(results) == len(source) and all(
        source.task(place).identity == result.id for place, result in enumerate(results)
    )
    if not same:
        raise CommandFailed(f"{target} holds the results of another input", ExitCode.USAGE, "other_batch")
    return tuple(results)


def _tell_end(session: Session, summary: Summary, failures: tuple[Result, ...], journal: Path) -> None:
    say = session.output.note
    rate = f" in {summary.seconds:.1f} s" if summary.seconds >= 0.1 else ""
    say(f"{summary.done} of {summary.lines} lines done{rate}, paid {credits_text(summary.spent)}")
    for result in failures:
        assert result.error is not None
        say(printable(f"  line {result.line} ({result.id}) failed: {result.error.reason} [{result.error.fault}]"))
    if summary.failed > len(failures):
        say(f"  and {summary.failed - len(failures)} more failed")
    if summary.out is not None:
        say(f"results: {summary.out}")
    else:
        say(f"{summary.waiting} lines are left; the same command goes on with them (kept in {journal})")


def _end(session: Session, summary: Summary, interrupted: bool, running: Batch) -> None:
    """The exit code. Raises ``CommandFailed`` for all but a batch whose every line is done."""
    if interrupted:
        if running.running:  # threads that still wait for a node that does not answer
            os._exit(ExitCode.INTERRUPTED)
        raise CommandFailed("interrupted; running jobs are cancelled", ExitCode.INTERRUPTED, "interrupted")
    if summary.waiting:
        raise CommandFailed(f"stopped: {summary.stopped_because}", ExitCode.KEYS_OR_FUNDS, "stopped")
    if summary.failed:
        lines = f"{summary.failed} line{'s' * (summary.failed > 1)}"
        raise CommandFailed(f"{lines} failed; --retry-failed runs them again", ExitCode.JOB_FAILED, "lines_failed")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """A closed terminal and a polite kill end a batch like Ctrl-C."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
