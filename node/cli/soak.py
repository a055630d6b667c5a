"""``mercat cluster soak``: jobs under random chaos for some minutes, then an audit of everything.

Law: the seed decides the jobs and the faults (not their timing against each other: these are real processes). Faults
hit providers, the buyer and, one at a time, authorities; in the end everything is mended, and only then looked at.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import click
import msgspec
from msgspec.structs import replace

from node.cli.chaos import change_faults, cluster_directory_option, kill_node, mend, pause_node
from node.cli.client import NodeClient
from node.cli.cluster_layout import MISCONDUCTS, ClusterRecord, NodeRecord, Shape, cluster_folder, existing_record
from node.cli.cluster_processes import is_running, stop_processes
from node.cli.cluster_start import bring_up, cluster_lock, record_for, start_missing
from node.cli.failures import CommandFailed, ExitCode
from node.cli.options import with_output
from node.cli.output import Output, Progress, credits_text, table
from node.cli.soak_audit import Audit, JobOutcome, audit
from node.runtime.control import RunEvent, RunRequest

JOB_SECONDS = 90
"""A job's own time limit; its silence is bounded by less."""
OUTPUT_UNITS_MAX = 1_000
"""Providers of a cluster sell a little more than this; it makes four chunks."""
QUIET_SECONDS = (0.5, 3.0)
"""Between two faults."""
FAULT_SECONDS = (1.0, 8.0)


class Fault(msgspec.Struct, frozen=True):
    """One thing that was broken."""

    at_s: float
    node: str
    what: str
    lasted_s: float


class SoakReport(msgspec.Struct, frozen=True):
    """What ``--json`` prints."""

    seed: int
    minutes: float
    jobs: tuple[JobOutcome, ...]
    faults: tuple[Fault, ...]
    audit: Audit


class Workload:
    """Asks for jobs one after the other, several at a time, until told to stop."""

    def __init__(self, control: Path, seed: int, model: str) -> None:
        self._control = control
        self._seed = seed
        self._model = model
        self._lock = threading.Lock()
        self._number = 0
        self.stop = threading.Event()
        self.outcomes: list[JobOutcome] = []

    def run(self) -> None:
        """One stream of jobs; run it in several threads."""
        while not self.stop.is_set():
            with self._lock:
                self._number += 1
                number = self._number
            outcome = self._one(number)
            with self._lock:
                self.outcomes.append(outcome)
            if outcome.outcome in ("lost", "refused"):
                self.stop.wait(0.5)  # the buyer's node, or every provider, is away for a moment

    def _one(self, number: int) -> JobOutcome:
        dice = random.Random(f"{self._seed}/{number}")
        text = "".join(dice.choices("abcdefghijklmnopqrstuvwxyz ", k=dice.randint(1, OUTPUT_UNITS_MAX))).encode()
        request = RunRequest(self._model, "text", text, len(text), timeout_ms=JOB_SECONDS * 1000)
        began, told, output = time.monotonic(), _Told(), bytearray()
        try:
            for event in NodeClient(self._control).run(request, JOB_SECONDS + 10):
                output += event.payload
                told.take(event)
        except CommandFailed as error:
            told.broke(error)
        whole = bytes(output) == text if told.outcome in ("finished", "delivered") else text.startswith(output)
        seconds = round(time.monotonic() - began, 3)
        return JobOutcome(number, told.outcome, told.job, told.reason, told.paid, told.retries, whole, seconds)


class _Told:
    """What a job's stream has said."""

    def __init__(self) -> None:
        self.outcome = "lost"
        self.job = ""
        self.reason = "the stream ended without an end"
        self.paid = 0
        self.retries = 0

    def take(self, event: RunEvent) -> None:
        facts = event.facts
        if event.event in ("agreed", "finished"):
            self.job = str(facts["job"])
        if event.event == "retry":
            self.retries += 1
        if event.event in ("finished", "failed", "cancelled"):
            self.outcome = "delivered" if facts.get("receipt") == "missing" else event.event
            self.reason = str(facts.get("reason") or "")
            self.paid = int(facts.get("paid") or 0)

    def broke(self, error: CommandFailed) -> None:
        if self.outcome == "lost" and error.code != "node_unreachable" and not self.job:
            self.outcome = "refused"
        self.reason = str(error)


class Chaos:
    """Breaks nodes at random and mends each after its time."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self._folder = folder
        self._dice = dice
        self._began = time.monotonic()
        self._broken: dict[str, float] = {}
        self.faults: list[Fault] = []

    def quiet_s(self) -> float:
        """How long to let things go on until the next step."""
        return self._dice.uniform(*QUIET_SECONDS)

    def step(self) -> None:
        """Mend what is due, then perhaps break something else."""
        now = time.monotonic()
        due = tuple(name for name, until in self._broken.items() if until <= now)
        if due:
            mend(self._folder, due)
            for name in due:
                del self._broken[name]
        record = existing_record(self._folder)
        chosen = self._dice.choice(record.nodes)
        if chosen.name in self._broken or not is_running(chosen.process) or self._spared(record, chosen):
            return
        what, break_it = self._dice.choice(list(_breakages(chosen, self._dice)))
        lasts = round(self._dice.uniform(*FAULT_SECONDS), 1)
        with suppress(CommandFailed):  # it may have just ended by itself
            break_it(chosen)
            self._broken[chosen.name] = now + lasts
            self.faults.append(Fault(round(now - self._began, 1), chosen.name, what, lasts))

    def end(self) -> None:
        """Mend all that is broken."""
        if self._broken:
            mend(self._folder, tuple(self._broken))
            self._broken.clear()

    def _spared(self, record: ClusterRecord, chosen: NodeRecord) -> bool:
        """More broken authorities than the ledger tolerates stop it; the buyer is let alone most of the time."""
        if chosen.role == "buyer":
            return self._dice.random() < 0.7
        authorities = [node.name for node in record.nodes if node.role == "authority"]
        broken = sum(name in self._broken for name in authorities)
        return chosen.role == "authority" and broken >= (len(authorities) - 1) // 3


def _breakages(node: NodeRecord, dice: random.Random) -> Iterator[tuple[str, Callable[[NodeRecord], None]]]:
    delay_ms = dice.choice((20, 100, 500))
    misconduct = dice.choice(MISCONDUCTS)
    yield "killed", kill_node
    yield "paused", pause_node
    yield "cut off", lambda hit: change_faults(hit, lambda faults: replace(faults, isolated=True))
    yield f"slow {delay_ms} ms", lambda hit: change_faults(hit, lambda faults: replace(faults, delay_ms=delay_ms))
    if node.role == "provider":
        yield misconduct, lambda hit: change_faults(hit, lambda faults: replace(faults, misconduct=misconduct))


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0.05), default=2, show_default=True, help="How long jobs run.")
@click.option("--seed", type=click.IntRange(min=0), help="Of jobs and faults. Default: a new one, printed.")
@click.option("--streams", type=click.IntRange(1, 64), default=4, show_default=True, help="Jobs at a time.")
@click.option("--providers", type=click.IntRange(1, 16), default=3, show_default=True)
@click.option("--bad-providers", type=click.IntRange(0, 16), default=1, show_default=True, help="That many cheat.")
@click.option("--calm", is_flag=True, help="No faults but those of bad providers.")
@click.option("--keep", is_flag=True, help="Let the cluster run on afterwards. It does if the audit finds something.")
@cluster_directory_option
@with_output
def soak(
    output: Output,
    minutes: float,
    seed: int | None,
    streams: int,
    providers: int,
    bad_providers: int,
    calm: bool,
    keep: bool,
    directory: Path | None,
) -> None:
    """Run jobs under random chaos on a new cluster, then audit: every job explained, every credit accounted for.

    Exit code 1 if anything does not fit; the cluster stays up then, to be looked at.
    """
    folder = cluster_folder(directory.absolute() if directory else cluster_folder(None).with_name("soak"))
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    output.note(f"seed {seed}; cluster in {folder}")
    record = _fresh_cluster(output, folder, Shape(4, providers, bad_providers))
    chaos = Chaos(folder, random.Random(seed))
    workload = Workload(Path(record.buyer.control), seed, "echo")
    try:
        _run(output, workload, None if calm else chaos, streams, minutes * 60)
        mend(folder)
        report = audit(existing_record(folder), tuple(sorted(workload.outcomes, key=lambda found: found.number)))
    except BaseException:
        _stop(folder)
        raise
    whole = SoakReport(seed, minutes, tuple(workload.outcomes), tuple(chaos.faults), report)
    output.show(whole, soak_text(whole), (finding.what for finding in report.findings))
    if report.findings:
        raise CommandFailed(
            f"{len(report.findings)} things do not fit; the cluster in {folder} was left running", code="audit_failed"
        )
    if not keep:
        _stop(folder)


def _fresh_cluster(output: Output, folder: Path, shape: Shape) -> ClusterRecord:
    if (folder / "cluster.json").exists():
        raise CommandFailed(
            f"there is a cluster in {folder} already; remove it with: mercat cluster rm --dir {folder}",
            ExitCode.USAGE,
            "cluster_exists",
        )
    with cluster_lock(folder):
        start = start_missing(folder, record_for(folder, shape, ("echo",), None))
        bring_up(output, start, 120)
        start.release()
        return start.record


def _run(output: Output, workload: Workload, chaos: Chaos | None, streams: int, seconds: float) -> None:
    progress = Progress(enabled=not output.quiet and not output.as_json)
    until = time.monotonic() + seconds
    with ThreadPoolExecutor(streams, thread_name_prefix="soak") as threads:
        running: list[Future[None]] = [threads.submit(workload.run) for _ in range(streams)]
        try:
            while (left := until - time.monotonic()) > 0:
                counts = Counter(outcome.outcome for outcome in workload.outcomes)
                shown = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
                faults = len(chaos.faults) if chaos else 0
                progress.update(f"{left:.0f} s left; {shown or 'no job has ended yet'}; {faults} faults")
                if chaos is not None:
                    chaos.step()
                time.sleep(min(left, chaos.quiet_s() if chaos else QUIET_SECONDS[0]))
        finally:
            workload.stop.set()
            progress.update("waiting for the last jobs to end")
            if chaos is not None:
                chaos.end()  # a node that stands still would keep them waiting until their own ends
        for stream in running:
            stream.result()
    progress.clear()


def _stop(folder: Path) -> None:
    with cluster_lock(folder):
        record = existing_record(folder)
        stop_processes(node.process for node in record.nodes if node.process and is_running(node.process))


def soak_text(report: SoakReport) -> str:
    """The report for people."""
    counts = Counter(outcome.outcome for outcome in report.jobs)
    retries = sum(outcome.retries for outcome in report.jobs)
    # What each provider had against a job is in the JSON; here it would make every line different.
    reasons = Counter(outcome.reason.partition(": mc1")[0] for outcome in report.jobs if outcome.outcome != "finished")
    faults = Counter((fault.node, fault.what.split(" ")[0]) for fault in report.faults)
    slowest = max((job.seconds for job in report.jobs), default=0.0)
    found = report.audit
    lines = [
        f"{len(report.jobs)} jobs: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())),
        f"{retries} times another provider went on; slowest job {slowest:.1f} s",
        f"{len(report.faults)} faults: "
        + (", ".join(f"{node} {what} ×{count}" for (node, what), count in sorted(faults.items())) or "none"),
    ]
    if reasons:
        lines += [
            "",
            table(("TIMES", "WHY A JOB DID NOT FINISH"), [(str(n), why) for why, n in reasons.most_common(12)]),
        ]
    lines += [
        "",
        f"{found.jobs_explained} of {len(report.jobs)} jobs explained, {found.receipts_verified} receipts verified",
        f"{credits_text(found.paid_to_providers)} earned by providers, {credits_text(found.fees)} in the fee pool, "
        f"{credits_text(found.total)} in all, {credits_text(found.by_genesis)} by genesis",
    ]
    lines += [f"DOES NOT FIT  {finding.what}: {finding.detail}" for finding in found.findings]
    return "\n".join(lines) + ("" if found.findings else "\nnothing is missing")
