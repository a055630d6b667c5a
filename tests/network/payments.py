"""A load of payments whose outcomes are written down, to be compared with the blocks later.

Law: no payer sends the same amount twice, so a payment is known by its payer and its amount even if nobody heard the
answer. An answer is one of three: decided, refused, or unknown (the node was killed, or the time was over).
"""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from types import TracebackType
from typing import Protocol

from node.cli.client import NodeClient
from node.cli.failures import CommandFailed

AMOUNT_FIRST = 1_000
ANSWER_MS = 20_000
PAUSE_SECONDS = 0.05
UNREACHABLE_PAUSE_SECONDS = 0.25


class Answer(Enum):
    """What the payer's node said."""

    UNKNOWN = auto()
    DECIDED = auto()
    REFUSED = auto()


@dataclass(slots=True)
class Payment:
    """One wish and what came of it."""

    payer: str
    amount: int
    answer: Answer = Answer.UNKNOWN
    transaction: str = ""
    height: int = 0
    seconds: float = 0.0
    reason: str = ""


class Payer(Protocol):
    """A node with money."""

    @property
    def account(self) -> str: ...
    @property
    def client(self) -> NodeClient: ...


@dataclass(slots=True)
class Book:
    """All payments of a run, from any thread."""

    payments: list[Payment] = field(default_factory=list)
    _amounts: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, payer: str) -> Payment:
        """A new payment of an amount that its payer has never sent."""
        with self._lock:
            amount = self._amounts.get(payer, AMOUNT_FIRST)
            self._amounts[payer] = amount + 1
            payment = Payment(payer, amount)
            self.payments.append(payment)
        return payment

    def pay(self, payer: Payer, recipient: str, answer_ms: int = ANSWER_MS) -> Payment:
        """Send and wait for the answer."""
        payment = self.begin(payer.account)
        begun = time.monotonic()
        try:
            view = payer.client.send(recipient, payment.amount, answer_ms)
        except CommandFailed as error:
            payment.reason = f"{error.code}: {error.message}"
            if error.code == "transaction_refused":
                payment.answer = Answer.REFUSED
        else:
            payment.answer, payment.transaction, payment.height = Answer.DECIDED, view.transaction, view.height
        payment.seconds = time.monotonic() - begun
        return payment

    def decided(self) -> list[Payment]:
        """Those that were acknowledged."""
        return [payment for payment in list(self.payments) if payment.answer is Answer.DECIDED]


class Load:
    """Every payer pays the next one, again and again, from enter to exit."""

    def __init__(self, payers: list[Payer], book: Book, pause_seconds: float = PAUSE_SECONDS) -> None:
        self._book = book
        self._pause_seconds = pause_seconds
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._keep_paying, args=(payer, payers[(place + 1) % len(payers)].account))
            for place, payer in enumerate(payers)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _keep_paying(self, payer: Payer, recipient: str) -> None:
        while not self._stop.is_set():
            payment = self._book.pay(payer, recipient)
            unreachable = payment.answer is Answer.UNKNOWN
            self._stop.wait(UNREACHABLE_PAUSE_SECONDS if unreachable else self._pause_seconds)


def at_once(actions: list[Callable[[], None]]) -> None:
    """Run all at the same time; the first error is raised once all have ended."""
    errors: list[BaseException] = []

    def run(action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    with contextlib.ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
    if errors:
        raise errors[0]
