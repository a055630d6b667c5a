"""Rounds of kills under load, each with an audit.

Law: which process dies, and how long after the last one, comes from one seeded dice; what the processes do in that
moment is the machine's. So a seed repeats the input, not the run.
"""

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.kill.files_audit import audit_files
from tests.kill.jobs import Jobs
from tests.kill.jobs_audit import audit_jobs, wait_settled
from tests.kill.market import Market, make_market
from tests.network.audit import Chain, check_supply, wait_level
from tests.network.payments import Answer, Book, Load, Payer

PACES_SECONDS = (0.15, 0.5, 1.2)
"""Mean times between kills; a start takes about half a second of one core. At the first pace most processes die before
they serve, at the last the ledger goes on most of the time."""
FILES_EVERY = 3
"""Rounds from one power cut, with an audit of all files, to the next; the files are audited at the end in any case."""
QUORUM = 3


@dataclass(slots=True)
class Figures:
    """What a run came to."""

    points: int = 0
    while_starting: int = 0
    power_cuts: int = 0
    slowest_start_seconds: float = 0.0
    guard_positions: int = 0
    lives: dict[str, int] = field(default_factory=dict)
    payments: dict[Answer, int] = field(default_factory=dict)
    height: int = 0
    views_later: int = 0
    jobs: int = 0
    jobs_done: int = 0
    jobs_cut_short_and_charged: int = 0
    charged: int = 0
    set_off: int = 0


@dataclass(slots=True)
class Run:
    """One market, its loads, and what was found so far."""

    market: Market
    dice: random.Random
    tell: Callable[[str], None]
    book: Book = field(default_factory=Book)
    chain: Chain = field(default_factory=lambda: Chain(QUORUM))
    figures: Figures = field(default_factory=Figures)
    jobs: Jobs = field(init=False)

    def __post_init__(self) -> None:
        self.jobs = Jobs(self.market)

    def round(self, points: int, pace_seconds: float) -> None:
        """So many kills under load, then everybody up, and the audit of what running nodes tell."""
        payers: list[Payer] = [*self.market.nodes]
        with Load(payers, self.book), self.jobs:
            for _ in range(points):
                time.sleep(self.dice.expovariate(1 / pace_seconds))  # the kill's moment is the input of this test
                self._kill_one()
            self._start()
        self.audit()

    def _kill_one(self) -> None:
        node = self.dice.choice(self.market.nodes)
        control = Path(node.record.control)
        self.figures.while_starting += not control.exists() or not node.serves()
        node.end(signal.SIGKILL)
        node.start()
        self.figures.points += 1

    def _start(self) -> None:
        seconds = self.market.start()
        self.figures.slowest_start_seconds = max(self.figures.slowest_start_seconds, seconds)

    def audit(self) -> None:
        """Ask all running nodes. No load may run."""
        wait_settled(self.market)
        wait_level(self.market.clients, 60.0)
        self.chain.extend(self.market.clients)
        self.chain.check_payments(self.book.payments)
        check_supply(self.market.clients)
        found = audit_jobs(self.market, self.jobs.runs)
        figures = self.figures
        figures.jobs, figures.jobs_done, figures.charged = found.jobs, found.done, found.charged
        figures.jobs_cut_short_and_charged, figures.set_off = found.cut_short_charged, found.set_off
        figures.height, figures.views_later = self.chain.height, self.chain.views_later
        figures.lives = {node.name: node.lives for node in self.market.nodes}
        answers = [payment.answer for payment in self.book.payments]
        figures.payments = {answer: answers.count(answer) for answer in Answer}

    def cut_power(self) -> None:
        """Kill all at once, under load, and audit the files."""
        payers: list[Payer] = [*self.market.nodes]
        with Load(payers, self.book), self.jobs:
            time.sleep(self.dice.uniform(0.5, 1.5))  # as above
            self.market.end(signal.SIGKILL)
        self.figures.points += len(self.market.nodes)
        self.figures.power_cuts += 1
        self.figures.guard_positions += audit_files(self.market).guard_positions
        self._start()
        self.audit()


def kill_at_points(
    folder: Path, model_store: Path, points: int, points_per_round: int, seed: int, tell: Callable[[str], None]
) -> Figures:
    """Kill at least so many times. Raises ``AssertionError`` at the first thing that does not hold."""
    market = make_market(folder, model_store)
    run = Run(market, random.Random(seed), tell)
    try:
        market.start()
        rounds = 0
        while run.figures.points < points:
            begun = time.monotonic()
            pace = PACES_SECONDS[rounds % len(PACES_SECONDS)]
            run.round(min(points_per_round, points - run.figures.points), pace)
            rounds += 1
            if rounds % FILES_EVERY == 0:
                run.cut_power()
            figures = run.figures
            tell(
                f"round {rounds}: {figures.points} points, height {figures.height}, "
                f"{figures.payments[Answer.DECIDED]} payments decided, {figures.jobs_done} jobs done; "
                f"{time.monotonic() - begun:.1f} s"
            )
        market.end(signal.SIGTERM)
        run.figures.guard_positions += audit_files(market).guard_positions
    finally:
        market.abandon()
    return run.figures
